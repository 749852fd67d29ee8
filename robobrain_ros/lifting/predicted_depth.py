# SPDX-License-Identifier: Apache-2.0
"""Depth predicted by the model, for pixels without measured depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.core.results import LiftedPoint, LiftStatus
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.parameters import LiftParameters

_NOT_MEASURED = (LiftStatus.DEPTH_HOLE, LiftStatus.OUTSIDE_DEPTH_VIEW)


def with_predicted_depths(
    points: Sequence[LiftedPoint],
    depths: FloatArray,
    color: Intrinsics,
    target_from_camera: FloatArray | None,
    parameters: LiftParameters,
) -> list[LiftedPoint]:
    """Place the points that have no measured depth at the depth that the model predicted.

    depths: (N,) metres along the optical axis; those outside min_depth to max_depth are not used.
    color: intrinsics of the color image. target_from_camera: (4, 4), None leaves all points
    unchanged. The points placed have the status DEPTH_PREDICTED and no normal, spread or
    covariance, because the accuracy of a prediction is unknown.
    """
    if target_from_camera is None or not len(points):
        return list(points)
    pixels = np.array([point.pixel for point in points])
    points_in_camera = color.back_project(pixels, depths)
    positions = points_in_camera @ target_from_camera[:3, :3].T + target_from_camera[:3, 3]
    usable = (depths >= parameters.min_depth) & (depths <= parameters.max_depth)
    usable &= np.isfinite(positions).all(axis=1)
    return [
        replace(
            point,
            status=LiftStatus.DEPTH_PREDICTED,
            position=position,
            depth=float(depth),
            spread=0.0,
        )
        if point.status in _NOT_MEASURED and can_use
        else point
        for point, position, depth, can_use in zip(points, positions, depths, usable)
    ]
