# SPDX-License-Identifier: Apache-2.0
"""Where the waypoints of a drawn line are in 3D.

A model draws a trajectory over what it sees, but the way of the hand is not on it: the depth at a
waypoint between the ends is that of the table behind. Units are metres; frames are as in
tf_projection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike

from robobrain_ros.core.arrays import BoolArray, FloatArray, arc_lengths
from robobrain_ros.core.results import IDENTITY_QUATERNION, LiftedPoint
from robobrain_ros.lifting.transforms import checked_rigid


class PathHeight(str, Enum):
    """Policies for the waypoints of a trajectory.

    SURFACE: each on the depth at its pixel. INTERPOLATE: those between the first and the last that
    were measured have depths on the way from one to the other. LIFT: each a clearance above the
    depth at its pixel.
    """

    SURFACE = "surface"
    INTERPOLATE = "interpolate"
    LIFT = "lift"


def path_through(
    waypoints: Sequence[LiftedPoint],
    rays: ArrayLike,
    target_from_camera: ArrayLike | None,
    policy: PathHeight | str,
    clearance: float,
) -> list[LiftedPoint]:
    """Apply a policy to lifted waypoints; one result each, in order.

    rays: (N, 2) undistorted x, y (z = 1) of each waypoint's pixel in the camera's optical frame.
    target_from_camera: (4, 4) with which the waypoints were lifted; without one (None) they stay as
    they are. clearance: metres, for LIFT.

    INTERPOLATE keeps the ends as measured and gives every waypoint between them a depth whose
    inverse is linear in the length along the drawn line, in rays. So a waypoint stays at its
    pixel, and what is straight in the image is straight in space. These waypoints are marked as
    interpolated and have no normal; their status, spread and valid_fraction stay those of the depth
    at the pixel. Nothing is put before the first or after the last measured one.

    LIFT moves each position along +z of the target frame, or towards the camera where the target
    frame is the camera's own and nothing says where up is. All else, depth included, stays as
    measured.

    Raises ValueError for an unknown policy, lengths that differ, and a clearance that is negative,
    not finite, or leads beyond the camera.
    """
    policy = _known(policy)
    rays = np.asarray(rays, dtype=np.float64)
    if rays.size == 0:
        rays = rays.reshape(0, 2)
    if rays.shape != (len(waypoints), 2):
        raise ValueError(
            f"rays must have the shape ({len(waypoints)}, 2), one for each waypoint, not "
            f"{rays.shape}."
        )
    if not (np.isfinite(clearance) and clearance >= 0):
        raise ValueError(f"The clearance must be 0 m or more and finite, not {clearance:g} m.")
    if target_from_camera is None or policy is PathHeight.SURFACE:
        return list(waypoints)
    target = checked_rigid(target_from_camera)
    if policy is PathHeight.LIFT:
        return [_lifted(waypoint, target, clearance) for waypoint in waypoints]
    return _interpolated(list(waypoints), rays, target)


def _known(policy: PathHeight | str) -> PathHeight:
    try:
        return PathHeight(policy)
    except ValueError as error:
        choices = ", ".join(f"'{choice.value}'" for choice in PathHeight)
        raise ValueError(
            f"The path height '{policy}' is not known: choose one of {choices}."
        ) from error


def _interpolated(
    waypoints: list[LiftedPoint], rays: FloatArray, target: FloatArray
) -> list[LiftedPoint]:
    # A pixel outside the lens model has no place to be put.
    seen: BoolArray = np.all(np.isfinite(rays), axis=1)
    measured = [i for i, point in enumerate(waypoints) if point.position is not None and seen[i]]
    if len(measured) < 2:
        return waypoints
    first, last = waypoints[measured[0]], waypoints[measured[-1]]
    placed = measured[0] + np.flatnonzero(seen[measured[0] : measured[-1] + 1])
    shares = _shares(rays[placed])
    depths = 1 / ((1 - shares) / first.depth + shares / last.depth)
    points = np.column_stack([rays[placed], np.ones(len(placed))]) * depths[:, None]
    positions = points @ target[:3, :3].T + target[:3, 3]
    for row in range(1, len(placed) - 1):
        t = shares[row]
        waypoints[placed[row]] = replace(
            waypoints[placed[row]],
            position=positions[row],
            orientation=IDENTITY_QUATERNION.copy(),
            has_normal=False,
            depth=float(depths[row]),
            covariance=(1 - t) ** 2 * first.covariance + t**2 * last.covariance,
            interpolated=True,
        )
    return waypoints


def _shares(rays: FloatArray) -> FloatArray:
    """Share (N,) of the line through rays (N, 2) that lies before each of them, 0 to 1."""
    along = arc_lengths(rays)
    if along[-1] == 0:  # the line is one dot: only the order is left
        along = np.arange(len(rays), dtype=np.float64)
    return along / along[-1]


def _lifted(waypoint: LiftedPoint, target: FloatArray, clearance: float) -> LiftedPoint:
    if waypoint.position is None:
        return waypoint
    if not np.allclose(target, np.eye(4), rtol=0, atol=1e-9):
        return replace(waypoint, position=waypoint.position + [0.0, 0.0, clearance])
    distance = float(np.linalg.norm(waypoint.position))
    if clearance >= distance:
        raise ValueError(
            f"A clearance of {clearance:g} m leads beyond the camera, {distance:g} m away: lower "
            "it, or choose a target frame whose z points up."
        )
    return replace(waypoint, position=waypoint.position * (1 - clearance / distance))


__all__ = ["PathHeight", "path_through"]
