# SPDX-License-Identifier: Apache-2.0
"""The scheduler: serves requests from any thread with a step-wise engine on a thread of its own."""

from __future__ import annotations

import threading
import traceback
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import replace
from itertools import count
from typing import Any

from robobrain_ros.core.requests import Generation, GenerationRequest, never_stop
from robobrain_ros.engines.base import (
    Capabilities,
    EngineBusy,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    Memory,
    Priority,
    Result,
    Work,
    silent,
)
from robobrain_ros.engines.local.request_queue import Job, RequestQueue
from robobrain_ros.engines.local.stepwise import StepwiseEngine


class Scheduler:
    """Owns one step-wise engine and the thread that uses it. See `engines.base.Engine`.

    Up to `max_batch` requests run at the same time and `max_pending` more may wait, also while the
    model is being loaded. One of several places is reserved for Priority.PERCEPTION.
    """

    def __init__(
        self,
        load: Callable[[], StepwiseEngine],
        *,
        max_pending: int = 8,
        max_batch: int = 8,
        on_failure: Callable[[str], None] = silent,
    ) -> None:
        """load: makes the engine, on the scheduler's thread. on_failure: called with the cause,
        with its traceback, when the thread ends by itself.
        """
        self.ready: Future[Capabilities] = Future()
        self._load = load
        self._on_failure = on_failure
        self._max_pending = max_pending
        self._max_batch = max_batch
        self._numbers = count()
        self._queue = RequestQueue(max_batch)
        self._started = 0  # jobs that have been started and have not ended
        self._running: dict[Hashable, Job] = {}  # by the engine's handles
        self._out_of_memory = False  # a job waits until another one has freed memory
        self._must_clear = False
        self._loading = True
        self._description = ""
        self._memory: Memory | None = None
        self._failure: EngineUnavailable | None = None
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self.ready.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=False)
        self._thread.start()

    @property
    def capabilities(self) -> Capabilities:
        """Those of the loaded model. Raises EngineUnavailable before `ready` is done."""
        if not self.ready.done() or self.ready.exception() is not None:
            raise EngineUnavailable("The model is not loaded: wait until it is.")
        return self.ready.result()

    @property
    def description(self) -> str:
        """A line for the log, "" before `ready` is done."""
        return self._description

    @property
    def running(self) -> int:
        """Number of requests being answered."""
        return self._started

    @property
    def pending(self) -> int:
        """Number of requests waiting for their turn."""
        with self._changed:
            return len(self._queue)

    @property
    def memory(self) -> Memory | None:
        """Memory usage as last measured."""
        return self._memory

    @property
    def failure(self) -> EngineUnavailable | None:
        """Why the thread has ended by itself."""
        return self._failure

    def generate(
        self, request: GenerationRequest, *, priority: Priority = Priority.PERCEPTION
    ) -> Future[Generation]:
        """Queue one request; see `Engine.generate`."""
        return self.run(_single(request), priority=priority, stop=request.stop)

    def run(
        self,
        work: Work[Result],
        *,
        priority: Priority = Priority.PERCEPTION,
        stop: Callable[[], bool] = never_stop,
    ) -> Future[Result]:
        """Queue work; see `Engine.run`."""
        with self._changed:
            if self._closing.is_set():
                raise self._failure or EngineUnavailable(
                    "The model is not loaded: configure the node again."
                )
            room = 0 if self._loading else self._max_batch - self._started
            if len(self._queue) >= self._max_pending + room:
                raise EngineBusy(
                    f"{len(self._queue)} requests are waiting for the model already: "
                    "ask again later."
                )
            job = Job(priority, next(self._numbers), work, stops_when_it_fails(stop))
            self._queue.push(job)
            self._changed.notify()
        return job.future

    def clear_cache(self) -> None:
        """Have the engine drop its prefix cache, after its next step."""
        with self._changed:
            self._must_clear = True
            self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """Stop running requests, cancel waiting ones, free the engine; see `Engine.close`."""
        self._refuse_pending()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    # All of the following runs on the thread.

    def _serve(self) -> None:
        engine = self._loaded()
        if engine is None:
            return
        try:
            while self._wait():
                self._start_stopped(engine)
                self._admit(engine)
                self._step(engine)
                self._clear_cache(engine)
            while self._running:  # each one's `stop` returns True now
                self._step(engine)
        # Nobody may be left waiting for a thread that is gone. A library's panic is no Exception.
        except BaseException as error:  # noqa: BLE001
            self._fail(error)
        self._refuse_pending(self._failure)  # also what was queued since `close`
        engine.close()

    def _fail(self, error: BaseException) -> None:
        """Tell all clients that this thread ends."""
        self._failure = EngineUnavailable(
            f"The model's thread has ended ({error!r}): clean up and configure the node again."
        )
        self._on_failure("".join([f"{self._failure}\n", *traceback.format_exception(error)]))
        running, self._running = self._running, {}
        for job in running.values():
            self._release()
            job.future.set_exception(self._failure)

    def _loaded(self) -> StepwiseEngine | None:
        """Load the engine and resolve `ready`; on failure refuse what waits and what comes."""
        try:
            engine = self._load()
        # Passed on to `ready`, whatever it is.
        except BaseException as error:  # noqa: BLE001
            self._refuse_pending(EngineUnavailable("The model could not be loaded."))
            self.ready.set_exception(error)
            return None
        with self._changed:
            self._loading = False
        self._memory = engine.memory()
        self._description = engine.description
        self.ready.set_result(engine.capabilities)
        return engine

    def _wait(self) -> bool:
        """Wait for something to do; False when the scheduler closes."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    len(self._queue) or self._running or self._must_clear or self._closing.is_set()
                )
            )
            return not self._closing.is_set()

    def _refuse_pending(self, reason: EngineUnavailable | None = None) -> None:
        """Take no more work; waiting jobs are cancelled, or refused with a reason."""
        with self._changed:
            self._closing.set()
            pending = self._queue.drain()
            self._changed.notify()
        for job in pending:
            if reason is None and job.future.cancel():
                continue
            if job.future.running() or job.future.set_running_or_notify_cancel():
                job.future.set_exception(
                    reason or EngineUnavailable("The model is being unloaded.")
                )

    def _start_stopped(self, engine: StepwiseEngine) -> None:
        """Start the jobs that wait in vain, so that they say why they end."""
        with self._changed:
            stopped = self._queue.pop_stopped()
            self._started += len(stopped)
        for job in stopped:
            self._start(engine, job)

    def _admit(self, engine: StepwiseEngine) -> None:
        """Start waiting jobs as far as there is room."""
        while (job := self._next()) is not None:
            self._start(engine, job)

    def _next(self) -> Job | None:
        with self._changed:
            if self._out_of_memory or self._closing.is_set():
                return None
            job = self._queue.pop(self._started)
            self._started += job is not None
            return job

    def _start(self, engine: StepwiseEngine, job: Job) -> None:
        if job.request is not None:
            self._request(engine, job, job.request)
        elif job.future.set_running_or_notify_cancel():
            self._resume(engine, job, job.work.send, None)
        else:
            self._release()

    def _resume(
        self, engine: StepwiseEngine, job: Job, resume: Callable[[Any], Any], value: Any
    ) -> None:
        """Run a job's own part up to its next request; its end is set on the future."""
        try:
            request = resume(value)
        except StopIteration as end:
            self._release()
            job.future.set_result(end.value)
        # Whatever ends the work belongs to its client; this thread serves the next one.
        except BaseException as error:  # noqa: BLE001
            self._release()
            job.future.set_exception(error)
        else:
            self._request(engine, job, request)

    def _request(self, engine: StepwiseEngine, job: Job, request: GenerationRequest) -> None:
        """Pass a job's request to the engine, or have it wait until others have freed memory."""
        job.request = request
        try:
            stop = stops_when_it_fails(request.stop)
            stoppable = replace(request, stop=lambda: self._closing.is_set() or stop())
            handle = engine.start(stoppable)
        except EngineOutOfMemory as error:
            if self._running and not stop():
                self._wait_for_memory(job)
                return
            failure: BaseException = error
        # As in _resume.
        except BaseException as error:  # noqa: BLE001
            failure = error
        else:
            self._running[handle] = job
            return
        self._resume(engine, job, job.work.throw, failure)

    def _wait_for_memory(self, job: Job) -> None:
        with self._changed:
            self._out_of_memory = True
            self._started -= 1
            self._queue.push(job)

    def _step(self, engine: StepwiseEngine) -> None:
        """Advance the running requests; jobs resume with their generations."""
        if not self._running:
            return
        outcomes = engine.step()
        if outcomes:
            self._out_of_memory = False
        for handle, outcome in outcomes:
            job = self._running.pop(handle)
            resume = job.work.throw if isinstance(outcome, EngineError) else job.work.send
            self._resume(engine, job, resume, outcome)
        if outcomes:  # last: no client shall wait for it
            self._memory = engine.memory()

    def _clear_cache(self, engine: StepwiseEngine) -> None:
        with self._changed:
            must_clear, self._must_clear = self._must_clear, False
        if must_clear:
            engine.clear_cache()
            self._memory = engine.memory()

    def _release(self) -> None:
        """Make room; called before the future is resolved."""
        with self._changed:
            self._started -= 1


def stops_when_it_fails(stop: Callable[[], bool]) -> Callable[[], bool]:
    """A client's `stop` whose exceptions mean True: they must not end the engine's thread."""

    def guarded() -> bool:
        try:
            return stop()
        except Exception:  # noqa: BLE001
            return True

    return guarded


def _single(request: GenerationRequest) -> Work[Generation]:
    generation = yield request
    return generation
