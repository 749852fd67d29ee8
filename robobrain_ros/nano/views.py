# SPDX-License-Identifier: Apache-2.0
"""From a scene to a view at the model's image size, with a target point and box per object.

Pixel conventions: boxes are x1, y1, x2, y2 with exclusive right and bottom edges, so they scale
exactly between image sizes; pixel (i, j) covers [i, i+1) x [j, j+1).
"""

from __future__ import annotations

import random
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.nano.architecture import SENT_HEIGHT, SENT_WIDTH
from robobrain_ros.nano.dataset import ObjectInfo, Scene
from robobrain_ros.sim.truth import MIN_VISIBLE_SHARE, mask_box

_WHOLE_VIEW_SHARE = 0.3
_MIN_CROP = 0.78


@dataclass(frozen=True)
class Target:
    """An object in a view: its label, point (x, y) and box (x1, y1, x2, y2) in view pixels."""

    info: ObjectInfo
    label: int
    point: tuple[int, int]
    box: tuple[int, int, int, int]


@dataclass(frozen=True)
class View:
    """An image at the sent size.

    rgb (252, 336, 3) uint8; labels (252, 336) uint8 as in `Scene`; `targets` are the objects that
    may be asked about; `partly` says that another object is visible, but less than the rule asks.
    """

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    targets: tuple[Target, ...]
    partly: bool
    gripper: tuple[float, float] | None


def inner_point(mask: NDArray[np.bool_]) -> tuple[int, int]:
    """A pixel (x, y) well inside a mask (H, W): its centroid when that is, else the nearest such.

    "Well inside" is at least 0.6 of the largest distance to the mask's edge.
    """
    padded = np.pad(mask.astype(np.uint8), 1)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[1:-1, 1:-1]
    rows, columns = np.nonzero(mask)
    centre_x, centre_y = columns.mean(), rows.mean()
    rows, columns = np.nonzero(depth >= 0.6 * depth.max())
    nearest = np.argmin((columns - centre_x) ** 2 + (rows - centre_y) ** 2)
    return int(columns[nearest]), int(rows[nearest])


def visible_labels(labels: NDArray[np.uint8], objects: int) -> tuple[list[int], bool]:
    """Labels that may be asked about, and whether another object is visible, but too little."""
    counts = np.bincount(labels.ravel(), minlength=objects + 1)[1 : objects + 1]
    enough = counts >= MIN_VISIBLE_SHARE * labels.size
    return [int(i) + 1 for i in np.flatnonzero(enough)], bool(((counts > 0) & ~enough).any())


def _random_crop(width: int, height: int, rng: random.Random) -> tuple[int, int, int, int]:
    if rng.random() < _WHOLE_VIEW_SHARE:
        return 0, 0, width, height
    scale = rng.uniform(_MIN_CROP, 1.0)
    stretch = rng.uniform(0.97, 1.03)
    w = min(width, round(width * scale * stretch))
    h = min(height, round(height * scale / stretch))
    return rng.randint(0, width - w), rng.randint(0, height - h), w, h


def _photometric(rgb: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    gain, gamma, offset = rng.uniform(0.85, 1.15), rng.uniform(0.85, 1.18), rng.uniform(-12, 12)
    ramp = np.arange(256) / 255.0
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        tint = gain * rng.uniform(0.96, 1.04)
        table[:, 0, channel] = np.clip(255 * tint * ramp**gamma + offset, 0, 255)
    rgb = cv2.LUT(rgb, table)
    if rng.random() < 0.2:
        rgb = cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.3, 0.8))
    if rng.random() < 0.25:
        noise = np.empty(rgb.shape, np.int8)
        cv2.randn(noise, (0, 0, 0), (rng.uniform(1, 5),) * 3)
        rgb = cv2.add(rgb, noise, dtype=cv2.CV_8U)
    return rgb


def make_view(scene: Scene, rng: random.Random | None) -> View:
    """Resize a scene to the sent size; with `rng`, crop and change it as training does."""
    height, width = scene.labels.shape
    x, y, w, h = _random_crop(width, height, rng) if rng else (0, 0, width, height)
    size = (SENT_WIDTH, SENT_HEIGHT)
    shrink = w > SENT_WIDTH
    choices = (cv2.INTER_AREA, cv2.INTER_LINEAR, cv2.INTER_CUBIC) if shrink else (cv2.INTER_CUBIC,)
    method = rng.choice(choices) if rng else cv2.INTER_AREA
    rgb = cv2.resize(scene.rgb[y : y + h, x : x + w], size, interpolation=method)
    crop = np.ascontiguousarray(scene.labels[y : y + h, x : x + w])
    labels = cv2.resize(crop, size, interpolation=cv2.INTER_NEAREST_EXACT)
    gripper = None
    if scene.info.gripper:
        u = (scene.info.gripper[0] - x) * SENT_WIDTH / w
        v = (scene.info.gripper[1] - y) * SENT_HEIGHT / h
        gripper = (u, v) if 0 <= u < SENT_WIDTH and 0 <= v < SENT_HEIGHT else None
    if rng:
        rgb = _photometric(rgb, rng)
        if rng.random() < 0.5:
            rgb, labels = rgb[:, ::-1], labels[:, ::-1]
            gripper = (SENT_WIDTH - gripper[0], gripper[1]) if gripper else None
    visible, partly = visible_labels(labels, len(scene.info.objects))
    targets = tuple(_target(labels, label, scene.info.objects[label - 1]) for label in visible)
    return View(rgb, labels, targets, partly, gripper)


def _target(labels: NDArray[np.uint8], label: int, info: ObjectInfo) -> Target:
    mask = labels == label
    x1, y1, x2, y2 = box = mask_box(mask)
    px, py = inner_point(mask[y1:y2, x1:x2])
    return Target(info, label, (x1 + px, y1 + py), box)
