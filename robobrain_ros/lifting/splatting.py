# SPDX-License-Identifier: Apache-2.0
"""Depth pixels of one camera as depths of another camera's pixels, here called cells.

Surface splatting (Zwicker et al. 2001, Surface Splatting): each depth pixel is taken for a piece of
the plane through its neighbours, spread over the cells around the place where the other camera sees
it. A plane m.X = 1 is linear in inverse depth, 1/z = m.(x, y, 1), and for X -> R X + t it becomes
(R m).X = 1 + m.R't. So a piece tells each cell the inverse depth of the cell's own ray, not of the
pixel beside it, and flat surfaces stay exactly flat.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, Intrinsics, depth_to_metres
from robobrain_ros.lifting.parameters import LiftParameters

IntArray = NDArray[np.intp]
Numbers = NDArray[np.floating[Any]]  # float32 wherever there are many: half the memory to move

NEAREST = 0.01  # m; nothing is nearer to a lens
STEEPEST = math.tan(math.radians(80))  # a steeper step between two depth pixels is a jump
AGREEING = 5  # sigmas; what is within them of the nearest is the same surface
_WIDE = 1.5  # cells between depth pixels above which they are spread farther
_WIDEST = 4  # cells
_MARGIN = _WIDEST + 2  # cells around the grid, for what is spread over its border
_COVERED = 0.5  # of a cell, above which a surface hides what is behind it
_TOUCHED = 0.2  # of a cell, below which nothing is known about it
_CHUNK = 16_000  # of float64 fit into 128 KiB; for more, malloc asks the kernel for fresh pages


@dataclass(frozen=True, eq=False)
class Views:
    """Two cameras. own: the depth camera's intrinsics. grid: those of the cells. rotation (3, 3)
    and translation (3,): points of the depth camera's frame to the cells', metres.
    """

    own: Intrinsics
    grid: Intrinsics
    rotation: FloatArray
    translation: FloatArray


class Cells:
    """The cells that are asked for, numbered from 1; 0 stands for all others."""

    def __init__(self, rectangles: IntArray, grid: Intrinsics) -> None:
        """rectangles: (M, 4) first and last column and row in the grid."""
        self._size = (grid.width + 2 * _MARGIN, grid.height + 2 * _MARGIN)
        self._numbers = np.zeros(self._size[::-1], np.int32)
        places = []
        for left, top, right, bottom in (rectangles + _MARGIN).tolist():
            rows = np.arange(top, bottom + 1) * self._size[0]
            places.append((rows[:, None] + np.arange(left, right + 1)).ravel())
            # A pixel here, before the next column and row, has a share in a cell as well.
            self._numbers[top - 1 : bottom + 1, left - 1 : right + 1] = -1
        self._places = np.concatenate(places)
        # Where rectangles overlap the last number holds, and the others get no depth.
        self.count = len(self._places)
        self._numbers.ravel()[self._places] = np.arange(1, self.count + 1)
        self.rays = np.zeros((2, self.count + 1), np.float32)
        self.rays[:, 1:] = _rays(*self._pixels(self._places), grid)

    def _pixels(self, places: IntArray) -> tuple[IntArray, IntArray]:
        rows, columns = np.divmod(places, self._size[0])
        return columns - _MARGIN, rows - _MARGIN

    def beside(self, pixels: Numbers) -> IntArray:
        """Which of the grid's pixels (2, N) have a share in a cell."""
        return np.flatnonzero(self._numbers.ravel()[self._place(pixels)])

    def around(self, pixels: Numbers, offsets: Numbers) -> IntArray:
        """Numbers (K, K, N) of the cells at whole offsets (K,) down and right of pixels (2, N)."""
        steps = offsets.astype(np.intp)[:, None]
        place = self._place(pixels) + self._size[0] * steps[:, None] + steps
        return np.maximum(self._numbers.ravel()[place], 0, dtype=np.intp)

    def write(self, inverse: FloatArray, array: NDArray[np.float32]) -> None:
        """Write depths into the grid (H, W), given the inverse of numbers 0 to count."""
        known = np.flatnonzero(np.isfinite(inverse[1:]))
        columns, rows = self._pixels(self._places[known])
        array[rows, columns] = 1 / inverse[1:][known]

    def _place(self, pixels: Numbers) -> IntArray:
        """Where the cell above and left of pixels (2, N) is in the tables."""
        column, row = (
            # What isn't a number, or far away, goes to the margin, where nothing is asked for.
            np.fmin(np.fmax(np.floor(side), -2), size - 2 * _MARGIN).astype(np.intp) + _MARGIN
            for side, size in zip(pixels, self._size)
        )
        return row * self._size[0] + column


def splatted(
    marked: IntArray, depth: DepthImage, views: Views, cells: Cells, parameters: LiftParameters
) -> FloatArray:
    """Inverse depths (1/m) of the cells by number, 0 to count; NaN where nothing is known.

    marked: (N,) places of depth pixels in the flat image, all that can matter. The nearest surface
    that covers half of a cell wins it.
    """
    parts = []
    for start in range(0, len(marked), _CHUNK):
        samples = _samples(marked[start : start + _CHUNK], depth, views, cells)
        if len(samples.metres):
            pieces = _pieces(samples, depth, views, parameters)
            parts += list(_spread(pieces, cells))
    return _merged(parts, cells, parameters)


@dataclass(frozen=True, eq=False)
class _Samples:
    """N depth pixels that are seen in or beside a cell. columns, rows: (N,). metres: (N,) along the
    depth camera's axis. rays: (2, N) of the depth camera. points: (3, N) m in the cells' frame.
    pixels: (2, N) in the grid.
    """

    columns: IntArray
    rows: IntArray
    metres: Numbers
    rays: Numbers
    points: Numbers
    pixels: Numbers


def _samples(marked: IntArray, depth: DepthImage, views: Views, cells: Cells) -> _Samples:
    rows, columns = np.divmod(marked, views.own.width)
    metres: Numbers = depth_to_metres(depth.array[rows, columns], depth.encoding)
    rays = _rays(columns, rows, views.own)
    points = views.rotation[:, :2].astype(np.float32) @ rays
    points += views.rotation[:, 2:].astype(np.float32)
    points *= metres
    points += views.translation.astype(np.float32)[:, None]
    z = np.where(points[2] > NEAREST, points[2], np.float32(np.nan))
    pixels = _pixels(points[:2] / z, views.grid)
    kept = cells.beside(pixels)
    return _Samples(
        columns[kept],
        rows[kept],
        metres[kept],
        # Indexing would give these another memory layout, which is slow afterwards.
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
class _Pieces:
    """N pieces of surface. pixels: (2, N) in the grid. terms: (5, N) inverse depth, its slopes in
    the ray's x and y, and the ray. reach: (2, N) cells over which a piece is spread to each side.
    weight: (N,), of which those of an unbroken surface add up to about 1 in every cell.
    """

    pixels: Numbers
    terms: Numbers
    reach: Numbers
    weight: Numbers


def _pieces(
    samples: _Samples, depth: DepthImage, views: Views, parameters: LiftParameters
) -> _Pieces:
    """The planes through the samples and their neighbours, as the cells' camera sees them."""
    rotation, translation = views.rotation.astype(np.float32), views.translation.astype(np.float32)
    z = samples.points[2]
    rays = samples.points[:2] / z
    own_scale, grid_scale = _scale(samples.rays, views.own), _scale(rays, views.grid)
    plane = np.empty((3, len(z)), np.float32)
    plane[:2] = _per_ray(own_scale, _slopes(samples, depth, views.own, parameters))
    plane[2] = 1 / samples.metres - plane[0] * samples.rays[0] - plane[1] * samples.rays[1]
    # From 0 on the cells' camera looks at the surface's back: at something before it, in fact.
    facing = 1 + (translation @ rotation) @ plane
    slopes = rotation[:2] @ plane / np.maximum(facing, np.float32(1e-6))
    slopes *= (facing > 0) & (np.maximum(np.abs(slopes[0]), np.abs(slopes[1])) * z <= STEEPEST)

    # How far a piece moves in the grid per depth pixel, along that plane.
    moved = rotation[:, :2, None] + translation[:, None, None] * plane[:2]
    jacobian = moved[:2] - rays[:, None] * moved[2]
    jacobian *= samples.metres / z
    jacobian *= grid_scale[[[0], [1]], [[0], [1]]] / own_scale[[0, 1], [0, 1]]
    reach = np.abs(jacobian).sum(axis=1)
    reach = np.where(reach > _WIDE, np.minimum(reach, np.float32(_WIDEST)), np.float32(1))
    area = np.abs(jacobian[0, 0] * jacobian[1, 1] - jacobian[0, 1] * jacobian[1, 0])
    weight = np.minimum(area / (reach[0] * reach[1]), np.float32(4)) * (facing > 0)
    return _Pieces(samples.pixels, np.vstack([1 / z, slopes, rays]), reach, weight)


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
    # At its domain's end a lens model has no derivative.
    usable = np.isfinite(found).all(axis=(0, 1))
    for axis in range(2):
        usable &= np.abs(found[axis, axis]) > 0.01 * abs(camera.matrix[axis, axis])
    scale: Numbers = np.where(usable, found, nominal).astype(np.float32)
    return scale


def _per_ray(scale: Numbers, gradient: Numbers) -> Numbers:
    """Gradients (2, N) with respect to rays, from those with respect to pixels (2, N)."""
    if scale.shape[-1] == 1:
        return scale[[0, 1], [0, 1]] * gradient
    products: Numbers = scale[0] * gradient[0] + scale[1] * gradient[1]
    return products


def _slopes(
    samples: _Samples, depth: DepthImage, own: Intrinsics, parameters: LiftParameters
) -> Numbers:
    """Change (2, N) of the inverse depth per pixel to the right and down.

    From both neighbours; from the one nearer in depth where they don't agree, as at a crease or an
    edge; 0 where there is neither.
    """
    columns = samples.columns + np.array([[-1], [0], [1], [0]])
    rows = samples.rows + np.array([[0], [-1], [0], [1]])
    width, height = depth.size
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    raw = depth.array[np.where(inside, rows, 0), np.where(inside, columns, 0)]
    around = np.where(inside, 1 / depth_to_metres(raw, depth.encoding), np.float32(np.inf))
    here = 1 / samples.metres
    noise = AGREEING * parameters.sigma(samples.metres) * here**2  # type: ignore[arg-type]
    limit = noise + here * np.float32(STEEPEST / own.focal)
    before, after = here - around[:2], around[2:] - here
    # NaN compares as false.
    has_before, has_after = np.abs(before) <= limit, np.abs(after) <= limit
    before = np.where(has_before, before, np.where(has_after, after, 0))
    after = np.where(has_after, after, before)
    agree = np.abs(after - before) <= 1.5 * noise
    nearer = np.where(np.abs(after) < np.abs(before), after, before)
    slopes: Numbers = np.where(agree, (before + after) / 2, nearer).astype(np.float32)
    return slopes


@dataclass(frozen=True, eq=False)
class _Share:
    """What N pieces say about K cells each. numbers, weights: (K, N). extended: (K, N) inverse
    depths of the pieces' planes at the cells. terms: (5, N) of the pieces themselves.
    """

    numbers: IntArray
    weights: Numbers
    extended: Numbers
    terms: Numbers


def _spread(pieces: _Pieces, cells: Cells) -> Iterator[_Share]:
    reach = np.ceil(np.maximum(pieces.reach[0], pieces.reach[1]))
    for whole in range(1, int(reach.max()) + 1):
        chosen = np.flatnonzero(reach == whole)
        step = _CHUNK // (2 * whole) ** 2
        for start in range(0, len(chosen), step):
            yield _spread_over(whole, chosen[start : start + step], pieces, cells)


def _spread_over(whole: int, chosen: IntArray, pieces: _Pieces, cells: Cells) -> _Share:
    """Spread the chosen pieces over `whole` cells to each side, with weights of a tent's shape."""
    offsets = np.arange(1 - whole, whole + 1, dtype=np.float32)
    pixels, reach = pieces.pixels.take(chosen, axis=1), pieces.reach.take(chosen, axis=1)
    after = pixels - np.floor(pixels)
    across, down = (
        np.maximum(1 - np.abs(offsets[:, None] - after[axis]) / reach[axis], 0) for axis in range(2)
    )
    piece_weights = pieces.weight[chosen]
    weights = (down * piece_weights)[:, None] * across
    numbers = cells.around(pixels, offsets)
    inverse, a, b, x, y = terms = pieces.terms.take(chosen, axis=1)
    extended = inverse + a * (cells.rays[0][numbers] - x) + b * (cells.rays[1][numbers] - y)
    numbers[(weights <= 0.01 * piece_weights) | (extended <= 0)] = 0
    shape = (-1, len(chosen))
    return _Share(numbers.reshape(shape), weights.reshape(shape), extended.reshape(shape), terms)


def _merged(shares: list[_Share], cells: Cells, parameters: LiftParameters) -> FloatArray:
    """Inverse depths of the cells 0 to count, NaN where nothing is known.

    The nearest surface that covers half of a cell wins, with the mean of its pieces: the nearest
    piece alone would be the one with the largest error towards the camera.
    """
    first = _Front(shares, cells, parameters)
    contested = (first.covered < _COVERED) & (first.behind > first.covered)
    contested[0] = False
    covered, inverse = first.covered, first.inverse
    if contested.any():
        rest = []
        for share in shares:
            behind = contested[share.numbers] & (share.extended < first.limit[share.numbers])
            rest.append(replace(share, numbers=np.where(behind, share.numbers, 0)))
        second = _Front(rest, cells, parameters)
        won = contested & (second.covered > covered)
        covered = np.where(won, second.covered, covered)
        inverse = np.where(won, second.inverse, inverse)
    return np.where((covered > _TOUCHED) & (inverse > 0), inverse, np.nan)


class _Front:
    """The nearest surface in each of the cells 0 to count. limit: the inverse depth where it ends.
    covered, behind: the weights of what belongs to it and of the rest. inverse: its inverse depth.

    That is the mean of its pieces, moved from their mean ray to the cell's by their mean slope: the
    two are so near that the slopes' errors don't matter.
    """

    def __init__(self, shares: list[_Share], cells: Cells, parameters: LiftParameters) -> None:
        count = cells.count + 1
        nearest = np.zeros(count, np.float32)
        for share in shares:
            np.maximum.at(nearest, share.numbers.ravel(), share.extended.ravel())
        sigma = parameters.sigma(1 / np.maximum(nearest, 1e-6))
        self.limit = nearest - AGREEING * sigma * nearest**2
        self.limit[0] = -np.inf
        self.behind, self.covered, *sums = np.zeros((7, count))
        for share in shares:
            numbers, weights = share.numbers.ravel(), share.weights
            agreeing = share.extended >= self.limit[share.numbers]
            if not agreeing.all():
                self.behind += np.bincount(numbers, (weights * ~agreeing).ravel(), count)
                weights = weights * agreeing
            self.covered += np.bincount(numbers, weights.ravel(), count)
            for term, mean in zip(share.terms, sums):
                mean += np.bincount(numbers, (weights * term).ravel(), count)
        inverse, a, b, x, y = sums / np.where(self.covered > 0, self.covered, np.nan)
        self.inverse = inverse + a * (cells.rays[0] - x) + b * (cells.rays[1] - y)
