# SPDX-License-Identifier: Apache-2.0
"""Surface selection at depth discontinuities: foreground, background, or undecided.

A stereo camera's depth edges are off by a pixel or two and its holes hold no depth at all, whereas
the color image is sharp, and it is the image that the model answered about. So where several
surfaces are candidates for a pixel, color decides, and where color is inconclusive no surface is
selected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray, RgbImage
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.parameters import MAX_SLOPE, LiftParameters

_EDGE_ERROR = 2  # depth pixels: how far off the depth edges of a stereo camera are
_MAX_HOLES = 3  # in that neighbourhood; more of them may be an edge's occlusion shadow
_MAX_EXTRA_DISTANCE = 3  # depth pixels, beyond the nearest surface, up to which one is a candidate
# Logits of a pixel's belonging to a surface: per depth pixel of distance, for lying on the measured
# surface, per logarithm of the color contrast on the way to it, and for belonging to a surface
# without any depth. Fitted by multinomial logistic regression to 3,378 ambiguous pixels of
# simulated stereo depth; at `_MIN_PROBABILITY` one in a hundred of them is wrong.
_DISTANCE_LOGIT, _INSIDE_LOGIT, _CONTRAST_LOGIT, _UNMEASURED_LOGIT = -0.23, 1.67, -1.94, -6.5
_MIN_PROBABILITY = 0.968
_SAME_DEPTH = 0.015  # relative difference
_COLOR_NOISE = 5.0  # grey levels, of 255
_MAX_CONTRAST = 60.0
_KERNEL, _WIDE_KERNEL = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)
_MIN_INTERIOR, _MAX_PATHS = 8, 16  # pixels
_PATH_FRACTIONS = np.linspace(1 / 12, 1, 12)


@dataclass(frozen=True, eq=False)
class ColorPatch:
    """Colors for one depth patch. query: (3,) at the query pixel. around: (S, S, 3)."""

    query: FloatArray
    around: FloatArray


@dataclass(frozen=True, eq=False)
class ColorImage:
    """The color image that belongs to a depth image.

    rgb: (H, W, 3) uint8. intrinsics: of the color image. depth_intrinsics: of the depth image; both
    share the optical frame.
    """

    rgb: RgbImage
    intrinsics: Intrinsics
    depth_intrinsics: Intrinsics

    def patch(self, query_pixel: FloatArray, depth_pixel: FloatArray, radius: int) -> ColorPatch:
        """Colors at the color pixel `query_pixel` (2,) and around its `depth_pixel` (2,)."""
        color, depth = self.intrinsics, self.depth_intrinsics
        steps = np.arange(-radius, radius + 1)
        columns, rows = np.rint(depth_pixel)[:, None] + steps
        if depth.distortion.size or color.distortion.size:
            pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
            u, v = color.project(depth.rays(pixels)).T.reshape(2, len(steps), -1)
        elif depth is color:
            u, v = columns, rows[:, None]
        else:
            u = _mapped(columns, depth, color, 0)
            v = _mapped(rows, depth, color, 1)[:, None]
        return ColorPatch(self._at(*query_pixel), self._at(u, v))

    def _at(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """Colors (..., 3) of the color pixels nearest to (u, v)."""
        height, width = self.rgb.shape[:2]
        # fmax turns NaN, a pixel without a ray, into 0.
        columns = np.fmin(np.fmax(np.rint(u), 0), width - 1).astype(np.intp)
        rows = np.fmin(np.fmax(np.rint(v), 0), height - 1).astype(np.intp)
        return self.rgb[rows, columns].astype(np.float64)


def _mapped(pixels: FloatArray, source: Intrinsics, target: Intrinsics, axis: int) -> FloatArray:
    """Map columns (axis 0) or rows (1) between pinhole cameras that share an optical frame."""
    rays = (pixels - source.matrix[axis, 2]) / source.matrix[axis, axis]
    return rays * target.matrix[axis, axis] + target.matrix[axis, 2]


def label_surfaces(
    metres: NDArray[np.float32], focal: float, parameters: LiftParameters
) -> NDArray[np.int32]:
    """Label the surfaces in patches (N, H, W): connected components without a jump in depth.

    metres: NaN in holes. focal: in pixels of the patches. Labels are above 0 and unique across the
    patches; 0 is a hole.
    """
    count = len(metres)
    labels = np.empty(metres.shape, np.int32)
    labels[:] = np.arange(1, count + 1)[:, None, None]
    broken = np.flatnonzero(~_is_continuous(metres, focal, parameters))
    if broken.size:
        components = _connected_components(metres[broken], focal, parameters)
        labels[broken] = np.where(components > 0, components + count, 0)
    return labels


def _is_continuous(
    metres: NDArray[np.float32], focal: float, parameters: LiftParameters
) -> BoolArray:
    """Whether patches (N, H, W) have neither holes nor jumps, (N,); most have none."""
    nearest = metres.min(axis=(1, 2)).astype(np.float64)  # NaN with a hole: compares as false
    max_steps = _max_steps(nearest, focal, parameters)
    # A patch of one row or column has no neighbours in that direction, and no jump.
    down, right = metres[:, 1:] - metres[:, :-1], metres[:, :, 1:] - metres[:, :, :-1]
    continuous: BoolArray = np.abs(down).max(axis=(1, 2), initial=0.0) <= max_steps
    continuous &= np.abs(right).max(axis=(1, 2), initial=0.0) <= max_steps
    return continuous


def _max_steps(z: FloatArray, focal: float, parameters: LiftParameters) -> FloatArray:
    """Largest difference (m) between neighbouring depths (...) of one surface at depths z (...)."""
    return 4 * parameters.sigma(z) + z / focal * MAX_SLOPE


def _connected_components(
    metres: NDArray[np.float32], focal: float, parameters: LiftParameters
) -> NDArray[np.int32]:
    """Labels as of `label_surfaces`, for patches with holes or jumps."""
    count, height, width = metres.shape
    z = np.nan_to_num(metres).astype(np.float64)
    max_steps = _max_steps(z, focal, parameters)
    valid = z > 0
    down, right = valid[:, 1:] & valid[:, :-1], valid[:, :, 1:] & valid[:, :, :-1]
    low, high = np.where(valid, z, np.inf), z
    low, high = np.minimum(low[:, 1:], low[:, :-1]), np.maximum(high[:, 1:], high[:, :-1])
    low = np.minimum(low[:, :, 1:], low[:, :, :-1])
    high = np.maximum(high[:, :, 1:], high[:, :, :-1])
    # Cells between pixels represent the links between them; an empty row separates the patches.
    cells = np.zeros((count, 2 * height, 2 * width - 1), np.uint8)
    cells[:, :-1:2, ::2] = valid
    cells[:, 1:-1:2, ::2] = (np.abs(np.diff(z, axis=1)) <= max_steps[:, 1:]) & down
    cells[:, :-1:2, 1::2] = (np.abs(np.diff(z, axis=2)) <= max_steps[:, :, 1:]) & right
    cells[:, 1:-1:2, 1::2] = high - low <= max_steps[:, 1:, 1:]
    _, labels = cv2.connectedComponents(cells.reshape(-1, 2 * width - 1), connectivity=8)
    return labels.reshape(count, 2 * height, -1)[:, :-1:2, ::2]


def unambiguous_surfaces(
    labels: NDArray[np.int32], parameters: LiftParameters
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Select the surface at each patch's centre where no other surface is near.

    Returns masks (N, S, S) of the surfaces at the centres; in which patches no other surface is
    near (N,); and in which of those no holes are near either (N,). The latter are unambiguous, all
    other patches need `select_surface`.
    """
    centre = labels.shape[1] // 2
    at_centre = labels[:, centre, centre]
    selected = (labels == at_centre[:, None, None]) & (at_centre > 0)[:, None, None]
    near = slice(centre - _EDGE_ERROR, centre + _EDGE_ERROR + 1)
    others = np.count_nonzero((labels != at_centre[:, None, None])[:, near, near], axis=(1, 2))
    holes = np.count_nonzero((labels == 0)[:, near, near], axis=(1, 2))
    isolated = others == holes
    isolated &= np.count_nonzero(selected, axis=(1, 2)) >= parameters.min_surface_pixels
    return selected, isolated, isolated & (holes <= _MAX_HOLES)


def select_surface(
    patch: NDArray[np.float32],
    labels: NDArray[np.int32],
    parameters: LiftParameters,
    color: ColorPatch | None = None,
) -> BoolArray:
    """Select the surface that a patch's centre belongs to: mask (S, S), empty if undecided.

    labels: (S, S), of `label_surfaces`. Without color the nearest surface in the image is selected,
    the foreground one of two equally near, unless too few of the patch's pixels are valid. With
    color, one surface must be far more probable than the others and than an unmeasured one.
    """
    candidates = _candidates(patch, labels, parameters)
    if candidates and color is None:
        valid_fraction = np.count_nonzero(labels) / labels.size
        if candidates[0].distance == 0 or valid_fraction >= parameters.min_valid_fraction:
            return labels == candidates[0].label
    elif candidates and color is not None:
        best, probability = _most_probable(candidates, labels, color)
        if probability >= _MIN_PROBABILITY:
            return labels == best.label
    return np.zeros(labels.shape, np.bool_)


@dataclass(frozen=True)
class _Candidate:
    """A surface in a patch: label, distance from the centre in pixels, depth there in metres."""

    label: int
    distance: int
    depth: float


@lru_cache(maxsize=8)
def _by_distance(radius: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pixels of a patch by distance from its centre: flat indices (P,) and offsets (P, 2)."""
    offsets = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1).T
    rings = np.abs(offsets).max(axis=1)
    order = np.lexsort(((offsets**2).sum(axis=1), rings))
    return order, offsets[order]


def _candidates(
    patch: NDArray[np.float32], labels: NDArray[np.int32], parameters: LiftParameters
) -> list[_Candidate]:
    """Return the surfaces that are large enough and near enough to the centre, nearest first."""
    order, offsets = _by_distance(labels.shape[0] // 2)
    found, first, sizes = np.unique(labels.ravel()[order], return_index=True, return_counts=True)
    counted = (found > 0) & (sizes >= parameters.min_surface_pixels)
    nearest = first[counted]
    distances = np.abs(offsets[nearest]).max(axis=1)
    depths = patch.ravel()[order[nearest]]
    candidates = [
        _Candidate(int(label), int(distance), float(depth))
        for label, distance, depth in zip(found[counted], distances, depths, strict=True)
    ]
    candidates.sort(key=lambda one: (one.distance, one.depth))
    farthest = candidates[0].distance + _MAX_EXTRA_DISTANCE if candidates else 0
    return [one for one in candidates if one.distance <= farthest]


def _most_probable(
    candidates: list[_Candidate], labels: NDArray[np.int32], color: ColorPatch
) -> tuple[_Candidate, float]:
    """Return the surface that the centre most probably belongs to, and its probability.

    Surfaces at the same depth give the same position, so their probabilities add up.
    """
    contrasts = _contrasts([one.label for one in candidates], labels, color)
    logits = [
        _DISTANCE_LOGIT * one.distance
        + _INSIDE_LOGIT * (one.distance == 0)
        + _CONTRAST_LOGIT * math.log1p(contrast / _COLOR_NOISE)
        for one, contrast in zip(candidates, contrasts, strict=True)
    ]
    probabilities = np.exp(np.array([*logits, _UNMEASURED_LOGIT]))
    probabilities /= probabilities.sum()
    best = candidates[int(np.argmax(probabilities[:-1]))]
    same = [abs(one.depth - best.depth) <= _SAME_DEPTH * best.depth for one in candidates]
    return best, float(probabilities[:-1][same].sum())


def _contrasts(wanted: list[int], labels: NDArray[np.int32], color: ColorPatch) -> list[float]:
    """Color contrast, in grey levels, between the query pixel and each of the wanted surfaces.

    The intervening contour cue (Leung and Malik, ECCV 1998): the largest difference from the query
    pixel's color along a straight path, for the best path to one of the nearest pixels in the
    surface's interior, because its edge pixels may belong to another surface.
    """
    radius = labels.shape[0] // 2
    order, offsets = _by_distance(radius)
    values = labels.astype(np.float32)
    interiors = []
    for kernel in (_WIDE_KERNEL, _KERNEL):
        low = cv2.erode(values, kernel, borderType=cv2.BORDER_REPLICATE)
        high = cv2.dilate(values, kernel, borderType=cv2.BORDER_REPLICATE)
        interiors.append(np.where(low == high, labels, 0).ravel()[order])
    contrasts = []
    for label in wanted:
        ends = np.flatnonzero(interiors[0] == label)
        if len(ends) < _MIN_INTERIOR:
            ends = np.flatnonzero(interiors[1] == label)
        if not len(ends):
            contrasts.append(_MAX_CONTRAST)
            continue
        steps = offsets[ends[:_MAX_PATHS], None] * _PATH_FRACTIONS[:, None]
        paths = np.rint(steps).astype(np.intp) + radius
        differences = color.around[paths[..., 0], paths[..., 1]] - color.query
        contrasts.append(math.sqrt((differences**2).mean(axis=-1).max(axis=1).min()))
    return contrasts
