# SPDX-License-Identifier: Apache-2.0
"""The engine protocol: requests in, futures of generations out. No torch, no ROS."""

from __future__ import annotations

from collections.abc import Callable, Generator
from concurrent.futures import Future
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol, TypeVar

from robobrain_ros.core.families import Family
from robobrain_ros.core.requests import (
    Generation,
    GenerationRequest,
    Role,
    VideoInput,
    never_stop,
)

Result = TypeVar("Result")
Work = Generator[GenerationRequest, Generation, Result]
"""The work of one client: yields requests to the model, is sent the generations, returns a result.

It runs on the engine's thread, so that what precedes and follows a generation costs no other
thread's time; other clients have their turn while the model generates."""

Progress = Callable[[str], None]
"""Called with a line for the log."""


def silent(message: str) -> None:
    """A Progress that is not shown."""
    del message


class Priority(IntEnum):
    """Order in the queue, lowest first."""

    PERCEPTION = 0  # a planner waits for a few tokens
    BACKGROUND = 1  # long texts, thinking


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights, of the prefix cache, of the running sequences' KV cache, and those that
    are free on the device.
    """

    weights: int
    images: int
    answers: int
    free: int


@dataclass(frozen=True)
class Capabilities:
    """Abilities of an engine with a loaded model.

    streaming: whether `report` is given text as it is generated. constrained_decoding: whether
    `answer_format` is enforced; without it the answer may have any form. sampling: whether
    temperatures above 0 are supported.
    """

    family: Family
    images_per_request: int
    videos: bool
    streaming: bool
    constrained_decoding: bool
    sampling: bool

    @property
    def thinks(self) -> bool:
        """Whether the model can reason aloud before it answers."""
        return self.family.thinks

    def check(self, request: GenerationRequest) -> None:
        """Raise EngineError for a request that this engine doesn't serve."""
        if not request.messages or request.messages[-1].role is not Role.USER:
            raise EngineError("The conversation must end with a message of the user.")
        if not self.videos and any(isinstance(part, VideoInput) for part in request.content):
            raise EngineError("This engine does not support videos: send an image instead.")
        count = len(request.images)
        if count > self.images_per_request:
            raise EngineError(
                f"The request has {count} images and this engine supports "
                f"{self.images_per_request} per request: send fewer."
            )
        if request.options.temperature and not self.sampling:
            raise EngineError("This engine does not sample: set the temperature to 0.")


class Engine(Protocol):
    """A model that serves requests from any thread. Only `close` blocks.

    The model is loaded in the background: `ready` is the future of its capabilities, or of the
    LoadError that prevented it. Until then requests are queued.
    """

    ready: Future[Capabilities]

    @property
    def capabilities(self) -> Capabilities:
        """Those of the loaded model. Raises EngineUnavailable before `ready` is done."""
        ...

    @property
    def description(self) -> str:
        """A line for the log: model, precision, device; "" before `ready` is done."""
        ...

    @property
    def running(self) -> int:
        """Number of requests being answered."""
        ...

    @property
    def pending(self) -> int:
        """Number of requests waiting for their turn."""
        ...

    @property
    def memory(self) -> Memory | None:
        """Memory usage as last measured, None before `ready` is done."""
        ...

    @property
    def failure(self) -> EngineUnavailable | None:
        """Why the engine has stopped serving by itself, None while it serves."""
        ...

    def generate(
        self, request: GenerationRequest, *, priority: Priority = Priority.PERCEPTION
    ) -> Future[Generation]:
        """Queue one request; text is streamed to its `report`. Errors as in `run`."""
        ...

    def run(
        self,
        work: Work[Result],
        *,
        priority: Priority = Priority.PERCEPTION,
        stop: Callable[[], bool] = never_stop,
    ) -> Future[Result]:
        """Queue work on the engine's thread; its result or exception is set on the future.

        When `stop` returns True while the work waits, it is started at once, so that it can say why
        it ends. Work whose future is cancelled while it waits is never started. A `yield` raises
        EngineOutOfMemory, EngineUnavailable, or a plain EngineError for a request that the model
        can't serve. Raises EngineBusy when the queue is full, EngineUnavailable when there is no
        model (any more).
        """
        ...

    def clear_cache(self) -> None:
        """Drop the prefix cache, after the next step."""
        ...

    def close(self, timeout: float | None = None) -> bool:
        """Stop running requests at their next token, cancel waiting ones and free the model.

        Waits at most `timeout` seconds (None = for ever) and returns whether the model is freed; it
        is freed later otherwise (loading can't be interrupted). May be called again.
        """
        ...


class EngineError(Exception):
    """A request that the engine can't serve; the message says the cause and what to do."""


class LoadError(EngineError):
    """The model can't be loaded."""


class UnsupportedArchitecture(LoadError):
    """The local engine doesn't implement the model's architecture; the reference engine may."""


class EngineOutOfMemory(EngineError):
    """The request needed more memory than there is; the engine has freed what it took."""


class EngineUnavailable(EngineError):
    """There is no working engine: it is closed, could not be made, or failed."""


class EngineBusy(EngineError):
    """The queue is full."""
