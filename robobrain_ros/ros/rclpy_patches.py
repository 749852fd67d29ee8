# SPDX-License-Identifier: Apache-2.0
"""Everything that depends on rclpy's internals, and a switch to run without it.

The patches serve one purpose: rclpy's EventsExecutor, which can't run coroutines. Without them a
node spins on a SingleThreadedExecutor, and services and goals are plain rclpy coroutines. That is
so with ROBOBRAIN_RCLPY_PATCHES=0 in the environment, and where rclpy lacks one of the internals.

Gains below: medians of the overhead of a request (bench/node.py: round trip less engine and
lifting) at 640x480 and 30 Hz, of 4 to 9 turns by turns, on two cores that other programs kept busy.
All patches: 5.0 ms instead of 7.3 ms; an idle node takes 5.5 % of a core instead of 9.5 %.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import Future
from typing import Any

from rclpy.action import ActionServer
from rclpy.action.server import ServerGoalHandle
from rclpy.executors import Executor, SingleThreadedExecutor
from rclpy.service import Service

try:
    from rclpy.experimental import EventsExecutor
except ImportError:  # rclpy before 2025
    EventsExecutor = None

SWITCH = "ROBOBRAIN_RCLPY_PATCHES"
"""Environment variable: 0 = run without patches."""

TRIED_WITH = ("7.1.",)
"""Prefixes of the rclpy versions that the patches were tried with (ROS 2 Jazzy)."""

CallSoon = Callable[..., None]
Serve = Callable[[Any, Any, Callable[[Any], None]], Awaitable[Any]]

_SIGNATURES = (
    (Service, "send_response", ["self", "response", "header"]),
    (ActionServer, "notify_execute", ["self", "goal_handle", "execute_callback"]),
    (ActionServer, "_execute_goal", ["self", "execute_callback", "goal_handle"]),
)


def in_use() -> bool:
    """Whether the patches are in use."""
    return os.environ.get(SWITCH, "1") != "0" and not missing_internals()


def missing_internals() -> list[str]:
    """Return what the patches rely on and this rclpy doesn't have, as clauses."""
    missing = ["there is no rclpy.experimental.EventsExecutor"] if EventsExecutor is None else []
    for owner, name, expected in _SIGNATURES:
        method = getattr(owner, name, None)
        found = None if method is None else list(inspect.signature(method).parameters)
        if found != expected:
            missing.append(f"{owner.__name__}.{name} takes {found} instead of {expected}")
    return missing


def create_executor() -> Executor:
    """Create an EventsExecutor, or a SingleThreadedExecutor without the patches.

    Gain: 5.0 ms instead of 5.7 ms, and a third of the CPU of an idle node. With one for the cameras
    only, beside a SingleThreadedExecutor, it was 7.3 ms.
    """
    return EventsExecutor() if in_use() else SingleThreadedExecutor()


def run_until_blocked(coroutine: Coroutine[Future, None, Any], call_soon: CallSoon) -> None:
    """Run a coroutine up to its next wait, and schedule the rest for when that is over.

    In place of rclpy's tasks: the EventsExecutor resumes a waiting one all the time, which takes
    all of a core. Gain: the EventsExecutor's.
    """
    try:
        awaited = coroutine.send(None)
    except StopIteration:
        return
    awaited.add_done_callback(lambda _: call_soon(run_until_blocked, coroutine, call_soon))


def serve(service: Service, coroutine_function: Serve, call_soon: CallSoon) -> None:
    """Serve a service by a coroutine function, in place of its callback.

    In place of a coroutine as callback, which the EventsExecutor would send as the response. The
    callback returns request and response as a pair; `send_response` then gets that pair with the
    request's header, starts the coroutine, and sends the response when there is one. That may be on
    another thread: the response doesn't wait for the executor. Gain: 1.9 ms (6.3 instead of 8.2).
    """
    send_response = service.send_response

    async def run(request: Any, response: Any, header: Any) -> None:
        sent = False

        def send(answer: Any) -> None:
            nonlocal sent
            if not sent:
                sent = True
                send_response(answer, header)

        send(await coroutine_function(request, response, send))

    service.callback = lambda request, response: (request, response)
    service.send_response = lambda pair, header: run_until_blocked(run(*pair, header), call_soon)


class CoroutineActionServer(ActionServer):
    """Action server that runs goals by `run_until_blocked`, in place of rclpy's tasks.

    Gain: the EventsExecutor's.
    """

    def __init__(self, call_soon: CallSoon, *arguments: Any, **options: Any) -> None:
        self._call_soon = call_soon
        super().__init__(*arguments, **options)

    def notify_execute(self, goal_handle: ServerGoalHandle, execute_callback: Any) -> None:
        """Start a goal that has been accepted."""
        goal = self._execute_goal(execute_callback or self._execute_callback, goal_handle)
        self._call_soon(run_until_blocked, goal, self._call_soon)
