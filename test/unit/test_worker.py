# SPDX-License-Identifier: Apache-2.0
"""The scheduler: batches, priorities, a bounded queue, and a thread that survives its clients."""

from __future__ import annotations

import itertools
import threading
import time
from concurrent.futures import CancelledError, wait

import pytest
from support.panic import Panic
from support.requests import ask

from robobrain_ros.core.families import FAMILIES
from robobrain_ros.core.requests import FinishReason, Generation
from robobrain_ros.engines.base import (
    Capabilities,
    EngineBusy,
    EngineOutOfMemory,
    EngineUnavailable,
    LoadError,
    Memory,
    Priority,
)
from robobrain_ros.engines.local.scheduler import Scheduler

PATIENCE_S = 20


class TokenEngine:
    """Adds an x per step to each answer, and remembers the threads that called it.

    While `paused` is set a step waits for a permit. room: answers that fit in memory.
    """

    capabilities = Capabilities(FAMILIES["robobrain2"], 1, False, False, False, False)
    description = "fake"
    steps = 0
    memory_bytes = 0

    def __init__(self, room=100):
        self.threads = {threading.current_thread()}
        self.closed = 0
        self.cleared = threading.Event()
        self.started = []
        self.paused = threading.Event()
        self.permits = threading.Semaphore(0)
        self.fails = None
        self.room = room
        self._answers = {}
        self._handles = itertools.count()

    def start(self, request):
        self.threads.add(threading.current_thread())
        if len(self._answers) >= self.room:
            raise EngineOutOfMemory("full")
        handle = next(self._handles)
        self._answers[handle] = [request, 0]
        self.started.append(request.text)
        return handle

    def step(self):
        self.threads.add(threading.current_thread())
        while self.paused.is_set() and not self.permits.acquire(timeout=0.01):
            if any(request.stop() for request, _ in self._answers.values()):
                break
        ended = []
        for handle, answer in list(self._answers.items()):
            request, tokens = answer
            if self.fails is not None:
                ended.append((handle, self.fails))
            elif request.stop():
                ended.append((handle, generation(tokens, FinishReason.STOPPED)))
            elif tokens + 1 >= request.options.max_new_tokens:
                ended.append((handle, generation(tokens + 1, FinishReason.LENGTH)))
            answer[1] += 1
        for handle, _ in ended:
            del self._answers[handle]
        return ended

    def memory(self):
        return Memory(0, 0, len(self._answers), 0)

    def clear_cache(self):
        self.threads.add(threading.current_thread())
        self.cleared.set()

    def close(self):
        self.threads.add(threading.current_thread())
        self.closed += 1


def generation(tokens, finish):
    return Generation("x" * tokens, finish, (), 1, tokens, 0, 0.0, 0.0, 0.0)


class TokenScheduler(Scheduler):
    """A scheduler whose engine, once loaded, can be looked at."""

    def __init__(self, load=TokenEngine, **settings):
        def loading():
            self.engine = load()
            return self.engine

        super().__init__(loading, **settings)


@pytest.fixture
def worker():
    made = TokenScheduler(max_pending=2, max_batch=1)
    yield made
    assert made.close(PATIENCE_S)


def engine_of(scheduler):
    """The engine, once it is loaded."""
    scheduler.ready.result(PATIENCE_S)
    return scheduler.engine


def asking(max_new_tokens=1, prompt="", stop=lambda: False):
    """Work that asks the model once and returns its answer."""
    return (yield ask(prompt, max_new_tokens=max_new_tokens, stop=stop))


def calling(call):
    """Work that needs no model."""
    return call()
    yield


def blocked(worker):
    """Keep the scheduler's thread busy; returns (release, future of the blocking work)."""
    release, started = threading.Event(), threading.Event()

    def block():
        started.set()
        assert release.wait(PATIENCE_S)

    future = worker.run(calling(block))
    assert started.wait(PATIENCE_S)
    return release, future


def until(condition):
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


def test_one_thread_makes_runs_and_closes_the_engine():
    worker = TokenScheduler()
    engine = engine_of(worker)
    assert worker.run(asking(3)).result(PATIENCE_S).text == "xxx"
    assert worker.run(calling(lambda: worker.description)).result(PATIENCE_S) == "fake"
    assert worker.close(PATIENCE_S)
    assert engine.closed == 1
    (thread,) = engine.threads
    assert thread is not threading.current_thread()
    assert not thread.daemon
    assert not thread.is_alive()


def test_the_public_state_follows_the_model():
    go = threading.Event()

    def load():
        assert go.wait(PATIENCE_S)
        return TokenEngine()

    worker = TokenScheduler(load)
    assert (worker.description, worker.memory, worker.failure) == ("", None, None)
    with pytest.raises(EngineUnavailable, match="not loaded"):
        _ = worker.capabilities
    queued = worker.generate(ask("early", max_new_tokens=2))
    go.set()
    assert queued.result(PATIENCE_S).text == "xx"
    assert worker.ready.result(PATIENCE_S) is worker.capabilities
    assert worker.capabilities.family.name == "robobrain2" and worker.capabilities.thinks
    assert worker.description == "fake"
    until(lambda: worker.memory == Memory(0, 0, 0, 0))
    assert worker.close(PATIENCE_S)


def test_a_request_that_is_stopped_while_it_waits_is_told_at_once(worker):
    engine = engine_of(worker)
    done, late = threading.Event(), threading.Event()
    running = worker.generate(ask("long", max_new_tokens=10**9, stop=done.is_set))
    until(lambda: engine.started)
    waiting = worker.generate(ask("", stop=late.is_set), priority=Priority.BACKGROUND)
    late.set()
    assert waiting.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert not running.done()
    done.set()
    assert running.result(PATIENCE_S).finish is FinishReason.STOPPED


def test_work_may_ask_again_with_what_it_was_answered(worker):
    def work():
        first = yield ask("", max_new_tokens=2)
        second = yield ask(first.text, max_new_tokens=1)
        return first.text + second.text

    engine = engine_of(worker)
    assert worker.run(work()).result(PATIENCE_S) == "xxx"
    assert engine.started == ["", "xx"]


def test_clearing_the_cache_needs_no_room_in_the_queue_and_happens_on_the_thread():
    worker = TokenScheduler(max_pending=0, max_batch=1)
    engine = engine_of(worker)
    release, first = blocked(worker)
    worker.clear_cache()
    assert not engine.cleared.is_set()
    release.set()
    first.result(PATIENCE_S)
    assert engine.cleared.wait(PATIENCE_S)
    assert worker.close(PATIENCE_S)
    worker.clear_cache()  # nothing is left to clear
    (thread,) = engine.threads
    assert thread is not threading.current_thread()


def test_those_that_wait_run_in_order(worker):
    release, first = blocked(worker)
    futures = [worker.run(asking(prompt=name)) for name in "ab"]
    release.set()
    wait([first, *futures], PATIENCE_S)
    assert worker.engine.started == ["a", "b"]


def test_perception_comes_before_background(worker):
    release, first = blocked(worker)
    background = worker.run(asking(prompt="background"), priority=Priority.BACKGROUND)
    point = worker.run(asking(prompt="point"))
    release.set()
    wait([first, background, point], PATIENCE_S)
    assert worker.engine.started == ["point", "background"]


def test_several_are_answered_at_once_and_a_long_one_holds_nobody_up():
    worker = TokenScheduler(max_batch=3)
    engine = engine_of(worker)
    done = threading.Event()
    long = worker.run(asking(10**9, stop=done.is_set), priority=Priority.BACKGROUND)
    for _ in range(20):
        assert worker.run(asking(2)).result(PATIENCE_S).text == "xx"
    assert not long.done()
    done.set()
    assert long.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert worker.close(PATIENCE_S)
    assert engine.closed == 1


def test_background_leaves_a_slot_for_perception():
    worker = TokenScheduler(max_batch=3)
    engine = engine_of(worker)
    done = threading.Event()
    long = [
        worker.run(asking(10**9, "long", done.is_set), priority=Priority.BACKGROUND)
        for _ in range(4)
    ]
    until(lambda: len(engine.started) == 2)
    assert worker.run(asking(2, "point")).result(PATIENCE_S).text == "xx"
    assert engine.started == ["long", "long", "point"]
    assert worker.pending == 2
    done.set()
    wait(long, PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_a_full_queue_is_busy_and_a_cancelled_request_makes_room(worker):
    release, first = blocked(worker)
    waiting = [worker.run(asking(prompt=name)) for name in "ab"]
    assert worker.pending == 2
    with pytest.raises(EngineBusy, match="ask again"):
        worker.run(asking())
    assert waiting[0].cancel()
    assert worker.pending == 1
    third = worker.run(asking(prompt="c"))
    release.set()
    wait([first, waiting[1], third], PATIENCE_S)
    assert worker.engine.started == ["b", "c"]
    with pytest.raises(CancelledError):
        waiting[0].result(PATIENCE_S)


def test_no_queue_at_all_still_runs_one_request():
    worker = TokenScheduler(max_pending=0, max_batch=1)
    worker.ready.result(PATIENCE_S)
    for _ in range(100):
        assert worker.run(asking(2)).result(PATIENCE_S).text == "xx"
    release, first = blocked(worker)
    with pytest.raises(EngineBusy):
        worker.run(asking())
    release.set()
    first.result(PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_one_that_waits_in_vain_is_told_without_its_turn(worker):
    """A deadline that passes in the queue is answered before what holds the queue up ends."""
    engine = engine_of(worker)
    stop, late = threading.Event(), threading.Event()
    running = worker.run(asking(10**9, stop=stop.is_set))
    until(lambda: engine.started)

    def give_up():
        raise TimeoutError("too late" if late.is_set() else "too early")

    waiting = worker.run(calling(give_up), stop=late.is_set)
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
    def fail():
        raise error

    def fail_later():
        yield ask("", max_new_tokens=1)
        raise error

    for work in (calling(fail), fail_later()):
        assert worker.run(work).exception(PATIENCE_S) is error
    assert worker.run(asking(2)).result(PATIENCE_S).text == "xx"


def test_a_failure_of_the_engine_lands_where_the_model_was_asked(worker):
    engine = engine_of(worker)
    engine.fails = EngineUnavailable("broken")

    def work():
        try:
            yield ask("")
        except EngineUnavailable as error:
            return str(error)

    assert worker.run(work()).result(PATIENCE_S) == "broken"
    engine.fails = None
    assert worker.run(asking(2)).result(PATIENCE_S).text == "xx"


def test_what_does_not_fit_waits_for_memory_and_is_refused_when_nobody_else_has_it():
    worker = TokenScheduler(lambda: TokenEngine(room=2), max_batch=4)
    engine = engine_of(worker)
    engine.paused.set()
    futures = [worker.run(asking(2, prompt=name)) for name in "abc"]
    until(lambda: len(engine.started) == 2)
    engine.paused.clear()
    wait(futures, PATIENCE_S)
    assert [future.result().text for future in futures] == ["xx"] * 3
    assert engine.started == ["a", "b", "c"]
    engine.room = 0
    assert isinstance(worker.run(asking()).exception(PATIENCE_S), EngineOutOfMemory)
    assert worker.close(PATIENCE_S)


def test_a_second_question_may_have_to_wait_for_memory():
    worker = TokenScheduler(lambda: TokenEngine(room=2), max_batch=4)
    engine = engine_of(worker)
    done = threading.Event()

    def work():
        yield ask("first", max_new_tokens=1)
        engine.room = 1
        return (yield ask("second", max_new_tokens=2))

    long = worker.run(asking(10**9, "long", done.is_set))
    until(lambda: engine.started)
    both = worker.run(work())
    until(lambda: worker.pending == 1 and both.running())
    assert engine.started == ["long", "first"]
    done.set()
    assert both.result(PATIENCE_S).text == "xx"
    assert long.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert worker.close(PATIENCE_S)


def test_who_waits_for_memory_in_vain_is_told():
    worker = TokenScheduler(lambda: TokenEngine(room=1), max_batch=4)
    engine = engine_of(worker)
    done, late = threading.Event(), threading.Event()
    long = worker.run(asking(10**9, stop=done.is_set))
    until(lambda: engine.started)
    waiting = worker.run(asking(stop=late.is_set), stop=late.is_set)
    until(lambda: worker.pending == 1 and waiting.running())
    late.set()
    assert isinstance(waiting.exception(PATIENCE_S), EngineOutOfMemory)
    assert not long.done()
    done.set()
    long.result(PATIENCE_S)
    assert worker.close(PATIENCE_S)


def test_closing_refuses_what_waits_for_memory():
    worker = TokenScheduler(lambda: TokenEngine(room=1), max_batch=4)
    engine = engine_of(worker)
    running = worker.run(asking(10**9))
    until(lambda: engine.started)
    waiting = worker.run(asking())
    until(lambda: worker.pending == 1 and waiting.running())
    assert worker.close(PATIENCE_S)
    assert running.result(0).finish is FinishReason.STOPPED
    assert isinstance(waiting.exception(0), EngineUnavailable)


def test_close_stops_after_the_current_token_and_cancels_the_rest(worker):
    engine = engine_of(worker)
    running = worker.run(asking(10**9))
    until(lambda: engine.started)
    waiting = worker.run(asking())
    assert worker.close(PATIENCE_S)
    assert running.result(0).finish is FinishReason.STOPPED
    assert waiting.cancelled()
    assert engine.closed == 1
    assert worker.close(PATIENCE_S)
    with pytest.raises(EngineUnavailable, match="not loaded"):
        worker.run(asking())


def test_close_does_not_wait_longer_than_asked():
    worker = TokenScheduler()
    release, _ = blocked(worker)
    assert worker.close(timeout=0.01) is False
    release.set()
    assert worker.close(PATIENCE_S)


def test_closing_while_the_model_is_loaded_frees_it_then():
    go = threading.Event()

    def make():
        assert go.wait(PATIENCE_S)
        return TokenEngine()

    worker = TokenScheduler(make)
    waiting = worker.run(asking())
    assert worker.close(timeout=0) is False
    assert waiting.cancelled()
    go.set()
    assert worker.close(PATIENCE_S)
    assert worker.engine.closed == 1


def test_a_model_that_cannot_be_loaded():
    go = threading.Event()

    def make():
        assert go.wait(PATIENCE_S)
        raise LoadError("no such model")

    worker = TokenScheduler(make)
    waiting = worker.run(asking())
    go.set()
    assert isinstance(waiting.exception(PATIENCE_S), EngineUnavailable)
    with pytest.raises(LoadError, match="no such model"):
        worker.ready.result(PATIENCE_S)
    with pytest.raises(EngineUnavailable):
        worker.run(asking())
    assert worker.close(PATIENCE_S)


def test_who_waits_for_memory_while_the_scheduler_closes_is_told():
    """Such a request was never answered: it came to wait after those that wait had been told."""
    closing, paused = threading.Event(), threading.Event()
    engine = TokenEngine(room=1)
    worker = TokenScheduler(lambda: engine)
    worker.ready.result(PATIENCE_S)
    engine.paused.set()
    running = worker.run(asking(50))

    def late():
        paused.set()
        assert closing.wait(PATIENCE_S)
        return (yield ask("late", max_new_tokens=2))

    while not engine.started:
        engine.permits.release()
        time.sleep(0.001)
    waiting = worker.run(late())
    engine.paused.clear()
    assert paused.wait(PATIENCE_S)
    worker.close(timeout=0)
    closing.set()
    assert worker.close(timeout=PATIENCE_S)
    with pytest.raises((EngineUnavailable, CancelledError)):
        waiting.result(0)
    assert running.done()


def test_a_thread_that_ends_by_itself_leaves_nobody_waiting():
    """What was no Exception ended the thread, and requests waited for ever."""
    told = []
    engine = TokenEngine()
    worker = TokenScheduler(lambda: engine, max_pending=2, max_batch=1, on_failure=told.append)
    worker.ready.result(PATIENCE_S)
    engine.paused.set()
    running, waiting = worker.run(asking(9)), worker.run(asking())
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
        worker.run(asking())
    assert len(told) == 1 and "Traceback" in told[0]
    assert engine.closed == 1 and worker.running == 0


def raising():
    raise ValueError("the client's own mistake")


def test_a_stop_that_raises_ends_its_request_and_nothing_else(worker):
    """It ended the engine's thread, and with it every other client's requests."""
    over = threading.Event()
    running = worker.generate(ask("", max_new_tokens=10**9, stop=over.is_set))
    waiting = worker.run(asking(stop=raising), stop=raising)
    assert waiting.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert not running.done()
    over.set()
    assert running.result(PATIENCE_S).finish is FinishReason.STOPPED
    assert worker.run(asking()).result(PATIENCE_S).tokens_out == 1
    assert worker.failure is None


def test_work_that_yields_no_request_gets_an_error_and_nobody_else_does(worker):
    def wrong():
        yield "no request"

    with pytest.raises(AttributeError):
        worker.run(wrong()).result(PATIENCE_S)
    assert worker.run(asking()).result(PATIENCE_S).tokens_out == 1
