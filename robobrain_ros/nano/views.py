# SPDX-License-Identifier: Apache-2.0
"""Views of a scene: an image of some size, its visible objects, and its camera pose.

Pixel conventions: boxes are x1, y1, x2, y2 with exclusive right and bottom edges, so they scale
exactly between image sizes; pixel (i, j) covers [i, i+1) x [j, j+1).
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from robobrain_ros.nano import augmentation
from robobrain_ros.nano.dataset import ObjectInfo, Scene, SceneInfo
from robobrain_ros.sim.tabletop import PART_BIT
from robobrain_ros.sim.truth import MIN_VISIBLE_SHARE, inner_point, mask_box

_WHOLE_VIEW_SHARE = 0.3
_MIN_CROP = 0.75
_OTHER_TABLE_SHARE = 0.5
# Of an object's pixels, those of the part to grasp: below the first it is hidden, above the second
# it can be told apart.
_HIDDEN_PART, _VISIBLE_PART = 0.01, 0.04

Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Seen:
    """An object that is visible enough to be asked about.

    point: a pixel (x, y) well inside it. grasp: the box of its visible part to grasp, of the whole
    object where that part is hidden, None where too little of it is seen. pixels: how many.
    """

    info: ObjectInfo
    label: int
    point: tuple[int, int]
    box: Box
    grasp: Box | None
    pixels: int


@dataclass(frozen=True, eq=False)
class View:
    """An image and what is known about it.

    rgb (H, W, 3) uint8; codes (H, W) uint8 as in `Scene`; `seen`: the objects that may be asked
    about; `partly` says that another object is visible, but less than the rule asks. projection:
    (3, 3), from the optical frame to continuous pixels, in which pixel i covers [i, i+1).
    """

    rgb: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    seen: tuple[Seen, ...]
    partly: bool
    info: SceneInfo
    projection: NDArray[np.float64]

    @property
    def width(self) -> int:
        return self.codes.shape[1]

    @property
    def height(self) -> int:
        return self.codes.shape[0]

    @functools.cached_property
    def pose(self) -> NDArray[np.float64]:
        """The camera's optical frame in the table's frame, (4, 4)."""
        return np.array(self.info.world_from_optical).reshape(4, 4)

    def mask(self, label: int) -> NDArray[np.bool_]:
        """Return the mask (H, W) of an object."""
        return (self.codes & ~np.uint8(PART_BIT)) == label

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Continuous pixels (N, 2) of points (N, 3) of the table's frame before the camera."""
        image = (points - self.pose[:3, 3]) @ self.pose[:3, :3] @ self.projection.T
        return image[:, :2] / image[:, 2:]

    def rays(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Directions (N, 3) in the table's frame of continuous pixels (N, 2), of depth 1."""
        homogeneous = np.column_stack([pixels, np.ones(len(pixels))])
        return homogeneous @ np.linalg.inv(self.projection).T @ self.pose[:3, :3].T

    def on_table(self, pixels: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (N, 2) of the table's plane that continuous pixels (N, 2) show, in metres."""
        rays = self.rays(pixels)
        camera = self.pose[:3, 3]
        return camera[:2] - rays[:, :2] * (camera[2] / rays[:, 2:])

    @functools.cached_property
    def rightwards(self) -> NDArray[np.float64]:
        """Unit vector (2,) on the table that points to the image's right."""
        direction = self.pose[:2, 0] * np.sign(self.projection[0, 0])
        return direction / np.linalg.norm(direction)

    @functools.cached_property
    def away(self) -> NDArray[np.float64]:
        """Unit vector (2,) on the table that points away from the camera, square to the right."""
        x, y = self.rightwards
        direction = np.array([-y, x])
        return direction * np.sign(direction @ -self.pose[:2, 1])

    @functools.cached_property
    def gripper(self) -> tuple[float, float] | None:
        """Continuous pixel of the point between the fingertips, None where it is not in view."""
        if self.info.gripper is None:
            return None
        u, v = self.project(np.array([self.info.gripper]))[0]
        return (float(u), float(v)) if 0 <= u < self.width and 0 <= v < self.height else None


def whole_view(scene: Scene) -> View:
    """The scene's image as it is."""
    return _view(scene.rgb, scene.codes, scene.info, np.eye(3))


def resized_view(scene: Scene, size: tuple[int, int]) -> View:
    """The scene's whole image, resized to a size (width, height)."""
    height, width = scene.codes.shape
    return _resized(scene, (0, 0, width, height), size, cv2.INTER_AREA)


def training_view(scene: Scene, size: tuple[int, int], rng: random.Random) -> View:
    """A random crop, perhaps mirrored, of a size (width, height), changed by `augmentation`.

    The camera's left is the view's left, mirrored or not.
    """
    height, width = scene.codes.shape
    if rng.random() < _OTHER_TABLE_SHARE:
        scene = augmentation.other_table(scene, rng)
    crop = _random_crop(width, height, rng)
    shrinks = crop[2] > size[0]
    choices = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC) if shrinks else (cv2.INTER_CUBIC,)
    return _resized(scene, crop, size, rng.choice(choices), rng)


def _resized(
    scene: Scene,
    crop: tuple[int, int, int, int],
    size: tuple[int, int],
    method: int,
    rng: random.Random | None = None,
) -> View:
    x, y, w, h = crop
    rgb = cv2.resize(scene.rgb[y : y + h, x : x + w], size, interpolation=method)
    codes = np.ascontiguousarray(scene.codes[y : y + h, x : x + w])
    codes = cv2.resize(codes, size, interpolation=cv2.INTER_NEAREST_EXACT)
    stretch = size[0] / w, size[1] / h
    change = np.array(
        [[stretch[0], 0, -x * stretch[0]], [0, stretch[1], -y * stretch[1]], [0, 0, 1]]
    )
    if rng:
        rgb = augmentation.photometric(rgb, rng)
        if rng.random() < 0.5:
            rgb, codes = np.ascontiguousarray(rgb[:, ::-1]), np.ascontiguousarray(codes[:, ::-1])
            change = np.array([[-1, 0, size[0]], [0, 1, 0], [0, 0, 1.0]]) @ change
    return _view(rgb, codes, scene.info, change)


_FROM_CENTRES = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])


def _view(
    rgb: NDArray[np.uint8],
    codes: NDArray[np.uint8],
    info: SceneInfo,
    change: NDArray[np.float64],
) -> View:
    objects = info.objects
    labels = codes & ~np.uint8(PART_BIT)
    slices = ndimage.find_objects(labels, max_label=len(objects))
    seen, partly = [], False
    for label, place in enumerate(slices, start=1):
        if place is None:
            continue
        mask = labels[place] == label
        pixels = int(mask.sum())
        if pixels < MIN_VISIBLE_SHARE * labels.size:
            partly = True
            continue
        top, left = place[0].start, place[1].start
        x, y = inner_point(mask)
        box = (left, top, place[1].stop, place[0].stop)
        part = codes[place] == label | PART_BIT
        grasp = _grasp_box(part, pixels, box)
        seen.append(Seen(objects[label - 1], label, (left + x, top + y), box, grasp, pixels))
    intrinsics = np.array(info.intrinsics).reshape(3, 3)
    return View(rgb, codes, tuple(seen), partly, info, change @ _FROM_CENTRES @ intrinsics)


def _grasp_box(part: NDArray[np.bool_], pixels: int, box: Box) -> Box | None:
    share = part.sum() / pixels
    if share < _HIDDEN_PART:
        return box
    if share < _VISIBLE_PART:
        return None
    x1, y1, x2, y2 = mask_box(part)
    return box[0] + x1, box[1] + y1, box[0] + x2, box[1] + y2


def _random_crop(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    if rng.random() < _WHOLE_VIEW_SHARE:
        return 0, 0, width, height
    scale = rng.uniform(_MIN_CROP, 1.0)
    stretch = rng.uniform(0.97, 1.03)
    w = min(width, round(width * scale * stretch))
    h = min(height, round(height * scale / stretch))
    return rng.randint(0, width - w), rng.randint(0, height - h), w, h
