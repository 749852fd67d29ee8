# SPDX-License-Identifier: Apache-2.0
"""The engine's thread: several at a time, in order, bounded, stoppable, and not to be killed."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest

from robobrain_ros.core.requests import FinishReason, Generation, GenerationRequest
from robobrain_ros.engines.base import (
    EngineBusy,
    EngineOutOfMemory,
    EngineUnavailable,
    LoadError,
    Memory,
)
from robobrain_ros.engines.local.scheduler import EngineWorker, Priority

PATIENCE_S = 20


class TokenEngine:
    """Writes an x a step to each answer, and remembers the threads that touched it.

    While `paused` is set a step waits for a permit of `steps`. `room`: answers that fit in memory.
    """

    family = None
    description = "fake"
    memory_bytes = 0

    def __init__(self, room=100):
        self.threads = {threading.current_thread()}
        self.closed = 0
        self.forgot = threading.Event()
        self.started = []
        self.paused = threading.Event()
        self.steps = threading.Semaphore(0)
        self.fails = None
        self._room = room
        self._answers = {}
        self._names = itertools.count()

    def start(self, request):
        self.threads.add(threading.current_thread())
        if len(self._answers) >= self._room:
            raise EngineOutOfMemory("full")
        name = next(self._names)
        self._answers[name] = [request, 0]
        self.started.append(request.prompt)
        return name

    def step(self):
        self.threads.add(threading.current_thread())
        while self.paused.is_set() and not self.steps.acquire(timeout=0.01):
            if any(request.stop() for request, _ in self._answers.values()):
                break
        ended = []
        for name, answer in list(self._answers.items()):
            request, tokens = answer
            if self.fails is not None:
                ended.append((name, self.fails))
            elif request.stop():
                ended.append((name, generation(tokens, FinishReason.STOPPED)))
            elif tokens + 1 >= request.max_new_tokens:
                ended.append((name, generation(tokens + 1, FinishReason.LENGTH)))
            answer[1] += 1
        for name, _ in ended:
            del self._answers[name]
        return ended

    def memory(self):
        return Memory(0, 0, len(self._answers), 0)

    def forget(self):
        self.threads.add(threading.current_thread())
        self.forgot.set()

    def close(self):
        self.threads.add(threading.current_thread())
        self.closed += 1


def generation(tokens, finish):
    return Generation("x" * tokens, finish, (1, 1), 1, tokens, 0, 0.0, 0.0, 0.0)


@pytest.fixture
def worker():
    made = EngineWorker(TokenEngine, max_pending=2, max_batch=1)
    yield made
    assert made.close(PATIENCE_S)


def asking(max_new_tokens=1, prompt="", stop=lambda: False):
    """Work that asks the model once and returns its answer."""

    def work(engine):
        request = GenerationRequest(None, prompt, max_new_tokens=max_new_tokens, stop=stop)
        return (yield request)

    return work


def calling(call):
    """Work that needs no model."""

    def work(engine):
        return call(engine)
        yield

    return work


def blocked(worker):
    """Keep the worker's thread busy; returns (release, future of the blocking work)."""
    release, started = threading.Event(), threading.Event()

    def block(engine):
        started.set()
        assert release.wait(PATIENCE_S)
        return engine

    future = worker.submit(calling(block))
    assert started.wait(PATIENCE_S)
    return release, future


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_thread_makes_runs_and_closes_the_engine():
    worker = EngineWorker(TokenEngine)
    engine = worker.ready.result(PATIENCE_S)
    assert worker.submit(asking(3)).result(PATIENCE_S).text == "xxx"
    assert worker.submit(calling(lambda engine: engine.description)).result(PATIENCE_S) == "fake"
    assert worker.close(PATIENCE_S)
    assert engine.closed == 1
    (thread,) = engine.threads
    assert thread is not threading.current_thread()
    assert not thread.daemon
    assert not thread.is_alive()


def test_work_may_ask_again_with_what_it_was_answered(worker):
    def work(engine):
        first = yield GenerationRequest(None, "", max_new_tokens=2)
        second = yield GenerationRequest(None, first.text, max_new_tokens=1)
        return first.text + second.text

    engine = worker.ready.result(PATIENCE_S)
    assert worker.submit(work).result(PATIENCE_S) == "xxx"
    assert engine.started == ["", "xx"]


def test_forgetting_needs_no_room_in_the_queue_and_happens_on_the_thread():
    worker = EngineWorker(TokenEngine, max_pending=0, max_batch=1)
    engine = worker.ready.result(PATIENCE_S)
    release, first = blocked(worker)
    worker.forget()
    assert not engine.forgot.is_set()
    release.set()
    first.result(PATIENCE_S)
    assert engine.forgot.wait(PATIENCE_S)
    assert worker.close(PATIENCE_S)
    worker.forget()  # nothing is left to forget
    (thread,) = engine.threads
    assert thread is not threading.current_thread()


def test_those_that_wait_run_in_order(worker):
    release, first = blocked(worker)
    futures = [worker.submit(asking(prompt=name)) for name in "ab"]
    release.set()
    wait([first, *futures], PATIENCE_S)
    assert worker.ready.result(0).started == ["a", "b"]


def test_perception_comes_before_talk(worker):
    release, first = blocked(worker)
    talk = worker.submit(asking(prompt="talk"), priority=Priority.TALK)
    point = worker.submit(asking(prompt="point"))
    release.set()
    wait([first, talk, point], PATIENCE_S)
    assert worker.ready.result(0).started == ["point", "talk"]


def test_several_are_answered_at_once_and_a_long_one_holds_nobody_up():
    worker = EngineWorker(TokenEngine, max_batch=3)
    engine = worker.ready.result(PATIENCE_S)
    done = threading.Event()
    long = worker.submit(asking(10**9, stop=done.is_set), priority=Priority.TALK)
    for _ in range(20):
        assert worker.submit(asking(2)).result(PATIENCE_S).text == "xx"
    assert not long.done()
    done.set()
    assert long.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert worker.close(PATIENCE_S)
    assert engine.closed == 1


def test_talk_leaves_a_place_for_perception():
    worker = EngineWorker(TokenEngine, max_batch=3)
    engine = worker.ready.result(PATIENCE_S)
    done = threading.Event()
    talks = [
        worker.submit(asking(10**9, "talk", done.is_set), priority=Priority.TALK) for _ in range(4)
    ]
    until(lambda: len(engine.started) == 2)
    assert worker.submit(asking(2, "point")).result(PATIENCE_S).text == "xx"
    assert engine.started == ["talk", "talk", "point"]
    assert worker.pending == 2
    done.set()
    wait(talks, PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_a_full_queue_is_busy_and_a_cancelled_request_makes_room(worker):
    release, first = blocked(worker)
    waiting = [worker.submit(asking(prompt=name)) for name in "ab"]
    assert worker.pending == 2
    with pytest.raises(EngineBusy, match="ask again"):
        worker.submit(asking())
    assert waiting[0].cancel()
    assert worker.pending == 1
    third = worker.submit(asking(prompt="c"))
    release.set()
    wait([first, waiting[1], third], PATIENCE_S)
    assert worker.ready.result(0).started == ["b", "c"]
    with pytest.raises(CancelledError):
        waiting[0].result(PATIENCE_S)


def test_no_queue_at_all_still_runs_one_request():
    worker = EngineWorker(TokenEngine, max_pending=0, max_batch=1)
    worker.ready.result(PATIENCE_S)
    for _ in range(100):
        assert worker.submit(asking(2)).result(PATIENCE_S).text == "xx"
    release, first = blocked(worker)
    with pytest.raises(EngineBusy):
        worker.submit(asking())
    release.set()
    first.result(PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_one_that_waits_in_vain_is_told_without_its_turn(worker):
    """A deadline that passes in the queue is answered before what holds the queue up ends."""
    engine = worker.ready.result(PATIENCE_S)
    stop, late = threading.Event(), threading.Event()
    running = worker.submit(asking(10**9, stop=stop.is_set))
    until(lambda: engine.started)

    def give_up(engine):
        raise TimeoutError("too late" if late.is_set() else "too early")

    waiting = worker.submit(calling(give_up), stop=late.is_set)
    late.set()
    with pytest.raises(TimeoutError, match="too late"):
        waiting.result(PATIENCE_S)
    assert not running.done()
    stop.set()
    running.result(PATIENCE_S)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), EngineOutOfMemory("full"), SystemExit(3), KeyboardInterrupt()]
)
def test_exceptions_land_in_the_future_and_the_thread_lives(worker, error):
    def fail(engine):
        raise error

    def fail_later(engine):
        yield GenerationRequest(None, "", max_new_tokens=1)
        raise error

    for work in (fail, calling(fail), fail_later):
        assert worker.submit(work).exception(PATIENCE_S) is error
    assert worker.submit(asking(2)).result(PATIENCE_S).text == "xx"


def test_a_failure_of_the_engine_lands_where_the_model_was_asked(worker):
    engine = worker.ready.result(PATIENCE_S)
    engine.fails = EngineUnavailable("broken")

    def work(engine):
        try:
            yield GenerationRequest(None, "")
        except EngineUnavailable as error:
            return str(error)

    assert worker.submit(work).result(PATIENCE_S) == "broken"
    engine.fails = None
    assert worker.submit(asking(2)).result(PATIENCE_S).text == "xx"


def test_what_does_not_fit_waits_for_memory_and_is_refused_when_nobody_else_has_it():
    worker = EngineWorker(lambda: TokenEngine(room=2), max_batch=4)
    engine = worker.ready.result(PATIENCE_S)
    engine.paused.set()
    futures = [worker.submit(asking(2, prompt=name)) for name in "abc"]
    until(lambda: len(engine.started) == 2)
    engine.paused.clear()
    wait(futures, PATIENCE_S)
    assert [future.result().text for future in futures] == ["xx"] * 3
    assert engine.started == ["a", "b", "c"]
    engine._room = 0
    assert isinstance(worker.submit(asking()).exception(PATIENCE_S), EngineOutOfMemory)
    assert worker.close(PATIENCE_S)


def test_a_second_question_may_have_to_wait_for_memory():
    worker = EngineWorker(lambda: TokenEngine(room=2), max_batch=4)
    engine = worker.ready.result(PATIENCE_S)
    done = threading.Event()

    def work(engine):
        yield GenerationRequest(None, "first", max_new_tokens=1)
        engine._room = 1
        return (yield GenerationRequest(None, "second", max_new_tokens=2))

    long = worker.submit(asking(10**9, "long", done.is_set))
    until(lambda: engine.started)
    both = worker.submit(work)
    until(lambda: worker.pending == 1 and both.running())
    assert engine.started == ["long", "first"]
    done.set()
    assert both.result(PATIENCE_S).text == "xx"
    assert long.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert worker.close(PATIENCE_S)


def test_who_waits_for_memory_in_vain_is_told():
    worker = EngineWorker(lambda: TokenEngine(room=1), max_batch=4)
    engine = worker.ready.result(PATIENCE_S)
    done, late = threading.Event(), threading.Event()
    long = worker.submit(asking(10**9, stop=done.is_set))
    until(lambda: engine.started)
    waiting = worker.submit(asking(stop=late.is_set), stop=late.is_set)
    until(lambda: worker.pending == 1 and waiting.running())
    late.set()
    assert isinstance(waiting.exception(PATIENCE_S), EngineOutOfMemory)
    assert not long.done()
    done.set()
    long.result(PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_closing_refuses_what_waits_for_memory():
    worker = EngineWorker(lambda: TokenEngine(room=1), max_batch=4)
    engine = worker.ready.result(PATIENCE_S)
    running = worker.submit(asking(10**9))
    until(lambda: engine.started)
    waiting = worker.submit(asking())
    until(lambda: worker.pending == 1 and waiting.running())
    assert worker.close(PATIENCE_S)
    assert running.result(0).finish is FinishReason.STOPPED
    assert isinstance(waiting.exception(0), EngineUnavailable)


def test_close_stops_after_the_current_token_and_cancels_the_rest(worker):
    engine = worker.ready.result(PATIENCE_S)
    running = worker.submit(asking(10**9))
    until(lambda: engine.started)
    waiting = worker.submit(asking())
    assert worker.close(PATIENCE_S)
    assert running.result(0).finish is FinishReason.STOPPED
    assert waiting.cancelled()
    assert engine.closed == 1
    assert worker.close(PATIENCE_S)
    with pytest.raises(EngineUnavailable, match="not loaded"):
        worker.submit(asking())


def test_close_does_not_wait_longer_than_asked():
    worker = EngineWorker(TokenEngine)
    release, _ = blocked(worker)
    assert worker.close(timeout=0.01) is False
    release.set()
    assert worker.close(PATIENCE_S)


def test_closing_while_the_engine_is_made_closes_it_then():
    go = threading.Event()

    def make():
        assert go.wait(PATIENCE_S)
        return TokenEngine()

    worker = EngineWorker(make)
    waiting = worker.submit(asking())
    assert worker.close(timeout=0) is False
    assert waiting.cancelled()
    go.set()
    assert worker.close(PATIENCE_S)
    assert worker.ready.result(0).closed == 1


def test_an_engine_that_cannot_be_made():
    go = threading.Event()

    def make():
        assert go.wait(PATIENCE_S)
        raise LoadError("no such model")

    worker = EngineWorker(make)
    waiting = worker.submit(asking())
    go.set()
    assert isinstance(waiting.exception(PATIENCE_S), EngineUnavailable)
    with pytest.raises(LoadError, match="no such model"):
        worker.ready.result(PATIENCE_S)
    with pytest.raises(EngineUnavailable):
        worker.submit(asking())
    assert worker.close(PATIENCE_S)


def test_who_waits_for_memory_while_the_worker_closes_is_told():
    """Such a request was never answered: it came to wait after those that wait had been told."""
    closing, paused = threading.Event(), threading.Event()
    engine = TokenEngine(room=1)
    worker = EngineWorker(lambda: engine)
    worker.ready.result(PATIENCE_S)
    engine.paused.set()
    running = worker.submit(asking(50))

    def late(engine):
        paused.set()
        assert closing.wait(PATIENCE_S)
        answer = yield GenerationRequest(None, "late", max_new_tokens=2)
        return answer

    while not engine.started:
        engine.steps.release()
        time.sleep(0.001)
    waiting = worker.submit(late)
    engine.paused.clear()
    assert paused.wait(PATIENCE_S)
    worker.close(timeout=0)
    closing.set()
    assert worker.close(timeout=PATIENCE_S)
    with pytest.raises((EngineUnavailable, CancelledError)):
        waiting.result(0)
    assert running.done()


class Panic(BaseException):
    """What a library in Rust raises where it gives up."""


def test_a_thread_that_ends_by_itself_leaves_nobody_waiting():
    """What was no Exception ended the thread, and requests waited for ever."""
    told = []
    engine = TokenEngine()
    worker = EngineWorker(lambda: engine, max_pending=2, max_batch=1, on_failure=told.append)
    worker.ready.result(PATIENCE_S)
    engine.paused.set()
    running, waiting = worker.submit(asking(9)), worker.submit(asking())
    until(lambda: engine.started)

    def panic():
        raise Panic("index out of bounds")

    engine.step = panic
    engine.paused.clear()
    for future in (running, waiting):
        error = future.exception(PATIENCE_S)
        assert isinstance(error, EngineUnavailable) and "configure the node again" in str(error)
    assert worker.close(PATIENCE_S)
    with pytest.raises(EngineUnavailable, match="index out of bounds"):
        worker.submit(asking())
    assert len(told) == 1 and "Traceback" in told[0]
    assert engine.closed == 1 and worker.running == 0
