# SPDX-License-Identifier: Apache-2.0
"""How a coroutine on an rclpy executor waits for other threads without holding the executor up."""

from __future__ import annotations

import time
import types
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import Executor
from rclpy.node import Node

T = TypeVar("T")


class Waiting:
    """Runs coroutines on `executor`, which spins `node`; they wait by `result` and `until`.

    To the executor they are plain tasks, one from each wait to the next: rclpy asks a coroutine of
    its own whether it can go on whenever it wakes for something else, and its EventsExecutor all
    the time. Polls run on a steady timer (simulated time may stand still).
    """

    def __init__(self, node: Node, executor: Executor, period_s: float = 0.005) -> None:
        self._node = node
        self._executor = executor
        self._period_s = period_s
        self._group = ReentrantCallbackGroup()
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)

    def later(self, call: Callable, *arguments: object) -> None:
        """Call on the executor when what is being done has ended; for any thread."""
        self._executor.create_task(call, *arguments)

    def start(self, coroutine: Coroutine[Future, None, Any]) -> None:
        """Run a coroutine up to its first wait, and the rest in time; on the executor's thread.

        It must not raise: that would end the executor.
        """
        try:
            awaited = coroutine.send(None)
        except StopIteration:
            return
        awaited.add_done_callback(lambda _: self.later(self.start, coroutine))

    async def result(self, job: Future[T]) -> T:
        """Return the job's result, or raise its exception (CancelledError if cancelled)."""
        await _done(job)
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
                await _done(ticker.next)
                value = ready()
        finally:
            self._node.destroy_timer(timer)
        return value


@types.coroutine
def _done(future: Future) -> Generator[Future, None, None]:
    """Tell `Waiting.start` what is waited for."""
    if not future.done():
        yield future


class _Ticker:
    """`next` is done when `fire` is called next."""

    def __init__(self) -> None:
        self.next: Future[None] = Future()

    def fire(self) -> None:
        fired, self.next = self.next, Future()
        fired.set_result(None)
