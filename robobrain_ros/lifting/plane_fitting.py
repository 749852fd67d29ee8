# SPDX-License-Identifier: Apache-2.0
"""Which surface a pixel of a depth image belongs to, and where that surface is.

A plane is linear in inverse depth: from n.X = d and X = z (x, y, 1) follows 1/z = (n/d).(x, y, 1).
So a plane is fitted by linear least squares on 1/z, which is also where a stereo camera's noise is
the same at every depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, Intrinsics
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.surface_selection import (
    Evidence,
    own_surface,
    settled_surfaces,
    surfaces_in,
)

__all__ = ["LiftParameters", "Surfaces", "surfaces_at"]

_WIDE_STEP = 3  # pixels between the samples of a large patch, whose noise is shared by neighbours
_ALL_AROUND = 0.7  # of a large patch's weight: then a plane goes on on all sides
_ENOUGH = 0.3  # of a small patch's pixels: then the plane is fitted to it, not to a larger one
_BATCH = 512  # pixels whose patches are held at a time
MAD_TO_SIGMA = 1.4826  # of a normal distribution


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
    evidence: Callable[[int, int], Evidence] | None = None,
) -> Surfaces:
    """Find the surface that each pixel belongs to.

    pixels: (N, 2) inside the depth image. rays: (N, 2) of exactly those pixels. evidence: colors
    for the patch of a radius (second argument) around a pixel (first: its row), where two surfaces
    contest it. Patches grow only where the smaller one doesn't settle whose the pixel is.
    """
    count = len(pixels)
    found = Surfaces(
        np.full(count, np.nan),
        np.full((count, 3), np.nan),
        np.zeros(count),
        np.full(count, np.nan),
    )
    search = _Search(found, depth, intrinsics, pixels, rays, parameters, evidence)
    for start in range(0, count, _BATCH):
        search.settle(np.arange(start, min(start + _BATCH, count)))
    return found


@dataclass(frozen=True, eq=False)
class _Search:
    """The arguments of `surfaces_at`, and where its results go."""

    found: Surfaces
    depth: DepthImage
    intrinsics: Intrinsics
    pixels: FloatArray
    rays: FloatArray
    parameters: LiftParameters
    evidence: Callable[[int, int], Evidence] | None

    def settle(self, rows: NDArray[np.intp]) -> None:
        """Find the surfaces of these pixels: small patches first, larger ones for the rest."""
        parameters, small = self.parameters, self.parameters.patch_radius
        metres, labels = self._patches(rows, small)
        own, alone, settled = settled_surfaces(labels, parameters)
        if self.evidence:
            for i in np.flatnonzero(alone & ~settled):
                evidence = self.evidence(rows[i], small)
                own[i] = own_surface(metres[i], labels[i], parameters, evidence)
                settled[i] = own[i].any()
        else:
            settled = alone
        contested = np.flatnonzero(~settled)
        radii = [radius for radius in parameters.radii() if radius > small or not self.evidence]
        # Colors tell more the more of the surfaces they show.
        for radius in radii[-1:] if self.evidence else radii:
            if not contested.size:
                break
            large, surface = self._own(rows[contested], radius)
            cut = slice(radius - small, radius + small + 1)
            within = surface[:, cut, cut].sum(axis=(1, 2)) >= _ENOUGH * metres[0].size
            own[contested[within]] = surface[within, cut, cut]
            settled[contested[within]] = True
            beyond = ~within & surface.any(axis=(1, 2))
            if beyond.any():
                self._fit(rows[contested[beyond]], large[beyond], surface[beyond])
            contested = contested[~within & ~beyond]
        if settled.any():
            self._fit(rows[settled], metres[settled], own[settled])

    def _own(self, rows: NDArray[np.intp], radius: int) -> tuple[NDArray[np.float32], BoolArray]:
        """Patches (N, S, S) of pixels that are contested, and which of theirs are their own."""
        metres, labels = self._patches(rows, radius)
        own = [
            own_surface(
                metres[i], labels[i], self.parameters, self.evidence and self.evidence(row, radius)
            )
            for i, row in enumerate(rows)
        ]
        return metres, np.stack(own)

    def _patches(
        self, rows: NDArray[np.intp], radius: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        metres, exists = self.depth.patches(self.pixels[rows], radius)
        labels = surfaces_in(metres, self.intrinsics.focal, self.parameters)
        valid = np.count_nonzero(labels, axis=(1, 2))
        self.found.valid_fraction[rows] = valid / np.count_nonzero(exists, axis=(1, 2))
        return metres, labels

    def _fit(self, rows: NDArray[np.intp], metres: NDArray[np.float32], own: BoolArray) -> None:
        """Fit a plane to each patch (N, S, S) where `own`; write depth, normal and spread.

        The plane starts from the few pixels around the centre and takes in only those that agree
        with it, so that at a crease it stays on the centre's side.
        """
        parameters, count = self.parameters, len(rows)
        stencil = _stencil(metres.shape[1] // 2, 1)
        mask = own.reshape(count, -1)
        inverse = 1 / np.where(mask, metres.reshape(count, -1), np.float32(1)).astype(np.float64)
        core, wide = mask * stencil.core, mask * stencil.wide

        plane, _ = stencil.least_squares(inverse, core)
        centre = 1 / _mean(inverse, core)
        promised = parameters.sigma(centre) / centre**2
        misfit = np.abs(inverse - plane @ stencil.basis.T)
        near = _masked_median(misfit, mask & stencil.near)
        noise = np.clip(MAD_TO_SIGMA * near, parameters.depth_noise_floor / centre**2, promised)
        noise = np.where(np.isfinite(near), noise, promised)
        agreeing = wide * (misfit <= 3 * noise[:, None])
        plane, covariance = stencil.least_squares(inverse, agreeing)
        misfit = np.abs(inverse - plane @ stencil.basis.T)
        measured = MAD_TO_SIGMA * _masked_median(misfit, mask)

        pixels = self.pixels[rows]
        slopes = plane[:, 1:] / stencil.radius  # of the inverse depth, per pixel
        level = plane[:, 0] + (slopes * (pixels - np.rint(pixels))).sum(axis=1)
        tilt = np.sqrt(covariance[:, 1, 1] + covariance[:, 2, 2]) / stencil.radius
        if stencil.radius < parameters.max_patch_radius:
            slopes, tilt = self._widened(rows, plane, stencil.radius, promised, tilt)
        per_ray = self._per_ray(pixels, slopes)
        gradient = np.empty((count, 3))
        gradient[:, :2] = per_ray
        gradient[:, 2] = level - (per_ray * self.rays[rows]).sum(axis=1)
        length = np.sqrt((gradient**2).sum(axis=1))  # of n / d
        length = np.maximum(length, np.finfo(float).tiny)
        tilt *= self.intrinsics.focal * np.maximum(promised, measured) / length
        planar = (
            (tilt <= parameters.max_normal_error)
            & (level >= np.where(mask, inverse, np.inf).min(axis=1) - 3 * promised)
            & (level <= np.where(mask, inverse, -np.inf).max(axis=1) + 3 * promised)
        )
        if not planar.all():
            level = np.where(planar, level, 1 / centre)
            about = MAD_TO_SIGMA * _masked_median(np.abs(inverse - level[:, None]), mask)
            measured = np.where(planar, measured, about)
        self.found.depth[rows] = 1 / level
        self.found.normals[rows[planar]] = -gradient[planar] / length[planar, None]
        self.found.spread[rows] = measured / level**2  # as dz = z^2 d(1/z)

    def _widened(
        self,
        rows: NDArray[np.intp],
        planes: FloatArray,
        radius: int,
        promised: FloatArray,
        tilt: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        """Slopes (N, 2) per pixel and their errors (N,) from a larger patch, where it is as planar.

        planes: (N, 3), of patches of this radius. promised: (N,), the noise of inverse depth. A
        slope's error falls with the square of the radius; but what lies farther off counts only
        where the plane goes on on all sides, and passes through the same point.
        """
        reach = self.parameters.max_patch_radius // _WIDE_STEP * _WIDE_STEP
        stencil = _stencil(reach, _WIDE_STEP)
        metres, _ = self.depth.patches(self.pixels[rows], reach, _WIDE_STEP)
        valid = np.isfinite(metres).reshape(len(rows), -1)
        inverse = 1 / np.where(valid, metres.reshape(len(rows), -1), 1).astype(np.float64)
        wide = planes * (1.0, reach / radius, reach / radius)
        # Not more than the small plane's own tilt may be off.
        allowed = 3 * promised[:, None] * (1 + stencil.distance / (2 * radius))
        agreeing = (np.abs(inverse - wide @ stencil.basis.T) <= allowed) & valid
        weights = agreeing * stencil.wide
        wide, covariance = stencil.least_squares(inverse, weights)
        goes_on = weights.sum(axis=1) >= _ALL_AROUND * stencil.wide.sum()
        goes_on &= np.abs(wide[:, 0] - planes[:, 0]) <= promised
        wide_tilt = np.sqrt(covariance[:, 1, 1] + covariance[:, 2, 2]) / reach
        slopes = np.where(goes_on[:, None], wide[:, 1:] / reach, planes[:, 1:] / radius)
        return slopes, np.where(goes_on, wide_tilt, tilt)

    def _per_ray(self, pixels: FloatArray, slopes: FloatArray) -> FloatArray:
        """Slopes (N, 2) per pixel to slopes per ray, by the lens' derivative at pixels (N, 2)."""
        matrix = self.intrinsics.matrix
        if not self.intrinsics.distortion.size:
            return slopes * (matrix[0, 0], matrix[1, 1])
        steps = np.array([(1.0, 0.0), (-1.0, 0.0), (0.0, 1.0), (0.0, -1.0)])
        rays = self.intrinsics.rays((pixels[:, None] + steps).reshape(-1, 2)).reshape(-1, 4, 2)
        # Near the border of a wide lens a pixel may have no ray, and then there is no normal.
        x, y = (rays[:, 0] - rays[:, 1]) / 2, (rays[:, 2] - rays[:, 3]) / 2
        determinant = x[:, 0] * y[:, 1] - x[:, 1] * y[:, 0]
        first = (slopes[:, 0] * y[:, 1] - slopes[:, 1] * x[:, 1]) / determinant
        second = (slopes[:, 1] * x[:, 0] - slopes[:, 0] * y[:, 0]) / determinant
        return np.column_stack([first, second])


@dataclass(frozen=True, eq=False)
class _Stencil:
    """A square patch of P pixels around one: their distances from the centre (P,), weights (P,)
    that fall with it, which pixels are near it (P,), and what planes are made of.

    basis: (P, 3), 1 and the steps from the centre per radius. products: (P, 9), of its columns.
    """

    radius: int
    distance: FloatArray
    core: FloatArray
    wide: FloatArray
    near: BoolArray
    basis: FloatArray
    products: FloatArray

    def least_squares(
        self, values: FloatArray, weights: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Solve N weighted problems: values and weights (N, P).

        Returns the coefficients (N, 3) and their covariance (N, 3, 3) for values of variance 1.
        """
        normal = weights @ self.products
        # Too small to matter, large enough that points on one line, or none, stay solvable: then
        # with a vast covariance.
        normal[:, ::4] += 1e-9 * (1 + normal[:, :1])
        covariance = np.asarray(np.linalg.inv(normal.reshape(-1, 3, 3)), dtype=np.float64)
        right = (weights * values) @ self.basis
        return (covariance @ right[:, :, None])[..., 0], covariance


@lru_cache(maxsize=8)
def _stencil(radius: int, step: int) -> _Stencil:
    line = np.arange(-radius, radius + 1.0, step)
    steps = np.stack(np.meshgrid(line, line), axis=-1).reshape(-1, 2)
    squared = (steps**2).sum(axis=-1)
    core = np.exp(-squared / (2 * (0.3 * radius) ** 2))
    wide = np.exp(-squared / (2 * (0.7 * radius) ** 2))
    basis = np.column_stack([np.ones(len(steps)), steps / radius])
    products = (basis[:, :, None] * basis[:, None, :]).reshape(-1, 9)
    near = squared <= max(8, (radius / 2) ** 2)
    return _Stencil(radius, np.sqrt(squared), core, wide, near, basis, products)


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
