# SPDX-License-Identifier: Apache-2.0
"""A coroutine goes on when what it waits for is there, and is left alone until then."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

import pytest
import rclpy

from robobrain_ros.ros.event_loop import Waiting
from robobrain_ros.ros.executors import SpinThread


@pytest.fixture(params=[False, True])
def spun(request, ros):
    """How to wait on each executor, and a list of every task that was given to it."""
    node, spinner = rclpy.create_node("waiting"), SpinThread("waiting", plain=request.param)
    spinner.executor.add_node(node)
    tasks = []

    class Executor:
        def create_task(self, *task):
            tasks.append(task)
            spinner.executor.create_task(*task)

    spinner.start()
    yield Waiting(node, Executor()), tasks
    spinner.stop()
    node.destroy_node()


def run(waiting, coroutine):
    """Start a coroutine on the executor; what it returns or raises is the future's."""
    outcome = Future()

    async def whole():
        try:
            outcome.set_result(await coroutine)
        except CancelledError as error:
            outcome.set_exception(error)

    waiting.later(waiting.start, whole())
    return outcome


def test_a_coroutine_that_waits_is_asked_once_for_each_thing_it_waits_for(spun):
    """rclpy's EventsExecutor asks its own coroutines all the time, with all of a core."""
    waiting, tasks = spun
    first, second, begun = Future(), Future(), threading.Event()

    async def both():
        begun.set()
        return await waiting.result(first) + await waiting.result(second)

    outcome = run(waiting, both())
    assert begun.wait(20.0)
    first.set_result(1)
    second.set_result(2)
    assert outcome.result(20.0) == 3
    assert len(tasks) <= 3  # two where `second` was there before it was waited for


def test_what_is_there_already_is_not_waited_for(spun):
    waiting, tasks = spun
    there = Future()
    there.set_result(5)
    assert run(waiting, waiting.result(there)).result(20.0) == 5
    assert len(tasks) == 1


def test_a_job_that_is_cancelled_ends_the_wait(spun):
    waiting, _ = spun
    job = Future()
    outcome = run(waiting, waiting.result(job))
    job.cancel()
    with pytest.raises(CancelledError):
        outcome.result(20.0)


def test_until_gives_the_first_value_that_is_there(spun):
    waiting, _ = spun
    asked = []

    def ready():
        asked.append(None)
        return "there" if len(asked) == 4 else None

    assert run(waiting, waiting.until(ready, 60.0)).result(20.0) == "there"
    assert len(asked) == 4


def test_until_gives_none_in_the_end(spun):
    waiting, _ = spun
    assert run(waiting, waiting.until(lambda: None, 0.05)).result(20.0) is None
