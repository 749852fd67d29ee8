# SPDX-License-Identifier: Apache-2.0
"""Surface splatting: depth pixels of one camera to depths at another camera's pixels, the cells.

After Zwicker et al., Surface Splatting (SIGGRAPH 2001): each depth pixel becomes a splat, a piece
of the plane through its neighbours, which is distributed over the cells around its projection in
the other camera. A plane m.X = 1 is linear in inverse depth, 1/z = m.(x, y, 1), and under
X -> R X + t it becomes (R m).X = 1 + m.R't. So a splat contributes to each cell the inverse depth
on that cell's own ray, and planar surfaces stay exactly planar.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, depth_to_metres
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.parameters import MAX_SLOPE, LiftParameters

IntArray = NDArray[np.intp]
Numbers = NDArray[np.floating[Any]]  # float32 for large arrays: half the memory traffic

MIN_Z = 0.01  # m; nothing is nearer to a lens
SURFACE_SIGMAS = 5  # depths that differ by fewer sigmas are of the same surface
_SPARSE = 1.5  # cells between neighbouring depth pixels, above which splats are enlarged
_MAX_RADIUS = 4  # cells
_MARGIN = _MAX_RADIUS + 2  # cells around the grid, for splats beyond its border
_OPAQUE = 0.5  # coverage of a cell above which a surface hides what is behind it
_MIN_COVERAGE = 0.2  # of a cell, for a depth
_CHUNK = 16_000  # float64 values in 128 KiB, up to which malloc does not ask the kernel for pages


@dataclass(frozen=True, eq=False)
class CameraPair:
    """The depth camera and the camera of the cells.

    depth, grid: intrinsics of the depth camera and of the cells. rotation (3, 3) and translation
    (3,) take points (m) of the depth camera's frame to the cells' frame.
    """

    depth: Intrinsics
    grid: Intrinsics
    rotation: FloatArray
    translation: FloatArray


class Cells:
    """The requested cells of the grid, numbered from 1; 0 stands for all others."""

    def __init__(self, rectangles: IntArray, grid: Intrinsics) -> None:
        """rectangles: (M, 4) first column and row, last column and row, in the grid."""
        self._size = (grid.width + 2 * _MARGIN, grid.height + 2 * _MARGIN)
        self._numbers = np.zeros(self._size[::-1], np.int32)
        places = []
        for left, top, right, bottom in (rectangles + _MARGIN).tolist():
            rows = np.arange(top, bottom + 1) * self._size[0]
            places.append((rows[:, None] + np.arange(left, right + 1)).ravel())
            # Splats are assigned by their top left cell, so those from -1 on contribute as well.
            self._numbers[top - 1 : bottom + 1, left - 1 : right + 1] = -1
        self._places = np.concatenate(places)
        # Where rectangles overlap, the last number counts and the others get no depth.
        self.count = len(self._places)
        self._numbers.ravel()[self._places] = np.arange(1, self.count + 1)
        self.rays = np.zeros((2, self.count + 1), np.float32)
        self.rays[:, 1:] = _rays(*self._pixels(self._places), grid)

    def _pixels(self, places: IntArray) -> tuple[IntArray, IntArray]:
        rows, columns = np.divmod(places, self._size[0])
        return columns - _MARGIN, rows - _MARGIN

    def touched_by(self, pixels: Numbers) -> IntArray:
        """Indices of the grid's pixels (2, N) that contribute to a cell."""
        return np.flatnonzero(self._numbers.ravel()[self._place(pixels)])

    def numbers_around(self, pixels: Numbers, offsets: Numbers) -> IntArray:
        """Numbers (K, K, N) of the cells at offsets (K,), down and right, from pixels (2, N)."""
        steps = offsets.astype(np.intp)[:, None]
        place = self._place(pixels) + self._size[0] * steps[:, None] + steps
        return np.maximum(self._numbers.ravel()[place], 0, dtype=np.intp)

    def write(self, inverse: FloatArray, array: NDArray[np.float32]) -> None:
        """Write depths into a grid (H, W), given the inverse depths of cells 0 to count."""
        known = np.flatnonzero(np.isfinite(inverse[1:]))
        columns, rows = self._pixels(self._places[known])
        array[rows, columns] = 1 / inverse[1:][known]

    def _place(self, pixels: Numbers) -> IntArray:
        """Index in the flat tables of the cells above and left of pixels (2, N)."""
        column, row = (
            # NaN and far pixels go to the margin, where no cell is requested.
            np.fmin(np.fmax(np.floor(side), -2), size - 2 * _MARGIN).astype(np.intp) + _MARGIN
            for side, size in zip(pixels, self._size)
        )
        return row * self._size[0] + column


def splat_depth(
    indices: IntArray, depth: DepthImage, pair: CameraPair, cells: Cells, parameters: LiftParameters
) -> FloatArray:
    """Inverse depths (1/m) of the cells by number, 0 to count; NaN where unknown.

    indices: (N,) of depth pixels in the flat image, all that can contribute to a cell. The nearest
    surface that covers half of a cell determines its depth.
    """
    contributions = []
    for start in range(0, len(indices), _CHUNK):
        samples = _samples(indices[start : start + _CHUNK], depth, pair, cells)
        if len(samples.metres):
            splats = _splats(samples, depth, pair, parameters)
            contributions += list(_rasterize(splats, cells))
    return _blend(contributions, cells, parameters)


@dataclass(frozen=True, eq=False)
class _Samples:
    """N depth pixels that contribute to a cell.

    columns, rows: (N,). metres: (N,) along the depth camera's axis. rays: (2, N) of the depth
    camera. points: (3, N) m in the cells' frame. pixels: (2, N) in the grid.
    """

    columns: IntArray
    rows: IntArray
    metres: Numbers
    rays: Numbers
    points: Numbers
    pixels: Numbers


def _samples(indices: IntArray, depth: DepthImage, pair: CameraPair, cells: Cells) -> _Samples:
    rows, columns = np.divmod(indices, pair.depth.width)
    metres: Numbers = depth_to_metres(depth.array[rows, columns], depth.encoding)
    rays = _rays(columns, rows, pair.depth)
    points = pair.rotation[:, :2].astype(np.float32) @ rays
    points += pair.rotation[:, 2:].astype(np.float32)
    points *= metres
    points += pair.translation.astype(np.float32)[:, None]
    z = np.where(points[2] > MIN_Z, points[2], np.float32(np.nan))
    pixels = _pixels(points[:2] / z, pair.grid)
    kept = cells.touched_by(pixels)
    return _Samples(
        columns[kept],
        rows[kept],
        metres[kept],
        # Indexing instead of take would give another memory layout, which is slower afterwards.
        *(values.take(kept, axis=1) for values in (rays, points, pixels)),
    )


def _rays(columns: IntArray, rows: IntArray, camera: Intrinsics) -> Numbers:
    """Rays (2, N) of pixels."""
    if camera.distortion.size:
        pixels = np.column_stack([columns, rows]).astype(np.float64)
        return camera.rays(pixels).T.astype(np.float32)
    rays = np.empty((2, len(columns)), np.float32)
    for axis, values in enumerate((columns, rows)):
        np.subtract(values, camera.matrix[axis, 2], out=rays[axis], casting="same_kind")
        rays[axis] /= camera.matrix[axis, axis]
    return rays


def _pixels(rays: Numbers, camera: Intrinsics) -> Numbers:
    """Pixels (2, N) of rays (2, N)."""
    if camera.distortion.size:
        return camera.project(rays.T.astype(np.float64)).T.astype(np.float32)
    scale = np.diag(camera.matrix)[:2, None].astype(np.float32)
    return rays * scale + camera.matrix[:2, 2:].astype(np.float32)


@dataclass(frozen=True, eq=False)
class _Splats:
    """N pieces of surface.

    pixels: (2, N) in the grid. terms: (5, N) inverse depth, its slopes along the ray's x and y, and
    the ray. radii: (2, N) in cells, across and down. weights: (N,); those of an unbroken surface
    add up to about 1 in every cell.
    """

    pixels: Numbers
    terms: Numbers
    radii: Numbers
    weights: Numbers


def _splats(
    samples: _Samples, depth: DepthImage, pair: CameraPair, parameters: LiftParameters
) -> _Splats:
    """Planes through the samples and their neighbours, in the frame of the cells."""
    rotation, translation = pair.rotation.astype(np.float32), pair.translation.astype(np.float32)
    z = samples.points[2]
    rays = samples.points[:2] / z
    depth_scale, grid_scale = _scale(samples.rays, pair.depth), _scale(rays, pair.grid)
    plane = np.empty((3, len(z)), np.float32)
    plane[:2] = _per_ray(depth_scale, _slopes(samples, depth, pair.depth, parameters))
    plane[2] = 1 / samples.metres - plane[0] * samples.rays[0] - plane[1] * samples.rays[1]
    # At 0 and below, the cells' camera looks at the back of the surface, which is hidden.
    facing = 1 + (translation @ rotation) @ plane
    slopes = rotation[:2] @ plane / np.maximum(facing, np.float32(1e-6))
    slopes *= (facing > 0) & (np.maximum(np.abs(slopes[0]), np.abs(slopes[1])) * z <= MAX_SLOPE)

    # Displacement in the grid per depth pixel, along that plane.
    moved = rotation[:, :2, None] + translation[:, None, None] * plane[:2]
    jacobian = moved[:2] - rays[:, None] * moved[2]
    jacobian *= samples.metres / z
    jacobian *= grid_scale[[[0], [1]], [[0], [1]]] / depth_scale[[0, 1], [0, 1]]
    radii = np.abs(jacobian).sum(axis=1)
    radii = np.where(radii > _SPARSE, np.minimum(radii, np.float32(_MAX_RADIUS)), np.float32(1))
    area = np.abs(jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0])
    weights = np.minimum(area / (radii[0] * radii[1]), np.float32(4)) * (facing > 0)
    return _Splats(samples.pixels, np.vstack([1 / z, slopes, rays]), radii, weights)


def _scale(rays: Numbers, camera: Intrinsics) -> Numbers:
    """Derivatives (2, 2, N or 1) of pixels with respect to rays (2, N)."""
    nominal: Numbers = camera.matrix[:2, :2, None].astype(np.float32)
    if not camera.distortion.size:
        return nominal
    step, precise = 1e-4, rays.T.astype(np.float64)
    found = np.stack(
        [
            (camera.project(precise + offset) - camera.project(precise - offset)).T / (2 * step)
            for offset in step * np.eye(2)
        ],
        axis=1,
    )
    # At the end of its domain a lens model has no derivative.
    usable = np.isfinite(found).all(axis=(0, 1))
    for axis in range(2):
        usable &= np.abs(found[axis, axis]) > 0.01 * abs(camera.matrix[axis, axis])
    scale: Numbers = np.where(usable, found, nominal).astype(np.float32)
    return scale


def _per_ray(scale: Numbers, gradient: Numbers) -> Numbers:
    """Gradients (2, N) with respect to rays, given those with respect to pixels (2, N)."""
    if scale.shape[-1] == 1:
        return scale[[0, 1], [0, 1]] * gradient
    products: Numbers = scale[0] * gradient[0] + scale[1] * gradient[1]
    return products


def _slopes(
    samples: _Samples, depth: DepthImage, camera: Intrinsics, parameters: LiftParameters
) -> Numbers:
    """Slopes (2, N) of the inverse depth per pixel, to the right and down.

    From both neighbours; from the one closer in depth where they disagree, as at a crease or an
    edge; 0 without neighbours.
    """
    columns = samples.columns + np.array([[-1], [0], [1], [0]])
    rows = samples.rows + np.array([[0], [-1], [0], [1]])
    width, height = depth.size
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    raw = depth.array[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    around = np.where(inside, 1 / depth_to_metres(raw, depth.encoding), np.float32(np.inf))
    here = 1 / samples.metres
    noise = SURFACE_SIGMAS * parameters.sigma(samples.metres) * here**2  # type: ignore[arg-type]
    limit = noise + here * np.float32(MAX_SLOPE / camera.focal)
    before, after = here - around[:2], around[2:] - here
    # NaN compares as false.
    has_before, has_after = np.abs(before) <= limit, np.abs(after) <= limit
    before = np.where(has_before, before, np.where(has_after, after, 0))
    after = np.where(has_after, after, before)
    agree = np.abs(after - before) <= 1.5 * noise
    smaller = np.where(np.abs(after) < np.abs(before), after, before)
    slopes: Numbers = np.where(agree, (before + after) / 2, smaller).astype(np.float32)
    return slopes


@dataclass(frozen=True, eq=False)
class _Contribution:
    """Contributions of N splats to K cells each.

    numbers, weights: (K, N). inverse: (K, N) inverse depths of the splats' planes at the cells.
    terms: (5, N) of the splats.
    """

    numbers: IntArray
    weights: Numbers
    inverse: Numbers
    terms: Numbers


def _rasterize(splats: _Splats, cells: Cells) -> Iterator[_Contribution]:
    radii = np.ceil(np.maximum(splats.radii[0], splats.radii[1]))
    for radius in range(1, int(radii.max()) + 1):
        chosen = np.flatnonzero(radii == radius)
        step = _CHUNK // (2 * radius) ** 2
        for start in range(0, len(chosen), step):
            yield _contribution(radius, chosen[start : start + step], splats, cells)


def _contribution(radius: int, chosen: IntArray, splats: _Splats, cells: Cells) -> _Contribution:
    """Rasterize the chosen splats within `radius` cells, with a tent kernel."""
    offsets = np.arange(1 - radius, radius + 1, dtype=np.float32)
    pixels, radii = splats.pixels.take(chosen, axis=1), splats.radii.take(chosen, axis=1)
    fraction = pixels - np.floor(pixels)
    across, down = (
        np.maximum(1 - np.abs(offsets[:, None] - fraction[axis]) / radii[axis], 0)
        for axis in range(2)
    )
    splat_weights = splats.weights[chosen]
    weights = (down * splat_weights)[:, None] * across
    numbers = cells.numbers_around(pixels, offsets)
    at_splat, a, b, x, y = terms = splats.terms.take(chosen, axis=1)
    inverse = at_splat + a * (cells.rays[0][numbers] - x) + b * (cells.rays[1][numbers] - y)
    numbers[(weights <= 0.01 * splat_weights) | (inverse <= 0)] = 0
    shape = (-1, len(chosen))
    return _Contribution(
        numbers.reshape(shape), weights.reshape(shape), inverse.reshape(shape), terms
    )


def _blend(
    contributions: list[_Contribution], cells: Cells, parameters: LiftParameters
) -> FloatArray:
    """Inverse depths of the cells 0 to count, NaN where unknown.

    The mean over the nearest surface that covers half of a cell: the nearest splat alone would be
    the one with the largest error towards the camera.
    """
    front = _FrontSurface(contributions, cells, parameters)
    transparent = (front.coverage < _OPAQUE) & (front.behind > front.coverage)
    transparent[0] = False
    coverage, inverse = front.coverage, front.inverse
    if transparent.any():
        rest = []
        for one in contributions:
            behind = transparent[one.numbers] & (one.inverse < front.limit[one.numbers])
            rest.append(replace(one, numbers=np.where(behind, one.numbers, 0)))
        second = _FrontSurface(rest, cells, parameters)
        use_second = transparent & (second.coverage > coverage)
        coverage = np.where(use_second, second.coverage, coverage)
        inverse = np.where(use_second, second.inverse, inverse)
    return np.where((coverage > _MIN_COVERAGE) & (inverse > 0), inverse, np.nan)


class _FrontSurface:
    """The nearest surface in each of the cells 0 to count.

    limit: its smallest inverse depth. coverage, behind: sums of the weights of its splats and of
    all others. inverse: its inverse depth, the mean of its splats, moved from their mean ray to the
    cell's by their mean slope; the two rays are so close that errors of the slope don't matter.
    """

    def __init__(
        self, contributions: list[_Contribution], cells: Cells, parameters: LiftParameters
    ) -> None:
        count = cells.count + 1
        nearest = np.zeros(count, np.float32)
        for one in contributions:
            np.maximum.at(nearest, one.numbers.ravel(), one.inverse.ravel())
        sigma = parameters.sigma(1 / np.maximum(nearest, 1e-6))
        self.limit = nearest - SURFACE_SIGMAS * sigma * nearest**2
        self.limit[0] = -np.inf
        self.behind, self.coverage, *sums = np.zeros((7, count))
        for one in contributions:
            numbers, weights = one.numbers.ravel(), one.weights
            in_front = one.inverse >= self.limit[one.numbers]
            if not in_front.all():
                self.behind += np.bincount(numbers, (weights * ~in_front).ravel(), count)
                weights = weights * in_front
            self.coverage += np.bincount(numbers, weights.ravel(), count)
            for term, total in zip(one.terms, sums):
                total += np.bincount(numbers, (weights * term).ravel(), count)
        inverse, a, b, x, y = sums / np.where(self.coverage > 0, self.coverage, np.nan)
        self.inverse = inverse + a * (cells.rays[0] - x) + b * (cells.rays[1] - y)
