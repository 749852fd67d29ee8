# SPDX-License-Identifier: Apache-2.0
"""Depth images of planes, spheres and boxes, computed exactly: ground truth for lifting."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
from scipy.spatial.transform import Rotation

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.tf_projection import DepthImage, Intrinsics

LENSES = {
    "plumb_bob": [0.12, -0.25, 0.001, -0.0008, 0.06],
    "rational_polynomial": [0.8, -2.6, 0.0006, -0.0002, 1.5, 0.7, -2.4, 1.4],
    "equidistant": [0.05, -0.01, 0.004, -0.001],
}


def camera(width: int = 640, height: int = 480, focal: float = 525.0) -> Intrinsics:
    """A camera without distortion, its principal point off the centre as in life."""
    matrix = [[focal, 0, width / 2 - 3.3], [0, focal * 1.01, height / 2 + 2.7], [0, 0, 1]]
    return Intrinsics(width, height, np.array(matrix), np.empty(0))


def lens(model: str) -> Intrinsics:
    """The same camera behind one of LENSES."""
    return Intrinsics(640, 480, camera().matrix, np.array(LENSES[model]), model)


def info(**changes):
    """A CameraInfo message in all but its type."""
    fields = {
        "width": 640,
        "height": 480,
        "k": [525.0, 0.0, 319.5, 0.0, 525.0, 239.5, 0.0, 0.0, 1.0],
        "d": [0.0] * 5,
        "distortion_model": "plumb_bob",
    }
    return SimpleNamespace(**{**fields, **changes})


@dataclass(frozen=True)
class Plane:
    """Points X with normal . X = offset, in the camera frame, metres."""

    normal: tuple[float, float, float]
    offset: float

    def depth(self, rays: FloatArray) -> FloatArray:
        with np.errstate(divide="ignore"):
            z = self.offset / (rays @ np.array(self.normal))
        return np.where(z > 0, z, np.inf)


@dataclass(frozen=True)
class Sphere:
    centre: tuple[float, float, float]
    radius: float

    def depth(self, rays: FloatArray) -> FloatArray:
        centre = np.array(self.centre)
        a, b = (rays**2).sum(axis=-1), rays @ centre
        root = b**2 - a * (centre @ centre - self.radius**2)
        return np.where(root >= 0, (b - np.sqrt(np.maximum(root, 0))) / a, np.inf)


@dataclass(frozen=True)
class Box:
    """A box with its own axes; camera_from_box: (4, 4)."""

    camera_from_box: FloatArray
    size: tuple[float, float, float]

    def depth(self, rays: FloatArray) -> FloatArray:
        rotation, centre = self.camera_from_box[:3, :3], self.camera_from_box[:3, 3]
        direction, origin = rays @ rotation, -centre @ rotation
        half = np.array(self.size) / 2
        with np.errstate(divide="ignore"):
            first, second = (-half - origin) / direction, (half - origin) / direction
        near = np.minimum(first, second).max(axis=-1)
        far = np.maximum(first, second).min(axis=-1)
        return np.where((near <= far) & (near > 0), near, np.inf)


def all_rays(intrinsics: Intrinsics) -> FloatArray:
    """Rays (H, W, 3) with z = 1 of every pixel."""
    grid = np.meshgrid(np.arange(intrinsics.width), np.arange(intrinsics.height))
    flat = np.stack(grid, axis=-1).reshape(-1, 2).astype(np.float64)
    rays = np.column_stack([intrinsics.rays(flat), np.ones(len(flat))])
    return rays.reshape(intrinsics.height, intrinsics.width, 3)


def render(intrinsics: Intrinsics, *shapes: Plane | Sphere | Box) -> FloatArray:
    """Depth (H, W) in metres of the nearest shape, NaN where there is none."""
    rays = all_rays(intrinsics)
    z = np.min([shape.depth(rays) for shape in shapes], axis=0)
    return np.where(np.isfinite(z), z, np.nan)


def as_metres(depth: FloatArray, own: Intrinsics | None = None) -> DepthImage:
    """The depth as a camera sends it in 32FC1."""
    return DepthImage(depth.astype(np.float32), "32FC1", own)


def as_millimetres(depth: FloatArray, own: Intrinsics | None = None) -> DepthImage:
    """The depth as a camera sends it in 16UC1: rounded, holes 0."""
    return DepthImage(np.rint(np.nan_to_num(depth) * 1000).astype(np.uint16), "16UC1", own)


def rigid(rotation: Rotation, translation: tuple[float, float, float]) -> FloatArray:
    """The (4, 4) matrix of a rotation, then a translation."""
    matrix = np.eye(4)
    matrix[:3, :3] = rotation.as_matrix()
    matrix[:3, 3] = translation
    return matrix


def looking_down(height: float, distance: float, degrees: float) -> FloatArray:
    """world_from_camera, `degrees` below the horizon along world y, above a table z = 0."""
    # Level, optical x is world x, z is world y and y is world -z; then the camera is tipped.
    level = Rotation.from_matrix([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    return rigid(level * Rotation.from_euler("x", -degrees, degrees=True), (0.0, -distance, height))


def table_seen_from(world_from_camera: FloatArray) -> Plane:
    """The plane z = 0 of the world in the camera frame."""
    normal = world_from_camera[2, :3]
    return Plane(tuple(normal), float(-world_from_camera[2, 3]))
