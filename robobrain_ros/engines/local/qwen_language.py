# SPDX-License-Identifier: Apache-2.0
"""The language half of a Qwen-VL model, on the library's own weights but without its overhead.

Transformers builds masks, positions and cache objects anew for each token, which on a small model
or a fast GPU costs more than the arithmetic. Here a step is the arithmetic: keys and values go into
memory that stays where it is (so that a CUDA graph may hold it), several answers advance together,
and a row may be given several tokens at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from robobrain_ros.engines.local.onednn_linear import LaidOut

# Up to this many new tokens a row, plain products are faster than the fused kernel.
_FEW_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary positions: cosines and signed sines, each (B or 1, T, 1, head width).

    The first half of `sin` is negative, so that turning is x * cos + swapped(x) * sin.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class Reach:
    """Where a step's tokens go in the cache, and what they see.

    rows: (B, 1) and columns: (B, T), int64, where each new token goes. length: columns that are
    looked at.
    mask: (B, 1, T, length), added to the scores; None where one token sees them all, or where the
    tokens are the first ones (`causal`). Of `LanguageModel.reach`.
    """

    rows: Tensor
    columns: Tensor
    length: int
    mask: Tensor | None = None
    causal: bool = False


class LanguageModel:
    """Runs the layers of `model` over a cache (layers, 2, B, key heads, columns, head width).

    It takes the model's weights: what is used together is laid side by side in memory, and the
    library's own forward can't be used any more.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        language = model.model.language_model
        config = model.config.text_config
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
            raise ValueError("the model has sliding window attention, which is not supported")
        self.heads = int(config.num_attention_heads)
        self.key_heads = int(config.num_key_value_heads)
        self.head_width = int(language.layers[0].self_attn.head_dim)
        self.depth = len(language.layers)
        self.dtype: torch.dtype = language.norm.weight.dtype
        self.device: torch.device = language.norm.weight.device
        self._embedding = language.embed_tokens
        self._layers = [_Layer(layer, self.heads, self.key_heads) for layer in language.layers]
        self._norm = language.norm
        self._head = model.lm_head
        self._rotary = language.rotary_emb
        self._table = self.rope(torch.zeros(3, 0, dtype=torch.int64))

    @property
    def column_bytes(self) -> int:
        """Memory of one token's keys and values."""
        return 2 * self.depth * self.key_heads * self.head_width * self.dtype.itemsize

    def new_cache(self, rows: int, columns: int) -> Tensor:
        """Return an empty cache; zeros, because what is masked is still multiplied."""
        shape = (self.depth, 2, rows, self.key_heads, columns, self.head_width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def rope(self, positions: Tensor) -> Rope:
        """Turn positions (3, T) (time, row, column), of `get_rope_index`, into a Rope."""
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        cos, sin = self._rotary(like, positions[:, None].to(self.device))
        return Rope(cos[:, :, None], _signed(sin)[:, :, None])

    def text_rope(self, positions: Tensor) -> Rope:
        """Turn positions (B, T) of text, which are the same on all three axes, into a Rope."""
        shape = (*positions.shape, 1, self.head_width)
        flat = positions.flatten()
        return Rope(
            self._table.cos[0].index_select(0, flat).view(shape),
            self._table.sin[0].index_select(0, flat).view(shape),
        )

    def reserve(self, positions: int) -> None:
        """Make `text_rope` ready for positions below `positions`."""
        if self._table.cos.shape[1] < positions:
            self._table = self.rope(torch.arange(positions).expand(3, -1))

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, T) as (B, T, C)."""
        return self._embedding(ids)

    def reach(self, columns: Tensor, length: int | None = None) -> Reach:
        """Let each token at `columns` (B, T) see itself and what is before it.

        length: columns to look at, those beyond a token masked; None = no more than are needed.
        """
        count = columns.shape[1]
        needed = int(columns.max()) + 1 if length is None else length
        on_device = columns.to(self.device)
        rows = torch.arange(len(columns), device=self.device)[:, None]
        if length is None and columns.numel() == 1:
            return Reach(rows, on_device, needed)
        if length is None and len(columns) == 1 and count == needed and count > _FEW_TOKENS:
            return Reach(rows, on_device, needed, causal=True)
        unseen = torch.arange(needed, device=self.device) > on_device[:, None, :, None]
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
        return Reach(rows, on_device, needed, mask.masked_fill_(unseen, float("-inf")))

    def hidden(
        self, x: Tensor, rope: Rope, reach: Reach, cache: Tensor, deep: Sequence[Tensor] = ()
    ) -> Tensor:
        """Run all layers on embeddings x (B, T, C); returns (B, T, C) before the last norm.

        The tokens' keys and values are written into `cache`. `deep`: (T, C) each, added after the
        first layers (Qwen3-VL looks at an image again there).
        """
        for index, layer in enumerate(self._layers):
            x = layer(x, rope, reach, cache[index])
            if index < len(deep):
                x = x + deep[index]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores (B, V) of the next token, from `hidden` (B, C) of the last one."""
        return self._head(_norm(hidden, self._norm))


class _Layer:
    """One layer: attention, then the gated product."""

    def __init__(self, layer: nn.Module, heads: int, key_heads: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._heads, self._key_heads = heads, key_heads
        self._turned = heads + key_heads
        self._scale = float(attention.scaling)
        self._qkv = _Together([attention.q_proj, attention.k_proj, attention.v_proj])
        self._query_norm = getattr(attention, "q_norm", None)  # Qwen3 has them
        self._key_norm = getattr(attention, "k_norm", None)
        self._out = attention.o_proj
        self._gate_up = _Together([mlp.gate_proj, mlp.up_proj])
        self._down = mlp.down_proj
        self._before = layer.input_layernorm
        self._between = layer.post_attention_layernorm

    def __call__(self, x: Tensor, rope: Rope, reach: Reach, cache: Tensor) -> Tensor:
        """x: (B, T, C). cache: (2, B, key heads, columns, head width) of this layer."""
        x = x + self._out(self._attended(_norm(x, self._before), rope, reach, cache))
        gate, up = self._gate_up(_norm(x, self._between)).chunk(2, -1)
        return x + self._down(F.silu(gate) * up)

    def _attended(self, x: Tensor, rope: Rope, reach: Reach, cache: Tensor) -> Tensor:
        rows, count, _ = x.shape
        heads = self._turned + self._key_heads
        mixed = self._qkv(x).view(rows, count, heads, -1)
        if self._query_norm is not None:
            mixed = self._normed(mixed)
        turned = mixed[:, :, : self._turned]
        swapped = turned.roll(turned.shape[-1] // 2, -1)
        turned.mul_(rope.cos).addcmul_(swapped, rope.sin)
        keys_values = mixed[:, :, self._heads :].unflatten(2, (2, -1))
        _write(cache, keys_values, reach)
        query = mixed[:, :, : self._heads]
        keys, values = cache[:, :, :, : reach.length]
        if count == 1:  # query heads that share a key are queries of its head
            shared = query.reshape(rows, self._key_heads, -1, query.shape[-1])
            attended = F.scaled_dot_product_attention(
                shared, keys, values, reach.mask, scale=self._scale
            )
            return attended.reshape(rows, 1, -1)
        if count > _FEW_TOKENS:
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, reach.mask, is_causal=reach.causal,
                scale=self._scale, enable_gqa=True,
            )  # fmt: skip
            return attended.transpose(1, 2).flatten(2)
        return self._products(query, keys, values, reach.mask)

    def _normed(self, mixed: Tensor) -> Tensor:
        parts = mixed.split([self._heads, self._key_heads, self._key_heads], 2)
        query, key = _norm(parts[0], self._query_norm), _norm(parts[1], self._key_norm)
        return torch.cat([query, key, parts[2]], 2)

    def _products(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of few tokens, those of the query heads that share a key side by side."""
        rows, count, heads, width = query.shape
        shared = heads // self._key_heads
        grouped = query.unflatten(2, (self._key_heads, shared)).permute(0, 2, 3, 1, 4)
        grouped = grouped.reshape(rows, self._key_heads, shared * count, width)
        scores = torch.matmul(grouped * self._scale, keys.transpose(-1, -2))
        if mask is not None:
            scores = (scores.unflatten(2, (shared, count)) + mask[:, :, None]).flatten(2, 3)
        attended = torch.matmul(torch.softmax(scores, -1), values)
        attended = attended.view(rows, self._key_heads, shared, count, width)
        return attended.permute(0, 3, 1, 2, 4).reshape(rows, count, heads * width)


class _Together:
    """Linear layers of one input, as one product where their weights are plain."""

    def __init__(self, modules: list[nn.Linear]) -> None:
        self._modules = modules
        self._whole: LaidOut | None = None
        if all(type(module) is nn.Linear for module in modules):  # quantized ones derive from it
            weight = torch.cat([module.weight.detach() for module in modules])
            biases = [module.bias.detach() for module in modules if module.bias is not None]
            self._whole = LaidOut(weight, torch.cat(biases) if biases else None)
            for module in modules:  # one copy is enough
                module.weight.data = weight.new_empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        if self._whole is not None:
            return self._whole(x)
        return torch.cat([module(x) for module in self._modules], -1)


def _write(cache: Tensor, keys_values: Tensor, reach: Reach) -> None:
    """Put keys and values (B, T, 2, key heads, head width) into their columns."""
    if reach.causal:
        cache[:, :, :, : keys_values.shape[1]] = keys_values.permute(2, 0, 3, 1, 4)
    else:
        cache[:, reach.rows, :, reach.columns] = keys_values


def _norm(x: Tensor, norm: nn.Module) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)


def _signed(sin: Tensor) -> Tensor:
    first, second = sin.chunk(2, -1)
    return torch.cat([-first, second], -1)
