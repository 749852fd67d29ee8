# SPDX-License-Identifier: Apache-2.0
"""Waiting for what a running node will do or say."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus

from robobrain_ros.ros.executors import spinning

Found = TypeVar("Found")


def until(found: Callable[[], Found], seconds: float = 60.0) -> Found:
    """What `found()` gives, as soon as it gives something."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


@contextmanager
def diagnosed(node: str = "robobrain") -> Iterator[dict[str, list]]:
    """The node's statuses from now on, by the name of their part, each a list of what came."""
    seen: dict[str, list[DiagnosticStatus]] = {}

    def hear(message: DiagnosticArray) -> None:
        for status in message.status:
            owner, _, part = status.name.partition(": ")
            if owner == node:
                seen.setdefault(part, []).append(status)

    with spinning(rclpy.create_node("watching")) as listener:
        listener.create_subscription(DiagnosticArray, "/diagnostics", hear, 10)
        yield seen


def values(status: DiagnosticStatus) -> dict[str, str]:
    """A status' values by their keys."""
    return {pair.key: pair.value for pair in status.values}
