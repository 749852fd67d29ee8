# SPDX-License-Identifier: Apache-2.0
"""Coroutines on an rclpy executor that wait for other threads without holding the executor up."""

from __future__ import annotations

import time
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from typing import Any, TypeVar

from rclpy.action import ActionServer
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.service import Service

from robobrain_ros.ros import rclpy_patches

T = TypeVar("T")

Send = Callable[[Any], None]
"""Takes the response of a service as soon as it is known; for any thread, only the first counts."""

Serve = Callable[[Any, Any, Send], Awaitable[Any]]
"""A coroutine function of request, response and `Send`; its return value is the response unless one
has been sent. It must not raise."""


class EventLoop:
    """asyncio's vocabulary for coroutines on `executor`, which spins `node`.

    Coroutines wait by `wait_for` and `poll_until` only, and never block the executor. They must not
    raise: rclpy's executor would end.
    """

    def __init__(self, node: Node, executor: Executor, period_s: float = 0.005) -> None:
        """period_s: of `poll_until`, on a steady timer, because simulated time may stand still."""
        self._node = node
        self._executor = executor
        self._period_s = period_s
        self._group = ReentrantCallbackGroup()
        self._clock = Clock(clock_type=ClockType.STEADY_TIME)
        self._patched = rclpy_patches.in_use()

    def call_soon(self, callback: Callable, *arguments: object) -> None:
        """Call on the executor's thread after the current callback; for any thread."""
        self._executor.create_task(callback, *arguments)

    def spawn(self, coroutine: Coroutine[Future, None, Any]) -> None:
        """Run a coroutine; on the executor's thread."""
        if self._patched:
            rclpy_patches.run_until_blocked(coroutine, self.call_soon)
        else:
            self._executor.create_task(coroutine)

    async def wait_for(self, future: Future[T]) -> T:
        """Return the future's result, or raise its exception (CancelledError if cancelled)."""
        await self._done(future)
        return future.result()

    async def poll_until(self, ready: Callable[[], T | None], timeout_s: float) -> T | None:
        """Return the first value of `ready()` that is not None, or None after the timeout."""
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
                await self._done(ticker.next)
                value = ready()
        finally:
            self._node.destroy_timer(timer)
        return value

    def create_service(self, kind: type, name: str, serve: Serve) -> Service:
        """Create a service of the node that a coroutine serves."""
        service = self._node.create_service(kind, name, _replaced, callback_group=self._group)
        self.serve(service, serve)
        return service

    def serve(self, service: Service, serve: Serve) -> None:
        """Replace the callback of an existing service by a coroutine."""
        if self._patched:
            rclpy_patches.serve(service, serve, self.call_soon)
            return

        async def respond(request: Any, response: Any) -> Any:
            sent: list[Any] = []
            returned = await serve(request, response, sent.append)
            return sent[0] if sent else returned

        service.callback = respond

    def create_action_server(
        self, kind: type, name: str, execute: Callable, **options: Any
    ) -> ActionServer:
        """Create an action server of the node whose goals a coroutine function executes."""
        options = {"callback_group": self._group, **options}
        arguments = (self._node, kind, name, execute)
        if self._patched:
            return rclpy_patches.CoroutineActionServer(self.call_soon, *arguments, **options)
        return ActionServer(*arguments, **options)

    @types.coroutine
    def _done(self, future: Future) -> Generator[Future, None, None]:
        if not self._patched and not future.done():
            # rclpy ignores what a task yields, and resumes it whenever the executor wakes.
            future.add_done_callback(lambda _: self._executor.wake())
        while not future.done():
            yield future


class _Ticker:
    """`next` is done when `fire` is called next."""

    def __init__(self) -> None:
        self.next: Future[None] = Future()

    def fire(self) -> None:
        fired, self.next = self.next, Future()
        fired.set_result(None)


def _replaced(request: Any, response: Any) -> Any:
    raise AssertionError("EventLoop.serve has replaced this callback")
