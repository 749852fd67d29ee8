# SPDX-License-Identifier: Apache-2.0
"""Parameters of lifting: quality of the depth camera and thresholds for a result."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from robobrain_ros.core.arrays import FloatArray

MAX_SLOPE = math.tan(math.radians(80))
"""Slope to the image plane up to which neighbouring depths are of one surface, not a jump."""


@dataclass(frozen=True)
class LiftParameters:
    """Noise and range of the depth camera, and thresholds for a result.

    Depths and noise in metres, radii in depth pixels, angles in radians. The standard deviation of
    a depth z is hypot(depth_noise_floor, depth_noise * z^2): for stereo, depth_noise is the
    subpixel error divided by focal length times baseline (0.0025 per metre for an Intel RealSense
    D435: 0.08 px, 640 px, 50 mm). patch_radius: of the depth patch around a pixel, enlarged up to
    max_patch_radius where the smaller one is ambiguous or holds too little depth.
    min_valid_fraction, min_surface_pixels: depth that must be in a patch, and on the selected
    surface. pixel_noise: sigma of a model's pixels, in color pixels. max_normal_error: a normal
    with a larger expected error is left out.
    """

    min_depth: float = 0.1
    max_depth: float = 10.0
    patch_radius: int = 5
    max_patch_radius: int = 12
    min_valid_fraction: float = 0.25
    min_surface_pixels: int = 6
    depth_noise: float = 0.0025
    depth_noise_floor: float = 0.0005
    pixel_noise: float = 0.5
    max_normal_error: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_depth < self.max_depth:
            raise ValueError(
                f"min_depth {self.min_depth} m must be below max_depth {self.max_depth} m."
            )
        if not 1 <= self.patch_radius <= self.max_patch_radius:
            raise ValueError(
                f"patch_radius {self.patch_radius} must be at least 1 and at most "
                f"max_patch_radius {self.max_patch_radius}."
            )
        if not 0 <= self.min_valid_fraction <= 1 or self.min_surface_pixels < 3:
            raise ValueError(
                f"min_valid_fraction {self.min_valid_fraction} must be between 0 and 1, and "
                f"min_surface_pixels {self.min_surface_pixels} must be at least 3."
            )
        if min(self.depth_noise, self.pixel_noise) < 0 or self.depth_noise_floor <= 0:
            raise ValueError(
                "depth_noise and pixel_noise must not be negative, and depth_noise_floor must be "
                f"above 0; they are {self.depth_noise}, {self.pixel_noise} and "
                f"{self.depth_noise_floor}."
            )

    def sigma(self, depth: FloatArray) -> FloatArray:
        """Return the standard deviations (m) of depths (m), of any shape."""
        return np.hypot(self.depth_noise_floor, self.depth_noise * depth**2)

    def radii(self) -> Iterator[int]:
        """Yield the patch radii to try, each about twice the previous one."""
        radius = self.patch_radius
        while radius < self.max_patch_radius:
            yield radius
            radius = min(2 * radius, self.max_patch_radius)
        yield self.max_patch_radius
