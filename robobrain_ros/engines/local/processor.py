# SPDX-License-Identifier: Apache-2.0
"""A Qwen-VL model's processor: input tensors of images and messages, text of generated tokens.

Transformers' own processor classes need torchvision for videos; still images need only the image
processor's configuration and the tokenizer, which are combined here.
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from robobrain_ros.core.coordinates import sent_size
from robobrain_ros.core.requests import GenerationRequest, Message, Role, Text
from robobrain_ros.engines.base import EngineError, LoadError
from robobrain_ros.engines.local.image_patches import PatchExtractor, resize

_IMAGE_TOKEN = "<|image_pad|>"
_CONTROL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
_TAG = re.compile(r"<[^<>\s]+>")  # such as <think>, where the tokenizer has it as a token


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """An image as the model's input.

    pixel_values: (patches, values) float32. grid: (1, 3) int64 in patches (time, rows, columns).
    sent_size: (width, height) in pixels. tokens: number of image tokens in the prompt.
    """

    pixel_values: torch.Tensor
    grid: torch.Tensor
    sent_size: tuple[int, int]
    tokens: int


class Processor:
    """Tokenizer, chat template and image processor of one checkpoint."""

    def __init__(self, directory: Path, max_pixels: int) -> None:
        """Read them from `directory`. max_pixels: larger images are scaled down, 0 = its own cap.

        Raises LoadError, and what transformers raises for damaged files.
        """
        self.tokenizer: Any = AutoTokenizer.from_pretrained(
            directory, local_files_only=True, trust_remote_code=False
        )
        self._template = self.tokenizer.chat_template or _template_beside(directory)
        self._image_token_id = self.tokenizer.convert_tokens_to_ids(_IMAGE_TOKEN)
        added = self.tokenizer.added_tokens_decoder.items()
        contents = {token_id: token.content for token_id, token in added}
        self._control_ids = {
            token_id for token_id, content in contents.items() if _CONTROL_TOKEN.fullmatch(content)
        }
        tags = sorted(filter(_TAG.fullmatch, contents.values()))
        # Tags have no "<" inside, hence don't overlap: one pass finds them all.
        self._tags = re.compile("|".join([_CONTROL_TOKEN.pattern, *map(re.escape, tags)]))
        processor: Any = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
        self._extract_patches = PatchExtractor(processor)
        self._merged = processor.merge_size**2  # patches per image token
        self.factor = processor.patch_size * processor.merge_size
        size = processor.size
        self.max_pixels = min(max_pixels or size["longest_edge"], size["longest_edge"])
        # Below the cap, which may be lower than the checkpoint's own minimum.
        self.min_pixels = min(size["shortest_edge"], self.max_pixels // 2)
        if self.max_pixels < self.factor**2:
            raise LoadError(
                f"max_pixels is {max_pixels}, less than one token of this model: "
                f"set it to 0 or to {self.factor**2} at least."
            )

    def image(self, rgb: NDArray[np.uint8]) -> EncodedImage:
        """Encode an image (H, W, 3). Raises EngineError for one that the model can't take."""
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise EngineError(
                f"The image is {rgb.dtype} of shape {rgb.shape}: give uint8 RGB of shape (H, W, 3)."
            )
        height, width = rgb.shape[:2]
        try:
            size = sent_size(width, height, self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise EngineError(f"The model can't take this image: {error}.") from error
        pixel_values, grid = self._extract_patches(resize(rgb, size))
        return EncodedImage(pixel_values, grid, size, int(grid.prod()) // self._merged)

    def is_image(self, ids: torch.Tensor) -> torch.Tensor:
        """Mask of the image tokens among token ids (1, T), as int32."""
        return torch.eq(ids, self._image_token_id).to(torch.int32)

    def decode(self, token_ids: list[int]) -> str:
        """Decode generated tokens, without control tokens; thinking and answer tags are kept."""
        kept = [token_id for token_id in token_ids if token_id not in self._control_ids]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def stream(self) -> Callable[[int], str]:
        """Return a function that decodes a generation's tokens one after the other, as `decode`."""
        decoder = DecodeStream(skip_special_tokens=False)

        def text_of(token_id: int) -> str:
            if token_id in self._control_ids:
                return ""
            return decoder.step(self.tokenizer.backend_tokenizer, token_id) or ""

        return text_of

    def token_ids(self, request: GenerationRequest, image_tokens: Sequence[int]) -> torch.Tensor:
        """Token ids (1, T) int64 of the chat template around the messages, and of the opening.

        image_tokens: number of tokens of each image of the request.
        """
        chat = self.tokenizer.apply_chat_template(
            list(map(self._turn, request.messages)),
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(chat + request.opening, add_special_tokens=False)["input_ids"]
        if ids.count(self._image_token_id) != len(image_tokens):
            raise EngineError(
                f"The model's chat template does not place {_IMAGE_TOKEN} for an image: "
                "get the model's tokenizer files again."
            )
        counts = iter(image_tokens)
        expanded: list[int] = []
        for token_id in ids:
            expanded += [token_id] * (next(counts) if token_id == self._image_token_id else 1)
        return torch.tensor([expanded])

    def _turn(self, message: Message) -> dict[str, Any]:
        """A message as chat templates take it.

        Control tokens in its text are broken up: they could end the turn. So are tags, which could
        end the thinking, except in what the model said itself.
        """
        pattern = _CONTROL_TOKEN if message.role is Role.ASSISTANT else self._tags
        content = [
            {"type": "text", "text": pattern.sub(lambda tag: f"< {tag[0][1:]}", part.text)}
            if isinstance(part, Text)
            else {"type": "image"}
            for part in message.content
        ]
        return {"role": message.role.value, "content": content}


def _template_beside(directory: Path) -> str:
    """Read the chat template that older checkpoints keep in a file. Raises LoadError."""
    file = directory / "chat_template.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"The model in {directory} has no chat template (in tokenizer_config.json, "
            "chat_template.jinja or chat_template.json): get its tokenizer files again."
        ) from error
