# SPDX-License-Identifier: Apache-2.0
"""Smooth shapes on an RGB image: lines, dots, arrow heads, brackets, pills with text.

Points are (x, y) in pixels, whose centres are at whole numbers; lengths are pixels. Everything is
drawn in place and cut at the image's borders.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import arc_lengths
from robobrain_ros.visualization.lettering import Lettering
from robobrain_ros.visualization.placing import Box
from robobrain_ros.visualization.style import WHITE, Colour, mixed

Picture = NDArray[np.uint8]

_SHIFT = 4  # OpenCV takes fixed-point coordinates: sixteenths of a pixel
_SMOOTH_EDGE = 0.6  # pixels that OpenCV's smoothing adds to a circle's radius
_SMOOTH_EDGES = 1.4  # and to a line's width
_MOST = 30_000  # pixels: farther out, its fixed-point numbers overflow


def _fixed(points: ArrayLike) -> NDArray[np.int32]:
    scaled = np.clip(np.asarray(points, np.float64), -_MOST, _MOST) * (1 << _SHIFT)
    return np.round(scaled).astype(np.int32)


def line(image: Picture, points: ArrayLike, colour: Colour, width: float) -> None:
    """Draw a line with round ends and joints through points (N, 2).

    OpenCV's smooth lines are 1.4, 3.4, 5.4, … pixels wide; the nearest width is taken.
    """
    thickness = max(1, 2 * round((width - _SMOOTH_EDGES) / 2))
    cv2.polylines(image, [_fixed(points)], False, colour, thickness, cv2.LINE_AA, _SHIFT)


def area(image: Picture, corners: ArrayLike, colour: Colour) -> None:
    """Fill a convex polygon (N, 2)."""
    cv2.fillConvexPoly(image, _fixed(corners), colour, cv2.LINE_AA, _SHIFT)


def disc(image: Picture, centre: ArrayLike, radius: float, colour: Colour) -> None:
    """Fill a circle."""
    u, v = _fixed(centre).tolist()
    inner = max(radius - _SMOOTH_EDGE, 0.1)
    cv2.circle(image, (u, v), round(inner * (1 << _SHIFT)), colour, -1, cv2.LINE_AA, _SHIFT)


def tint(image: Picture, box: Box, colour: Colour, share: float) -> None:
    """Mix a share (0 to 1) of `colour` into a rectangle."""
    x1, y1, x2, y2 = (max(round(side), 0) for side in box)
    inside = image[y1:y2, x1:x2]
    if inside.size:
        solid = np.full_like(inside, colour)
        cv2.addWeighted(inside, 1 - share, solid, share, 0, dst=inside)


def brackets(box: Box, length: float) -> list[NDArray[np.float64]]:
    """Return the four corners of a box as lines (3, 2); their arms are `length` long."""
    x1, y1, x2, y2 = box
    across, down = min(length, (x2 - x1) / 2), min(length, (y2 - y1) / 2)
    return [
        np.array([[x + across * inwards_x, y], [x, y], [x, y + down * inwards_y]])
        for x, inwards_x in ((x1, 1), (x2, -1))
        for y, inwards_y in ((y1, 1), (y2, -1))
    ]


def pieces(points: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return points (M, 2) on a line through (N, 2): these, and more, at most `step` apart.

    Farther apart where that would be more than a thousand: what is drawn needn't be finer.
    """
    lengths = np.linalg.norm(np.diff(points, axis=0), axis=1)
    step = max(step, lengths.sum() / (1000 - len(points)) if len(points) < 1000 else np.inf)
    parts = [points[:1]]
    for start, end, length in zip(points[:-1], points[1:], lengths):
        count = max(1, int(np.ceil(length / step)))
        parts.append(start + (end - start) * (np.arange(1, count + 1) / count)[:, None])
    return np.vstack(parts)


def gradient(
    image: Picture, points: ArrayLike, colours: tuple[Colour, Colour], width: float
) -> None:
    """Draw a line through points (N, 2) that goes from one colour to the other along its length."""
    fine = pieces(np.asarray(points, np.float64), 3 * width)
    along = arc_lengths(fine)
    for index in range(len(fine) - 1):
        middle = (along[index] + along[index + 1]) / 2 / max(along[-1], 1e-9)
        line(image, fine[index : index + 2], mixed(*colours, middle), width)


def blend(image: Picture, corner: tuple[int, int], cover: Picture, colour: Colour) -> None:
    """Lay a colour over the image where `cover` (h, w) says how much, 0 to 255.

    corner: x, y of the cover's first pixel.
    """
    height, width = cover.shape
    x, y = corner
    left, top = max(-x, 0), max(-y, 0)
    right, bottom = min(width, image.shape[1] - x), min(height, image.shape[0] - y)
    if left >= right or top >= bottom:
        return
    target = image[y + top : y + bottom, x + left : x + right]
    share = cover[top:bottom, left:right].astype(np.float32) / 255
    target[:] = cv2.blendLinear(target, np.full_like(target, colour), 1 - share, share)


def pill(image: Picture, box: Box, colour: Colour, radius: float, share: float) -> None:
    """Lay a rectangle with round corners over the image; share: how much it covers, 0 to 1."""
    x1, y1, x2, y2 = (round(side) for side in box)
    size = max(0, min(int(np.ceil(radius)), (x2 - x1) // 2, (y2 - y1) // 2))
    offsets = size - 0.5 - np.arange(size)
    corner = np.clip(size + 0.5 - np.hypot(offsets[:, None], offsets[None, :]), 0, 1)
    ends = np.ones((size, x2 - x1))
    ends[:, :size] = corner
    ends[:, x2 - x1 - size :] = corner[:, ::-1]
    cover = np.round(ends * 255 * share).astype(np.uint8)
    blend(image, (x1, y1), cover, colour)
    tint(image, (x1, y1 + size, x2, y2 - size), colour, share)
    blend(image, (x1, y2 - size), cover[::-1], colour)


def text(
    image: Picture,
    corner: ArrayLike,
    lines: Sequence[str],
    letters: Lettering,
    colour: Colour = WHITE,
) -> None:
    """Write lines below each other; corner: x, y of the first one's top left."""
    left, top = np.round(np.asarray(corner)).astype(int).tolist()
    for row, words in enumerate(lines):
        blend(image, (left, top + row * letters.height), letters.mask(words), colour)
