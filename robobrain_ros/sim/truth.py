# SPDX-License-Identifier: Apache-2.0
"""How right an answer is, against what the simulator knows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from robobrain_ros.sim.tabletop import Frame, SceneObject, Tabletop

MIN_VISIBLE_SHARE = 0.002
"""An object is asked about when it covers this share of the image (614 pixels of 640x480)."""


class Truth:
    """The ground truth of one scene: masks, boxes and visible surfaces, by object name."""

    def __init__(self, table: Tabletop) -> None:
        """Render the scene that `table` shows now."""
        self.frame: Frame = table.render()
        self.objects: tuple[SceneObject, ...] = table.objects
        self._labels = {item.name: label for label, item in enumerate(table.objects, start=1)}
        self._intrinsics = table.K
        self._table_from_optical = table.world_from_optical

    def askable(self) -> list[str]:
        """Return the names of the objects that are visible enough to ask about."""
        least = MIN_VISIBLE_SHARE * self.frame.labels.size
        return [item.name for item in self.objects if self.mask(item.name).sum() >= least]

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return where the object is visible, (H, W)."""
        return self.frame.labels == self._labels[name]

    def box(self, name: str) -> NDArray[np.float64]:
        """Return the visible part's box: x1, y1, x2, y2 in pixels, right and bottom exclusive."""
        rows, columns = np.nonzero(self.mask(name))
        corners = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        return np.array(corners, dtype=np.float64)

    def contains(self, name: str, pixel: tuple[float, float]) -> bool:
        """Whether the pixel (u, v) lies in the object's mask."""
        mask = self.mask(name)
        column, row = int(pixel[0]), int(pixel[1])
        return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])

    def surface(self, name: str) -> NDArray[np.float64]:
        """Return the visible surface, (N, 3) metres in the table's frame."""
        rows, columns = np.nonzero(self.mask(name))
        depth = self.frame.depth[rows, columns].astype(np.float64)
        pixels = np.stack([columns, rows, np.ones(len(rows))])
        rays = np.linalg.inv(self._intrinsics) @ pixels
        points = (rays * depth).T
        return points @ self._table_from_optical[:3, :3].T + self._table_from_optical[:3, 3]

    def distance_mm(self, name: str, position: tuple[float, float, float]) -> float:
        """Return how far a position in the table's frame is from the object's visible surface."""
        return 1000 * float(cKDTree(self.surface(name)).query(position)[0])


def iou(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    """Return the intersection over union of two boxes x1, y1, x2, y2."""
    low, high = np.maximum(first[:2], second[:2]), np.minimum(first[2:], second[2:])
    common = np.prod(np.maximum(high - low, 0))
    union = np.prod(first[2:] - first[:2]) + np.prod(second[2:] - second[:2]) - common
    return float(common / union)
