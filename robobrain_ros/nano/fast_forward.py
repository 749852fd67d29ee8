# SPDX-License-Identifier: Apache-2.0
"""A batched training forward over the unmodified Qwen2.5-VL modules of `transformers`.

The library packs images into one sequence and loops over attention windows. The images of a batch
have one size here, so windows become a batch dimension (those at the edges filled up), which is
several times faster on a CPU and compiles without graph breaks. `test_nano.py` checks equality
with the library's forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from robobrain_ros.engines.local.norms import rms_norm
from robobrain_ros.engines.local.qwen_vision import patch_grid


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return torch.cat((-second, first), dim=-1)


def _attend(query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None) -> Tensor:
    # Plain products: the fused CPU kernel was slower at these sizes.
    scores = torch.matmul(query * query.shape[-1] ** -0.5, key.transpose(-1, -2))
    if bias is not None:
        scores = scores + bias
    return torch.matmul(torch.softmax(scores, -1).to(value.dtype), value)


def _swiglu(x: Tensor, mlp: nn.Module) -> Tensor:
    return mlp.down_proj(F.silu(mlp.gate_proj(x)) * mlp.up_proj(x))


class _Windows:
    """Patches (B, N, C) as windows of one size, and back; smaller ones are filled up.

    Args:
        sizes: how many windows and how many patches each, in the order of the patches.
    """

    def __init__(self, sizes: Sequence[tuple[int, int]]) -> None:
        lengths = [size for count, size in sizes for _ in range(count)]
        self.count, self.longest = len(lengths), max(lengths)
        starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)[:, None]
        inner = torch.arange(self.longest)
        filled = inner < torch.tensor(lengths)[:, None]
        self.index = torch.where(filled, starts + inner, 0).flatten()
        self.bias = None if filled.all() else torch.zeros(filled.shape).masked_fill(~filled, -1e4)
        self.back = filled.flatten().nonzero()[:, 0]

    def split(self, x: Tensor) -> Tensor:
        """(B, N, C) to (B * windows, longest, C)."""
        return x.index_select(1, self.index).view(-1, self.longest, x.shape[-1])

    def join(self, x: Tensor) -> Tensor:
        """The reverse of `split`."""
        return x.reshape(-1, self.count * self.longest, x.shape[-1]).index_select(1, self.back)

    def mask(self, batch: int, dtype: torch.dtype) -> Tensor | None:
        """Return the attention bias (B * windows, 1, 1, longest)."""
        if self.bias is None:
            return None
        return self.bias.to(dtype).repeat(batch, 1)[:, None, None]


class FastForward:
    """Vision tower and language layers of `model` for images of one size.

    Args:
        model: the model whose weights are used and trained; never copied.
        rows, columns: image tokens (merged patches) per image.
    """

    def __init__(self, model: Qwen2_5_VLForConditionalGeneration, rows: int, columns: int) -> None:
        self.visual = model.model.visual
        self.language = model.model.language_model
        self.vision_config = model.config.vision_config
        self.text_config = model.config.text_config
        merge = self.vision_config.spatial_merge_size
        grid = patch_grid(self.visual, torch.tensor([[1, rows * merge, columns * merge]]))
        self.merged, self.order = merge**2, grid.order
        self.raster = torch.argsort(grid.order)
        self.cos, self.sin = grid.cos[:, 0], grid.sin[:, 0]
        self.windows = _Windows(grid.windows)

    def image_tokens(self, patches: Tensor) -> Tensor:
        """Embed images.

        Args:
            patches: (B, N, 3*14*14) normalised patches; image tokens in raster order, the merged
                patches of a token together, channel first within a patch.

        Returns:
            (B, N/4, width of the language model), image tokens in raster order.
        """
        # The two frames of a still image are equal, so the kernel's time axis sums away.
        kernel = self.visual.patch_embed.proj.weight.sum(2).flatten(1)
        x = F.linear(patches, kernel)
        x = x.unflatten(1, (-1, self.merged)).index_select(1, self.order).flatten(1, 2)
        batch, count, width = x.shape
        cos, sin = self.cos.to(x.dtype), self.sin.to(x.dtype)
        heads = self.vision_config.num_heads
        mask = self.windows.mask(batch, x.dtype)
        for index, block in enumerate(self.visual.blocks):
            full = index in self.vision_config.fullatt_block_indexes
            qkv = block.attn.qkv(rms_norm(x, block.norm1))
            query, key, value = qkv.view(batch, count, 3, heads, width // heads).unbind(2)
            query = query * cos + _rotate_half(query) * sin
            key = key * cos + _rotate_half(key) * sin
            parts = [t.reshape(batch, count, width) for t in (query, key, value)]
            if not full:
                parts = [self.windows.split(t) for t in parts]
            query, key, value = (
                t.view(*t.shape[:2], heads, width // heads).transpose(1, 2) for t in parts
            )
            mixed = _attend(query, key, value, None if full else mask).transpose(1, 2)
            mixed = mixed.reshape(*mixed.shape[:2], width)
            x = x + block.attn.proj(mixed if full else self.windows.join(mixed))
            x = x + _swiglu(rms_norm(x, block.norm2), block.mlp)
        merger = self.visual.merger
        x = merger.mlp(rms_norm(x, merger.ln_q).view(batch, -1, merger.hidden_size))
        return x.index_select(1, self.raster)

    def rotary(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines and sines (B, 1, L, head) for multimodal positions (3, B, L)."""
        cos, sin = self.language.rotary_emb(torch.zeros(1), positions)
        return cos[:, None], sin[:, None]

    def language_layers(
        self, x: Tensor, cos: Tensor, sin: Tensor, bias: Tensor | None, first: int, last: int | None
    ) -> Tensor:
        """Language layers `first` to `last` (exclusive; None: the end) on embeddings (B, L, C).

        There is no final norm. `cos`, `sin` are of `rotary`; `bias` (B, 1, L, L) is added to the
        attention scores.
        """
        batch, length, width = x.shape
        heads = self.text_config.num_attention_heads
        shared = heads // self.text_config.num_key_value_heads
        for layer in self.language.layers[first:last]:
            y = rms_norm(x, layer.input_layernorm)
            attention = layer.self_attn
            query, key, value = (
                projection(y).view(batch, length, -1, width // heads).transpose(1, 2)
                for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
            )
            query = query * cos + _rotate_half(query) * sin
            key = key * cos + _rotate_half(key) * sin
            key, value = (t.repeat_interleave(shared, dim=1) for t in (key, value))
            mixed = _attend(query, key, value, bias).transpose(1, 2).reshape(batch, length, width)
            x = x + attention.o_proj(mixed)
            x = x + _swiglu(rms_norm(x, layer.post_attention_layernorm), layer.mlp)
        return x

    def final_norm(self, x: Tensor) -> Tensor:
        """The language model's last normalisation, (…, C)."""
        return rms_norm(x, self.language.norm)


_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])  # CLIP's, as Qwen2.5-VL's processor
_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])


def normalise(patches: Tensor, dtype: torch.dtype) -> Tensor:
    """Patches (B, N, 3*196) uint8 as the image processor's normalised values."""
    mean, std = (t.repeat_interleave(patches.shape[-1] // 3) for t in (_MEAN, _STD))
    return ((patches.float() / 255 - mean) / std).to(dtype)
