# SPDX-License-Identifier: Apache-2.0
"""Public interface of lifting: pixels and boxes of a color image to 3D in a target frame.

Pure: numpy arrays in, dataclasses out; `TransformLookup` works on the TF buffer that it is given.
Units are metres, quaternions are (x, y, z, w), matrices `a_from_b` take points of frame b to
frame a, and the camera frame is the optical frame of REP-103 (x right, y down, z forward).
"""

from robobrain_ros.core.results import LiftedPoint, LiftedRegion, LiftStatus
from robobrain_ros.lifting.depth_image import DepthImage, depth_to_metres
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.lift import lift_boxes, lift_points
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.scene import DepthScene, LiftOptions
from robobrain_ros.lifting.trajectories import PathHeight
from robobrain_ros.lifting.transforms import (
    TransformLookup,
    TransformUnavailable,
    matrix_from_transform,
    quaternion_from_matrix,
)

__all__ = [
    "DepthImage",
    "DepthScene",
    "Intrinsics",
    "LiftOptions",
    "LiftParameters",
    "LiftStatus",
    "LiftedPoint",
    "LiftedRegion",
    "PathHeight",
    "TransformLookup",
    "TransformUnavailable",
    "depth_to_metres",
    "lift_boxes",
    "lift_points",
    "matrix_from_transform",
    "quaternion_from_matrix",
]
