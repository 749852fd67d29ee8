# SPDX-License-Identifier: Apache-2.0
"""Results of a request: pixels and their 3D positions with quality, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.core.parsing import Answer
from robobrain_ros.core.requests import Generation

IDENTITY_QUATERNION = np.array([0.0, 0.0, 0.0, 1.0])


class LiftStatus(IntEnum):
    """Why there is no 3D result, or OK; the numbers are those of LiftedPoint.msg and
    LiftedRegion.msg.
    """

    OK = 0
    NO_DEPTH_CAMERA = 1
    DEPTH_HOLE = 2
    OUT_OF_RANGE = 3
    OUTSIDE_DEPTH_VIEW = 4
    DEPTH_STALE = 5
    NO_TRANSFORM = 6
    DEPTH_PREDICTED = 7


@dataclass(frozen=True, eq=False)
class LiftedPoint:
    """A pixel lifted to 3D.

    pixel: (2,) of the color image. position: (3,) m in the target frame, None unless status is OK
    or DEPTH_PREDICTED (by the model's own depth: no normal, spread or covariance).
    orientation: quaternion in the target frame: z along the surface normal on the camera's side, x
    as near as possible to the camera's right; the identity without a normal (`has_normal`). depth:
    m along the optical axis. valid_fraction: share of the depth pixels around the point that hold
    depth. spread: m, robust standard deviation of the surface's depths about its local plane.
    covariance: (3, 3) m^2 of the position in the target frame. Depth, spread and covariance are 0
    where unknown; depth and spread are known for NO_TRANSFORM. interpolated: the position was
    put between its neighbours (trajectories.py); status then says what the depth at the pixel
    itself gave.
    """

    pixel: FloatArray
    status: LiftStatus
    position: FloatArray | None
    orientation: FloatArray
    has_normal: bool
    depth: float
    valid_fraction: float
    spread: float
    covariance: FloatArray
    interpolated: bool = False


@dataclass(frozen=True, eq=False)
class LiftedRegion:
    """A box of the image lifted to the object that it shows.

    box: (4,) x1, y1, x2, y2 in pixels of the color image. pixel, position, orientation, depth,
    spread and covariance: as of a LiftedPoint, for a point on the object's surface near the box's
    centre (pixel is the box's centre where there is none). valid_fraction: share of the box's depth
    pixels that hold depth. centre and size: (3,) m, the box around the object's visible part,
    aligned with the target frame's axes; 0 unless status is OK. box_orientation: quaternion of that
    box.
    """

    box: FloatArray
    pixel: FloatArray
    status: LiftStatus
    position: FloatArray | None
    orientation: FloatArray
    has_normal: bool
    centre: FloatArray
    size: FloatArray
    box_orientation: FloatArray
    depth: float
    valid_fraction: float
    spread: float
    covariance: FloatArray


Lifted = LiftedPoint | LiftedRegion


def failed_point(
    pixel: FloatArray,
    status: LiftStatus,
    valid_fraction: float = 0.0,
    depth: float = 0.0,
    spread: float = 0.0,
) -> LiftedPoint:
    """Return a pixel (2,) without a position, and what is known all the same."""
    return LiftedPoint(
        pixel=pixel,
        status=status,
        position=None,
        orientation=IDENTITY_QUATERNION.copy(),
        has_normal=False,
        depth=depth,
        valid_fraction=valid_fraction,
        spread=spread,
        covariance=np.zeros((3, 3)),
    )


@dataclass(frozen=True)
class Result:
    """A typed answer, its pixels lifted; `boxes` and `points` are in camera image pixels."""

    answer: Answer
    generation: Generation
    points: list[LiftedPoint] = field(default_factory=list)
    regions: list[LiftedRegion] = field(default_factory=list)
    lift_s: float = 0.0
