# SPDX-License-Identifier: Apache-2.0
"""The engine's own thread: it makes, runs and closes the engine; the node awaits its futures."""

import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any, Generic, TypeVar

from robobrain_ros.engines.base import (
    Engine,
    EngineBusy,
    EngineUnavailable,
    Generation,
    GenerationRequest,
)

Result = TypeVar("Result")


class _Job(Generic[Result]):
    """A call that waits for its turn, and the future of its result."""

    def __init__(self, call: Callable[[Engine], Result]) -> None:
        self.call = call
        self.future: Future[Result] = Future()

    def run(self, engine: Engine, finished: Callable[[], None]) -> None:
        """Run the call; `finished` is called before the future tells anybody."""
        if not self.future.set_running_or_notify_cancel():
            finished()
            return
        try:
            result = self.call(engine)
        # Whatever ends the call belongs to who awaits the future; this thread serves the next one.
        except BaseException as error:  # noqa: BLE001
            finished()
            self.future.set_exception(error)
        else:
            finished()
            self.future.set_result(result)


class _StoppableEngine:
    """The engine as calls see it: generations also end when the worker closes."""

    def __init__(self, engine: Engine, closing: threading.Event) -> None:
        self.family = engine.family
        self.description = engine.description
        self.memory_bytes = engine.memory_bytes
        self.close = engine.close
        self.forget = engine.forget
        self._engine = engine
        self._closing = closing

    def generate(self, request: GenerationRequest) -> Generation:
        return self._engine.generate(
            replace(request, stop=lambda: self._closing.is_set() or request.stop())
        )


class EngineWorker:
    """Owns one engine and the one thread that touches it (CUDA contexts stay on one thread).

    `create` makes the engine on that thread; `ready` is the future of the engine, or of the error
    that prevented it. Calls run one at a time, in order; `max_pending` may wait besides the one
    that runs (or while the engine is being made), and one more raises EngineBusy. All methods are
    thread-safe, and none but `close` waits.
    """

    def __init__(self, create: Callable[[], Engine], *, max_pending: int = 8) -> None:
        self.ready: Future[Engine] = Future()
        self._create = create
        self._max_pending = max_pending
        self._pending: deque[_Job[Any]] = deque()
        self._running = True  # making the engine counts as running
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self.ready.set_running_or_notify_cancel()
        self._thread = threading.Thread(target=self._serve, name="engine", daemon=False)
        self._thread.start()

    @property
    def pending(self) -> int:
        """Number of calls that wait for their turn."""
        with self._changed:
            self._drop_cancelled()
            return len(self._pending)

    def submit(self, call: Callable[[Engine], Result]) -> "Future[Result]":
        """Queue `call(engine)`; its result or exception lands in the future.

        A future that is cancelled while it waits never runs. Raises EngineBusy when the queue is
        full, EngineUnavailable when there is no engine (any more).
        """
        job = _Job(call)
        with self._changed:
            if self._closing.is_set():
                raise EngineUnavailable("The model is not loaded: configure the node again.")
            self._drop_cancelled()
            if len(self._pending) + self._running > self._max_pending:
                raise EngineBusy(
                    f"{len(self._pending)} requests are waiting for the model already: "
                    "ask again later."
                )
            self._pending.append(job)
            self._changed.notify()
        return job.future

    def forget(self) -> None:
        """Let the engine forget the images that it saw, when its turn comes."""
        with self._changed:
            if not self._closing.is_set():
                self._pending.append(_Job(lambda engine: engine.forget()))
                self._changed.notify()

    def close(self, timeout: float | None = None) -> bool:
        """End the generation at its next token, cancel what waits, free the engine, end the thread.

        Waits at most `timeout` seconds (None = for ever) and returns whether the thread has ended;
        it ends later otherwise (an engine that is being made can't be interrupted). May be called
        again.
        """
        with self._changed:
            self._closing.set()
            waiting = list(self._pending)
            self._pending.clear()
            self._changed.notify()
        for job in waiting:
            job.future.cancel()
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _serve(self) -> None:
        engine = self._made()
        if engine is None:
            return
        stoppable = _StoppableEngine(engine, self._closing)
        while (job := self._next()) is not None:
            job.run(stoppable, self._idle)
            del job  # while waiting for the next one, keep nothing of the last
        engine.close()

    def _made(self) -> Engine | None:
        """Make the engine and tell `ready`; without one, refuse what waits and what comes."""
        try:
            engine = self._create()
        # Who awaits `ready` learns of it, whatever it is.
        except BaseException as error:  # noqa: BLE001
            with self._changed:
                self._closing.set()
                waiting = list(self._pending)
                self._pending.clear()
            for job in waiting:
                if job.future.set_running_or_notify_cancel():
                    job.future.set_exception(EngineUnavailable("The model could not be loaded."))
            self.ready.set_exception(error)
            return None
        self._idle()
        self.ready.set_result(engine)
        return engine

    def _idle(self) -> None:
        with self._changed:
            self._running = False

    def _next(self) -> _Job[Any] | None:
        """Wait for a call; None when the worker closes."""
        with self._changed:
            self._changed.wait_for(lambda: self._pending or self._closing.is_set())
            if self._closing.is_set():
                return None
            self._running = True
            return self._pending.popleft()

    def _drop_cancelled(self) -> None:
        """Make room: calls that were cancelled while waiting. Holds the lock already."""
        waiting = [job for job in self._pending if not job.future.cancelled()]
        if len(waiting) < len(self._pending):
            self._pending = deque(waiting)
