# SPDX-License-Identifier: Apache-2.0
"""How a model reads a request: the image once, then only the words that are new."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from robobrain_ros.core.requests import GenerationRequest
from robobrain_ros.engines.local.kv_cache import Rows
from robobrain_ros.engines.local.memory_estimate import reading_bytes
from robobrain_ros.engines.local.prefix_cache import Prefix, PrefixCache, digest
from robobrain_ros.engines.local.processor import EncodedImage, Encoder
from robobrain_ros.engines.local.qwen_language import LanguageModel
from robobrain_ros.engines.local.qwen_vision import VisionTower


@dataclass(frozen=True, eq=False)
class Prompt:
    """A request as tokens (1, T), with its image when the model must look at it, or with what is
    known of it. `key` identifies the image.
    """

    ids: Tensor
    image: EncodedImage | None = None
    prefix: Prefix | None = None
    key: bytes = b""

    @property
    def length(self) -> int:
        """All tokens of the prompt."""
        return self.ids.shape[1]

    @property
    def cached(self) -> int:
        """Tokens that need not be read again."""
        return 0 if self.prefix is None else len(self.prefix.ids)

    @property
    def sent_size(self) -> tuple[int, int]:
        """Width and height of the image as sent, (0, 0) without one."""
        source = self.prefix or self.image
        return (0, 0) if source is None else source.sent_size


class Reader:
    """Reads prompts into rows of the cache, and keeps what was read of images."""

    def __init__(
        self,
        model: PreTrainedModel,
        encoder: Encoder,
        language: LanguageModel,
        prefixes: PrefixCache,
    ) -> None:
        self._model = model
        self._encoder = encoder
        self._language = language
        self._prefixes = prefixes
        self._vision = VisionTower(model.model.visual)

    def prompt(self, request: GenerationRequest) -> Prompt:
        """Encode a request; of an image that is known, nothing but its number of tokens is needed.

        Raises EngineError for an image that the model can't take.
        """
        if request.image is None:
            return Prompt(self._encoder.token_ids(request, 0))
        key = digest(request.image)
        known = self._prefixes.get(key)
        if known is not None:
            ids = self._encoder.token_ids(request, known.image_tokens)
            if known.begins(ids):
                return Prompt(ids, None, known, key)
        image = self._encoder.image(request.image)
        return Prompt(self._encoder.token_ids(request, image.tokens), image, None, key)

    def reading_bytes(self, prompt: Prompt) -> int:
        """Estimate the memory that `read` takes beside the row."""
        patches = 0 if prompt.image is None else int(prompt.image.grid.prod())
        tokens = prompt.length - prompt.cached
        return reading_bytes(self._model, tokens, patches, self._language.dtype.itemsize)

    def read(self, prompt: Prompt, more: list[int], rows: Rows, row: int) -> tuple[Tensor, int]:
        """Read what is new of a prompt, and `more` tokens after it, into a row that begins with
        the prompt's prefix.

        Returns the scores (1, V) of the next token, and by how much the rotary positions of tokens
        after the prompt are above their columns.
        """
        language = self._language
        ids = torch.cat([prompt.ids, torch.tensor([more], dtype=torch.int64)], 1)
        columns = torch.arange(prompt.cached, ids.shape[1])[None]
        new = ids[:, prompt.cached :].to(language.device)
        x = language.embed(new)
        deep: list[Tensor] = []
        if prompt.image is None:
            offset = 0 if prompt.prefix is None else prompt.prefix.offset
            rope = language.text_rope((columns + offset).to(language.device))
        else:
            positions, offset = self._positions(ids, prompt.image)
            rope = language.rope(positions)
            x, deep = self._with_image(x, ids, prompt.image)
        cache = rows.cache[:, :, row : row + 1]
        hidden = language.hidden(x, rope, language.reach(columns), cache, deep)
        if prompt.image is not None:
            self._keep(prompt, prompt.image, offset, rows, row)
        return language.logits(hidden[:, -1]), offset

    def _positions(self, ids: Tensor, image: EncodedImage) -> tuple[Tensor, int]:
        """Rotary positions (3, T) (time, row, column), and by how much text after the image is
        above its column.
        """
        positions, offset = self._model.model.get_rope_index(
            ids, mm_token_type_ids=self._encoder.is_image(ids), image_grid_thw=image.grid
        )
        return positions[:, 0], int(offset)

    def _with_image(
        self, x: Tensor, ids: Tensor, image: EncodedImage
    ) -> tuple[Tensor, list[Tensor]]:
        """Put the image's features in their tokens' places (1, T, C); returns what is to be added
        to all tokens after the first layers, (T, C) each, too.
        """
        device = self._language.device
        seen = self._vision(image.pixel_values.to(device), image.grid)
        at = self._encoder.is_image(ids)[0].to(device).bool()
        x[0, at] = seen.tokens
        deep = []
        for layer in seen.deepstack:
            added = torch.zeros_like(x[0])
            added[at] = layer
            deep.append(added)
        return x, deep

    def _keep(self, prompt: Prompt, image: EncodedImage, offset: int, rows: Rows, row: int) -> None:
        """Hold what the model has read up to the end of a new image."""
        end = int(self._encoder.is_image(prompt.ids)[0].nonzero()[-1]) + 1
        if self._prefixes.takes(end * self._language.column_bytes):
            kept = rows.copy(row, end)
            ids = prompt.ids[0, :end]
            prefix = Prefix(ids, image.tokens, offset, image.sent_size, kept)
            self._prefixes.put(prompt.key, prefix)
