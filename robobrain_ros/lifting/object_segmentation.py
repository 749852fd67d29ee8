# SPDX-License-Identifier: Apache-2.0
"""Which object a box of the image shows: its depth, told from the table it stands on and the rest
behind it.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, Intrinsics, Window
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.plane_fitting import MAD_TO_SIGMA
from robobrain_ros.lifting.surface_selection import surfaces_in

_BOX_SAMPLES = 10_000
_BOX_MARGIN = 0.25  # of the box's size, on each side: where the plane around it is looked for
_PLANE_TRIALS = 64  # with half the points on the plane, all of them fail once in 5000 times
_STANDING_SHARE = 0.1
_GAP = 0.02  # metres between parts of one object


@dataclass(frozen=True, eq=False)
class BoxSurface:
    """The object that a box shows: its points (N, 3) in the optical frame, a depth pixel well on
    its surface near the box's centre (2,), and the share of the box's depth pixels that were
    valid.
    """

    points: FloatArray
    pixel: FloatArray | None
    valid_fraction: float


def surface_in_box(
    depth: DepthImage, intrinsics: Intrinsics, box: FloatArray, parameters: LiftParameters
) -> BoxSurface:
    """Separate the object that a box (x1, y1, x2, y2; depth pixels) is about from what it stands on
    and before.

    The plane around the box (a table, a wall) is removed, unless it is what the box shows. Of the
    rest, the piece that counts is the nearest of those with much weight around the box's centre;
    `pixel` is None without one.
    """
    margin = np.maximum(3, _BOX_MARGIN * (box[2:] - box[:2]))
    around = depth.window(np.concatenate([box[:2] - margin, box[2:] + margin]), _BOX_SAMPLES)
    inside: BoolArray = np.all((around.pixels >= box[:2]) & (around.pixels <= box[2:]), axis=-1)
    valid = np.isfinite(around.metres)
    share = float(valid[inside].mean()) if inside.any() else 0.0
    rays = intrinsics.rays(around.pixels.reshape(-1, 2)).reshape(around.pixels.shape)
    valid &= np.isfinite(rays).all(axis=-1)
    nothing = BoxSurface(np.empty((0, 3)), None, share)
    if not (valid & inside).any():
        return nothing

    # All that is far out of range is one: it needs no more telling apart.
    metres = np.where(valid, np.minimum(around.metres, 2 * parameters.max_depth), np.float32(1))
    points = np.concatenate([rays, np.ones((*valid.shape, 1))], axis=-1) * metres[..., None]
    centrality = _centrality(around, box)
    ring = points[valid & ~inside]
    candidates = _without_plane(points, ring, valid & inside, centrality, parameters)
    seed = _nearest_mode(metres, candidates, centrality, parameters)
    left = np.where(candidates, metres, np.float32(np.nan))
    labels = surfaces_in(left[None], intrinsics.focal / around.step, parameters)[0]
    piece = _with_neighbours(labels, labels[seed], points, parameters)
    if np.count_nonzero(piece) < parameters.min_surface_pixels:
        return nothing
    return BoxSurface(points[piece], _well_inside(piece, centrality, around, parameters), share)


def _centrality(around: Window, box: FloatArray) -> FloatArray:
    """Weights (h, w), 1 at the box's centre and falling with the distance from it in units of the
    box.
    """
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 1)
    weights: FloatArray = np.exp(-2 * (((around.pixels - centre) / half) ** 2).sum(axis=-1))
    return weights


def _without_plane(
    points: FloatArray,
    ring: FloatArray,
    candidates: BoolArray,
    centrality: FloatArray,
    parameters: LiftParameters,
) -> BoolArray:
    """Keep those candidates (h, w) of the points (h, w, 3) that stand out of the plane of the ring
    (N, 3) around the box; all if there is no such plane.
    """
    plane = _dominant_plane(ring, parameters)
    if plane is None:
        return candidates
    on_plane = _heights(ring[_agreeing(ring, plane, parameters)], plane)
    noise = MAD_TO_SIGMA * float(np.median(np.abs(on_plane)))
    heights = _heights(points, plane)
    standing = candidates & (heights > 3 * max(noise, parameters.depth_noise_floor))
    # Something flat, or a part of a large surface: then that surface is what the box is about.
    if centrality[standing].sum() < _STANDING_SHARE * centrality[candidates].sum():
        return candidates
    return standing


def _dominant_plane(points: FloatArray, parameters: LiftParameters) -> FloatArray | None:
    """Find the plane m (3,), m.X = 1, that holds at least half of the points (N, 3): RANSAC, then
    least squares.
    """
    if len(points) < 3 * parameters.min_surface_pixels:
        return None
    # Seeded: the same image gives the same result.
    triples = np.random.default_rng(0).integers(len(points), size=(_PLANE_TRIALS, 3))
    thinned = points[:: max(1, len(points) // 300)]
    planes = _planes_through(points[triples])
    if not len(planes):
        return None
    support = np.count_nonzero(_agreeing(thinned, planes, parameters), axis=0)
    if 2 * support.max() < len(thinned):
        return None
    plane: FloatArray = planes[np.argmax(support)]
    for _ in range(2):
        agreeing = points[_agreeing(points, plane, parameters)]
        if len(agreeing) < 3:
            return None
        rays, inverse = agreeing / agreeing[:, 2:], 1 / agreeing[:, 2]
        plane = np.asarray(np.linalg.lstsq(rays, inverse, rcond=None)[0], dtype=np.float64)
    return plane


def _planes_through(triples: FloatArray) -> FloatArray:
    """Planes m (M, 3), m.X = 1, through three points each (N, 3, 3); fewer where they line up."""
    first, second, third = triples.swapaxes(0, 1)
    normals = np.cross(second - first, third - first)
    with np.errstate(divide="ignore", invalid="ignore"):
        planes: FloatArray = normals / (normals * first).sum(axis=1, keepdims=True)
    return planes[np.isfinite(planes).all(axis=1)]


def _heights(points: FloatArray, plane: FloatArray) -> FloatArray:
    """Distances of points (..., 3) from a plane, positive on the camera's side."""
    heights: FloatArray = (1 - points @ plane) / np.linalg.norm(plane)
    return heights


def _agreeing(points: FloatArray, planes: FloatArray, parameters: LiftParameters) -> BoolArray:
    """Which of the points (N, 3) lie on a plane (3,), or on each of several (M, 3): (N,) or (N, M).

    Within three sigma of the sensor's noise, in depth.
    """
    z = points[:, 2]
    allowed = 3 * parameters.sigma(z) / z
    misfit = np.abs(1 - points @ planes.T)
    agreeing: BoolArray = misfit <= (allowed if misfit.ndim == 1 else allowed[:, None])
    return agreeing


def _nearest_mode(
    metres: NDArray[np.float32],
    candidates: BoolArray,
    centrality: FloatArray,
    parameters: LiftParameters,
) -> tuple[int, int]:
    """Return the most central pixel (row, column) of the nearest depth that holds much of the
    weight.
    """
    z = metres[candidates].astype(np.float64)
    weights = centrality[candidates]
    width = max(0.02, 6 * float(parameters.sigma(np.array(np.median(z)))))
    bins = ((z - z.min()) / width).astype(np.intp)
    mass = np.convolve(np.bincount(bins, weights), [1, 1, 1], mode="same")
    peak = int(np.flatnonzero(mass >= 0.5 * mass.max())[0])
    near = np.abs(bins - peak) <= 1
    rows, columns = np.nonzero(candidates)
    chosen = np.flatnonzero(near)[np.argmax(weights[near])]
    return int(rows[chosen]), int(columns[chosen])


def _with_neighbours(
    labels: NDArray[np.int32], own: int, points: FloatArray, parameters: LiftParameters
) -> BoolArray:
    """Mark a surface (h, w) and all that is close to it in space: holes and noise tear objects
    apart.
    """
    whole = labels == own
    reached = points[whole]
    sizes = np.bincount(labels.ravel())
    waiting = set(np.flatnonzero(sizes >= parameters.min_surface_pixels).tolist()) - {0, int(own)}
    while waiting and len(reached):
        tree = cKDTree(_thinned(reached))
        close = {
            label
            for label in waiting
            if tree.query(_thinned(points[labels == label]))[0].min() <= _GAP
        }
        added = np.isin(labels, list(close))
        reached = points[added]
        whole |= added
        waiting -= close
    return whole


def _thinned(points: FloatArray) -> FloatArray:
    return points[:: max(1, len(points) // 500)]


def _well_inside(
    piece: BoolArray, centrality: FloatArray, around: Window, parameters: LiftParameters
) -> FloatArray:
    """Return the depth pixel (2,) nearest to the box's centre whose patch lies on the piece as far
    as possible.
    """
    border = np.pad(piece, 1).astype(np.uint8)
    depth_in = cv2.distanceTransform(border, cv2.DIST_C, 3)[1:-1, 1:-1]
    wanted = min(parameters.max_patch_radius / around.step, 0.6 * float(depth_in.max()))
    best = int(np.argmax(np.where(depth_in >= wanted, centrality, -1.0)))
    row, column = np.unravel_index(best, piece.shape)
    pixel: FloatArray = around.pixels[row, column]
    return pixel
