# SPDX-License-Identifier: Apache-2.0
"""The vision half of a Qwen-VL model, on the library's own weights but without its overhead.

Transformers cuts an image into attention windows and calls the kernel for each of them in each
block, and on a GPU waits for the windows' sizes each time. Here windows of one size are a batch,
what follows from the image's size is computed once, and products run at the machine's speed.
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

from robobrain_ros.engines.local.onednn_linear import LaidOut, product

Windows = tuple[tuple[int, int], ...]
"""How many attention windows, and how many patches each, for windows that follow each other."""

# Cameras have few sizes; an entry is below a megabyte for each 1000 patches.
_GRIDS_KEPT = 4
# On a CPU, attention over this many patches is faster in plain products than in the fused kernel,
_LONG = 1024
# of so many queries at a time: the scores stay in the cache, and memory bounded.
_QUERIES = 512


@dataclass(frozen=True, eq=False)
class ImageFeatures:
    """Image tokens (N, C) in raster order, and those of Qwen3-VL's deepstack, (N, C) each."""

    tokens: Tensor
    deepstack: tuple[Tensor, ...] = ()


@dataclass(frozen=True, eq=False)
class PatchGrid:
    """What depends on an image's size in patches alone.

    order: (tokens,) int64, raster indices of the image tokens (merged patches) as they are
    processed, those of a window together; None where that is raster order. windows: in that order.
    cos, sin: (patches, 1, 1, head width) float32, of the rotary positions. places, shares:
    (patches, 4), where Qwen3-VL's learned positions are looked up, and their weights.
    """

    order: Tensor | None
    windows: Windows
    cos: Tensor
    sin: Tensor
    places: Tensor | None = None
    shares: Tensor | None = None


def patch_grid(visual: PreTrainedModel, grid: Tensor) -> PatchGrid:
    """Prepare for images of `grid` (1, 3) patches (time, rows, columns); on the weights' device.

    Raises ValueError for several images, and for videos: their frames don't see each other.
    """
    if grid.shape != (1, 3) or int(grid[0, 0]) != 1:
        raise ValueError(f"{grid.tolist()} is not the grid of one still image")
    merge, device = visual.spatial_merge_size, visual.device
    grid = grid.cpu()
    patches = int(grid.prod())
    positions = get_vision_position_ids(grid, merge)
    order, places, shares = None, None, None
    windows: Windows = ((1, patches),)
    if hasattr(visual, "window_size"):
        index, bounds = get_vision_window_index(grid, merge, visual.window_size, visual.patch_size)
        order, windows = _by_size(index, bounds // merge**2)
        windows = tuple((count, tokens * merge**2) for count, tokens in windows)
        positions = positions.view(-1, merge**2, 2)[order].flatten(0, 1)
        order = order.to(device)
    if hasattr(visual, "pos_embed"):
        places, shares = get_vision_interpolation_indices_and_weights(
            grid,
            num_grid_per_side=visual.num_grid_per_side,
            mode=visual.interpolation_mode,
            align_corners=visual.interpolation_align_corners,
            spatial_merge_size=merge,
        )
        places, shares = places.to(device), shares.to(device)
    cos, sin = visual.rotary_pos_emb(torch.zeros(1, device=device), positions.to(device))
    return PatchGrid(order, windows, cos[:, None, None], sin[:, None, None], places, shares)


def _by_size(index: Tensor, bounds: Tensor) -> tuple[Tensor, Windows]:
    """Put windows of one size together: those at an image's edges are smaller.

    index: (tokens,) in window order; bounds: (windows + 1,) where windows begin and end in it.
    """
    sizes = bounds.diff()
    by_size = sizes.argsort(descending=True, stable=True)
    parts = index.split(sizes.tolist())
    kinds, counts = sizes[by_size].unique_consecutive(return_counts=True)
    order = torch.cat([parts[i] for i in by_size.tolist()])
    return order, tuple(zip(counts.tolist(), kinds.tolist()))


class VisionTower:
    """Runs the vision tower of a Qwen2.5-VL or Qwen3-VL model. No gradients."""

    def __init__(self, visual: PreTrainedModel) -> None:
        """`visual`: the model's own tower, whose weights are used where they are."""
        self._visual = visual
        kernel = visual.patch_embed.proj
        self._kernel = LaidOut(kernel.weight.flatten(1), kernel.bias)
        self._full = getattr(visual, "fullatt_block_indexes", range(len(visual.blocks)))
        self._deep = dict(
            zip(
                getattr(visual, "deepstack_visual_indexes", ()),
                getattr(visual, "deepstack_merger_list", ()),
            )
        )
        self._grids: dict[tuple[int, ...], PatchGrid] = {}

    def __call__(self, pixel_values: Tensor, grid: Tensor) -> ImageFeatures:
        """Look at an image.

        pixel_values: (patches, channels * frames * side * side) on the weights' device, merged
        patches together, as the library's image processor makes them. grid: (1, 3) patches (time,
        rows, columns), better left on the CPU. Raises ValueError for more than one still image.
        """
        with torch.no_grad():
            return self._look(pixel_values, self._prepared(grid))

    def _prepared(self, grid: Tensor) -> PatchGrid:
        key = tuple(grid.flatten().tolist())
        if key not in self._grids:
            if len(self._grids) >= _GRIDS_KEPT:
                del self._grids[next(iter(self._grids))]
            self._grids[key] = patch_grid(self._visual, grid)
        return self._grids[key]

    def _look(self, pixel_values: Tensor, grid: PatchGrid) -> ImageFeatures:
        visual = self._visual
        kernel = visual.patch_embed.proj
        x = self._kernel(pixel_values.to(kernel.weight.dtype))
        if grid.places is not None and grid.shares is not None:
            x += (visual.pos_embed(grid.places) * grid.shares[..., None]).sum(1).to(x.dtype)
        if grid.order is not None:
            merged = x.view(len(grid.order), -1, x.shape[1])
            x = merged.index_select(0, grid.order).view(x.shape)
        deepstack = []
        for index, block in enumerate(visual.blocks):
            windows = ((1, len(x)),) if index in self._full else grid.windows
            x += _attended(_normed(x, block.norm1), block.attn, grid, windows)
            x += _mixed(_normed(x, block.norm2), block.mlp)
            if index in self._deep:
                deepstack.append(_merged(x, self._deep[index]))
        tokens = _merged(x, visual.merger)
        if grid.order is not None:
            tokens = torch.empty_like(tokens).index_copy_(0, grid.order, tokens)
        return ImageFeatures(tokens, tuple(deepstack))


def _attended(x: Tensor, attention: nn.Module, grid: PatchGrid, windows: Windows) -> Tensor:
    """Attention of patches (N, C) within their windows."""
    qkv = attention.qkv(x).view(len(x), 3, attention.num_heads, -1)
    query, key = _turned(qkv[:, :2], grid).unbind(1)
    seen, first = [], 0
    for window in windows:
        some = slice(first, first + window[0] * window[1])
        parts = [t[some].unflatten(0, window).transpose(1, 2) for t in (query, key, qkv[:, 2])]
        seen.append(_attend(*parts, scale=attention.scaling))
        first = some.stop
    return attention.proj(torch.cat(seen) if len(seen) > 1 else seen[0])


def _turned(x: Tensor, grid: PatchGrid) -> Tensor:
    """Rotary positions of queries and keys (N, 2, heads, width), in float32 as the library does."""
    exact = x.float()
    first, second = exact.chunk(2, -1)
    sin = grid.sin[..., : first.shape[-1]]  # its halves are equal
    turned = exact * grid.cos
    turned[..., : first.shape[-1]].addcmul_(second, sin, value=-1)
    turned[..., first.shape[-1] :].addcmul_(first, sin)
    return turned.to(x.dtype)


def _attend(query: Tensor, key: Tensor, value: Tensor, *, scale: float) -> Tensor:
    """Attention (B, heads, N, width) within each of the B windows, as (B * N, heads * width)."""
    if len(query) == 1 and query.shape[2] >= _LONG and query.device.type == "cpu":
        return _attend_long(query[0], key[0], value[0], scale)
    seen = F.scaled_dot_product_attention(query, key, value, scale=scale)
    return seen.transpose(1, 2).flatten(2).flatten(0, 1)


def _attend_long(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Attention (heads, N, width) of many patches on a CPU, as (N, heads * width).

    The kernel's products run at a fraction of the speed of `product`'s. Scores are float32, like
    the kernel's.
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


def _mixed(x: Tensor, mlp: nn.Module) -> Tensor:
    """A block's second half: gated in Qwen2.5-VL, plain in Qwen3-VL."""
    if hasattr(mlp, "gate_proj"):
        gate = mlp.act_fn(mlp.gate_proj(x))
        return mlp.down_proj(gate.mul_(mlp.up_proj(x)))
    return mlp.linear_fc2(mlp.act_fn(mlp.linear_fc1(x)))


def _merged(x: Tensor, merger: nn.Module) -> Tensor:
    """Image tokens of patches (N, C): patches of a token side by side, and two products."""
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
    if isinstance(norm, nn.LayerNorm):
        return norm(x)
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.variance_epsilon)
