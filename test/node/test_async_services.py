# SPDX-License-Identifier: Apache-2.0
"""A response leaves when it is there, from whichever thread has it, and once."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial

import pytest
import rclpy
from std_srvs.srv import Trigger
from support.polling import until

from robobrain_ros.client import BrainClient
from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.ros.executors import SpinThread


@pytest.fixture
def served(patched, ros):
    """Serve `deferred` by a coroutine function of the loop, request, response and `send`."""
    node, spinner = rclpy.create_node("deferring"), SpinThread("deferring", events=True)
    loop = EventLoop(node, spinner.executor)

    def serve(coroutine) -> None:
        loop.create_service(Trigger, "deferred", partial(coroutine, loop))
        spinner.executor.add_node(node)
        spinner.start()

    yield serve
    spinner.stop()
    node.destroy_node()


def call() -> str:
    with BrainClient(name="deferred_client") as client:
        return client.call(Trigger, "deferred", Trigger.Request(), 20.0).message


def test_what_the_coroutine_returns_is_the_response(served):
    async def serve(loop, request, response, send):
        response.message = "returned"
        return response

    served(serve)
    assert call() == "returned"


def test_a_response_sent_by_another_thread_does_not_wait_for_the_coroutine(served, patched):
    waits_for_ever = Future()
    came_back = threading.Event()

    async def serve(loop, request, response, send):
        threading.Thread(target=send, args=(Trigger.Response(message="sent"),)).start()
        await loop.wait_for(waits_for_ever)
        came_back.set()
        return response

    served(serve)
    if patched:
        assert call() == "sent" and not came_back.is_set()
        waits_for_ever.set_result(None)
    else:  # it does on plain rclpy, but it is the response that was sent
        threading.Timer(0.2, waits_for_ever.set_result, (None,)).start()
        assert call() == "sent"
    assert came_back.wait(20.0)


def test_only_the_first_response_is_sent(served):
    sent = []

    async def serve(loop, request, response, send):
        send(Trigger.Response(message="first"))
        send(Trigger.Response(message="second"))
        sent.append("both")
        return Trigger.Response(message="third")

    served(serve)
    assert [call(), call()] == ["first", "first"] and len(sent) == 2


def test_requests_are_served_while_another_waits(served):
    answer_the_first = Future()
    asked = []

    async def serve(loop, request, response, send):
        asked.append(request)
        if len(asked) == 1:
            await loop.wait_for(answer_the_first)
        response.message = f"request {len(asked)}"
        return response

    served(serve)
    first: list[str] = []
    asking = threading.Thread(target=lambda: first.append(call()))
    asking.start()
    until(lambda: asked)
    assert call() == "request 2" and not first
    answer_the_first.set_result(None)
    asking.join(20.0)
    assert first == ["request 2"]
