# SPDX-License-Identifier: Apache-2.0
"""Plane fitting at pixels of a depth image: depth, normal and quality of the selected surface.

A plane is linear in inverse depth: n.X = d with X = z (x, y, 1) gives 1/z = (n/d).(x, y, 1). So a
plane is fitted by linear least squares on 1/z, in which a stereo camera's noise also is the same at
every depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.surface_selection import (
    ColorPatch,
    label_surfaces,
    select_surface,
    unambiguous_surfaces,
)

_WIDE_STEP = 3  # pixels between samples of a large patch, because neighbours share their noise
_MIN_SUPPORT = 0.7  # of a large patch's weight, for a plane that extends to all sides
_MIN_SMALL_SHARE = 0.3  # of a small patch's pixels, for fitting it instead of a larger one
_BATCH = 512  # pixels whose patches are in memory at a time
MAD_TO_SIGMA = 1.4826
"""Standard deviation of a normal distribution, per median absolute deviation."""


@dataclass(frozen=True, eq=False)
class Surfaces:
    """Surfaces at N pixels, in the camera's optical frame.

    depth: (N,) m at the pixel, NaN without a surface. normals: (N, 3) unit vectors towards the
    camera's side, NaN without one. valid_fraction: (N,) of the last patch that was examined.
    spread: (N,) m, robust standard deviation of the surface's depths about the fitted plane, NaN
    without a surface.
    """

    depth: FloatArray
    normals: FloatArray
    valid_fraction: FloatArray
    spread: FloatArray


def fit_surfaces(
    depth: DepthImage,
    intrinsics: Intrinsics,
    pixels: FloatArray,
    rays: FloatArray,
    parameters: LiftParameters,
    color_patch: Callable[[int, int], ColorPatch] | None = None,
) -> Surfaces:
    """Fit a plane to the surface that each pixel belongs to.

    pixels: (N, 2) inside the depth image. rays: (N, 2) of exactly those pixels. color_patch: colors
    around a pixel (first argument: its row) within a radius (second), for pixels with several
    candidate surfaces. Patches are enlarged only where the smaller one is ambiguous.
    """
    count = len(pixels)
    surfaces = Surfaces(
        np.full(count, np.nan),
        np.full((count, 3), np.nan),
        np.zeros(count),
        np.full(count, np.nan),
    )
    fitter = _Fitter(surfaces, depth, intrinsics, pixels, rays, parameters, color_patch)
    for start in range(0, count, _BATCH):
        fitter.fit(np.arange(start, min(start + _BATCH, count)))
    return surfaces


@dataclass(frozen=True, eq=False)
class _Fitter:
    """The arguments of `fit_surfaces`, and the arrays that take its results."""

    surfaces: Surfaces
    depth: DepthImage
    intrinsics: Intrinsics
    pixels: FloatArray
    rays: FloatArray
    parameters: LiftParameters
    color_patch: Callable[[int, int], ColorPatch] | None

    def fit(self, rows: NDArray[np.intp]) -> None:
        """Select and fit the surfaces of these pixels: in small patches first, then larger ones."""
        parameters, small = self.parameters, self.parameters.patch_radius
        metres, labels = self._patches(rows, small)
        selected, isolated, unambiguous = unambiguous_surfaces(labels, parameters)
        if self.color_patch:
            for i in np.flatnonzero(isolated & ~unambiguous):
                color = self.color_patch(rows[i], small)
                selected[i] = select_surface(metres[i], labels[i], parameters, color)
                unambiguous[i] = selected[i].any()
        else:
            unambiguous = isolated
        ambiguous = np.flatnonzero(~unambiguous)
        radii = [radius for radius in parameters.radii() if radius > small or not self.color_patch]
        # Color is the more conclusive the more of the surfaces it shows.
        for radius in radii[-1:] if self.color_patch else radii:
            if not ambiguous.size:
                break
            large, surface = self._select(rows[ambiguous], radius)
            middle = slice(radius - small, radius + small + 1)
            in_small = surface[:, middle, middle].sum(axis=(1, 2))
            use_small = in_small >= _MIN_SMALL_SHARE * metres[0].size
            selected[ambiguous[use_small]] = surface[use_small, middle, middle]
            unambiguous[ambiguous[use_small]] = True
            use_large = ~use_small & surface.any(axis=(1, 2))
            if use_large.any():
                self._fit_planes(rows[ambiguous[use_large]], large[use_large], surface[use_large])
            ambiguous = ambiguous[~use_small & ~use_large]
        if unambiguous.any():
            self._fit_planes(rows[unambiguous], metres[unambiguous], selected[unambiguous])

    def _select(self, rows: NDArray[np.intp], radius: int) -> tuple[NDArray[np.float32], BoolArray]:
        """Patches (N, S, S) around ambiguous pixels, and masks of the selected surfaces in them."""
        metres, labels = self._patches(rows, radius)
        selected = [
            select_surface(
                metres[i],
                labels[i],
                self.parameters,
                self.color_patch and self.color_patch(row, radius),
            )
            for i, row in enumerate(rows)
        ]
        return metres, np.stack(selected)

    def _patches(
        self, rows: NDArray[np.intp], radius: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        metres, exists = self.depth.patches(self.pixels[rows], radius)
        labels = label_surfaces(metres, self.intrinsics.focal, self.parameters)
        valid = np.count_nonzero(labels, axis=(1, 2))
        self.surfaces.valid_fraction[rows] = valid / np.count_nonzero(exists, axis=(1, 2))
        return metres, labels

    def _fit_planes(
        self, rows: NDArray[np.intp], metres: NDArray[np.float32], selected: BoolArray
    ) -> None:
        """Fit a plane to each patch (N, S, S) where `selected`; write depth, normal and spread.

        The first fit uses the few pixels around the centre, the second one all inliers of the
        first, so that at a crease the plane is that of the centre's side.
        """
        parameters, count = self.parameters, len(rows)
        stencil = _stencil(metres.shape[1] // 2, 1)
        mask = selected.reshape(count, -1)
        inverse = 1 / np.where(mask, metres.reshape(count, -1), np.float32(1)).astype(np.float64)
        narrow, wide = mask * stencil.narrow, mask * stencil.wide

        plane, _ = stencil.least_squares(inverse, narrow)
        centre = 1 / _mean(inverse, narrow)
        sensor_noise = parameters.sigma(centre) / centre**2
        residuals = np.abs(inverse - plane @ stencil.basis.T)
        median = _masked_median(residuals, mask & stencil.near)
        noise = np.clip(
            MAD_TO_SIGMA * median, parameters.depth_noise_floor / centre**2, sensor_noise
        )
        noise = np.where(np.isfinite(median), noise, sensor_noise)
        weights = wide * (residuals <= 3 * noise[:, None])
        plane, covariance = stencil.least_squares(inverse, weights)
        residuals = np.abs(inverse - plane @ stencil.basis.T)
        spread = MAD_TO_SIGMA * _masked_median(residuals, mask)

        pixels = self.pixels[rows]
        slopes = plane[:, 1:] / stencil.radius  # of the inverse depth, per pixel
        at_pixel = plane[:, 0] + (slopes * (pixels - np.rint(pixels))).sum(axis=1)
        slope_error = np.sqrt(covariance[:, 1, 1] + covariance[:, 2, 2]) / stencil.radius
        if stencil.radius < parameters.max_patch_radius:
            slopes, slope_error = self._refine_slopes(
                rows, plane, stencil.radius, sensor_noise, slope_error
            )
        per_ray = self._per_ray(pixels, slopes)
        gradient = np.empty((count, 3))
        gradient[:, :2] = per_ray
        gradient[:, 2] = at_pixel - (per_ray * self.rays[rows]).sum(axis=1)
        length = np.sqrt((gradient**2).sum(axis=1))  # of n / d
        length = np.maximum(length, np.finfo(float).tiny)
        normal_error = slope_error * (
            self.intrinsics.focal * np.maximum(sensor_noise, spread) / length
        )
        planar = (
            (normal_error <= parameters.max_normal_error)
            & (at_pixel >= np.where(mask, inverse, np.inf).min(axis=1) - 3 * sensor_noise)
            & (at_pixel <= np.where(mask, inverse, -np.inf).max(axis=1) + 3 * sensor_noise)
        )
        if not planar.all():
            at_pixel = np.where(planar, at_pixel, 1 / centre)
            deviations = np.abs(inverse - at_pixel[:, None])
            spread = np.where(planar, spread, MAD_TO_SIGMA * _masked_median(deviations, mask))
        self.surfaces.depth[rows] = 1 / at_pixel
        self.surfaces.normals[rows[planar]] = -gradient[planar] / length[planar, None]
        self.surfaces.spread[rows] = spread / at_pixel**2  # dz = z^2 d(1/z)

    def _refine_slopes(
        self,
        rows: NDArray[np.intp],
        planes: FloatArray,
        radius: int,
        sensor_noise: FloatArray,
        slope_error: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Slopes (N, 2) per pixel and their errors (N,), of a larger patch where it is planar too.

        planes: (N, 3), of patches of `radius`. sensor_noise: (N,) of the inverse depth. A slope's
        error falls with the square of the radius, but the larger patch is used only where its plane
        extends to all sides and passes through the same point.
        """
        wide_radius = self.parameters.max_patch_radius // _WIDE_STEP * _WIDE_STEP
        stencil = _stencil(wide_radius, _WIDE_STEP)
        metres, _ = self.depth.patches(self.pixels[rows], wide_radius, _WIDE_STEP)
        valid = np.isfinite(metres).reshape(len(rows), -1)
        inverse = 1 / np.where(valid, metres.reshape(len(rows), -1), 1).astype(np.float64)
        wide = planes * (1.0, wide_radius / radius, wide_radius / radius)
        # The tolerance grows with the distance as the error of the small plane's slope does.
        tolerance = 3 * sensor_noise[:, None] * (1 + stencil.distance / (2 * radius))
        inliers = (np.abs(inverse - wide @ stencil.basis.T) <= tolerance) & valid
        weights = inliers * stencil.wide
        wide, covariance = stencil.least_squares(inverse, weights)
        extends = weights.sum(axis=1) >= _MIN_SUPPORT * stencil.wide.sum()
        extends &= np.abs(wide[:, 0] - planes[:, 0]) <= sensor_noise
        wide_error = np.sqrt(covariance[:, 1, 1] + covariance[:, 2, 2]) / wide_radius
        slopes = np.where(extends[:, None], wide[:, 1:] / wide_radius, planes[:, 1:] / radius)
        return slopes, np.where(extends, wide_error, slope_error)

    def _per_ray(self, pixels: FloatArray, slopes: FloatArray) -> FloatArray:
        """Slopes (N, 2) per ray of slopes per pixel, by the lens' derivative at pixels (N, 2)."""
        matrix = self.intrinsics.matrix
        if not self.intrinsics.distortion.size:
            return slopes * (matrix[0, 0], matrix[1, 1])
        steps = np.array([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
        rays = self.intrinsics.rays((pixels[:, None] + steps).reshape(-1, 2)).reshape(-1, 4, 2)
        # Near the border of a wide-angle lens a pixel may have no ray, and then there is no normal.
        x, y = (rays[:, 0] - rays[:, 1]) / 2, (rays[:, 2] - rays[:, 3]) / 2
        determinant = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
        first = (slopes[:, 0] * y[:, 1] - slopes[:, 1] * x[:, 1]) / determinant
        second = (slopes[:, 1] * x[:, 0] - slopes[:, 0] * y[:, 0]) / determinant
        return np.column_stack([first, second])


@dataclass(frozen=True, eq=False)
class _Stencil:
    """Constants of a square patch of P pixels around a centre.

    distance: (P,) pixels. narrow, wide: (P,) Gaussian weights. near: (P,) pixels next to the
    centre. basis: (P, 3), 1 and the offsets from the centre in units of the radius. products:
    (P, 9) of the basis' columns.
    """

    radius: int
    distance: FloatArray
    narrow: FloatArray
    wide: FloatArray
    near: BoolArray
    basis: FloatArray
    products: FloatArray

    def least_squares(
        self, values: FloatArray, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Solve N weighted least-squares problems: values and weights (N, P).

        Returns the coefficients (N, 3) and their covariances (N, 3, 3) for values of variance 1.
        """
        normal = weights @ self.products
        # Regularization: collinear points, or none, stay solvable, with a huge covariance.
        normal[:, ::4] += 1e-9 * (1 + normal[:, :1])
        covariance = np.asarray(np.linalg.inv(normal.reshape(-1, 3, 3)), dtype=np.float64)
        right = (weights * values) @ self.basis
        return (covariance @ right[:, :, None])[..., 0], covariance


@lru_cache(maxsize=8)
def _stencil(radius: int, step: int) -> _Stencil:
    line = np.arange(-radius, radius + 1.0, step)
    steps = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    squared = (steps**2).sum(axis=-1)
    narrow = np.exp(-squared / (2 * (0.3 * radius) ** 2))
    wide = np.exp(-squared / (2 * (0.7 * radius) ** 2))
    basis = np.column_stack([np.ones(len(steps)), steps / radius])
    products = (basis[:, :, None] * basis[:, None, :]).reshape(-1, 9)
    near = squared <= max(8, (radius / 2) ** 2)
    return _Stencil(radius, np.sqrt(squared), narrow, wide, near, basis, products)


def _mean(values: FloatArray, weights: FloatArray) -> FloatArray:
    # Where the surface is so far from the centre that all weights underflow, they become equal.
    weights = weights + 1e-12 * (weights > 0)
    means: FloatArray = (values * weights).sum(axis=1) / weights.sum(axis=1)
    return means


def _masked_median(values: FloatArray, mask: BoolArray) -> FloatArray:
    """Medians (N,) of values (N, P) inside a mask (N, P); infinite for an empty mask."""
    ordered = np.sort(np.where(mask, values, np.inf), axis=1)
    middle = np.maximum(mask.sum(axis=1) - 1, 0) // 2
    medians: FloatArray = ordered[np.arange(len(values)), middle]
    return medians
