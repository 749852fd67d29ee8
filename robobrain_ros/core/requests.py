# SPDX-License-Identifier: Apache-2.0
"""Generation requests to a model and what it generates."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from robobrain_ros.core.answer_formats import AnswerFormat
from robobrain_ros.core.arrays import RgbImage


def never_stop() -> bool:
    """A `stop` for requests that nobody cancels."""
    return False


class Stage(Enum):
    """Stages of a request."""

    WAITING = "waiting"  # for its turn
    PREPROCESSING = "preprocessing"  # resizing the image, building the prompt
    PREFILL = "prefill"  # the model reads image and prompt
    DECODING = "decoding"  # the model generates the answer
    LIFTING = "lifting"  # from pixels to 3D


Report = Callable[[Stage, str, int], None]
"""Called with each stage; while decoding, with the new text and the number of tokens so far."""


@dataclass(frozen=True)
class Text:
    """A piece of text in a message."""

    text: str


@dataclass(frozen=True, eq=False)
class ImageInput:
    """An image in a message: (H, W, 3) uint8 RGB at the camera's size."""

    rgb: RgbImage


@dataclass(frozen=True, eq=False)
class VideoInput:
    """A video in a message: frames (H, W, 3) uint8 RGB, and the time of each in seconds."""

    frames: tuple[RgbImage, ...]
    timestamps: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.frames) != len(self.timestamps):
            raise ValueError(
                f"a video of {len(self.frames)} frames has {len(self.timestamps)} timestamps"
            )


Content = Text | ImageInput | VideoInput


class Role(str, Enum):
    """The author of a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"


@dataclass(frozen=True, eq=False)
class Message:
    """One turn of a conversation."""

    role: Role
    content: tuple[Content, ...]


def user_message(text: str, image: RgbImage | None = None) -> Message:
    """A user's question, about an image (H, W, 3) or about none."""
    images = () if image is None else (ImageInput(image),)
    return Message(Role.USER, (*images, Text(text)))


@dataclass(frozen=True)
class GenerationOptions:
    """Limits and sampling of a generation.

    temperature: 0 = greedy, the likeliest token each time; else tokens are sampled from the model's
    probabilities at this temperature. seed: of the sampling, None = another one each time.
    """

    max_new_tokens: int = 768
    temperature: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and self.temperature >= 0):
            raise ValueError(f"the temperature is {self.temperature}: it must be 0 or more")
        if self.max_new_tokens < 1:
            raise ValueError(f"max_new_tokens is {self.max_new_tokens}: it must be 1 or more")
        if self.seed is not None and not 0 <= self.seed < 2**63:
            raise ValueError(f"the seed is {self.seed}: it must be from 0 to 2^63 - 1")


GREEDY = GenerationOptions()


@dataclass(frozen=True, eq=False, kw_only=True)
class GenerationRequest:
    """A conversation for a model to continue.

    messages: the last one is the user's; its prompt comes from `Family.build_prompt`. opening:
    text that begins the assistant's turn, from the family. answer_format: constrains the answer,
    None = free text. stop: called between tokens; True ends the answer there with
    FinishReason.STOPPED. report: called on the engine's thread.
    """

    messages: tuple[Message, ...]
    opening: str = ""
    answer_format: AnswerFormat | None = None
    options: GenerationOptions = GREEDY
    stop: Callable[[], bool] = never_stop
    report: Report | None = None

    @property
    def content(self) -> tuple[Content, ...]:
        """The content of all messages, in order."""
        return tuple(part for message in self.messages for part in message.content)

    @property
    def images(self) -> tuple[RgbImage, ...]:
        """The images of all messages, in order."""
        return tuple(part.rgb for part in self.content if isinstance(part, ImageInput))

    @property
    def text(self) -> str:
        """The text of all messages, a line each."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))


class FinishReason(Enum):
    """Why a generation ended."""

    EOS = "eos"  # the model ended its answer, or the answer's format was complete
    LENGTH = "length"  # max_new_tokens were generated
    STOPPED = "stopped"  # `stop` returned True


@dataclass(frozen=True)
class Generation:
    """The text generated after the opening.

    sent_sizes: (width, height) of each image of the request as the model saw it, in order: the
    frames of absolute coordinates in the answer. cached_tokens: those of `tokens_in` that came from
    the prefix cache. Times are in seconds.
    """

    text: str
    finish: FinishReason
    sent_sizes: tuple[tuple[int, int], ...]
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    preprocess_s: float
    prefill_s: float
    decode_s: float
