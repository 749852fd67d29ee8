# SPDX-License-Identifier: Apache-2.0
"""Label placement: inside the image, near the labelled point, with the least overlap."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

# Directions from a point in the order of preference: right and above first.
_AROUND = np.array(
    [[1, -1], [1, 1], [-1, -1], [-1, 1], [1, 0], [-1, 0], [0, -1], [0, 1]], np.float64
)


class LabelPlacer:
    """Places labels on an image of a size (width, height) in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = np.array(size, np.float64)
        self._occupied: list[ArrayLike] = []

    def reserve(self, box: ArrayLike) -> None:
        """Keep labels off a box (4,) where possible."""
        self._occupied.append(box)

    def around(self, point: ArrayLike, size: tuple[float, float], gap: float) -> Box:
        """Place a label of a size (width, height) beside a point (2,), `gap` away from it."""
        half = np.array(size) / 2
        near = np.where(_AROUND == 0, 0, _AROUND * (half + gap))
        # On a diagonal, the box's corner is as far off as its side is elsewhere.
        near[:4] -= _AROUND[:4] * gap * (1 - np.sqrt(0.5))
        far = near * 1.6
        centres = np.asarray(point, np.float64) + np.vstack([near, far])
        return self.best(np.hstack([centres - half, centres + half]))

    def best(self, candidates: ArrayLike) -> Box:
        """Place a label at the candidate box (N, 4) that overlaps least; the first of equals.

        Candidates are moved into the image first; a larger one starts at the upper left corner.
        """
        boxes = np.array(candidates, np.float64)
        low, high = boxes[:, :2], boxes[:, 2:]
        shift = np.maximum(np.minimum(0, self._size - high), -low)
        boxes += np.tile(shift, 2)
        occupied = np.asarray(self._occupied, np.float64).reshape(-1, 4)
        x1, y1, x2, y2 = boxes[int(np.argmin(_overlaps(boxes, occupied).sum(axis=1)))].tolist()
        self.reserve((x1, y1, x2, y2))
        return x1, y1, x2, y2


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the common area (N, M) of each box (N, 4) with each of the others (M, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=2)
