# SPDX-License-Identifier: Apache-2.0
"""The engine's own thread: it makes, runs and closes the engine; the node awaits its futures."""

from __future__ import annotations

import threading
import traceback
from bisect import insort
from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from enum import IntEnum
from itertools import count
from typing import Any, TypeVar

from robobrain_ros.core.requests import Generation, GenerationRequest, never_stop
from robobrain_ros.engines.base import (
    Engine,
    EngineBusy,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    Memory,
)

Result = TypeVar("Result")
Work = Callable[[Engine], Generator[GenerationRequest, Generation, Result]]
"""What is done for one request on the engine's thread: it yields what to ask the model, is given
the answer, and returns the result. Between its own steps other requests have their turn."""


class Priority(IntEnum):
    """Who comes first when there is a queue."""

    PERCEPTION = 0  # a planner waits for a few tokens
    TALK = 1  # long texts, thinking


@dataclass(order=True)
class _Job:
    """One piece of work, and the future of its result; sorted by priority, then by arrival."""

    priority: Priority
    number: int
    work: Work[Any] = field(compare=False)
    stop: Callable[[], bool] = field(compare=False)
    future: Future[Any] = field(compare=False, default_factory=Future)
    steps: Generator[GenerationRequest, Generation, Any] | None = field(compare=False, default=None)
    request: GenerationRequest | None = field(compare=False, default=None)


class EngineWorker:
    """Owns one engine and the one thread that touches it (CUDA contexts stay on one thread).

    `create` makes the engine on that thread; `ready` is the future of the engine, or of the error
    that prevented it. Up to `max_batch` requests are answered at once, token by token in turn;
    `max_pending` more may wait (or while the engine is being made), and one more raises EngineBusy.
    One of several places is kept for PERCEPTION, so that long talk never blocks it. All methods are
    thread-safe, and none but `close` waits.
    """

    def __init__(
        self,
        create: Callable[[], Engine],
        *,
        max_pending: int = 8,
        max_batch: int = 8,
        on_failure: Callable[[str], None] = lambda _: None,
    ) -> None:
        """on_failure: told the cause, with its traceback, when the thread ends by itself."""
        self.ready: Future[Engine] = Future()
        self.failure: EngineUnavailable | None = None
        """Why the thread ended by itself, if it did: it serves nobody any more."""
        self._create = create
        self._on_failure = on_failure
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._numbers = count()
        self._pending: list[_Job] = []
        self._begun = 0  # jobs that have been begun and have not ended
        self._running: dict[object, _Job] = {}  # by what the engine names the answer
        self._starved = False  # somebody waits until another has freed memory
        self._to_forget = False
        self._making = True
        self.memory: Memory | None = None
        """As the engine last told."""
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self.ready.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=False)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Number of requests that wait for their turn."""
        with self._changed:
            self._drop_cancelled()
            return len(self._pending)

    @property
    def running(self) -> int:
        """Number of requests that are being answered."""
        return self._begun

    def submit(
        self,
        work: Work[Result],
        *,
        priority: Priority = Priority.PERCEPTION,
        stop: Callable[[], bool] = never_stop,
    ) -> Future[Result]:
        """Queue `work`; its result or exception lands in the future.

        When `stop` says so while it waits, its turn comes at once, for it to say why it ends. A
        future that is cancelled while it waits never runs. Raises EngineBusy when the queue is
        full, EngineUnavailable when there is no engine (any more).
        """
        with self._changed:
            if self._closing.is_set():
                raise self.failure or EngineUnavailable(
                    "The model is not loaded: configure the node again."
                )
            self._drop_cancelled()
            room = 0 if self._making else self._max_batch - self._begun
            if len(self._pending) >= self._max_pending + room:
                raise EngineBusy(
                    f"{len(self._pending)} requests are waiting for the model already: "
                    "ask again later."
                )
            job = _Job(priority, next(self._numbers), work, stop)
            insort(self._pending, job)
            self._changed.notify()
        return job.future

    def forget(self) -> None:
        """Let the engine forget the images that it saw, after its next step."""
        with self._changed:
            self._to_forget = True
            self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """End the answers at their next token, cancel what waits, free the engine, end the thread.

        Waits at most `timeout` seconds (None = for ever) and returns whether the thread has ended;
        it ends later otherwise (an engine that is being made can't be interrupted). May be called
        again.
        """
        self._refuse_waiting()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # What follows runs on the thread.

    def _serve(self) -> None:
        engine = self._made()
        if engine is None:
            return
        try:
            while self._wait():
                self._end_stopped(engine)
                self._admit(engine)
                self._step(engine)
                self._forget(engine)
            while self._running:  # each one's `stop` says so now
                self._step(engine)
        # Nobody shall wait for a thread that is gone. A library's panic is no Exception.
        except BaseException as error:  # noqa: BLE001
            self._fail(error)
        self._refuse_waiting(self.failure)  # whoever has come to wait since `close`
        engine.close()

    def _fail(self, error: BaseException) -> None:
        """Tell everybody that this thread ends."""
        self.failure = EngineUnavailable(
            f"The model's thread has ended ({error!r}): clean up and configure the node again."
        )
        self._on_failure("".join([f"{self.failure}\n", *traceback.format_exception(error)]))
        running, self._running = self._running, {}
        for job in running.values():
            self._ended()
            job.future.set_exception(self.failure)

    def _made(self) -> Engine | None:
        """Make the engine and tell `ready`; without one, refuse what waits and what comes."""
        try:
            engine = self._create()
        # Who awaits `ready` learns of it, whatever it is.
        except BaseException as error:  # noqa: BLE001
            self._refuse_waiting(EngineUnavailable("The model could not be loaded."))
            self.ready.set_exception(error)
            return None
        with self._changed:
            self._making = False
        self.memory = engine.memory()
        self.ready.set_result(engine)
        return engine

    def _wait(self) -> bool:
        """Wait for something to do; False when the worker closes."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._pending or self._running or self._to_forget or self._closing.is_set()
            )
            return not self._closing.is_set()

    def _refuse_waiting(self, reason: EngineUnavailable | None = None) -> None:
        """Take nothing any more; what waits is cancelled, or refused with a reason."""
        with self._changed:
            self._closing.set()
            waiting, self._pending = self._pending, []
            self._changed.notify()
        for job in waiting:
            if reason is None and job.future.cancel():
                continue
            if job.future.running() or job.future.set_running_or_notify_cancel():
                job.future.set_exception(
                    reason or EngineUnavailable("The model is being unloaded.")
                )

    def _end_stopped(self, engine: Engine) -> None:
        """Give those that wait in vain their turn, for them to say why they end."""
        with self._changed:
            stopped = [job for job in self._pending if job.stop()]
            self._pending = [job for job in self._pending if job not in stopped]
            self._begun += len(stopped)
        for job in stopped:
            self._begin(engine, job)

    def _admit(self, engine: Engine) -> None:
        """Begin what waits, as far as there is room."""
        while (job := self._next()) is not None:
            self._begin(engine, job)

    def _next(self) -> _Job | None:
        with self._changed:
            self._drop_cancelled()
            room = self._max_batch - self._begun
            if not self._pending or room <= 0 or self._starved or self._closing.is_set():
                return None
            if self._pending[0].priority is Priority.TALK and room == 1 and self._max_batch > 1:
                return None
            self._begun += 1
            return self._pending.pop(0)

    def _begin(self, engine: Engine, job: _Job) -> None:
        if job.request is not None:
            self._ask(engine, job, job.request)
        elif not job.future.set_running_or_notify_cancel():
            self._ended()
        else:

            def first(_: None) -> GenerationRequest:
                job.steps = job.work(engine)
                return next(job.steps)

            self._go_on(engine, job, first, None)

    def _go_on(self, engine: Engine, job: _Job, go_on: Callable[[Any], Any], value: Any) -> None:
        """Run a job's own part up to its next question; its end lands in the future."""
        try:
            request = go_on(value)
        except StopIteration as end:
            self._ended()
            job.future.set_result(end.value)
        # Whatever ends the work belongs to who awaits the future; this thread serves the next one.
        except BaseException as error:  # noqa: BLE001
            self._ended()
            job.future.set_exception(error)
        else:
            self._ask(engine, job, request)

    def _ask(self, engine: Engine, job: _Job, request: GenerationRequest) -> None:
        """Put a job's question to the engine, or have it wait until others have freed memory."""
        job.request = request
        stop = request.stop
        stoppable = replace(request, stop=lambda: self._closing.is_set() or stop())
        try:
            name = engine.start(stoppable)
        except EngineOutOfMemory as error:
            if self._running and not stop():
                self._wait_for_memory(job)
                return
            failure: BaseException = error
        # As in _go_on.
        except BaseException as error:  # noqa: BLE001
            failure = error
        else:
            self._running[name] = job
            return
        assert job.steps is not None
        self._go_on(engine, job, job.steps.throw, failure)

    def _wait_for_memory(self, job: _Job) -> None:
        with self._changed:
            self._starved = True
            self._begun -= 1
            insort(self._pending, job)

    def _step(self, engine: Engine) -> None:
        """Carry the answers on; whoever has one goes on with it."""
        if not self._running:
            return
        outcomes = engine.step()
        if outcomes:
            self._starved = False
        for name, outcome in outcomes:
            job = self._running.pop(name)
            assert job.steps is not None
            go_on = job.steps.throw if isinstance(outcome, EngineError) else job.steps.send
            self._go_on(engine, job, go_on, outcome)
        if outcomes:  # last: whoever has an answer shall not wait for it
            self.memory = engine.memory()

    def _forget(self, engine: Engine) -> None:
        with self._changed:
            to_forget, self._to_forget = self._to_forget, False
        if to_forget:
            engine.forget()
            self.memory = engine.memory()

    def _ended(self) -> None:
        """Make room; called before the future tells anybody."""
        with self._changed:
            self._begun -= 1

    def _drop_cancelled(self) -> None:
        """Make room: requests that were cancelled while waiting. Holds the lock already."""
        self._pending = [job for job in self._pending if not job.future.cancelled()]
