# SPDX-License-Identifier: Apache-2.0
"""What every engine does: take an image and a prompt, give text. No torch, no ROS."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.families import Family


def never_stop() -> bool:
    """A `stop` for requests that nobody cancels."""
    return False


@dataclass(frozen=True, eq=False)
class GenerationRequest:
    """One question to a model.

    `image` is (H, W, 3) uint8 RGB at the camera's size, or None; `prompt` comes from
    `tasks.build_prompt`; `opening` is the text that opens the assistant's turn, from the family.
    `stop` is called between tokens; True ends the answer there with FinishReason.STOPPED.
    """

    image: NDArray[np.uint8] | None
    prompt: str
    opening: str = ""
    max_new_tokens: int = 768
    stop: Callable[[], bool] = never_stop


class FinishReason(Enum):
    """Why a generation ended."""

    EOS = "eos"  # the model ended its answer
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


class Engine(Protocol):
    """A loaded model. Every call blocks, and all come from the thread that made the engine.

    `memory_bytes` are those of the weights as stored; `description` is a line for the log.
    """

    family: Family
    description: str
    memory_bytes: int

    def generate(self, request: GenerationRequest) -> Generation:
        """Answer one request, greedily.

        Raises EngineOutOfMemory (the engine stays usable), EngineUnavailable after `close` or when
        the model fails, and a plain EngineError for a request that the model can't take.
        """
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
