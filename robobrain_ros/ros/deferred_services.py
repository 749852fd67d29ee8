# SPDX-License-Identifier: Apache-2.0
"""Services whose response is sent when it is there, from whichever thread has it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from rclpy.node import Node
from rclpy.service import Service

from robobrain_ros.ros.event_loop import Waiting

Send = Callable[[Any], None]
"""Sends the response, at its first call only; for any thread."""

Serve = Callable[[Any, Any, Send], Awaitable[Any]]
"""A coroutine function of request, response and `send`, run by `Waiting`. What it returns is sent
if nothing has been; it must not raise."""


def create_deferred_service(
    node: Node, waiting: Waiting, kind: type, name: str, serve: Serve
) -> None:
    """Create the service `name`.

    rclpy sends what a callback returns, and for that it must first come round to resume it: with
    an answer that another thread has, a millisecond at times. Here that thread calls `send`.
    """
    defer(node.create_service(kind, name, _taken), waiting, serve)


def defer(service: Service, waiting: Waiting, serve: Serve) -> None:
    """Serve by `serve` what rclpy has created, in place of its callback."""
    send_response = service.send_response

    async def run(request: Any, response: Any, header: Any) -> None:
        sent = False

        def send(answer: Any) -> None:
            nonlocal sent
            if not sent:
                sent = True
                send_response(answer, header)

        send(await serve(request, response, send))

    # Only `send_response` is told whose request it was: what rclpy's executor gives it is the
    # pair that the callback returns, and the response follows.
    service.callback = _taken
    service.send_response = lambda taken, header: waiting.start(run(*taken, header))


def _taken(request: Any, response: Any) -> tuple[Any, Any]:
    return request, response
