# SPDX-License-Identifier: Apache-2.0
"""Prefill: images once, then only the tokens that the prefix cache doesn't have."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from robobrain_ros.core.requests import GenerationRequest
from robobrain_ros.engines.local.kv_cache import KVCache
from robobrain_ros.engines.local.memory_estimate import prefill_bytes
from robobrain_ros.engines.local.prefix_cache import Key, Prefix, PrefixCache, digest
from robobrain_ros.engines.local.processor import EncodedImage, Processor
from robobrain_ros.engines.local.qwen_language import LanguageModel
from robobrain_ros.engines.local.qwen_vision import VisionTower


@dataclass(frozen=True, eq=False)
class PreparedPrompt:
    """A request as token ids (1, T), with its cached prefix, or else with its encoded images.

    key: identifies the images.
    """

    ids: Tensor
    images: tuple[EncodedImage, ...] = ()
    prefix: Prefix | None = None
    key: Key = ()

    @property
    def length(self) -> int:
        """Number of tokens."""
        return self.ids.shape[1]

    @property
    def cached(self) -> int:
        """Number of tokens whose keys and values are in the prefix cache."""
        return 0 if self.prefix is None else len(self.prefix.ids)

    @property
    def sent_sizes(self) -> tuple[tuple[int, int], ...]:
        """(width, height) of each image as sent."""
        if self.prefix is not None:
            return self.prefix.sent_sizes
        return tuple(image.sent_size for image in self.images)


class Prefiller:
    """Prefills prompts into rows of the KV cache, and fills the prefix cache."""

    def __init__(
        self,
        model: PreTrainedModel,
        processor: Processor,
        language: LanguageModel,
        prefixes: PrefixCache,
    ) -> None:
        self.vision = VisionTower(model.model.visual)
        self._model = model
        self._processor = processor
        self._language = language
        self._prefixes = prefixes

    def prepare(self, request: GenerationRequest) -> PreparedPrompt:
        """Tokenize a request; images in the prefix cache are not encoded again.

        Raises EngineError for an image that the model can't take.
        """
        if not request.images:
            return PreparedPrompt(self._processor.token_ids(request, ()))
        key = tuple(map(digest, request.images))
        prefix = self._prefixes.get(key)
        if prefix is not None:
            ids = self._processor.token_ids(request, prefix.image_tokens)
            if prefix.begins(ids):
                return PreparedPrompt(ids, (), prefix, key)
        images = tuple(map(self._processor.image, request.images))
        ids = self._processor.token_ids(request, [image.tokens for image in images])
        return PreparedPrompt(ids, images, None, key)

    def prefill_bytes(self, prompt: PreparedPrompt) -> int:
        """Estimate the memory that `prefill` takes beside the KV cache."""
        patches = max((int(image.grid.prod()) for image in prompt.images), default=0)
        tokens = prompt.length - prompt.cached
        return prefill_bytes(self._model, tokens, patches, self._language.dtype.itemsize)

    def prefill(
        self, prompt: PreparedPrompt, forced: list[int], cache: KVCache, row: int
    ) -> tuple[Tensor, int]:
        """Compute a prompt's new tokens, and `forced` ones after it, in a row of the cache.

        The row begins with the prompt's prefix. Returns the logits (1, V) of the next token, and
        the rotary positions of tokens after the prompt minus their slots.
        """
        language = self._language
        ids = torch.cat([prompt.ids, torch.tensor([forced], dtype=torch.int64)], 1)
        slots = torch.arange(prompt.cached, ids.shape[1])[None]
        new = ids[:, prompt.cached :].to(language.device)
        x = language.embed(new)
        deepstack: list[Tensor] = []
        if prompt.images:
            positions, offset = self._positions(ids, prompt.images)
            rope = language.rope(positions)
            x, deepstack = self._with_images(x, ids, prompt.images)
        else:
            offset = 0 if prompt.prefix is None else prompt.prefix.offset
            rope = language.text_rope((slots + offset).to(language.device))
        rows = cache.tensor[:, :, row : row + 1]
        metadata = language.attention_metadata(slots)
        hidden = language.hidden(x, rope, metadata, rows, deepstack)
        if prompt.images:
            self._cache_prefix(prompt, offset, cache, row)
        return language.logits(hidden[:, -1]), offset

    def _positions(self, ids: Tensor, images: tuple[EncodedImage, ...]) -> tuple[Tensor, int]:
        """Rotary positions (3, T) (time, row, column), and those of text after the images minus
        its slots.
        """
        positions, offset = self._model.model.get_rope_index(
            ids,
            mm_token_type_ids=self._processor.is_image(ids),
            image_grid_thw=torch.cat([image.grid for image in images]),
        )
        return positions[:, 0], int(offset)

    def _with_images(
        self, x: Tensor, ids: Tensor, images: tuple[EncodedImage, ...]
    ) -> tuple[Tensor, list[Tensor]]:
        """Put the images' features in place of their tokens' embeddings (1, T, C).

        Returns also the deepstack features, (T, C) each, which are 0 at other tokens.
        """
        device = self._language.device
        features = [self.vision(image.pixel_values.to(device), image.grid) for image in images]
        is_image = self._processor.is_image(ids)[0].to(device).bool()
        x[0, is_image] = torch.cat([one.tokens for one in features])
        deepstack = []
        for layers in zip(*(one.deepstack for one in features)):
            added = torch.zeros_like(x[0])
            added[is_image] = torch.cat(layers)
            deepstack.append(added)
        return x, deepstack

    def _cache_prefix(self, prompt: PreparedPrompt, offset: int, cache: KVCache, row: int) -> None:
        """Keep a row's keys and values up to the end of the last image."""
        end = int(self._processor.is_image(prompt.ids)[0].nonzero()[-1]) + 1
        if self._prefixes.accepts(end * self._language.slot_bytes):
            tokens = tuple(image.tokens for image in prompt.images)
            keys_values = cache.copy(row, end)
            prefix = Prefix(prompt.ids[0, :end], tokens, offset, prompt.sent_sizes, keys_values)
            self._prefixes.put(prompt.key, prefix)
