# SPDX-License-Identifier: Apache-2.0
"""A node's entries in /diagnostics, in diagnostic_updater's format."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import psutil
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from robobrain_ros.engines.base import Memory
from robobrain_ros.ros.camera_health import TopicHealth

PERIOD_S = 1.0


OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR


@dataclass(frozen=True)
class Part:
    """One status of a node in /diagnostics; level: OK, WARN or ERROR."""

    name: str
    level: bytes
    message: str
    values: Mapping[str, str] = field(default_factory=dict)


class Diagnostics:
    """Publishes a node's parts to /diagnostics once per second."""

    def __init__(self, node: Node, diagnose: Callable[[], Iterable[Part]]) -> None:
        self._node = node
        self._diagnose = diagnose
        self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 1)
        # Steady: simulated time may stand still, and then diagnostics should say why.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(PERIOD_S, self._publish, clock=steady)

    def _publish(self) -> None:
        name = self._node.get_fully_qualified_name()
        message = DiagnosticArray(status=statuses(name, self._diagnose()))
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def statuses(node: str, parts: Iterable[Part]) -> list[DiagnosticStatus]:
    """Return the parts as diagnostic_updater would name them; node: fully qualified name."""
    node = node.lstrip("/")
    return [
        DiagnosticStatus(
            level=part.level,
            name=f"{node}: {part.name}",
            message=part.message,
            hardware_id=node,
            values=[KeyValue(key=key, value=value) for key, value in part.values.items()],
        )
        for part in parts
    ]


@dataclass(frozen=True)
class Health:
    """State of the brain node.

    state: lifecycle state. running, waiting: number of requests. memory: None without a model.
    figures: metrics over all requests. failures: errors since the last report. cameras: topics by
    camera while active. max_image_age_s: age from which an image is stale. failure: why the engine
    has stopped for good.
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

    def parts(self) -> list[Part]:
        """Return the statuses of the model, the requests, and each camera."""
        cameras = (
            _camera(name, topics, self.max_image_age_s) for name, topics in self.cameras.items()
        )
        return [_model(self), _requests(self), *cameras]


def _model(health: Health) -> Part:
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
        return Part("model", ERROR, health.failure, values)
    return Part("model", OK, health.state, values)


def _requests(health: Health) -> Part:
    values = {
        "requests being answered": str(health.running),
        "requests waiting": str(health.waiting),
        **health.figures,
    }
    if health.failures:
        return Part("requests", WARN, health.failures[-1], values)
    message = f"{health.running} running, {health.waiting} waiting"
    return Part("requests", OK, message, values)


def _camera(name: str, topics: Sequence[TopicHealth], max_age_s: float) -> Part:
    part = partial(Part, f"camera {name}")
    values = {
        f"age of {one.topic} (s)": "none" if one.age_s is None else f"{one.age_s:.3f}"
        for one in topics
    }
    for one in topics:
        if one.trouble:
            return part(ERROR, one.trouble, values)
    color = topics[0]
    if color.age_s is not None and abs(color.age_s) > max_age_s:
        when = f"{abs(color.age_s):.2f} s {'old' if color.age_s > 0 else 'in the future'}"
        message = f"The newest image on {color.topic} is {when}: check the camera and its clock."
        return part(WARN, message, values)
    return part(OK, "images arrive", values)


def _megabytes(nbytes: int) -> str:
    return f"{nbytes / 1e6:.0f}"
