# SPDX-License-Identifier: Apache-2.0
"""A coroutine goes on when what it waits for is there, and is left alone until then."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError, Future

import pytest
import rclpy

from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.ros.executors import SpinThread


@pytest.fixture
def spun(patched, ros):
    """A loop on a spinning executor, and a list of every task that was given to the executor."""
    node, spinner = rclpy.create_node("looping"), SpinThread("looping", events=True)
    spinner.executor.add_node(node)
    tasks = []

    class Executor:
        wake = spinner.executor.wake

        def create_task(self, *task):
            tasks.append(task)
            spinner.executor.create_task(*task)

    spinner.start()
    yield EventLoop(node, Executor()), tasks
    spinner.stop()
    node.destroy_node()


def run(loop, coroutine):
    """Spawn a coroutine; what it returns or raises is the future's."""
    outcome = Future()

    async def whole():
        try:
            outcome.set_result(await coroutine)
        except CancelledError as error:
            outcome.set_exception(error)

    loop.call_soon(loop.spawn, whole())
    return outcome


def test_a_coroutine_is_resumed_once_for_each_future(spun, patched):
    """rclpy's EventsExecutor resumes its own coroutines all the time, which takes all of a core."""
    loop, tasks = spun
    first, second, begun = Future(), Future(), threading.Event()

    async def both():
        begun.set()
        return await loop.wait_for(first) + await loop.wait_for(second)

    outcome = run(loop, both())
    assert begun.wait(20.0)
    first.set_result(1)
    second.set_result(2)
    assert outcome.result(20.0) == 3
    assert not patched or len(tasks) <= 3  # 2 if `second` was done before it was awaited


def test_a_future_that_is_done_is_not_waited_for(spun, patched):
    loop, tasks = spun
    there = Future()
    there.set_result(5)
    assert run(loop, loop.wait_for(there)).result(20.0) == 5
    assert len(tasks) == (1 if patched else 2)  # rclpy begins a coroutine by a task


def test_a_future_that_is_cancelled_ends_the_wait(spun):
    loop, _ = spun
    job = Future()
    outcome = run(loop, loop.wait_for(job))
    job.cancel()
    with pytest.raises(CancelledError):
        outcome.result(20.0)


def test_polling_ends_with_the_first_value(spun):
    loop, _ = spun
    asked = []

    def ready():
        asked.append(None)
        return "there" if len(asked) == 4 else None

    assert run(loop, loop.poll_until(ready, 60.0)).result(20.0) == "there"
    assert len(asked) == 4


def test_polling_ends_with_none_after_the_timeout(spun):
    loop, _ = spun
    assert run(loop, loop.poll_until(lambda: None, 0.05)).result(20.0) is None
