# SPDX-License-Identifier: Apache-2.0
"""The engine protocol: a request in, generated text out. No torch, no ROS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from robobrain_ros.core.families import Family
from robobrain_ros.core.requests import Generation, GenerationRequest


@dataclass(frozen=True)
class Memory:
    """Bytes of the weights, of the images that were seen, of the answers in progress, and what the
    device has free.
    """

    weights: int
    images: int
    answers: int
    free: int


class Engine(Protocol):
    """A loaded model. Every call blocks, and all come from the thread that made the engine.

    Several answers may be in progress: `start` begins one, and each `step` carries all of them on
    by a token or a few. `memory_bytes` are those of the weights as stored; `description` is a line
    for the log.
    """

    family: Family
    description: str
    memory_bytes: int

    def start(self, request: GenerationRequest) -> object:
        """Read a request's image and prompt; returns what `step` will name its answer by.

        Raises EngineOutOfMemory (the engine stays usable, and the answers in progress go on),
        EngineUnavailable after `close` or when the model fails, and a plain EngineError for a
        request that the model can't take.
        """
        ...

    def step(self) -> list[tuple[object, Generation | EngineError]]:
        """Carry the answers in progress on, greedily; returns those that ended, and how."""
        ...

    def memory(self) -> Memory:
        """Tell where the memory is."""
        ...

    def forget(self) -> None:
        """Let go of what is held of images that were seen."""
        ...

    def close(self) -> None:
        """Free the model's memory. May be called again."""
        ...


class EngineError(Exception):
    """The engine can't do what was asked; the message is a sentence that says what to do."""


class LoadError(EngineError):
    """The model can't be loaded."""


class EngineOutOfMemory(EngineError):
    """The request needed more memory than there is; the engine has freed what it took."""


class EngineUnavailable(EngineError):
    """There is no engine that works: it is closed, could not be made, or failed."""


class EngineBusy(EngineError):
    """As many requests as allowed are waiting already."""


def generate_together(
    engine: Engine, requests: Iterable[GenerationRequest]
) -> list[Generation | EngineError]:
    """Answer requests at once while no others are in progress. Raises as `Engine.start` does."""
    names = [engine.start(request) for request in requests]
    outcomes: dict[object, Generation | EngineError] = {}
    while len(outcomes) < len(names):
        outcomes |= dict(engine.step())
    return [outcomes[name] for name in names]


def generate(engine: Engine, request: GenerationRequest) -> Generation:
    """Answer one request while no other is in progress. Raises as `Engine.start` does."""
    (outcome,) = generate_together(engine, [request])
    if isinstance(outcome, EngineError):
        raise outcome
    return outcome
