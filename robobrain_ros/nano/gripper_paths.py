# SPDX-License-Identifier: Apache-2.0
"""Gripper paths to a goal, over the objects on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import arc_lengths
from robobrain_ros.nano.views import View

WAYPOINTS = 5
_CLEARANCE = 0.03  # over an object on the way, and beside it: metres
_LEAST_ARC = 0.04
_MOST_ARC = 0.30


@dataclass(frozen=True)
class GripperPath:
    """A path: points (N, 3) metres in the table's frame, pixels (N, 2) in the view."""

    points: NDArray[np.float64]
    pixels: NDArray[np.int64]


def plan_path(view: View, goal: NDArray[np.float64], spared: frozenset[int]) -> GripperPath | None:
    """Return a path of five evenly spaced waypoints from the gripper to `goal` (3,), or None.

    It goes straight there as seen from above, along a parabola just high enough to clear the
    objects on the way, but for those whose labels are `spared`. None without a gripper in view,
    where a waypoint is out of the image, or where there is no way over the objects.
    """
    if view.gripper is None or view.info.gripper is None:
        return None
    start = np.array(view.info.gripper)
    height = _arc(view, start, goal, spared)
    if height > _MOST_ARC:
        return None
    t = np.linspace(0, 1, WAYPOINTS)[:, None]
    points = (1 - t) * start + t * goal
    points[:, 2:] += 4 * height * t * (1 - t)
    pixels = np.floor(view.project(points)).astype(np.int64)
    inside = (pixels >= 0).all() and (pixels < (view.width, view.height)).all()
    return GripperPath(points, pixels) if inside else None


def _arc(
    view: View, start: NDArray[np.float64], goal: NDArray[np.float64], spared: frozenset[int]
) -> float:
    """Return the height in meters of the middle of the path above the straight line."""
    way = goal[:2] - start[:2]
    length = float(way @ way)
    height = _LEAST_ARC
    for label, item in enumerate(view.info.objects, start=1):
        if label in spared or length == 0:
            continue
        offset = np.array(item.foot[:2]) - start[:2]
        t = float(offset @ way) / length
        beside = np.linalg.norm(offset - t * way) > item.radius + _CLEARANCE
        if beside or not 0.05 < t < 0.95:
            continue
        over = item.foot[2] + item.height + _CLEARANCE - ((1 - t) * start[2] + t * goal[2])
        height = max(height, over / (4 * t * (1 - t)))
    return height


def collides(view: View, points: NDArray[np.float64], spared: frozenset[int]) -> bool:
    """Whether the polyline through points (N, 3) enters an object's upright cylinder."""
    steps = np.linspace(0, 1, 20)[:, None]
    dense = np.concatenate([a + steps * (b - a) for a, b in zip(points, points[1:])])
    for label, item in enumerate(view.info.objects, start=1):
        if label in spared:
            continue
        across = np.linalg.norm(dense[:, :2] - item.foot[:2], axis=1)
        if ((across < item.radius) & (dense[:, 2] < item.foot[2] + item.height)).any():
            return True
    return False


def lifted_like(view: View, pixels: NDArray[np.float64], path: GripperPath) -> NDArray[np.float64]:
    """Return points (N, 3) of continuous pixels (N, 2) at the depths of `path` along its length.

    A path in the image has no depth: a pixel takes the reference's at its share of the length.
    """
    camera = view.pose[:3, 3]
    depth = (path.points - camera) @ view.pose[:3, 2]
    shares = _shares(pixels)
    at = np.interp(shares, _shares(path.pixels.astype(float)), depth)
    return camera + at[:, None] * view.rays(pixels)


def _shares(pixels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share (N,) of a polyline's length at each of its points (N, 2), from 0 to 1."""
    along = arc_lengths(pixels)
    return along / along[-1] if along[-1] > 0 else along
