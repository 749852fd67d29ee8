# SPDX-License-Identifier: Apache-2.0
"""The node's entries in /diagnostics, once a second, in the form of diagnostic_updater."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from robobrain_ros.engines.base import Memory
from robobrain_ros.ros.camera_health import TopicHealth

PERIOD_S = 1.0


@dataclass(frozen=True)
class Health:
    """How the node is.

    state: of the lifecycle. running, waiting: requests. memory: None without a model. figures: of
    all requests. failures: errors since the last time. cameras: their topics by camera, while the
    node is active. max_image_age_s: older images count as none. failure: why the model answers
    nobody any more.
    """

    state: str
    model: str
    running: int = 0
    waiting: int = 0
    memory: Memory | None = None
    figures: Mapping[str, str] = field(default_factory=dict)
    failures: Sequence[str] = ()
    cameras: Mapping[str, Sequence[TopicHealth]] = field(default_factory=dict)
    max_image_age_s: float = 0.0
    failure: str = ""


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
        message = DiagnosticArray(
            status=statuses(self._node.get_fully_qualified_name(), self._describe())
        )
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def statuses(node: str, health: Health) -> list[DiagnosticStatus]:
    """Put a node's health into statuses: of the model, the requests, and each camera."""
    node = node.lstrip("/")
    parts = [("model", *_model(health)), ("requests", *_requests(health))]
    parts += [
        (f"camera {name}", *_camera(topics, health.max_image_age_s))
        for name, topics in health.cameras.items()
    ]
    return [
        DiagnosticStatus(
            level=level,
            name=f"{node}: {name}",
            message=message,
            hardware_id=node,
            values=[KeyValue(key=key, value=value) for key, value in values.items()],
        )
        for name, level, message, values in parts
    ]


_Part = tuple[bytes, str, dict[str, str]]
"""Level, message and values of a status."""


def _model(health: Health) -> _Part:
    values = {
        "state": health.state,
        "model": health.model,
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
    if health.failure:
        return DiagnosticStatus.ERROR, health.failure, values
    return DiagnosticStatus.OK, health.state, values


def _requests(health: Health) -> _Part:
    values = {
        "requests being answered": str(health.running),
        "requests waiting": str(health.waiting),
        **health.figures,
    }
    if health.failures:
        return DiagnosticStatus.WARN, health.failures[-1], values
    return DiagnosticStatus.OK, f"{health.running} running, {health.waiting} waiting", values


def _camera(topics: Sequence[TopicHealth], max_age_s: float) -> _Part:
    values = {
        f"age of {one.topic} (s)": "none" if one.age_s is None else f"{one.age_s:.3f}"
        for one in topics
    }
    for one in topics:
        if one.trouble:
            return DiagnosticStatus.ERROR, one.trouble, values
    color = topics[0]
    if color.age_s is not None and abs(color.age_s) > max_age_s:
        when = f"{abs(color.age_s):.2f} s {'old' if color.age_s > 0 else 'in the future'}"
        message = f"The newest image on {color.topic} is {when}: check the camera and its clock."
        return DiagnosticStatus.WARN, message, values
    return DiagnosticStatus.OK, "images arrive", values


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f}"
