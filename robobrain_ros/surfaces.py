# SPDX-License-Identifier: Apache-2.0
"""Which surface a pixel of a depth image belongs to, and where that surface is.

A plane is linear in inverse depth: from n.X = d and X = z (x, y, 1) follows 1/z = (n/d).(x, y, 1).
So a plane is fitted by linear least squares on 1/z, which is also where a stereo camera's noise is
the same at every depth.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.depth import DepthImage, FloatArray, Intrinsics

BoolArray = NDArray[np.bool_]

_STEEPEST = math.tan(math.radians(80))  # surfaces up to this angle off frontal stay in one piece
_MAX_SEEDS = 8
_BATCH = 512  # pixels whose patches are held at a time
MAD_TO_SIGMA = 1.4826  # of a normal distribution


@dataclass(frozen=True)
class LiftParameters:
    """What a depth camera can do, and how much of it must be there before a result counts.

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

    def sigma(self, depth: FloatArray) -> FloatArray:
        """Return the standard deviation of depths in metres."""
        return np.hypot(self.depth_noise_floor, self.depth_noise * depth**2)

    def radii(self) -> Iterator[int]:
        """Yield the patch radii to try, each about twice the last."""
        radius = self.patch_radius
        while radius < self.max_patch_radius:
            yield radius
            radius = min(2 * radius, self.max_patch_radius)
        yield self.max_patch_radius


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Surfaces at N pixels, in the camera's optical frame.

    depth: (N,) m at the pixel, NaN where there is none. normals: (N, 3) unit vectors to the
    camera's side, NaN where there is none. valid_fraction: (N,) of the last patch looked at.
    spread: (N,) m, robust standard deviation of the surface's depths about the plane through them,
    NaN where there is none.
    """

    depth: FloatArray
    normals: FloatArray
    valid_fraction: FloatArray
    spread: FloatArray


def surfaces_at(
    depth: DepthImage,
    intrinsics: Intrinsics,
    pixels: FloatArray,
    rays: FloatArray,
    parameters: LiftParameters,
) -> Surfaces:
    """Find the surface that each pixel belongs to.

    pixels: (N, 2) inside the depth image. rays: (N, 2) of exactly those pixels. Patches grow only
    around pixels whose smaller patch doesn't hold enough depth.
    """
    count = len(pixels)
    found = Surfaces(
        np.full(count, np.nan),
        np.full((count, 3), np.nan),
        np.zeros(count),
        np.full(count, np.nan),
    )
    for start in range(0, count, _BATCH):
        pending = np.arange(start, min(start + _BATCH, count))
        for radius in parameters.radii():
            pending = _find(found, pending, radius, depth, intrinsics, pixels, rays, parameters)
    return found


def _find(
    found: Surfaces,
    pending: NDArray[np.intp],
    radius: int,
    depth: DepthImage,
    intrinsics: Intrinsics,
    pixels: FloatArray,
    rays: FloatArray,
    parameters: LiftParameters,
) -> NDArray[np.intp]:
    """Try patches of one radius around the pending pixels; return those that need a larger one."""
    if not pending.size:
        return pending
    metres, exists = depth.patches(pixels[pending], radius)
    shares = np.isfinite(metres).sum(axis=(1, 2)) / exists.sum(axis=(1, 2))
    found.valid_fraction[pending] = shares
    own = np.stack(
        [
            own_surface(patch, share, intrinsics.focal, parameters)
            for patch, share in zip(metres, shares, strict=True)
        ]
    )
    ready = own.any(axis=(1, 2))
    rows = pending[ready]
    if rows.size:
        _fit(
            found, rows, metres[ready], own[ready], intrinsics, pixels[rows], rays[rows], parameters
        )
    return pending[~ready]


def own_surface(
    patch: NDArray[np.float32], valid_fraction: float, focal: float, parameters: LiftParameters
) -> BoolArray:
    """Mark the pixels (S, S) of the surface that the patch's centre belongs to; none when it can't
    be told.

    A surface is what hangs together without a jump in depth. If the centre is a hole or an isolated
    ("flying") pixel, the surface nearest to it in the image counts, the nearer to the camera of two
    equally near: unless too few of the patch's pixels are valid.
    """
    centre = patch.shape[0] // 2
    valid = np.isfinite(patch)
    surface = connected(patch, valid, (centre, centre), 1, focal, parameters)
    if np.count_nonzero(surface) >= parameters.min_surface_pixels:
        return surface
    if valid_fraction < parameters.min_valid_fraction:
        return np.zeros_like(valid)
    left = valid & ~surface
    for _ in range(_MAX_SEEDS):
        rows, columns = np.nonzero(left)
        if not rows.size:
            break
        ring = np.maximum(np.abs(rows - centre), np.abs(columns - centre))
        first = np.lexsort((patch[rows, columns], ring))[0]
        surface = connected(patch, valid, (rows[first], columns[first]), 1, focal, parameters)
        if np.count_nonzero(surface) >= parameters.min_surface_pixels:
            return surface
        left &= ~surface
    return np.zeros_like(valid)


def connected(
    metres: NDArray[np.float32],
    allowed: BoolArray,
    seed: tuple[int, int],
    step: int,
    focal: float,
    parameters: LiftParameters,
) -> BoolArray:
    """Mark what hangs together with the seed (row, column) without a jump in depth; step: pixels
    per sample.
    """
    if not allowed[seed]:
        return np.zeros_like(allowed)
    z = float(metres[seed])
    jump = 4 * float(parameters.sigma(np.array(z))) + step * z / focal * _STEEPEST
    barred = np.ones((allowed.shape[0] + 2, allowed.shape[1] + 2), np.uint8)
    barred[1:-1, 1:-1] = ~allowed
    image = np.where(allowed, metres, np.float32(0))
    flags = 8 | cv2.FLOODFILL_MASK_ONLY | (2 << 8)
    cv2.floodFill(image, barred, (int(seed[1]), int(seed[0])), 0, jump, jump, flags)
    piece: BoolArray = barred[1:-1, 1:-1] == 2
    return piece


def _fit(
    found: Surfaces,
    rows: NDArray[np.intp],
    metres: NDArray[np.float32],
    own: BoolArray,
    intrinsics: Intrinsics,
    pixels: FloatArray,
    rays: FloatArray,
    parameters: LiftParameters,
) -> None:
    """Fit a plane to each patch (N, S, S) where `own`, and write depth, normal and spread into
    `found`.

    The plane starts from the few pixels around the centre and takes in only those that agree with
    it, so that at a crease it stays on the centre's side.
    """
    count, size, _ = metres.shape
    radius = size // 2
    steps = np.stack(np.meshgrid(np.arange(size), np.arange(size)), axis=-1).reshape(-1, 2) - radius
    grid = np.rint(pixels)[:, None] + steps
    offsets = intrinsics.rays(grid.reshape(-1, 2)).reshape(grid.shape) - rays[:, None]
    # Near the border of a wide lens a pixel of the patch may have no ray.
    surface = (own.reshape(count, -1) & np.isfinite(offsets).all(axis=-1)).astype(np.float64)
    scale = intrinsics.focal / radius  # keeps the normal equations well conditioned
    basis = np.concatenate(
        [np.ones((*offsets.shape[:2], 1)), np.nan_to_num(offsets) * scale], axis=-1
    )
    z = np.where(surface > 0, metres.reshape(count, -1), 1.0).astype(np.float64)
    inverse = 1 / z
    squared = (steps**2).sum(axis=-1)
    core = np.exp(-squared / (2 * (0.3 * radius) ** 2))
    wide = np.exp(-squared / (2 * (0.7 * radius) ** 2))

    plane, _ = _least_squares(basis, inverse, surface * core)
    centre = 1 / _mean(inverse, surface * core)
    promised = parameters.sigma(centre) / centre**2
    misfit = np.abs(inverse - np.einsum("npk,nk->np", basis, plane))
    near = _masked_median(misfit, (surface > 0) & (squared <= max(8, (radius / 2) ** 2)))
    noise = np.clip(MAD_TO_SIGMA * near, parameters.depth_noise_floor / centre**2, promised)
    noise = np.where(np.isfinite(near), noise, promised)
    for _ in range(2):
        agreeing = surface * wide * (misfit <= 3 * noise[:, None])
        plane, covariance = _least_squares(basis, inverse, agreeing)
        misfit = np.abs(inverse - np.einsum("npk,nk->np", basis, plane))

    slopes = plane[:, 1:] * scale
    gradient = np.column_stack([slopes, plane[:, 0] - (slopes * rays).sum(axis=1)])  # n / d
    length = np.maximum(np.linalg.norm(gradient, axis=1), np.finfo(float).tiny)
    measured = MAD_TO_SIGMA * _masked_median(misfit, surface > 0)
    tilt = np.sqrt(covariance[:, 1, 1] + covariance[:, 2, 2]) * scale / length
    lowest = np.where(surface > 0, inverse, np.inf).min(axis=1) - 3 * promised
    highest = np.where(surface > 0, inverse, -np.inf).max(axis=1) + 3 * promised
    planar = (
        (tilt * np.maximum(promised, measured) <= parameters.max_normal_error)
        & (plane[:, 0] >= lowest)
        & (plane[:, 0] <= highest)
    )
    level = np.where(planar, plane[:, 0], 1 / centre)
    misfit = np.where(planar[:, None], misfit, np.abs(inverse - level[:, None]))
    found.depth[rows] = 1 / level
    found.normals[rows[planar]] = -gradient[planar] / length[planar, None]
    found.spread[rows] = MAD_TO_SIGMA * _masked_median(misfit * z**2, surface > 0)


def _least_squares(
    basis: FloatArray, values: FloatArray, weights: FloatArray
) -> tuple[FloatArray, FloatArray]:
    """Solve N weighted problems: basis (N, P, K), values and weights (N, P).

    Returns the coefficients (N, K) and their covariance (N, K, K) for values of variance 1.
    """
    weighted = basis * weights[..., None]
    normal = np.einsum("npi,npj->nij", weighted, basis)
    # Too small to matter, large enough that points on one line, or none, stay solvable: then with a
    # vast covariance.
    normal += 1e-9 * (1 + weights.sum(axis=1))[:, None, None] * np.eye(basis.shape[-1])
    covariance = np.linalg.inv(normal)
    right = np.einsum("npi,np->ni", weighted, values)
    return np.einsum("nij,nj->ni", covariance, right), covariance


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    # Where the surface is so far from the centre that the weights vanish, any of its pixels do.
    weights = weights + 1e-12 * (weights > 0)
    means: FloatArray = (values * weights).sum(axis=1) / weights.sum(axis=1)
    return means


def _masked_median(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Medians (N,) of values (N, P) where mask; infinite where the mask is empty."""
    ordered = np.sort(np.where(mask, values, np.inf), axis=1)
    middle = np.maximum(mask.sum(axis=1) - 1, 0) // 2
    medians: FloatArray = ordered[np.arange(len(values)), middle]
    return medians
