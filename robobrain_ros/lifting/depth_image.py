# SPDX-License-Identifier: Apache-2.0
"""Depth images: encodings, validity, and the parts of them that are converted to metres.

Pixels and rays as in intrinsics.py; a depth is the z of a point, not its distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.intrinsics import Intrinsics


def depth_to_metres(array: ArrayLike, encoding: str) -> NDArray[np.float32]:
    """Convert a depth image, or any part of one, to float32 metres with NaN for holes (REP-118).

    16UC1 and mono16 are millimetres, 0 is a hole; 32FC1 is metres, and NaN, infinity and values
    <= 0 are holes. Raises ValueError for another encoding and for an array whose type does not
    match it.
    """
    raw = np.asarray(array)
    _check_encoding(raw, encoding)
    if raw.dtype.kind == "u":
        return np.where(raw != 0, np.float32(1e-3) * raw.astype(np.float32), np.float32(np.nan))
    # NaN compares as false.
    known = (raw > 0) & (raw < np.inf)
    return np.where(known, raw, np.float32(np.nan)).astype(np.float32, copy=False)


def _check_encoding(raw: NDArray[Any], encoding: str) -> None:
    expected = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}.get(encoding)
    if expected is None:
        raise ValueError(
            f"The depth encoding '{encoding}' is not supported: publish 16UC1 (mm) or 32FC1 (m)."
        )
    if f"{raw.dtype.kind}{raw.dtype.itemsize}" != expected:
        raise ValueError(
            f"Depth of encoding {encoding} needs an array of type {expected}, not {raw.dtype}."
        )


@dataclass(frozen=True, eq=False)
class DepthImage:
    """A depth image (H, W) as published; only the pixels that are looked up are converted.

    own_intrinsics: None where those of the color image apply, scaled per axis if the sizes differ.
    color_from_depth: (4, 4), rigid, takes points (m) of the depth camera's optical frame to the
    color camera's, for another camera or the same one at another time; None where the two frames
    coincide, which everything but registration.py requires. Raises ValueError for an unknown
    encoding or another shape.
    """

    array: NDArray[Any]
    encoding: str
    own_intrinsics: Intrinsics | None = None
    color_from_depth: FloatArray | None = None

    def __post_init__(self) -> None:
        _check_encoding(self.array, self.encoding)
        if self.array.ndim != 2 or not self.array.size:
            raise ValueError(f"A depth image has the shape (H, W), not {self.array.shape}.")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.array.shape
        return width, height

    def intrinsics(self, color: Intrinsics) -> Intrinsics:
        """Return the intrinsics of this array: its own or the color image's, at its size."""
        source = self.own_intrinsics or color
        if (source.width, source.height) == self.size:
            return source
        return source.scaled(*self.size)

    def locate(self, rays: FloatArray, color: Intrinsics) -> FloatArray:
        """Depth pixels (N, 2) of rays (N, 2) of the color camera; NaN outside the depth's view.

        Color and depth must share the optical frame. Up to one pixel beyond the border counts as
        the border, because models answer with the very edge of an image.
        """
        pixels = self.intrinsics(color).project(rays)
        edge = np.array(self.size) - 1.0
        with np.errstate(invalid="ignore"):
            inside: BoolArray = np.all((pixels >= -1) & (pixels <= edge + 1), axis=1)
        return np.where(inside[:, None], np.clip(pixels, 0, edge), np.nan)

    def patches(
        self, pixels: FloatArray, radius: int, step: int = 1
    ) -> tuple[NDArray[np.float32], BoolArray]:
        """Square patches around pixels (N, 2): metres (N, S, S), and a mask of existing pixels.

        S = 2 radius / step + 1: every `step`-th pixel; the step must divide the radius. Holes and
        pixels beyond the border are NaN in the metres.
        """
        width, height = self.size
        steps = np.arange(-radius, radius + 1, step)
        centres = np.rint(pixels).astype(np.intp)
        columns = (centres[:, 0, None] + steps)[:, None, :]
        rows = (centres[:, 1, None] + steps)[:, :, None]
        if columns.min() >= 0 <= rows.min() and columns.max() < width and rows.max() < height:
            metres = depth_to_metres(self.array[rows, columns], self.encoding)
            return metres, np.ones(metres.shape, np.bool_)
        exists = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        raw = self.array[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
        metres = depth_to_metres(raw, self.encoding)
        metres[~exists] = np.nan
        return metres, exists

    def window(self, box: FloatArray, max_samples: int) -> Window:
        """Depth inside a box (x1, y1, x2, y2), subsampled evenly to about `max_samples` pixels."""
        width, height = self.size
        left, right = (math.floor(np.clip(x, 0, width - 1)) for x in box[[0, 2]])
        top, bottom = (math.floor(np.clip(y, 0, height - 1)) for y in box[[1, 3]])
        area = (right + 1 - left) * (bottom + 1 - top)
        step = max(1, math.ceil(math.sqrt(area / max_samples)))
        columns = np.arange(left, right + 1, step)
        rows = np.arange(top, bottom + 1, step)
        metres = depth_to_metres(
            self.array[top : bottom + 1 : step, left : right + 1 : step], self.encoding
        )
        return Window(
            metres, np.stack(np.meshgrid(columns, rows), axis=-1).astype(np.float64), step
        )


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a depth image: metres (h, w) at pixels (h, w, 2), `step` pixels apart."""

    metres: NDArray[np.float32]
    pixels: FloatArray
    step: int
