# SPDX-License-Identifier: Apache-2.0
"""Ground truth of a simulated scene, and measures of answers against it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from robobrain_ros.sim.tabletop import Frame, SceneObject, Tabletop

if TYPE_CHECKING:
    from vision_msgs.msg import BoundingBox2D

MIN_VISIBLE_SHARE = 0.001
"""An object is asked about when it covers this share of the image (307 pixels of 640x480)."""


class Truth:
    """The ground truth of one scene: masks, boxes and visible surfaces, by object name."""

    def __init__(self, table: Tabletop) -> None:
        """Render the scene that `table` shows now."""
        self.frame: Frame = table.render()
        self.objects: tuple[SceneObject, ...] = table.objects
        self._labels = {item.name: label for label, item in enumerate(table.objects, start=1)}
        self._intrinsics = table.intrinsics
        self.table_from_optical = table.world_from_optical
        """Pose of the camera (4, 4); optical frame of REP-103."""

    @classmethod
    def of_scene(cls, seed: int) -> Truth:
        """Return the ground truth of the scene of a seed."""
        table = Tabletop()
        table.reset(seed)
        truth = cls(table)
        table.close()
        return truth

    def askable(self) -> list[str]:
        """Return the names of the objects that are visible enough to ask about."""
        least = MIN_VISIBLE_SHARE * self.frame.labels.size
        return [item.name for item in self.objects if self.mask(item.name).sum() >= least]

    def largest_first(self) -> list[str]:
        """Return the names of `askable`, the object that covers most of the image first."""
        return sorted(self.askable(), key=lambda name: -self.mask(name).sum())

    def mask(self, name: str) -> NDArray[np.bool_]:
        """Return where the object is visible, (H, W)."""
        return self.frame.labels == self._labels[name]

    def box(self, name: str) -> NDArray[np.float64]:
        """Return the visible part's box: x1, y1, x2, y2 in pixels, right and bottom exclusive."""
        return np.array(mask_box(self.mask(name)), dtype=np.float64)

    def contains(self, name: str, pixel: tuple[float, float]) -> bool:
        """Whether the pixel (u, v) lies in the object's mask."""
        mask = self.mask(name)
        column, row = int(pixel[0]), int(pixel[1])
        return 0 <= row < mask.shape[0] and 0 <= column < mask.shape[1] and bool(mask[row, column])

    def surface(self, name: str) -> NDArray[np.float64]:
        """Return the visible surface, (N, 3) metres in the table's frame."""
        rows, columns = np.nonzero(self.mask(name))
        depth = self.frame.depth[rows, columns].astype(np.float64)
        pixels = np.column_stack([columns, rows]).astype(np.float64)
        points = self._intrinsics.back_project(pixels, depth)
        return points @ self.table_from_optical[:3, :3].T + self.table_from_optical[:3, 3]

    def distance_mm(self, name: str, position: tuple[float, float, float]) -> float:
        """Return how far a position in the table's frame is from the object's visible surface."""
        return 1000 * float(cKDTree(self.surface(name)).query(position)[0])


def named_object(query: str, names: Sequence[str]) -> str | None:
    """Return the longest object name that a query contains (a soda can is not a can), or None."""
    fitting = [name for name in names if name in query.lower()]
    return max(fitting, key=len, default=None)


def mask_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Return the box x1, y1, x2, y2 (right and bottom exclusive) of a non-empty mask (H, W)."""
    columns, rows = np.flatnonzero(mask.any(0)), np.flatnonzero(mask.any(1))
    return int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1


def inner_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """Return the pixel (x, y) nearest to the centroid of a mask (H, W) that is well inside it.

    "Well inside" is at least 0.6 of the largest distance to the mask's edge.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(mask)
    centre_x, centre_y = columns.mean(), rows.mean()
    rows, columns = np.nonzero(depth >= 0.6 * depth.max())
    nearest = np.argmin((columns - centre_x) ** 2 + (rows - centre_y) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def box_edges(box: BoundingBox2D) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of a message in pixels."""
    center, half_x, half_y = box.center.position, box.size_x / 2, box.size_y / 2
    return center.x - half_x, center.y - half_y, center.x + half_x, center.y + half_y


def box_iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Return the intersection over union of boxes x1, y1, x2, y2; 0 for a box without area."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (a, b)]
    return width * height / (sum(areas) - width * height)
