# SPDX-License-Identifier: Apache-2.0
"""Patches of an image for a Qwen-VL model: the arithmetic of the library's image processor.

The processor itself goes through float64 and several copies; the result is the same.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def resize(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """Resize an image (H, W, 3) to `size` (width, height), bicubic and antialiased.

    The result is bit for bit that of the library's default processor (with torchvision). Pillow,
    which its other processor uses, rounds and clips between its two passes otherwise (a level or
    two of 255 in a camera's pictures) and takes five times as long.
    """
    if (image.shape[1], image.shape[0]) == size:
        return image
    # Torch wants writable memory, and a camera's is often read-only.
    pixels = torch.from_numpy(np.require(image, requirements=["C", "W"]))
    planes = F.interpolate(
        pixels.permute(2, 0, 1)[None], size=size[::-1], mode="bicubic", antialias=True
    )
    return planes[0].permute(1, 2, 0).numpy()


def split_patches(pixels: NDArray[Any], side: int, merge: int) -> NDArray[Any]:
    """Split an image (H, W, 3) into patches (N, 3, side, side), those of an image token together.

    H and W are multiples of `side * merge`; image tokens (merge x merge patches) are in raster
    order.
    """
    rows, columns = pixels.shape[0] // (side * merge), pixels.shape[1] // (side * merge)
    cut = pixels.reshape(rows, merge, side, columns, merge, side, 3)
    return cut.transpose(0, 3, 1, 4, 6, 2, 5).reshape(-1, 3, side, side)


class PatchExtractor:
    """Patches as `Qwen2VLImageProcessor` makes them, by its configuration, without resizing."""

    def __init__(self, processor: Any) -> None:
        self._side = int(processor.patch_size)
        self._merge = int(processor.merge_size)
        self._frames = int(processor.temporal_patch_size)
        scale = processor.rescale_factor if processor.do_rescale else 1.0
        mean, std = (0.0, 1.0)
        if processor.do_normalize:
            mean, std = processor.image_mean, processor.image_std
        self._factor = _by_channel(scale / np.asarray(std, np.float64))
        self._offset = _by_channel(-np.asarray(mean, np.float64) / std)

    def __call__(self, image: NDArray[np.uint8]) -> tuple[Tensor, Tensor]:
        """Split an image (H, W, 3) whose sides are multiples of merged patches.

        Returns (patches, 3 * frames * side * side) float32, normalized, the patches that are merged
        together and channel first within a patch, a still image repeated as each frame; and the
        grid (1, 3) int64 of patches (time, rows, columns). Raises ValueError for other sizes.
        """
        height, width = image.shape[:2]
        side, merge = self._side, self._merge
        if height % (side * merge) or width % (side * merge):
            raise ValueError(f"{width}x{height} pixels are not a multiple of {side * merge}")
        cut = split_patches(image, side, merge)
        normalized = cut.reshape(-1, 3, 1, side * side) * self._factor
        normalized += self._offset
        patches = np.repeat(normalized, self._frames, axis=2).reshape(len(cut), -1)
        grid = torch.tensor([[1, height // side, width // side]])
        return torch.from_numpy(patches), grid


def _by_channel(values: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.broadcast_to(values, 3).astype(np.float32)[:, None, None]
