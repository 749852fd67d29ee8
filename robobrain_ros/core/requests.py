# SPDX-License-Identifier: Apache-2.0
"""What is asked of a model, and what it generates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from robobrain_ros.core.answer_formats import AnswerFormat
from robobrain_ros.core.arrays import RgbImage


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
    `Family.build_prompt`; `opening` is the text that opens the assistant's turn, from the family.
    `form` is what the answer must look like, None = anything. `stop` is called between tokens; True
    ends the answer there with FinishReason.STOPPED. `report` is called on the engine's thread.
    """

    image: RgbImage | None
    prompt: str
    opening: str = ""
    max_new_tokens: int = 768
    form: AnswerFormat | None = None
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
