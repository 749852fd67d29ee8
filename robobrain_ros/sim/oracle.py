# SPDX-License-Identifier: Apache-2.0
"""Answers of a perfect model: true boxes, lifted by the package's own 3D part from stereo depth."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.transform import Rotation

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.sim.depth_sensor import StereoDepthSensor
from robobrain_ros.sim.grasping import Extent, SurfacePoint
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.tabletop import PART_BIT, Tabletop
from robobrain_ros.sim.truth import inner_point, mask_box
from robobrain_ros.tf_projection import (
    DepthImage,
    LiftStatus,
    lift_boxes,
    lift_points,
)

_LEAST_PART = 0.04  # of an object's pixels; where less is seen of the part, the whole is meant


class Oracle:
    """Answers about the scene that a Tabletop shows when this is made; a stereo camera's depth.

    obstacles: what that depth shows.
    """

    def __init__(self, table: Tabletop, seed: int) -> None:
        """seed: of the depth's noise."""
        frame = table.render()
        noise = np.random.default_rng(seed)
        measured = StereoDepthSensor().measure(frame.depth, table.K, noise, rgb=frame.rgb)
        self._frame = frame
        self._depth = DepthImage(np.rint(1000 * np.nan_to_num(measured)).astype("u2"), "16UC1")
        self._intrinsics = table.intrinsics
        self._pose = table.world_from_optical
        self.obstacles = Obstacles.from_depth(measured, self._intrinsics, self._pose)
        self._names = [item.name for item in table.objects]

    def about(self, name: str) -> OracleAnswers:
        """Answers about the object of this name, as grasping.Answers."""
        label = self._names.index(name) + 1
        mask = self._frame.labels == label
        part = self._frame.codes == (label | PART_BIT)
        return OracleAnswers(self, mask, part if part.sum() > _LEAST_PART * mask.sum() else mask)

    def box(self, box: ArrayLike, yaw: float) -> Extent | None:
        """A box of the image (4,) lifted into a frame of this yaw."""
        turn = turned(yaw)
        region = lift_boxes([box], self._depth, self._intrinsics, turn.T @ self._pose)[0]
        if region.status is not LiftStatus.OK:
            return None
        return Extent(yaw, turn[:3, :3] @ region.centre, region.size)

    def point(self, pixel: ArrayLike) -> SurfacePoint | None:
        """A pixel (2,) lifted into the frame `table`."""
        args = [pixel], self._depth, self._intrinsics, self._pose
        point = lift_points(*args, rgb=self._frame.rgb)[0]
        if point.position is None:
            return None
        rotation = Rotation.from_quat(point.orientation).as_matrix() if point.has_normal else None
        return SurfacePoint.of_pose(point.position, rotation)


class OracleAnswers:
    """See grasping.Answers, and `Oracle.about`. mask, part: (H, W), where they are visible."""

    def __init__(self, oracle: Oracle, mask: BoolArray, part: BoolArray) -> None:
        self._oracle = oracle
        self._pixel = inner_point(mask)
        self._whole, self._part = mask_box(mask), mask_box(part)

    @property
    def point(self) -> SurfacePoint | None:
        """A point well inside the visible object."""
        return self._oracle.point(self._pixel)

    def part(self, yaw: float) -> Extent | None:
        """The visible part to grasp."""
        return self._oracle.box(self._part, yaw)

    def whole(self, yaw: float) -> Extent | None:
        """The visible object."""
        return self._oracle.box(self._whole, yaw)


def turned(yaw: float) -> FloatArray:
    """Pose (4, 4) in `table` of a frame that is turned about its vertical."""
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", yaw).as_matrix()
    return pose
