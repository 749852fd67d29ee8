# SPDX-License-Identifier: Apache-2.0
"""The engine's thread: one at a time, in order, bounded, stoppable, and not to be killed."""

import threading
from concurrent.futures import CancelledError, wait

import pytest

from robobrain_ros.engines.base import (
    EngineBusy,
    EngineOutOfMemory,
    EngineUnavailable,
    FinishReason,
    Generation,
    GenerationRequest,
    LoadError,
)
from robobrain_ros.engines.worker import EngineWorker

PATIENCE_S = 20


class TokenEngine:
    """Counts tokens until it is stopped, and remembers the threads that touched it."""

    family = None
    description = "fake"
    memory_bytes = 0

    def __init__(self):
        self.threads = {threading.current_thread()}
        self.closed = 0
        self.forgot = threading.Event()
        self.generating = threading.Event()
        self.tokens_allowed = threading.Semaphore(0)

    def forget(self):
        self.threads.add(threading.current_thread())
        self.forgot.set()

    def generate(self, request):
        self.threads.add(threading.current_thread())
        self.generating.set()
        tokens = 0
        finish = FinishReason.LENGTH
        while tokens < request.max_new_tokens:
            if request.stop():
                finish = FinishReason.STOPPED
                break
            self.tokens_allowed.acquire(timeout=0.01)
            tokens += 1
        return Generation("x" * tokens, finish, (1, 1), 1, tokens, 0, 0.0, 0.0, 0.0)

    def close(self):
        self.threads.add(threading.current_thread())
        self.closed += 1


@pytest.fixture
def worker():
    made = EngineWorker(TokenEngine, max_pending=2)
    yield made
    assert made.close(PATIENCE_S)


def blocked(worker):
    """Keep the worker busy; returns (release, future of the blocking call)."""
    release, started = threading.Event(), threading.Event()

    def block(engine):
        started.set()
        assert release.wait(PATIENCE_S)
        return engine

    future = worker.submit(block)
    assert started.wait(PATIENCE_S)
    return release, future


def request(max_new_tokens, stop=lambda: False):
    return GenerationRequest(None, "", max_new_tokens=max_new_tokens, stop=stop)


def test_one_thread_makes_runs_and_closes_the_engine():
    worker = EngineWorker(TokenEngine)
    engine = worker.ready.result(PATIENCE_S)
    assert (
        worker.submit(lambda engine: engine.generate(request(3))).result(PATIENCE_S).text == "xxx"
    )
    assert worker.submit(lambda engine: engine.description).result(PATIENCE_S) == "fake"
    assert worker.close(PATIENCE_S)
    assert engine.closed == 1
    (thread,) = engine.threads
    assert thread is not threading.current_thread()
    assert not thread.daemon
    assert not thread.is_alive()


def test_forgetting_waits_for_its_turn_and_needs_no_room_in_the_queue():
    worker = EngineWorker(TokenEngine, max_pending=1)
    engine = worker.ready.result(PATIENCE_S)
    release, first = blocked(worker)
    waiting = worker.submit(lambda _: engine.forgot.is_set())
    worker.forget()
    assert not engine.forgot.is_set()
    release.set()
    wait([first, waiting], PATIENCE_S)
    assert waiting.result() is False
    assert engine.forgot.wait(PATIENCE_S)
    assert worker.close(PATIENCE_S)
    worker.forget()  # nothing is left to forget
    (thread,) = engine.threads
    assert thread is not threading.current_thread()


def test_calls_run_in_order(worker):
    release, first = blocked(worker)
    seen = []
    futures = [worker.submit(lambda _, i=i: seen.append(i)) for i in range(2)]
    release.set()
    wait([first, *futures], PATIENCE_S)
    assert seen == [0, 1]


def test_a_full_queue_is_busy_and_a_cancelled_call_makes_room(worker):
    release, first = blocked(worker)
    ran = []
    waiting = [worker.submit(lambda _, i=i: ran.append(i)) for i in range(2)]
    assert worker.pending == 2
    with pytest.raises(EngineBusy, match="ask again"):
        worker.submit(ran.append)
    assert waiting[0].cancel()
    assert worker.pending == 1
    third = worker.submit(lambda _: ran.append(2))
    release.set()
    wait([first, waiting[1], third], PATIENCE_S)
    assert ran == [1, 2]
    with pytest.raises(CancelledError):
        waiting[0].result(PATIENCE_S)


def test_no_queue_at_all_still_runs_one_call():
    worker = EngineWorker(TokenEngine, max_pending=0)
    worker.ready.result(PATIENCE_S)
    for _ in range(100):
        assert worker.submit(lambda _: "idle again").result(PATIENCE_S) == "idle again"
    release, first = blocked(worker)
    with pytest.raises(EngineBusy):
        worker.submit(lambda _: None)
    release.set()
    first.result(PATIENCE_S)
    assert worker.close(PATIENCE_S)


@pytest.mark.parametrize(
    "error", [ValueError("bad"), EngineOutOfMemory("full"), SystemExit(3), KeyboardInterrupt()]
)
def test_exceptions_land_in_the_future_and_the_thread_lives(worker, error):
    def fail(engine):
        raise error

    assert worker.submit(fail).exception(PATIENCE_S) is error
    assert worker.submit(lambda _: "alive").result(PATIENCE_S) == "alive"


def test_close_stops_after_the_current_token_and_cancels_the_rest():
    worker = EngineWorker(TokenEngine)
    engine = worker.ready.result(PATIENCE_S)
    running = worker.submit(lambda engine: engine.generate(request(10**9)))
    waiting = worker.submit(lambda engine: engine.generate(request(1)))
    assert engine.generating.wait(PATIENCE_S)
    assert worker.close(PATIENCE_S)
    assert running.result(0).finish is FinishReason.STOPPED
    assert waiting.cancelled()
    assert engine.closed == 1
    assert worker.close(PATIENCE_S)
    with pytest.raises(EngineUnavailable, match="not loaded"):
        worker.submit(lambda _: None)


def test_the_requests_own_stop_still_counts(worker):
    stop = threading.Event()
    running = worker.submit(lambda engine: engine.generate(request(10**9, stop.is_set)))
    assert worker.ready.result(PATIENCE_S).generating.wait(PATIENCE_S)
    stop.set()
    assert running.result(PATIENCE_S).finish is FinishReason.STOPPED


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
    waiting = worker.submit(lambda _: None)
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
    waiting = worker.submit(lambda _: None)
    go.set()
    assert isinstance(waiting.exception(PATIENCE_S), EngineUnavailable)
    with pytest.raises(LoadError, match="no such model"):
        worker.ready.result(PATIENCE_S)
    with pytest.raises(EngineUnavailable):
        worker.submit(lambda _: None)
    assert worker.close(PATIENCE_S)
