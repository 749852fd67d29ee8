# SPDX-License-Identifier: Apache-2.0
"""How a coroutine on an rclpy executor waits for other threads without holding the executor up."""

from __future__ import annotations

import concurrent.futures
import time
from collections.abc import Callable
from typing import TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.task import Future

T = TypeVar("T")


class Waiting:
    """Waits for coroutines that run on `executor`, which spins `node`.

    rclpy resumes a coroutine only when its executor wakes up, and completing a Future on another
    thread wakes nobody: so completions are handed to the executor as tasks, and polls run on a
    steady timer (simulated time may stand still).
    """

    def __init__(self, node: Node, executor: Executor, period_s: float = 0.005) -> None:
        self._node = node
        self._executor = executor
        self._period_s = period_s
        self._group = ReentrantCallbackGroup()
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)

    async def result(self, job: concurrent.futures.Future[T]) -> T:
        """Return the job's result, or raise its exception (CancelledError when it was cancelled)."""
        done = Future()
        job.add_done_callback(lambda _: self._executor.create_task(done.set_result, None))
        await done
        return job.result()

    async def until(self, ready: Callable[[], T | None], timeout_s: float) -> T | None:
        """Return the first value of `ready()` that isn't None, or None after `timeout_s` seconds."""
        value = ready()
        deadline = time.monotonic() + timeout_s
        while value is None and time.monotonic() < deadline:
            await self._tick()
            value = ready()
        return value

    async def _tick(self) -> None:
        tick = Future()
        timer = self._node.create_timer(
            self._period_s,
            lambda: tick.set_result(None),
            callback_group=self._group,
            clock=self._clock,
        )
        try:
            await tick
        finally:
            self._node.destroy_timer(timer)
