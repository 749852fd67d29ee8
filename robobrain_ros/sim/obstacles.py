# SPDX-License-Identifier: Apache-2.0
"""Obstacles from the camera's depth, for collision checks of the hand.

They stand for the octomap or point cloud of a robot's planner: they come from the camera, not from
the simulator's state. Meters, frame `table`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.sim.grasping import Extent, Grasp
from robobrain_ros.tf_projection import Intrinsics

_STRIDE = 2  # pixels
_LOWEST, _HIGHEST = 0.015, 0.40  # above the table's noise; and no higher than anything stands
_FEW = 6  # points, which may be noise
_OWN_MARGIN = 0.006
# Boxes of the hand around the fingertips' middle, as low and high corners; x: the closing direction
# of the fingers, z: the pointing direction of the hand. The palm's is as high as any object.
_PALM = np.array([(-0.106, -0.034, -0.25), (0.106, 0.034, -0.038)])
_FINGER_THICKNESS, _FINGER_WIDTH, _FINGER_LENGTH = 0.024, 0.012, 0.05


class Obstacles:
    """Points (N, 3) of the surfaces above the table, of all objects."""

    def __init__(self, points: FloatArray) -> None:
        self.points = points

    @classmethod
    def from_depth(
        cls, depth: NDArray[np.floating], intrinsics: Intrinsics, table_from_optical: FloatArray
    ) -> Obstacles:
        """Back-project depth (H, W) m, NaN = hole, of a camera with a pose (4, 4)."""
        rows, columns = np.mgrid[: depth.shape[0] : _STRIDE, : depth.shape[1] : _STRIDE]
        z = depth[rows, columns].astype(np.float64)
        known = np.isfinite(z)
        pixels = np.column_stack([columns[known], rows[known]]).astype(np.float64)
        points = intrinsics.back_project(pixels, z[known])
        points = points @ table_from_optical[:3, :3].T + table_from_optical[:3, 3]
        return cls(points[(points[:, 2] > _LOWEST) & (points[:, 2] < _HIGHEST)])

    def without(self, covered: BoolArray) -> Obstacles:
        """Return the obstacles without the masked points (N,), such as those on the arm itself."""
        return Obstacles(self.points[~covered])

    def block(self, grasp: Grasp, rotation: FloatArray) -> bool:
        """Whether the hand with a rotation (3, 3) collides with another object at the grasp."""
        others = self.points[~_inside(self.points, grasp.own)]
        local = (others - grasp.position) @ rotation
        start = grasp.opening / 2
        low = np.array([start, -_FINGER_WIDTH, -_FINGER_LENGTH])
        high = np.array([start + _FINGER_THICKNESS, _FINGER_WIDTH, 0.0])
        hit = ((local > _PALM[0]) & (local < _PALM[1])).all(1)
        fingers = np.abs(local[:, 0])[:, None], local[:, 1:]
        either = np.concatenate(fingers, axis=1)
        hit |= ((either > low) & (either < high)).all(1)
        return int(hit.sum()) > _FEW


def _inside(points: FloatArray, extents: Sequence[Extent]) -> BoolArray:
    """Return which points (N, 3) are in all of the boxes or within a margin of them."""
    inside = np.ones(len(points), bool)
    for extent in extents:
        inside &= extent.contains(points, _OWN_MARGIN)
    return inside if extents else ~inside
