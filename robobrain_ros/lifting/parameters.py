# SPDX-License-Identifier: Apache-2.0
"""What a depth camera can do, and what lifting asks of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class LiftParameters:
    """How good depth is, and how much of it must be there before a result counts.

    Depths and noise in metres, radii in depth pixels, angles in radians. The standard deviation of
    a depth z is hypot(depth_noise_floor, depth_noise * z^2): for stereo, depth_noise is the
    subpixel error over focal length times baseline (0.0025 per metre: an Intel RealSense D435, 0.08
    px, 640 px, 50 mm).
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
                "min_valid_fraction lies in 0 to 1, and min_surface_pixels is at least 3."
            )
        if min(self.depth_noise, self.pixel_noise) < 0 or self.depth_noise_floor <= 0:
            raise ValueError("Noise can't be negative, and depth_noise_floor must be above 0.")

    def sigma(self, depth: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the standard deviation of depths in metres."""
        return np.hypot(self.depth_noise_floor, self.depth_noise * depth**2)

    def radii(self) -> Iterator[int]:
        """Yield the patch radii to try, each about twice the last."""
        radius = self.patch_radius
        while radius < self.max_patch_radius:
            yield radius
            radius = min(2 * radius, self.max_patch_radius)
        yield self.max_patch_radius
