# SPDX-License-Identifier: Apache-2.0
"""Which of the surfaces around a pixel of a depth image is the pixel's own.

A stereo camera's edges are off by a pixel or two, its holes have no depth at all, but the color
image is sharp, and it is what the model looked at: where two surfaces contest a pixel, color
decides, and where color can't tell, nothing is claimed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import Intrinsics
from robobrain_ros.lifting.parameters import LiftParameters

_STEEPEST = math.tan(math.radians(80))  # surfaces up to this angle off frontal stay in one piece
_CONTESTED = 2  # depth pixels: how far off a stereo camera's edges are
_SPECKLE = 3  # holes; more of them near a pixel may be an edge's shadow
_REACH = 3  # depth pixels beyond the nearest surface to where others contest it
# Logits of a pixel's belonging to a surface: for each depth pixel of distance, for being among the
# surface's own, for the logarithm of the barrier of color before it, and for belonging to none
# that was measured. Fitted by multinomial logistic regression to 3,378 contested pixels of
# simulated stereo depth. `_SURE` leaves one in a hundred of them wrong.
_PER_PIXEL, _INSIDE, _PER_BARRIER, _NONE = -0.23, 1.67, -1.94, -6.5
_SURE = 0.968
_SAME_DEPTH = 0.015
_COLOR_NOISE = 5.0  # grey levels, of 255
_FARTHEST_COLOR = 60.0
_SQUARE, _WIDE_SQUARE = np.ones((3, 3), np.uint8), np.ones((5, 5), np.uint8)
_LEAST_INSIDE, _WAYS = 8, 16  # pixels
_ALONG = np.linspace(1 / 12, 1, 12)


@dataclass(frozen=True, eq=False)
class Evidence:
    """Colors for one patch. own: (3,) at the pixel asked about. around: (S, S, 3)."""

    own: FloatArray
    around: FloatArray


@dataclass(frozen=True, eq=False)
class ColorImage:
    """The color image that belongs to a depth grid.

    rgb: (H, W, 3) uint8. color: its intrinsics. grid: those of the depth pixels; both share the
    optical frame.
    """

    rgb: NDArray[np.uint8]
    color: Intrinsics
    grid: Intrinsics

    def evidence(self, asked: FloatArray, located: FloatArray, radius: int) -> Evidence:
        """Colors for a patch around the depth pixel `located` (2,), at the color pixel `asked`
        (2,).
        """
        steps = np.arange(-radius, radius + 1)
        columns, rows = np.rint(located)[:, None] + steps
        if self.grid.distortion.size or self.color.distortion.size:
            pixels = np.stack(np.meshgrid(columns, rows), axis=-1).reshape(-1, 2)
            u, v = self.color.project(self.grid.rays(pixels)).T.reshape(2, len(steps), -1)
        elif self.grid is self.color:
            u, v = columns, rows[:, None]
        else:
            u = _across(columns, self.grid, self.color, 0)
            v = _across(rows, self.grid, self.color, 1)[:, None]
        return Evidence(self._at(*asked), self._at(u, v))

    def _at(self, u: FloatArray, v: FloatArray) -> FloatArray:
        """Colors (..., 3) of the color pixels nearest to (u, v)."""
        height, width = self.rgb.shape[:2]
        # fmax makes a zero of a ray that the lens can't have.
        columns = np.fmin(np.fmax(np.rint(u), 0), width - 1).astype(np.intp)
        rows = np.fmin(np.fmax(np.rint(v), 0), height - 1).astype(np.intp)
        return self.rgb[rows, columns].astype(np.float64)


def _across(pixels: FloatArray, source: Intrinsics, target: Intrinsics, axis: int) -> FloatArray:
    """Map columns (axis 0) or rows (1) of one pinhole camera to another's, of one optical frame."""
    rays = (pixels - source.matrix[axis, 2]) / source.matrix[axis, axis]
    return rays * target.matrix[axis, axis] + target.matrix[axis, 2]


def surfaces_in(
    metres: NDArray[np.float32], focal: float, parameters: LiftParameters
) -> NDArray[np.int32]:
    """Label the surfaces of patches (N, H, W): what hangs together without a jump in depth.

    metres: NaN where there is none. focal: in pixels of the patches. Labels are above 0 and no two
    patches share one; 0 is a hole.
    """
    count = len(metres)
    labels = np.empty(metres.shape, np.int32)
    labels[:] = np.arange(1, count + 1)[:, None, None]
    torn = np.flatnonzero(~_smooth(metres, focal, parameters))
    if torn.size:
        pieces = _pieces_in(metres[torn], focal, parameters)
        labels[torn] = np.where(pieces > 0, pieces + count, 0)
    return labels


def _smooth(metres: NDArray[np.float32], focal: float, parameters: LiftParameters) -> BoolArray:
    """Which of the patches (N, H, W) have neither holes nor jumps (N,): most of them."""
    nearest = metres.min(axis=(1, 2)).astype(np.float64)  # NaN in a hole, and that isn't smooth
    jumps = _jumps(nearest, focal, parameters)
    # A patch of one row or column has no neighbours that way, and no jump.
    down, right = metres[:, 1:] - metres[:, :-1], metres[:, :, 1:] - metres[:, :, :-1]
    smooth: BoolArray = np.abs(down).max(axis=(1, 2), initial=0.0) <= jumps
    smooth &= np.abs(right).max(axis=(1, 2), initial=0.0) <= jumps
    return smooth


def _jumps(z: FloatArray, focal: float, parameters: LiftParameters) -> FloatArray:
    """By how much depths (...) of one surface may differ between neighbours, metres."""
    return 4 * parameters.sigma(z) + z / focal * _STEEPEST


def _pieces_in(
    metres: NDArray[np.float32], focal: float, parameters: LiftParameters
) -> NDArray[np.int32]:
    """As `surfaces_in`, for patches with holes or jumps."""
    count, height, width = metres.shape
    z = np.nan_to_num(metres).astype(np.float64)
    jumps = _jumps(z, focal, parameters)
    valid = z > 0
    down, right = valid[:, 1:] & valid[:, :-1], valid[:, :, 1:] & valid[:, :, :-1]
    low, high = np.where(valid, z, np.inf), z
    low, high = np.minimum(low[:, 1:], low[:, :-1]), np.maximum(high[:, 1:], high[:, :-1])
    low = np.minimum(low[:, :, 1:], low[:, :, :-1])
    high = np.maximum(high[:, :, 1:], high[:, :, :-1])
    # The cells between pixels stand for their being linked; patches are kept apart by a row.
    cells = np.zeros((count, 2 * height, 2 * width - 1), np.uint8)
    cells[:, :-1:2, ::2] = valid
    cells[:, 1:-1:2, ::2] = (np.abs(np.diff(z, axis=1)) <= jumps[:, 1:]) & down
    cells[:, :-1:2, 1::2] = (np.abs(np.diff(z, axis=2)) <= jumps[:, :, 1:]) & right
    cells[:, 1:-1:2, 1::2] = high - low <= jumps[:, 1:, 1:]
    _, labels = cv2.connectedComponents(cells.reshape(-1, 2 * width - 1), connectivity=8)
    return labels.reshape(count, 2 * height, -1)[:, :-1:2, ::2]


def settled_surfaces(
    labels: NDArray[np.int32], parameters: LiftParameters
) -> tuple[BoolArray, BoolArray, BoolArray]:
    """Mark the pixels of the surface at each patch's centre (N, S, S), and tell where no other
    comes near (N,), and of those where holes don't either (N,): there the centre is its own, and
    the other patches need `own_surface`.
    """
    centre = labels.shape[1] // 2
    at = labels[:, centre, centre]
    own = (labels == at[:, None, None]) & (at > 0)[:, None, None]
    about = slice(centre - _CONTESTED, centre + _CONTESTED + 1)
    strange = np.count_nonzero((labels != at[:, None, None])[:, about, about], axis=(1, 2))
    holes = np.count_nonzero((labels == 0)[:, about, about], axis=(1, 2))
    alone = strange == holes
    alone &= np.count_nonzero(own, axis=(1, 2)) >= parameters.min_surface_pixels
    return own, alone, alone & (holes <= _SPECKLE)


def own_surface(
    patch: NDArray[np.float32],
    labels: NDArray[np.int32],
    parameters: LiftParameters,
    evidence: Evidence | None = None,
) -> BoolArray:
    """Mark the pixels (S, S) of the surface that the patch's centre belongs to; none when it can't
    be told.

    labels: (S, S), of `surfaces_in`. Without evidence the nearest surface in the image counts, the
    nearer to the camera of two equally near, unless too few of the patch's pixels are valid. With
    it, one must be likelier by far than the others, and than none of them.
    """
    pieces = _pieces(patch, labels, parameters)
    if pieces and evidence is None:
        share = np.count_nonzero(labels) / labels.size
        if pieces[0].distance == 0 or share >= parameters.min_valid_fraction:
            return labels == pieces[0].label
    elif pieces and evidence is not None:
        best, probability = _likeliest(pieces, labels, evidence)
        if probability >= _SURE:
            return labels == best.label
    return np.zeros(labels.shape, np.bool_)


@dataclass(frozen=True)
class _Piece:
    """A surface in a patch: its label, how far it is from the centre, in pixels, and its depth
    there, in metres.
    """

    label: int
    distance: int
    depth: float


@lru_cache(maxsize=8)
def _outwards(radius: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Pixels of a patch by their distance from its centre: flat indices (P,), and steps (P, 2)."""
    steps = np.mgrid[-radius : radius + 1, -radius : radius + 1].reshape(2, -1).T
    rings = np.abs(steps).max(axis=1)
    order = np.lexsort(((steps**2).sum(axis=1), rings))
    return order, steps[order]


def _pieces(
    patch: NDArray[np.float32], labels: NDArray[np.int32], parameters: LiftParameters
) -> list[_Piece]:
    """Return the surfaces of a patch that are large enough to count and not far behind the nearest,
    the nearest first.
    """
    order, steps = _outwards(labels.shape[0] // 2)
    found, first, sizes = np.unique(labels.ravel()[order], return_index=True, return_counts=True)
    counts = (found > 0) & (sizes >= parameters.min_surface_pixels)
    places = first[counts]
    distances = np.abs(steps[places]).max(axis=1)
    depths = patch.ravel()[order[places]]
    pieces = [
        _Piece(int(label), int(distance), float(depth))
        for label, distance, depth in zip(found[counts], distances, depths, strict=True)
    ]
    pieces.sort(key=lambda piece: (piece.distance, piece.depth))
    return [piece for piece in pieces if piece.distance <= pieces[0].distance + _REACH]


def _likeliest(
    pieces: list[_Piece], labels: NDArray[np.int32], evidence: Evidence
) -> tuple[_Piece, float]:
    """Return the piece that the centre most likely belongs to, and how probable that is.

    Pieces at the same depth give the same answer, and count together.
    """
    barriers = _barriers([piece.label for piece in pieces], labels, evidence)
    scores = [
        _PER_PIXEL * piece.distance
        + _INSIDE * (piece.distance == 0)
        + _PER_BARRIER * math.log1p(barrier / _COLOR_NOISE)
        for piece, barrier in zip(pieces, barriers, strict=True)
    ]
    shares = np.exp(np.array([*scores, _NONE]))
    shares /= shares.sum()
    best = pieces[int(np.argmax(shares[:-1]))]
    alike = [abs(piece.depth - best.depth) <= _SAME_DEPTH * best.depth for piece in pieces]
    return best, float(shares[:-1][alike].sum())


def _barriers(wanted: list[int], labels: NDArray[np.int32], evidence: Evidence) -> list[float]:
    """How far, in grey levels, color departs from the asked pixel's on the way to each surface.

    The intervening contour cue (Leung and Malik, ECCV 1998), over straight ways to those pixels of
    a surface's inside that are nearest: its edge may be another's.
    """
    radius = labels.shape[0] // 2
    order, steps = _outwards(radius)
    values = labels.astype(np.float32)
    inside = []
    for square in (_WIDE_SQUARE, _SQUARE):
        low = cv2.erode(values, square, borderType=cv2.BORDER_REPLICATE)
        high = cv2.dilate(values, square, borderType=cv2.BORDER_REPLICATE)
        inside.append(np.where(low == high, labels, 0).ravel()[order])
    barriers = []
    for label in wanted:
        ends = np.flatnonzero(inside[0] == label)
        if len(ends) < _LEAST_INSIDE:
            ends = np.flatnonzero(inside[1] == label)
        if not len(ends):
            barriers.append(_FARTHEST_COLOR)
            continue
        ways = np.rint(steps[ends[:_WAYS], None] * _ALONG[:, None]).astype(np.intp) + radius
        departures = evidence.around[ways[..., 0], ways[..., 1]] - evidence.own
        barriers.append(math.sqrt((departures**2).mean(axis=-1).max(axis=1).min()))
    return barriers
