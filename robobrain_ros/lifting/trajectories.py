# SPDX-License-Identifier: Apache-2.0
"""Trajectories in 3D: policies for the depths of a predicted trajectory's waypoints.

A model predicts a trajectory in the image, but the hand does not move along the visible surfaces:
the depth at a waypoint between the ends is that of the background. Units and frames as in
tf_projection.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from enum import Enum

import numpy as np
from numpy.typing import ArrayLike

from robobrain_ros.core.arrays import BoolArray, FloatArray, arc_lengths
from robobrain_ros.core.results import IDENTITY_QUATERNION, LiftedPoint, LiftStatus
from robobrain_ros.lifting.intrinsics import ray_directions
from robobrain_ros.lifting.transforms import checked_rigid


class PathHeight(str, Enum):
    """Policies for the waypoints of a trajectory.

    SURFACE: on the surface at its pixel. INTERPOLATE: between the first and the last measured
    waypoint, at depths interpolated between those two. LIFT: a clearance above the surface at its
    pixel.
    """

    SURFACE = "surface"
    INTERPOLATE = "interpolate"
    LIFT = "lift"


def apply_path_height(
    waypoints: Sequence[LiftedPoint],
    rays: ArrayLike,
    target_from_camera: ArrayLike | None,
    policy: PathHeight | str,
    clearance: float,
) -> list[LiftedPoint]:
    """Apply a policy to lifted waypoints; one result each, in order.

    rays: (N, 2) undistorted x, y (z = 1) of each waypoint's pixel in the camera's optical frame.
    target_from_camera: (4, 4) with which the waypoints were lifted; None leaves them unchanged.
    clearance: metres, for LIFT.

    INTERPOLATE keeps the ends as measured and gives every waypoint between them a depth whose
    inverse is linear in the arc length of the image trajectory, measured in rays. So a waypoint
    stays at its pixel, and a straight line in the image is straight in space. These waypoints are
    marked as interpolated and have no normal; status, spread and valid_fraction remain those of the
    depth at the pixel. Waypoints before the first or after the last measured one are unchanged.

    A depth that the model has predicted is that of the gripper, and stays under every policy.

    LIFT moves each position along +z of the target frame, or towards the camera where the target
    frame is the camera's own, in which the direction up is unknown. Everything else, including the
    depth, stays as measured.

    Raises ValueError for an unknown policy, for lengths that differ, and for a clearance that is
    negative, not finite, or beyond the camera.
    """
    policy = _checked_policy(policy)
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


def _checked_policy(policy: PathHeight | str) -> PathHeight:
    try:
        return PathHeight(policy)
    except ValueError as error:
        choices = ", ".join(f"'{choice.value}'" for choice in PathHeight)
        raise ValueError(
            f"The path height '{policy}' is unknown: choose one of {choices}."
        ) from error


def _interpolated(
    waypoints: list[LiftedPoint], rays: FloatArray, target: FloatArray
) -> list[LiftedPoint]:
    # A pixel outside the lens model has no ray to be placed on.
    has_ray: BoolArray = np.all(np.isfinite(rays), axis=1)
    known = [point.position is not None and not _is_predicted(point) for point in waypoints]
    measured = [i for i, is_known in enumerate(known) if is_known and has_ray[i]]
    if len(measured) < 2:
        return waypoints
    first, last = waypoints[measured[0]], waypoints[measured[-1]]
    between = measured[0] + np.flatnonzero(has_ray[measured[0] : measured[-1] + 1])
    fractions = _arc_fractions(rays[between])
    depths = 1 / ((1 - fractions) / first.depth + fractions / last.depth)
    points = ray_directions(rays[between]) * depths[:, None]
    positions = points @ target[:3, :3].T + target[:3, 3]
    for row in range(1, len(between) - 1):
        t = fractions[row]
        if _is_predicted(waypoints[between[row]]):
            continue
        waypoints[between[row]] = replace(
            waypoints[between[row]],
            position=positions[row],
            orientation=IDENTITY_QUATERNION.copy(),
            has_normal=False,
            depth=float(depths[row]),
            covariance=(1 - t) ** 2 * first.covariance + t**2 * last.covariance,
            interpolated=True,
        )
    return waypoints


def _is_predicted(waypoint: LiftedPoint) -> bool:
    """Whether the model has predicted the depth of the gripper itself, not of what it passes."""
    return waypoint.status is LiftStatus.DEPTH_PREDICTED


def _arc_fractions(rays: FloatArray) -> FloatArray:
    """Fractions (N,), 0 to 1, of the polyline's arc length at rays (N, 2)."""
    lengths = arc_lengths(rays)
    if lengths[-1] == 0:  # all rays coincide: only their order is left
        lengths = np.arange(len(rays), dtype=np.float64)
    return lengths / lengths[-1]


def _lifted(waypoint: LiftedPoint, target: FloatArray, clearance: float) -> LiftedPoint:
    if waypoint.position is None or _is_predicted(waypoint):
        return waypoint
    if not np.allclose(target, np.eye(4), rtol=0, atol=1e-9):
        return replace(waypoint, position=waypoint.position + [0.0, 0.0, clearance])
    distance = float(np.linalg.norm(waypoint.position))
    if clearance >= distance:
        raise ValueError(
            f"A clearance of {clearance:g} m leads beyond the camera, {distance:g} m away: lower "
            "it, or choose a target frame whose z axis points up."
        )
    return replace(waypoint, position=waypoint.position * (1 - clearance / distance))
