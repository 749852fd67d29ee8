# SPDX-License-Identifier: Apache-2.0
"""The node's entry in /diagnostics, once a second."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from robobrain_ros.engines.base import Memory

PERIOD_S = 1.0


@dataclass(frozen=True)
class Health:
    """state: of the lifecycle. running, waiting: requests. memory: None without a model."""

    state: str
    model: str
    running: int = 0
    waiting: int = 0
    memory: Memory | None = None


class Diagnostics:
    """Publishes what `describe` says."""

    def __init__(self, node: Node, describe: Callable[[], Health]) -> None:
        self._node = node
        self._describe = describe
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        # Simulated time may stand still, and whoever looks wants to know why.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(PERIOD_S, self._publish, clock=steady)

    def _publish(self) -> None:
        status = status_of(self._node.get_fully_qualified_name(), self._describe())
        message = DiagnosticArray(status=[status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def status_of(node: str, health: Health) -> DiagnosticStatus:
    """Put a node's health into the form of diagnostic_updater, memory in megabytes."""
    values = {
        "state": health.state,
        "model": health.model,
        "requests being answered": str(health.running),
        "requests waiting": str(health.waiting),
        "host memory used (MB)": _megabytes(psutil.Process().memory_info().rss),
        "host memory free (MB)": _megabytes(psutil.virtual_memory().available),
    }
    if (memory := health.memory) is not None:
        values |= {
            "model weights (MB)": _megabytes(memory.weights),
            "images kept (MB)": _megabytes(memory.images),
            "answers in progress (MB)": _megabytes(memory.answers),
            "model's device free (MB)": _megabytes(memory.free),
        }
    return DiagnosticStatus(
        level=DiagnosticStatus.OK,
        name=f"{node.lstrip('/')}: model",
        message=health.state,
        hardware_id=node.lstrip("/"),
        values=[KeyValue(key=key, value=value) for key, value in values.items()],
    )


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f}"
