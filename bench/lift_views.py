# SPDX-License-Identifier: Apache-2.0
"""Simulated views of a robot's RGB-D camera, with ground truth."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from robobrain_ros.core.arrays import BoolArray, FloatArray, RgbImage
from robobrain_ros.sim.depth_sensor import StereoDepthSensor
from robobrain_ros.sim.tabletop import Frame, Tabletop
from robobrain_ros.tf_projection import DepthImage, Intrinsics

FIRST_SEED = 2_300_000  # other scenes than those that surface_selection.py's weights were fitted to
SIZE, DEPTH_SIZE = (640, 480), (512, 384)
CLOSER, FAR = (0.55, 1.1), (1.7, 2.2)  # of the scene's own camera distance, 0.8 to 1.05 m
_LOOK_AT = np.array([0.0, 0.0, 0.03])  # the middle of the objects, table frame

# The depth camera of a RealSense D435, next to its color camera and not exactly parallel to it.
_COLOR_FROM_DEPTH = np.eye(4)
_COLOR_FROM_DEPTH[:3, :3] = Rotation.from_euler("xyz", (0.4, -0.6, 0.3), degrees=True).as_matrix()
_COLOR_FROM_DEPTH[:3, 3] = (-0.015, 0.0003, 0.0004)

# A camera on an arm or a base, as fast as its TF is still accurate, with depth measured half a
# frame after color, and a typical duration of inference.
SPEED, TURN, DEPTH_DELAY, INFERENCE = 0.5, 1.0, 0.0167, 2.0  # m/s, rad/s, s, s
_TF_PERIOD = 0.02


@dataclass(frozen=True, eq=False)
class Observation:
    """One color image with its depth.

    rgb: (H, W, 3). depth: as published by a driver. aligned: (H, W) metres, NaN = hole: the same
    depth as drivers align it to color, for methods that need it. target_from_camera, latest:
    (4, 4), table from optical frame, by TF at the image's stamp and at the end of inference. true:
    exact depth, (H, W) metres, and labels; true_pose: (4, 4).
    """

    setup: str
    far: bool
    rgb: RgbImage
    intrinsics: Intrinsics
    depth: DepthImage
    aligned: FloatArray
    target_from_camera: FloatArray
    latest: FloatArray
    true: Frame
    true_pose: FloatArray


def observations(scenes: int, sensor: StereoDepthSensor) -> Iterator[Observation]:
    """Yield each scene in every setup: aligned depth, another depth camera, a moving camera."""
    color, depth = Tabletop(*SIZE), Tabletop(*DEPTH_SIZE)
    for seed in range(FIRST_SEED, FIRST_SEED + scenes):
        rng = np.random.default_rng(seed)
        for table in (color, depth):
            table.reset(seed)
        own_pose = color.world_from_optical
        for far in (False, True):
            pose = _moved_along_view(own_pose, rng.uniform(*(FAR if far else CLOSER)))
            yield _aligned(color, pose, far, sensor, rng)
            yield _other_camera(color, depth, pose, far, sensor, rng)
            yield _moving(color, pose, far, sensor, rng)
    color.close()
    depth.close()


def _aligned(
    table: Tabletop,
    pose: FloatArray,
    far: bool,
    sensor: StereoDepthSensor,
    rng: np.random.Generator,
) -> Observation:
    frame = _render(table, pose)
    measured = _measure(sensor, frame, table.K, rng)
    depth = DepthImage(_millimetres(measured), "16UC1")
    return Observation(
        "aligned", far, frame.rgb, table.intrinsics, depth, measured, pose, pose, frame, pose
    )


def _other_camera(
    color: Tabletop,
    depth: Tabletop,
    pose: FloatArray,
    far: bool,
    sensor: StereoDepthSensor,
    rng: np.random.Generator,
) -> Observation:
    frame = _render(color, pose)
    measured = _measure(sensor, _render(depth, pose @ _COLOR_FROM_DEPTH), depth.K, rng)
    image = DepthImage(_millimetres(measured), "16UC1", depth.intrinsics, _COLOR_FROM_DEPTH)
    aligned = aligned_by_driver(measured, depth.K, _COLOR_FROM_DEPTH, color.K, SIZE)
    intrinsics = color.intrinsics
    return Observation(
        "other camera", far, frame.rgb, intrinsics, image, aligned, pose, pose, frame, pose
    )


def _moving(
    table: Tabletop,
    pose: FloatArray,
    far: bool,
    sensor: StereoDepthSensor,
    rng: np.random.Generator,
) -> Observation:
    motion = Motion(pose, rng)
    frame = _render(table, pose)
    measured = _measure(sensor, _render(table, motion.at(DEPTH_DELAY)), table.K, rng)
    by_tf, later = motion.by_tf(0.0), motion.by_tf(DEPTH_DELAY)
    image = DepthImage(_millimetres(measured), "16UC1", None, np.linalg.inv(by_tf) @ later)
    latest = motion.by_tf(INFERENCE)
    intrinsics = table.intrinsics
    return Observation(
        "moving camera", far, frame.rgb, intrinsics, image, measured, by_tf, latest, frame, pose
    )


class Motion:
    """A camera that passes `pose` at time 0, and its pose by TF between TF's samples."""

    def __init__(self, pose: FloatArray, rng: np.random.Generator) -> None:
        self._pose = pose
        self._velocity, self._turn = (
            length * _unit(rng.normal(size=3)) for length in (SPEED, TURN)
        )
        self._phase = rng.uniform(0, _TF_PERIOD)

    def at(self, time: float) -> FloatArray:
        """Return the true pose (4, 4)."""
        pose = self._pose.copy()
        pose[:3, 3] += time * self._velocity
        pose[:3, :3] = Rotation.from_rotvec(time * self._turn).as_matrix() @ pose[:3, :3]
        return pose

    def by_tf(self, time: float) -> FloatArray:
        """Return the pose between the two samples around `time`, linear and slerp as in tf2."""
        before = np.floor((time - self._phase) / _TF_PERIOD) * _TF_PERIOD + self._phase
        first, second = self.at(before), self.at(before + _TF_PERIOD)
        share = (time - before) / _TF_PERIOD
        pose = first + share * (second - first)
        turn = Rotation.from_matrix(first[:3, :3].T @ second[:3, :3]).as_rotvec()
        pose[:3, :3] = first[:3, :3] @ Rotation.from_rotvec(share * turn).as_matrix()
        return pose


def aligned_by_driver(
    depth: FloatArray,
    depth_matrix: FloatArray,
    color_from_depth: FloatArray,
    color_matrix: FloatArray,
    size: tuple[int, int],
) -> FloatArray:
    """Align a whole depth image (h, w) to the color camera as drivers do, (H, W) metres.

    Each depth pixel covers the rectangle between its projected corners, the nearest wins
    (librealsense's align, depth_image_proc's register with fill_upsampling_holes).
    """
    rows, columns = np.nonzero(np.isfinite(depth))
    z = depth[rows, columns].astype(np.float64)
    corners = []
    for offset in (-0.5, 0.5):
        rays = np.linalg.inv(depth_matrix) @ np.stack(
            [columns + offset, rows + offset, np.ones(len(z))]
        )
        points = color_from_depth[:3, :3] @ (rays * z) + color_from_depth[:3, 3:]
        corners.append(np.rint((color_matrix @ points)[:2] / points[2]).astype(int))
    aligned = np.full(size[::-1], np.inf)
    low, high = corners
    for step_y in range(3):
        for step_x in range(3):
            u, v = low[0] + step_x, low[1] + step_y
            covered = (u <= high[0]) & (v <= high[1])
            covered &= (u >= 0) & (u < size[0]) & (v >= 0) & (v < size[1])
            np.minimum.at(aligned, (v[covered], u[covered]), points[2][covered])
    return np.where(np.isfinite(aligned), aligned, np.nan)


def _render(table: Tabletop, pose: FloatArray) -> Frame:
    table.look_from(pose)
    return table.render()


def _measure(
    sensor: StereoDepthSensor, frame: Frame, matrix: FloatArray, rng: np.random.Generator
) -> FloatArray:
    return sensor.measure(frame.depth, matrix, rng, rgb=frame.rgb).astype(np.float64)


def _millimetres(metres: FloatArray) -> NDArray[np.uint16]:
    return np.rint(1000 * np.nan_to_num(metres)).astype(np.uint16)


def _moved_along_view(pose: FloatArray, factor: float) -> FloatArray:
    moved = pose.copy()
    moved[:3, 3] = _LOOK_AT + factor * (pose[:3, 3] - _LOOK_AT)
    return moved


def _unit(vector: FloatArray) -> FloatArray:
    return vector / np.linalg.norm(vector)


def difficulties(seen: Observation, nearest: float, farthest: float) -> dict[str, BoolArray]:
    """Masks (H, W) of the pixels at these true depths (m), by difficulty.

    flat: no depth jump within 8 pixels. edge: a jump within 4 pixels, on either side of it. thin:
    on a part of an object that is at most 8 pixels wide. hole: no depth was measured. on objects:
    anywhere on an object.
    """
    depth = seen.true.depth
    kernel = np.ones((3, 3), np.uint8)
    jump = cv2.dilate(depth, kernel) - cv2.erode(depth, kernel) > 0.03
    distance = cv2.distanceTransform((~jump).astype(np.uint8), cv2.DIST_C, 3)
    wide = np.ones((9, 9), np.uint8)
    on_object = seen.true.labels > 0
    thin = on_object & (cv2.morphologyEx(depth, cv2.MORPH_CLOSE, wide) - depth > 0.03)
    in_range = (depth >= nearest) & (depth <= farthest)
    masks = {
        "flat": distance > 8,
        "edge": (distance <= 4) & ~thin,
        "thin": thin,
        "hole": np.isnan(seen.aligned),
        "on objects": on_object,
    }
    return {name: mask & in_range for name, mask in masks.items()}
