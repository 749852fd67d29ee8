# SPDX-License-Identifier: Apache-2.0
"""What every engine does: take an image and a prompt, give text. No torch, no ROS."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.answer_formats import AnswerForm
from robobrain_ros.core.families import Family


def never_stop() -> bool:
    """A `stop` for requests that nobody cancels."""
    return False


class Stage(Enum):
    """What is being done for a request."""

    WAITING = "waiting"  # for its turn
    PREPROCESSING = "preprocessing"  # resizing the image, building the prompt
    PREFILL = "prefill"  # the model reads image and prompt
    DECODING = "decoding"  # the model writes
    LIFTING = "lifting"  # from pixels to 3D


Report = Callable[[Stage, str, int], None]
"""Told of each stage, and while decoding of the text since the last call and the tokens so far."""


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One question to a model.

    `image` is (H, W, 3) uint8 RGB at the camera's size, or None; `prompt` comes from
    `tasks.build_prompt`; `opening` is the text that opens the assistant's turn, from the family.
    `form` is what the answer must look like, None = anything. `stop` is called between tokens; True
    ends the answer there with FinishReason.STOPPED. `report` is called on the engine's thread.
    """

    image: NDArray[np.uint8] | None
    prompt: str
    opening: str = ""
    max_new_tokens: int = 768
    form: AnswerForm | None = None
    stop: Callable[[], bool] = never_stop
    report: Report | None = None


class FinishReason(Enum):
    """Why a generation ended."""

    EOS = "eos"  # the model ended its answer, or its form was complete
    LENGTH = "length"  # max_new_tokens were generated
    STOPPED = "stopped"  # `stop` said so


@dataclass(frozen=True)
class Generation:
    """What the model generated after the opening.

    `sent_size` is (width, height) of the image as the model saw it, (0, 0) without an image: the
    frame of absolute coordinates in the answer. Times are in seconds; `cached_tokens` of the
    `tokens_in` were not computed again.
    """

    text: str
    finish: FinishReason
    sent_size: tuple[int, int]
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    preprocess_s: float
    prefill_s: float
    decode_s: float


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
