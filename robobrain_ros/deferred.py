# SPDX-License-Identifier: Apache-2.0
"""A service whose response is sent when it is there, from whichever thread has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.node import Node

from robobrain_ros.waiting import Waiting

Send = Callable[[Any], None]
"""Sends the response, at its first call only; for any thread."""


class DeferredService:
    """Serves `name` by the coroutine function `serve(request, response, send)`.

    rclpy sends what a callback returns, and for that it must first come round to resume it: with
    an answer that another thread has, a millisecond at times. Here that thread calls `send`. What
    `serve` returns is sent if it never has been; it must not raise.
    """

    def __init__(
        self,
        node: Node,
        waiting: Waiting,
        kind: type,
        name: str,
        serve: Callable[[Any, Any, Send], Awaitable[Any]],
    ) -> None:
        self._waiting = waiting
        self._serve = serve
        service = node.create_service(kind, name, lambda request, response: (request, response))
        # Only `send_response` is told whose request it was: what rclpy's executor gives it is the
        # pair above, and the response follows.
        self._send_response = service.send_response
        service.send_response = self._begin

    def _begin(self, taken: tuple[Any, Any], header: Any) -> None:
        self._waiting.later(self._run, *taken, header)

    async def _run(self, request: Any, response: Any, header: Any) -> None:
        sent = False

        def send(answer: Any) -> None:
            nonlocal sent
            if not sent:
                sent = True
                self._send_response(answer, header)

        send(await self._serve(request, response, send))
