# SPDX-License-Identifier: Apache-2.0
"""Antialiased shapes and text on an RGB image, by Pillow at a multiple of its resolution.

Points are (x, y) in pixels, with pixel centers at whole numbers; lengths are in pixels. Pixels that
nothing is drawn on keep their values.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw

from robobrain_ros.core.arrays import arc_lengths
from robobrain_ros.visualization.fonts import Font
from robobrain_ros.visualization.placing import Box
from robobrain_ros.visualization.style import WHITE, Color, mixed

_MAX_SAMPLES = 1000  # of a line, however long
_MAX_PIXELS = 16_000_000  # of the enlarged image; a larger original is drawn on as it is


class Canvas:
    """A copy of an image (H, W, 3) uint8 RGB to draw on.

    unit: the length of one pixel on an image of 640x480, in proportion on others.
    """

    def __init__(self, rgb: NDArray[np.uint8]) -> None:
        height, width = rgb.shape[:2]
        self.size = (width, height)
        self.unit = max(min(self.size) / 480, 0.5)
        within_memory = int(np.sqrt(_MAX_PIXELS / (width * height)))
        self._scale = max(min(int(np.ceil(3 / self.unit)), 4, within_memory), 1)
        fine = (width * self._scale, height * self._scale)
        self._image = Image.fromarray(np.ascontiguousarray(rgb)).resize(
            fine, Image.Resampling.NEAREST
        )
        self._draw = ImageDraw.Draw(self._image, "RGBA")  # this mode blends translucent colors

    def array(self) -> NDArray[np.uint8]:
        """Return the image (H, W, 3)."""
        return np.array(self._image.reduce(self._scale))

    def line(self, points: ArrayLike, width: float, color: Color) -> None:
        """Draw a line with round ends and joints through points (N, 2)."""
        corners = np.asarray(points, np.float64)
        fine = max(round(width * self._scale), 1)
        self._draw.line([*map(tuple, self._fine(corners))], color, fine)
        for corner in corners:
            self.disc(corner, width / 2, color)

    def gradient_line(
        self, points: NDArray[np.float64], width: float, start: Color, end: Color
    ) -> None:
        """Draw a line through points (N, 2) whose color changes along its length."""
        dense, radius = self._fine(samples(points, width / 3)), width * self._scale / 2
        for (x, y), share in zip(dense.tolist(), np.linspace(0, 1, len(dense)).tolist()):
            circle = (x - radius, y - radius, x + radius, y + radius)
            self._draw.ellipse(circle, mixed(start, end, share))

    def polygon(self, corners: ArrayLike, color: Color) -> None:
        """Fill a polygon (N, 2)."""
        self._draw.polygon([*map(tuple, self._fine(corners))], color)

    def disc(self, center: ArrayLike, radius: float, color: Color) -> None:
        """Fill a circle."""
        middle, fine = self._fine(center), radius * self._scale
        self._draw.ellipse([*np.round(middle - fine), *np.round(middle + fine)], color)

    def pill(self, box: Box, color: Color, radius: float = 0.0, opacity: float = 1.0) -> None:
        """Fill a rectangle with round corners; box: its edges, rounded to whole pixels."""
        x1, y1, x2, y2 = (np.round(box) * self._scale).astype(int).tolist()
        if x2 > x1 and y2 > y1:
            fill = (*color, round(255 * opacity))
            self._draw.rounded_rectangle((x1, y1, x2 - 1, y2 - 1), radius * self._scale, fill)

    def text(
        self, corner: ArrayLike, lines: Sequence[str], font: Font, color: Color = WHITE
    ) -> None:
        """Write lines below each other; corner: x, y of the first one's upper left."""
        left, top = (np.round(np.asarray(corner)) * self._scale).tolist()
        for row, line in enumerate(lines):
            at = (left, top + row * font.height * self._scale)
            self._draw.text(at, line, color, font.at(self._scale), anchor="la")

    def _fine(self, points: ArrayLike) -> NDArray[np.float64]:
        """Points in pixels of the larger image; the first one begins half a pixel before 0."""
        return np.round((np.asarray(points, np.float64) + 0.5) * self._scale - 0.5)


def samples(points: NDArray[np.float64], step: float) -> NDArray[np.float64]:
    """Return points (M, 2), both ends among them, evenly along a line through points (N, 2).

    They are at most `step` apart, and farther where that would be more than a thousand.
    """
    along = arc_lengths(points)
    at = np.linspace(0, along[-1], min(int(np.ceil(along[-1] / step)) + 1, _MAX_SAMPLES))
    return np.column_stack([np.interp(at, along, coordinate) for coordinate in points.T])
