# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a Qwen-VL model's language model, on the library's weights.

Transformers builds masks, positions and cache objects for each token, which on a small model or a
fast GPU costs more than the arithmetic. Here keys and values go into a preallocated cache at a
fixed address (as CUDA graphs need it), sequences are batched, and each may have several new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from robobrain_ros.engines.base import UnsupportedArchitecture
from robobrain_ros.engines.local.norms import rms_norm
from robobrain_ros.engines.local.onednn_linear import PrepackedLinear

# Up to this many new tokens per row, plain matrix products are faster than the fused kernel.
_FEW_TOKENS = 16


@dataclass(frozen=True, eq=False)
class Rope:
    """Rotary positions: cosines and signed sines, each (B or 1, T, 1, head width).

    The first half of `sin` is negative, so that turning is x * cos + swapped(x) * sin.
    """

    cos: Tensor
    sin: Tensor


@dataclass(frozen=True, eq=False)
class AttentionMetadata:
    """Cache slots of a step's new tokens, and the slots that each attends to.

    rows: (B, 1) and slots: (B, T), int64, of each new token. length: leading slots of the cache
    that are attended to. mask: (B, 1, T, length), added to the scores; None where a single token
    sees all of them, or where the tokens are the first ones (`causal`). Made by
    `LanguageModel.attention_metadata`.
    """

    rows: Tensor
    slots: Tensor
    length: int
    mask: Tensor | None = None
    causal: bool = False


class LanguageModel:
    """The layers of `model` over a cache (layers, 2, B, key heads, slots, head width).

    It takes the model's weights over: projections of the same input are fused, and the library's
    own forward can't be used any more. Raises UnsupportedArchitecture for layers that it doesn't
    implement.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        language = model.model.language_model
        config = model.config.text_config
        if any(kind != "full_attention" for kind in getattr(config, "layer_types", None) or ()):
            raise UnsupportedArchitecture(
                "The model has sliding window attention, which the local engine does not implement."
            )
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
    def slot_bytes(self) -> int:
        """Bytes of one token's keys and values."""
        return 2 * self.depth * self.key_heads * self.head_width * self.dtype.itemsize

    def new_cache(self, rows: int, slots: int) -> Tensor:
        """Return an empty cache; of zeros, since masked slots are multiplied, too."""
        shape = (self.depth, 2, rows, self.key_heads, slots, self.head_width)
        return torch.zeros(shape, dtype=self.dtype, device=self.device)

    def rope(self, positions: Tensor) -> Rope:
        """Rotary embeddings of positions (3, T) (time, row, column) from `get_rope_index`."""
        like = torch.zeros(1, dtype=self.dtype, device=self.device)
        cos, sin = self._rotary(like, positions[:, None].to(self.device))
        return Rope(cos[:, :, None], _signed(sin)[:, :, None])

    def text_rope(self, positions: Tensor) -> Rope:
        """Rotary embeddings of text positions (B, T), the same on all three axes."""
        shape = (*positions.shape, 1, self.head_width)
        flat = positions.flatten()
        return Rope(
            self._table.cos[0].index_select(0, flat).view(shape),
            self._table.sin[0].index_select(0, flat).view(shape),
        )

    def reserve(self, positions: int) -> None:
        """Extend the table of `text_rope` to positions below `positions`."""
        if self._table.cos.shape[1] < positions:
            self._table = self.rope(torch.arange(positions).expand(3, -1))

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids (B, T) as (B, T, C)."""
        return self._embedding(ids)

    def attention_metadata(self, slots: Tensor, length: int | None = None) -> AttentionMetadata:
        """Causal attention of new tokens at `slots` (B, T) to themselves and the slots before.

        length: slots attended to, those after a token masked; None = no more than are needed.
        """
        count = slots.shape[1]
        needed = int(slots.max()) + 1 if length is None else length
        on_device = slots.to(self.device)
        rows = torch.arange(len(slots), device=self.device)[:, None]
        if length is None and slots.numel() == 1:
            return AttentionMetadata(rows, on_device, needed)
        if length is None and len(slots) == 1 and count == needed and count > _FEW_TOKENS:
            return AttentionMetadata(rows, on_device, needed, causal=True)
        unseen = torch.arange(needed, device=self.device) > on_device[:, None, :, None]
        mask = torch.zeros(unseen.shape, dtype=self.dtype, device=self.device)
        mask.masked_fill_(unseen, float("-inf"))
        return AttentionMetadata(rows, on_device, needed, mask)

    def hidden(
        self,
        x: Tensor,
        rope: Rope,
        metadata: AttentionMetadata,
        cache: Tensor,
        deepstack: Sequence[Tensor] = (),
    ) -> Tensor:
        """Run all layers on embeddings x (B, T, C); returns (B, T, C) before the last norm.

        The tokens' keys and values are written into `cache`. deepstack: (T, C) each, image features
        that Qwen3-VL adds after the first layers.
        """
        for index, layer in enumerate(self._layers):
            x = layer(x, rope, metadata, cache[index])
            if index < len(deepstack):
                x = x + deepstack[index]
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (B, V) of the next token, from `hidden` (B, C) of the last one."""
        return self._head(rms_norm(hidden, self._norm))


class _Layer:
    """One decoder layer: attention, then the gated MLP."""

    def __init__(self, layer: nn.Module, heads: int, key_heads: int) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self._heads, self._key_heads = heads, key_heads
        self._rotated = heads + key_heads
        self._scale = float(attention.scaling)
        self._qkv = FusedLinear([attention.q_proj, attention.k_proj, attention.v_proj])
        self._query_norm = getattr(attention, "q_norm", None)  # Qwen3 has them
        self._key_norm = getattr(attention, "k_norm", None)
        self._out = attention.o_proj
        self._gate_up = FusedLinear([mlp.gate_proj, mlp.up_proj])
        self._down = mlp.down_proj
        self._before = layer.input_layernorm
        self._between = layer.post_attention_layernorm

    def __call__(self, x: Tensor, rope: Rope, metadata: AttentionMetadata, cache: Tensor) -> Tensor:
        """x: (B, T, C). cache: (2, B, key heads, slots, head width) of this layer."""
        x = x + self._out(self._attention(rms_norm(x, self._before), rope, metadata, cache))
        gate, up = self._gate_up(rms_norm(x, self._between)).chunk(2, -1)
        return x + self._down(F.silu(gate) * up)

    def _attention(
        self, x: Tensor, rope: Rope, metadata: AttentionMetadata, cache: Tensor
    ) -> Tensor:
        rows, count, _ = x.shape
        heads = self._rotated + self._key_heads
        qkv = self._qkv(x).view(rows, count, heads, -1)
        if self._query_norm is not None:
            qkv = self._normed(qkv)
        rotated = qkv[:, :, : self._rotated]
        swapped = rotated.roll(rotated.shape[-1] // 2, -1)
        rotated.mul_(rope.cos).addcmul_(swapped, rope.sin)
        keys_values = qkv[:, :, self._heads :].unflatten(2, (2, -1))
        _write(cache, keys_values, metadata)
        query = qkv[:, :, : self._heads]
        keys, values = cache[:, :, :, : metadata.length]
        if count == 1:  # query heads that share a key are queries of its head
            shared = query.reshape(rows, self._key_heads, -1, query.shape[-1])
            attended = F.scaled_dot_product_attention(
                shared, keys, values, metadata.mask, scale=self._scale
            )
            return attended.reshape(rows, 1, -1)
        if count > _FEW_TOKENS:
            attended = F.scaled_dot_product_attention(
                query.transpose(1, 2), keys, values, metadata.mask, is_causal=metadata.causal,
                scale=self._scale, enable_gqa=True,
            )  # fmt: skip
            return attended.transpose(1, 2).flatten(2)
        return self._products(query, keys, values, metadata.mask)

    def _normed(self, qkv: Tensor) -> Tensor:
        parts = qkv.split([self._heads, self._key_heads, self._key_heads], 2)
        query, key = rms_norm(parts[0], self._query_norm), rms_norm(parts[1], self._key_norm)
        return torch.cat([query, key, parts[2]], 2)

    def _products(self, query: Tensor, keys: Tensor, values: Tensor, mask: Tensor | None) -> Tensor:
        """Attention of few tokens by matrix products, query heads grouped by key head."""
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


class FusedLinear:
    """Linear layers with a common input, as one product where their weights are plain."""

    def __init__(self, modules: list[nn.Linear]) -> None:
        self._modules = modules
        self._fused: PrepackedLinear | None = None
        if all(type(module) is nn.Linear for module in modules):  # quantized ones derive from it
            weight = torch.cat([module.weight.detach() for module in modules])
            biases = [module.bias.detach() for module in modules if module.bias is not None]
            self._fused = PrepackedLinear(weight, torch.cat(biases) if biases else None)
            for module in modules:  # don't keep the weights twice
                module.weight.data = weight.new_empty(0)

    def __call__(self, x: Tensor) -> Tensor:
        if self._fused is not None:
            return self._fused(x)
        return torch.cat([module(x) for module in self._modules], -1)


def _write(cache: Tensor, keys_values: Tensor, metadata: AttentionMetadata) -> None:
    """Write keys and values (B, T, 2, key heads, head width) into their slots."""
    if metadata.causal:
        cache[:, :, :, : keys_values.shape[1]] = keys_values.permute(2, 0, 3, 1, 4)
    else:
        cache[:, metadata.rows, :, metadata.slots] = keys_values


def _signed(sin: Tensor) -> Tensor:
    first, second = sin.chunk(2, -1)
    return torch.cat([-first, second], -1)
