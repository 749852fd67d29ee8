# SPDX-License-Identifier: Apache-2.0
"""Image augmentation beyond cropping: lighting, sensors, table textures."""

from __future__ import annotations

import random

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.nano.dataset import Scene
from robobrain_ros.sim.tabletop import TABLE_CODE

_PATTERN_SIZE = 256  # pixels


def photometric(rgb: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """The image (H, W, 3) with other brightness, contrast and tint; now and then blur or noise."""
    gain, gamma, offset = rng.uniform(0.8, 1.2), rng.uniform(0.8, 1.25), rng.uniform(-15, 15)
    ramp = np.arange(256) / 255.0
    table = np.empty((256, 1, 3), np.uint8)
    for channel in range(3):
        tint = gain * rng.uniform(0.95, 1.05)
        table[:, 0, channel] = np.clip(255 * tint * ramp**gamma + offset, 0, 255)
    rgb = cv2.LUT(rgb, table)
    if rng.random() < 0.25:
        rgb = cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.3, 0.9))
    if rng.random() < 0.3:
        noise = np.empty(rgb.shape, np.int8)
        cv2.randn(noise, (0, 0, 0), (rng.uniform(1, 6),) * 3)
        rgb = cv2.add(rgb, noise, dtype=cv2.CV_8U)
    return rgb


def other_table(scene: Scene, rng: random.Random) -> Scene:
    """The scene with a random pattern on its table, under the light and shadows that it has."""
    height, width = scene.codes.shape
    scale = rng.uniform(0.5, 1.6) / _PATTERN_SIZE  # metres a pixel of the pattern
    turn = rng.uniform(0, 2 * np.pi)
    along, across = scale * np.cos(turn), scale * np.sin(turn)
    to_table = np.array([[along, -across, 0.0], [across, along, 0.0], [0.0, 0.0, 1.0]])
    pose = np.array(scene.info.world_from_optical).reshape(4, 4)
    rotation, camera = pose[:3, :3].T, pose[:3, 3]
    to_camera = np.column_stack([rotation[:, 0], rotation[:, 1], -rotation @ camera])
    to_image = np.array(scene.info.intrinsics).reshape(3, 3) @ to_camera @ to_table
    pattern = cv2.warpPerspective(
        _pattern(rng), to_image, (width, height), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP
    )
    table = scene.codes == TABLE_CODE
    rgb = scene.rgb.copy()
    rgb[table] = np.clip(rgb[table] * pattern[table], 0, 255)
    return Scene(rgb, scene.codes, scene.info)


def _pattern(rng: random.Random) -> NDArray[np.float32]:
    """Factors of the colors (N, N, 3) around 1: grain, spots, tiles or planks."""
    generator = np.random.default_rng(rng.getrandbits(32))
    size = (_PATTERN_SIZE, _PATTERN_SIZE)
    strength = np.zeros(size, np.float32)
    for _ in range(rng.randint(1, 3)):
        cells = [round(2 ** rng.uniform(1, 7)) for _ in range(2)]
        grid = generator.uniform(-1, 1, cells).astype(np.float32)
        method = cv2.INTER_NEAREST if rng.random() < 0.3 else cv2.INTER_CUBIC
        strength += rng.uniform(0.05, 0.25) * cv2.resize(grid, size, interpolation=method)
    if rng.random() < 0.3:
        period, joint = rng.randint(24, 100), rng.randint(1, 4)
        lines = np.arange(_PATTERN_SIZE) % period < joint
        grooves = lines[:, None] | (lines if rng.random() < 0.5 else np.zeros_like(lines))
        strength[grooves] -= rng.uniform(0.1, 0.4)
    tint = np.array([rng.uniform(0.75, 1.25) for _ in range(3)], np.float32)
    color = np.array([rng.uniform(0.5, 1.5) for _ in range(3)], np.float32)
    return tint * (1 + strength[..., None] * color)
