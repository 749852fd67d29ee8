# SPDX-License-Identifier: Apache-2.0
"""Forward pass of a Qwen-VL model's vision tower, on the library's weights.

Transformers calls the attention kernel for each window of each block, and on a GPU synchronizes for
the windows' sizes each time. Here windows of one size are a batch, and what depends on the image's
size alone is computed once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.vision_utils import (
    get_vision_interpolation_indices_and_weights,
    get_vision_position_ids,
    get_vision_window_index,
)

from robobrain_ros.engines.local.norms import rms_norm
from robobrain_ros.engines.local.onednn_linear import PrepackedLinear, product

Windows = tuple[tuple[int, int], ...]
"""Runs of attention windows of one size: (windows, patches in each)."""

# Cameras have few image sizes; an entry is below a megabyte for each 1000 patches.
_CACHED_GRIDS = 4
# On a CPU, attention over this many patches is faster by matrix products than by the fused kernel,
_LONG = 1024
# with so many queries at a time: the scores fit in the CPU's cache, and memory is bounded.
_QUERIES = 512


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Image tokens (N, C) in raster order, and those of Qwen3-VL's deepstack, (N, C) each."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """Tensors that depend on an image's size in patches alone.

    order: (tokens,) int64, raster indices of the image tokens (merged patches) in the order of
    processing, window by window; None where that is raster order. windows: in that order. cos, sin:
    (patches, 1, 1, head width) float32, of the rotary positions. corners, corner_weights: (patches,
    4), for the bilinear interpolation of Qwen3-VL's learned positions.
    """

    order: Tensor | None
    windows: Windows
    cos: Tensor
    sin: Tensor
    corners: Tensor | None = None
    corner_weights: Tensor | None = None


def patch_grid(visual: PreTrainedModel, grid: Tensor) -> PatchGrid:
    """Compute the tensors for images of `grid` (1, 3) patches (time, rows, columns).

    They are on the weights' device. Raises ValueError for several images and for videos, whose
    frames don't attend to each other.
    """
    if grid.shape != (1, 3) or int(grid[0, 0]) != 1:
        raise ValueError(f"{grid.tolist()} is not the grid of one still image")
    merge, device = visual.spatial_merge_size, visual.device
    grid = grid.cpu()
    patches = int(grid.prod())
    positions = get_vision_position_ids(grid, merge)
    order, corners, weights = None, None, None
    windows: Windows = ((1, patches),)
    if hasattr(visual, "window_size"):
        index, bounds = get_vision_window_index(grid, merge, visual.window_size, visual.patch_size)
        order, windows = _by_size(index, bounds // merge**2)
        windows = tuple((count, tokens * merge**2) for count, tokens in windows)
        positions = positions.view(-1, merge**2, 2)[order].flatten(0, 1)
        order = order.to(device)
    if hasattr(visual, "pos_embed"):
        corners, weights = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        corners, weights = corners.to(device), weights.to(device)
    cos, sin = visual.rotary_pos_emb(torch.zeros(1, device=device), positions.to(device))
    return PatchGrid(order, windows, cos[:, None, None], sin[:, None, None], corners, weights)


def _by_size(index: Tensor, bounds: Tensor) -> tuple[Tensor, Windows]:
    """Sort windows by size: those at an image's edges are smaller.

    index: (tokens,) in window order; bounds: (windows + 1,) of the windows in it.
    """
    sizes = bounds.diff()
    by_size = sizes.argsort(descending=True, stable=True)
    parts = index.split(sizes.tolist())
    kinds, counts = sizes[by_size].unique_consecutive(return_counts=True)
    order = torch.cat([parts[i] for i in by_size.tolist()])
    return order, tuple(zip(counts.tolist(), kinds.tolist()))


class VisionTower:
    """The vision tower of a Qwen2.5-VL or Qwen3-VL model. No gradients."""

    def __init__(self, visual: PreTrainedModel) -> None:
        """visual: the model's own tower, whose weights are used in place."""
        self.visual = visual
        kernel = visual.patch_embed.proj
        self._kernel = PrepackedLinear(kernel.weight.flatten(1), kernel.bias)
        self._full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        self._deep = dict(
            zip(
                getattr(visual, "deepstack_visual_indexes", ()),
                getattr(visual, "deepstack_merger_list", ()),
            )
        )
        self.grids: dict[tuple[int, ...], PatchGrid] = {}

    def __call__(self, pixel_values: Tensor, grid: Tensor) -> ImageFeatures:
        """Encode an image.

        pixel_values: (patches, channels * frames * side * side) on the weights' device, merged
        patches together, as the library's image processor makes them. grid: (1, 3) patches (time,
        rows, columns), better left on the CPU. Raises ValueError for more than one still image.
        """
        with torch.no_grad():
            return self._encode(pixel_values, self._prepared(grid))

    def _prepared(self, grid: Tensor) -> PatchGrid:
        key = tuple(grid.flatten().tolist())
        if key not in self.grids:
            if len(self.grids) >= _CACHED_GRIDS:
                del self.grids[next(iter(self.grids))]
            self.grids[key] = patch_grid(self.visual, grid)
        return self.grids[key]

    def _encode(self, pixel_values: Tensor, grid: PatchGrid) -> ImageFeatures:
        visual = self.visual
        kernel = visual.patch_embed.proj
        x = self._kernel(pixel_values.to(kernel.weight.dtype))
        if grid.corners is not None and grid.corner_weights is not None:
            x += (
                (visual.pos_embed(grid.corners) * grid.corner_weights[..., None]).sum(1).to(x.dtype)
            )
        if grid.order is not None:
            merged = x.view(len(grid.order), -1, x.shape[1])
            x = merged.index_select(0, grid.order).view(x.shape)
        deepstack = []
        for index, block in enumerate(visual.blocks):
            windows = ((1, len(x)),) if index in self._full else grid.windows
            x += _attention(_normed(x, block.norm1), block.attn, grid, windows)
            x += _mlp(_normed(x, block.norm2), block.mlp)
            if index in self._deep:
                deepstack.append(_merged(x, self._deep[index]))
        tokens = _merged(x, visual.merger)
        if grid.order is not None:
            tokens = torch.empty_like(tokens).index_copy_(0, grid.order, tokens)
        return ImageFeatures(tokens, tuple(deepstack))


def _attention(x: Tensor, attention: nn.Module, grid: PatchGrid, windows: Windows) -> Tensor:
    """Attention of patches (N, C) within their windows."""
    qkv = attention.qkv(x).view(len(x), 3, attention.num_heads, -1)
    query, key = _rotated(qkv[:, :2], grid).unbind(1)
    seen, first = [], 0
    for window in windows:
        some = slice(first, first + window[0] * window[1])
        parts = [t[some].unflatten(0, window).transpose(1, 2) for t in (query, key, qkv[:, 2])]
        seen.append(_attend(*parts, scale=attention.scaling))
        first = some.stop
    return attention.proj(torch.cat(seen) if len(seen) > 1 else seen[0])


def _rotated(x: Tensor, grid: PatchGrid) -> Tensor:
    """Apply rotary positions to queries and keys (N, 2, heads, width), in float32."""
    exact = x.float()
    first, second = exact.chunk(2, -1)
    sin = grid.sin[..., : first.shape[-1]]  # its halves are equal
    rotated = exact * grid.cos
    rotated[..., : first.shape[-1]].addcmul_(second, sin, value=-1)
    rotated[..., first.shape[-1] :].addcmul_(first, sin)
    return rotated.to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Attention (B, heads, N, width) within each of the B windows, as (B * N, heads * width)."""
    if len(query) == 1 and query.shape[2] >= _LONG and query.device.type == "cpu":
        return _attend_long(query[0], key[0], value[0], scale)
    seen = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def _attend_long(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention (heads, N, width) of many patches on a CPU, as (N, heads * width).

    The fused kernel runs at a fraction of the speed of `product`. Scores are float32, as in the
    kernel.
    """
    heads, count, width = query.shape
    seen = query.new_empty(count, heads, width)
    for head in range(heads):
        keys = key[head].float().contiguous()
        values = value[head].t().contiguous()
        for first in range(0, count, _QUERIES):
            some = slice(first, first + _QUERIES)
            scores = product(query[head, some].float() * scale, keys)
            seen[some, head] = product(torch.softmax(scores, -1).to(value.dtype), values)
    return seen.flatten(1)


def _mlp(x: Tensor, mlp: nn.Module) -> Tensor:
    """A block's MLP: gated in Qwen2.5-VL, plain in Qwen3-VL."""
    if hasattr(mlp, "gate_proj"):
        gate = mlp.act_fn(mlp.gate_proj(x))
        return mlp.down_proj(gate.mul_(mlp.up_proj(x)))
    return mlp.linear_fc2(mlp.act_fn(mlp.linear_fc1(x)))


def _merged(x: Tensor, merger: nn.Module) -> Tensor:
    """Merge patches (N, C) into image tokens: a token's patches concatenated, and two products."""
    if hasattr(merger, "ln_q"):  # Qwen2.5-VL
        x = _normed(x, merger.ln_q).view(-1, merger.hidden_size)
        first, activation, second = merger.mlp
    else:
        if merger.use_postshuffle_norm:
            x = x.view(-1, merger.hidden_size)
        x = merger.norm(x).view(-1, merger.hidden_size)
        first, activation, second = merger.linear_fc1, merger.act_fn, merger.linear_fc2
    return second(activation(first(x)))


def _normed(x: Tensor, norm: nn.Module) -> Tensor:
    return norm(x) if isinstance(norm, nn.LayerNorm) else rms_norm(x, norm)
