# SPDX-License-Identifier: Apache-2.0
"""From an image and a prompt to a Qwen-VL model's input tensors, and from its tokens to text.

Transformers' own processor classes need torchvision for videos; still images need only the image
processor's configuration and the tokenizer, which are put together here.
"""

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

from robobrain_ros.core.coordinates import sent_size
from robobrain_ros.core.requests import GenerationRequest
from robobrain_ros.engines.base import EngineError, LoadError
from robobrain_ros.engines.local.image_patches import Patches, resized

_IMAGE_TOKEN = "<|image_pad|>"
_CONTROL_TOKEN = re.compile(r"<\|[^<>|]*\|>")
_TAG = re.compile(r"<[^<>\s]+>")  # what tokens with a meaning of their own look like


@dataclass(frozen=True, eq=False)
class EncodedImage:
    """`pixel_values` (patches, values) float32, `grid` (1, 3) int64 in patches, `sent_size` (width,
    height) in pixels, and how many `tokens` stand for it in a prompt.
    """

    pixel_values: torch.Tensor
    grid: torch.Tensor
    sent_size: tuple[int, int]
    tokens: int


class Encoder:
    """Tokenizer, chat template and image processor of one checkpoint."""

    def __init__(self, directory: Path, max_pixels: int) -> None:
        """Read them from `directory`; `max_pixels` caps the size of images, 0 keeps its own cap."""
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
        # Tags have no "<" inside, so that none overlaps another: one pass finds them all.
        self._tags = re.compile("|".join([_CONTROL_TOKEN.pattern, *map(re.escape, tags)]))
        processor: Any = Qwen2VLImageProcessorPil.from_pretrained(directory, local_files_only=True)
        self._patches = Patches(processor)
        self._merged = processor.merge_size**2  # patches that are one token
        self.factor = processor.patch_size * processor.merge_size
        size = processor.size
        self.max_pixels = min(max_pixels or size["longest_edge"], size["longest_edge"])
        # Room below the cap, where it is lower than the checkpoint's own minimum.
        self.min_pixels = min(size["shortest_edge"], self.max_pixels // 2)
        if self.max_pixels < self.factor**2:
            raise LoadError(
                f"max_pixels is {max_pixels}, less than one token of this model: "
                f"set it to 0 or to {self.factor**2} at least."
            )

    def image(self, rgb: NDArray[np.uint8]) -> EncodedImage:
        """Make the model's input of an image (H, W, 3). Raises EngineError for one that the model
        can't take.
        """
        if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
            raise EngineError(
                f"The image is {rgb.dtype} of shape {rgb.shape}: give uint8 RGB of shape (H, W, 3)."
            )
        height, width = rgb.shape[:2]
        try:
            size = sent_size(width, height, self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise EngineError(f"The model can't take this image: {error}.") from error
        pixel_values, grid = self._patches(resized(rgb, size))
        return EncodedImage(pixel_values, grid, size, int(grid.prod()) // self._merged)

    def is_image(self, ids: torch.Tensor) -> torch.Tensor:
        """Tell which tokens (1, T) stand for an image, as int32."""
        return torch.eq(ids, self._image_token_id).to(torch.int32)

    def decode(self, token_ids: list[int]) -> str:
        """Text of generated tokens, without control tokens; thinking and answer tags are kept."""
        kept = [token_id for token_id in token_ids if token_id not in self._control_ids]
        return str(self.tokenizer.decode(kept, clean_up_tokenization_spaces=False))

    def stream(self) -> Callable[[int], str]:
        """Return what turns an answer's tokens, one after the other, into text as `decode` does."""
        decoder = DecodeStream(skip_special_tokens=False)

        def text_of(token_id: int) -> str:
            if token_id in self._control_ids:
                return ""
            return decoder.step(self.tokenizer.backend_tokenizer, token_id) or ""

        return text_of

    def token_ids(self, request: GenerationRequest, image_tokens: int) -> torch.Tensor:
        """Chat template around the prompt, the opening after it, as token ids (1, T) int64."""
        # Tokens in a user's words must stay words: they could end the turn, or the thinking.
        prompt = self._tags.sub(lambda tag: f"< {tag[0][1:]}", request.prompt)
        content = [{"type": "text", "text": prompt}]
        if image_tokens:
            content.insert(0, {"type": "image"})
        chat = self.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}],
            chat_template=self._template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = self.tokenizer(chat + request.opening, add_special_tokens=False)["input_ids"]
        if ids.count(self._image_token_id) != bool(image_tokens):
            raise EngineError(
                f"The model's chat template does not place {_IMAGE_TOKEN} for an image: "
                "get the model's tokenizer files again."
            )
        expanded: list[int] = []
        for token_id in ids:
            expanded += [token_id] * (image_tokens if token_id == self._image_token_id else 1)
        return torch.tensor([expanded])


def _template_beside(directory: Path) -> str:
    """The chat template that older checkpoints keep in a file of its own. Raises LoadError."""
    file = directory / "chat_template.json"
    try:
        return str(json.loads(file.read_text(encoding="utf-8"))["chat_template"])
    except (OSError, ValueError, KeyError) as error:
        raise LoadError(
            f"The model in {directory} has no chat template (in tokenizer_config.json, "
            "chat_template.jinja or chat_template.json): get its tokenizer files again."
        ) from error
