# SPDX-License-Identifier: Apache-2.0
"""Depth, calibration and pose of one camera at one time, and options for lifting its pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from robobrain_ros.core.arrays import FloatArray, RgbImage
from robobrain_ros.core.results import LiftedPoint, LiftedRegion, LiftStatus
from robobrain_ros.lifting.depth_image import DepthImage
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.lift import lift_boxes, lift_points
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.predicted_depth import with_predicted_depths
from robobrain_ros.lifting.trajectories import PathHeight, apply_path_height


@dataclass(frozen=True)
class LiftOptions:
    """Options of lifting. path_clearance: metres, for PathHeight.LIFT."""

    parameters: LiftParameters = field(default_factory=LiftParameters)
    path_height: PathHeight = PathHeight.INTERPOLATE
    path_clearance: float = 0.05


@dataclass(frozen=True)
class DepthScene:
    """Implementation of `core.observations.Scene` by a depth image.

    depth, intrinsics: None without depth, for the reason in `depth_status`. intrinsics: of the
    color image. target_from_camera: (4, 4), optical frame to target frame in metres, None without
    a transform.
    """

    depth: DepthImage | None = None
    intrinsics: Intrinsics | None = None
    target_from_camera: FloatArray | None = None
    depth_status: LiftStatus = LiftStatus.NO_DEPTH_CAMERA
    options: LiftOptions = field(default_factory=LiftOptions)

    def points(
        self, pixels: FloatArray, rgb: RgbImage, predicted_depths: FloatArray | None = None
    ) -> list[LiftedPoint]:
        """Lift pixels (N, 2), one result each; see `core.observations.Scene.points`."""
        parameters = self.options.parameters
        lifted = lift_points(
            pixels, self.depth, self.intrinsics, self.target_from_camera, parameters, rgb
        )
        if self.depth is None:
            lifted = [replace(point, status=self.depth_status) for point in lifted]
        if predicted_depths is None or self.intrinsics is None:
            return lifted
        return with_predicted_depths(
            lifted, predicted_depths, self.intrinsics, self.target_from_camera, parameters
        )

    def boxes(self, boxes: FloatArray) -> list[LiftedRegion]:
        """Lift boxes (M, 4), one result each."""
        regions = lift_boxes(
            boxes, self.depth, self.intrinsics, self.target_from_camera, self.options.parameters
        )
        if self.depth is None:
            regions = [replace(region, status=self.depth_status) for region in regions]
        return regions

    def path(self, waypoints: Sequence[LiftedPoint]) -> list[LiftedPoint]:
        """Apply the path height policy to lifted waypoints; see `apply_path_height`."""
        if self.intrinsics is None:
            return list(waypoints)
        rays = self.intrinsics.rays(np.array([point.pixel for point in waypoints]).reshape(-1, 2))
        return apply_path_height(
            waypoints,
            rays,
            self.target_from_camera,
            self.options.path_height,
            self.options.path_clearance,
        )
