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

    def later(self, call: Callable, *arguments: object) -> None:
        """Call on the executor when what is being done has ended."""
        self._executor.create_task(call, *arguments)

    async def result(self, job: concurrent.futures.Future[T]) -> T:
        """Return the job's result, or raise its exception (CancelledError if cancelled)."""
        done = Future()
        job.add_done_callback(lambda _: self._executor.create_task(done.set_result, None))
        await done
        return job.result()

    async def until(self, ready: Callable[[], T | None], timeout_s: float) -> T | None:
        """Return the first value of `ready()` that isn't None, or None in the end."""
        value = ready()
        if value is not None:
            return value
        deadline = time.monotonic() + timeout_s
        ticker = _Ticker()
        timer = self._node.create_timer(
            self._period_s, ticker.fire, callback_group=self._group, clock=self._clock
        )
        try:
            while value is None and time.monotonic() < deadline:
                await ticker.next
                value = ready()
        finally:
            self._node.destroy_timer(timer)
        return value


class _Ticker:
    """`next` is done when `fire` is called next."""

    def __init__(self) -> None:
        self.next = Future()

    def fire(self) -> None:
        fired, self.next = self.next, Future()
        fired.set_result(None)
