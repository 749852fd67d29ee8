# SPDX-License-Identifier: Apache-2.0
"""Where labels go on an image: inside it, near what they name, off what is already there."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels."""

# Directions from a point, the best one first: right and above, where a reader looks first.
_AROUND = np.array(
    [[1, -1], [1, 1], [-1, -1], [-1, 1], [1, 0], [-1, 0], [0, -1], [0, 1]], np.float64
)


class Places:
    """Knows what is taken on an image of a size (width, height) in pixels."""

    def __init__(self, size: tuple[int, int]) -> None:
        self._size = np.array(size, np.float64)
        self._taken: list[ArrayLike] = []

    def take(self, box: ArrayLike) -> None:
        """Keep other things off a box (4,)."""
        self._taken.append(box)

    def around(self, point: ArrayLike, size: tuple[float, float], gap: float) -> Box:
        """Take a box of a size (width, height) beside a point (2,), `gap` off it."""
        half = np.array(size) / 2
        near = np.where(_AROUND == 0, 0, _AROUND * (half + gap))
        # On a diagonal, the box's corner is as far off as its side is elsewhere.
        near[:4] -= _AROUND[:4] * gap * (1 - np.sqrt(0.5))
        far = near * 1.6
        centres = np.asarray(point, np.float64) + np.vstack([near, far])
        return self.best(np.hstack([centres - half, centres + half]))

    def best(self, candidates: ArrayLike) -> Box:
        """Take that of the candidate boxes (N, 4) which covers least; the first one of equals.

        Each is moved into the image first; one that is larger begins at its upper left.
        """
        boxes = np.array(candidates, np.float64)
        low, high = boxes[:, :2], boxes[:, 2:]
        shift = np.maximum(np.minimum(0, self._size - high), -low)
        boxes += np.tile(shift, 2)
        taken = np.asarray(self._taken, np.float64).reshape(-1, 4)
        x1, y1, x2, y2 = boxes[int(np.argmin(_overlaps(boxes, taken).sum(axis=1)))].tolist()
        self.take((x1, y1, x2, y2))
        return x1, y1, x2, y2


def _overlaps(boxes: NDArray[np.float64], others: NDArray[np.float64]) -> NDArray[np.float64]:
    """Common area (N, M) of each box (N, 4) with each other (M, 4)."""
    low = np.maximum(boxes[:, None, :2], others[None, :, :2])
    high = np.minimum(boxes[:, None, 2:], others[None, :, 2:])
    return np.prod(np.maximum(high - low, 0), axis=2)
