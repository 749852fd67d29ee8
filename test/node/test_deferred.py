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
from robobrain_ros.ros.deferred_services import create_deferred_service
from robobrain_ros.ros.event_loop import Waiting
from robobrain_ros.ros.executors import SpinThread


@pytest.fixture(params=[False, True])
def plain(request) -> bool:
    """Whether on rclpy's EventsExecutor."""
    return request.param


@pytest.fixture
def served(ros, plain):
    """Serve `deferred` by a coroutine function; `call()` gives what a client gets for it.

    It is given how to wait, as well.
    """
    node, spinner = rclpy.create_node("deferring"), SpinThread("deferring", plain=plain)
    waiting = Waiting(node, spinner.executor)

    def serve(coroutine) -> None:
        create_deferred_service(node, waiting, Trigger, "deferred", partial(coroutine, waiting))
        spinner.executor.add_node(node)
        spinner.start()

    yield serve
    spinner.stop()
    node.destroy_node()


def call() -> str:
    with BrainClient(name="deferred_client") as client:
        return client.call(Trigger, "deferred", Trigger.Request(), 20.0).message


def test_what_the_coroutine_returns_is_the_response(served):
    async def serve(waiting, request, response, send):
        response.message = "returned"
        return response

    served(serve)
    assert call() == "returned"


def test_a_response_sent_by_another_thread_does_not_wait_for_the_coroutine(served):
    waits_for_ever = Future()
    came_back = threading.Event()

    async def serve(waiting, request, response, send):
        threading.Thread(target=send, args=(Trigger.Response(message="sent"),)).start()
        await waiting.result(waits_for_ever)
        came_back.set()
        return response

    served(serve)
    assert call() == "sent" and not came_back.is_set()
    waits_for_ever.set_result(None)
    assert came_back.wait(20.0)


def test_only_the_first_response_is_sent(served):
    sent = []

    async def serve(waiting, request, response, send):
        send(Trigger.Response(message="first"))
        send(Trigger.Response(message="second"))
        sent.append("both")
        return Trigger.Response(message="third")

    served(serve)
    assert [call(), call()] == ["first", "first"] and len(sent) == 2


def test_requests_are_served_while_another_waits(served):
    answer_the_first = Future()
    asked = []

    async def serve(waiting, request, response, send):
        asked.append(request)
        if len(asked) == 1:
            await waiting.result(answer_the_first)
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
