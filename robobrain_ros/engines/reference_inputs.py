# SPDX-License-Identifier: Apache-2.0
"""Inputs of the reference engine: a request as arguments of a model's `generate`."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Protocol

import torch
from tokenizers.decoders import DecodeStream
from torch import Tensor
from transformers import AutoProcessor

from robobrain_ros.core.families import MODEL_TYPES
from robobrain_ros.core.requests import GenerationRequest, Message, Text
from robobrain_ros.engines.base import EngineError
from robobrain_ros.engines.local.checkpoint import Checkpoint
from robobrain_ros.engines.local.loading import load_failure, load_processor
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.engines.local.sequence import Sizes


class Inputs(Protocol):
    """A checkpoint's tokenizer, and tensors of requests for its `generate`."""

    tokenizer: Any

    def encode(self, request: GenerationRequest) -> tuple[dict[str, Tensor], Sizes]:
        """Return keyword arguments for `generate`, and the images' (width, height) as sent."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """Decode generated tokens."""
        ...

    def stream(self) -> Callable[[int], str]:
        """Return a function that decodes a generation's tokens one after the other."""
        ...


def load_inputs(checkpoint: Checkpoint, max_pixels: int) -> Inputs:
    """The local engine's processor for the models that it knows. Raises LoadError."""
    if checkpoint.model_type in MODEL_TYPES:
        return _QwenInputs(load_processor(checkpoint, max_pixels))
    try:
        processor = AutoProcessor.from_pretrained(
            checkpoint.directory, local_files_only=True, trust_remote_code=False
        )
    except (OSError, ValueError, KeyError, TypeError, ImportError) as error:
        raise load_failure(checkpoint, error) from error
    return _AutoInputs(processor)


class _QwenInputs:
    """Inputs of Qwen-VL models, by the local engine's processor."""

    def __init__(self, processor: Processor) -> None:
        self.tokenizer = processor.tokenizer
        self.decode = processor.decode
        self.stream = processor.stream
        self._processor = processor

    def encode(self, request: GenerationRequest) -> tuple[dict[str, Tensor], Sizes]:
        images = tuple(map(self._processor.image, request.images))
        ids = self._processor.token_ids(request, [image.tokens for image in images])
        inputs = {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": self._processor.is_image(ids),
        }
        if images:
            inputs["pixel_values"] = torch.cat([image.pixel_values for image in images])
            inputs["image_grid_thw"] = torch.cat([image.grid for image in images])
        return inputs, tuple(image.sent_size for image in images)


class _AutoInputs:
    """Inputs of any model, by its own processor and at its own resolution.

    The sizes of images are those before its resizing, since processors don't tell them: answers in
    pixels are right where the model's coordinates don't depend on it.
    """

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self._processor = processor
        added = self.tokenizer.added_tokens_decoder.values()
        special = [re.escape(token.content) for token in added if token.special]
        self._special = re.compile("|".join(special) or "$^")

    def encode(self, request: GenerationRequest) -> tuple[dict[str, Tensor], Sizes]:
        turns = list(map(self._turn, request.messages))
        try:
            chat = self._processor.apply_chat_template(
                turns, add_generation_prompt=True, tokenize=False
            )
            inputs = self._processor(
                text=[chat + request.opening],
                images=list(request.images) or None,
                add_special_tokens=False,
                return_tensors="pt",
            )
        except (ValueError, TypeError, KeyError) as error:
            raise EngineError(f"The model can't take this request: {error}.") from error
        sizes = tuple((image.shape[1], image.shape[0]) for image in request.images)
        return dict(inputs), sizes

    def decode(self, token_ids: list[int]) -> str:
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def stream(self) -> Callable[[int], str]:
        decoder = DecodeStream(skip_special_tokens=True)
        return lambda token: decoder.step(self.tokenizer.backend_tokenizer, token) or ""

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as chat templates take it; special tokens in its text could end the turn."""
        content = [
            {"type": "text", "text": self._special.sub(_broken_up, part.text)}
            if isinstance(part, Text)
            else {"type": "image"}
            for part in message.content
        ]
        return {"role": message.role.value, "content": content}


def _broken_up(token: re.Match[str]) -> str:
    return f"{token[0][0]} {token[0][1:]}"
