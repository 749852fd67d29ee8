# SPDX-License-Identifier: Apache-2.0
"""Object segmentation: the depth pixels of a box without the supporting plane and background."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, Window
from robobrain_ros.lifting.intrinsics import Intrinsics, ray_directions
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.plane_fitting import MAD_TO_SIGMA
from robobrain_ros.lifting.surface_selection import label_surfaces

_BOX_SAMPLES = 10_000
_BOX_MARGIN = 0.25  # of the box's size, on each side: the ring in which the plane is fitted
_PLANE_TRIALS = 64  # with half of the points on the plane, all trials miss it once in 5000 runs
_MIN_OBJECT_SHARE = 0.1  # of the box's weight, for an object in front of the plane
_MAX_GAP = 0.02  # metres between parts of one object


@dataclass(frozen=True, eq=False)
class SegmentedObject:
    """The visible part of the object in a box.

    points: (N, 3) m in the optical frame. pixel: (2,) a depth pixel in the interior of the object's
    surface, near the box's centre; None without an object. valid_fraction: share of the box's depth
    pixels that hold depth.
    """

    points: FloatArray
    pixel: FloatArray | None
    valid_fraction: float


def segment_object(
    depth: DepthImage, intrinsics: Intrinsics, box: FloatArray, parameters: LiftParameters
) -> SegmentedObject:
    """Segment the object in a box (x1, y1, x2, y2; depth pixels).

    The plane around the box (a table, a wall) is removed unless the box shows that plane itself. Of
    the remaining surfaces the nearest one with much weight around the box's centre is selected.
    """
    margin = np.maximum(3, _BOX_MARGIN * (box[2:] - box[:2]))
    window = depth.window(np.concatenate([box[:2] - margin, box[2:] + margin]), _BOX_SAMPLES)
    inside: BoolArray = np.all((window.pixels >= box[:2]) & (window.pixels <= box[2:]), axis=-1)
    valid = np.isfinite(window.metres)
    valid_fraction = float(valid[inside].mean()) if inside.any() else 0.0
    rays = intrinsics.rays(window.pixels.reshape(-1, 2)).reshape(window.pixels.shape)
    valid &= np.isfinite(rays).all(axis=-1)
    nothing = SegmentedObject(np.empty((0, 3)), None, valid_fraction)
    if not (valid & inside).any():
        return nothing

    # Depth far out of range is treated as one surface.
    metres = np.where(valid, np.minimum(window.metres, 2 * parameters.max_depth), np.float32(1))
    points = ray_directions(rays) * metres[..., None]
    centrality = _centrality(window, box)
    ring = points[valid & ~inside]
    candidates = _without_plane(points, ring, valid & inside, centrality, parameters)
    seed = _nearest_mode(metres, candidates, centrality, parameters)
    remaining = np.where(candidates, metres, np.float32(np.nan))
    labels = label_surfaces(remaining[None], intrinsics.focal / window.step, parameters)[0]
    mask = _merge_nearby(labels, labels[seed], points, parameters)
    if np.count_nonzero(mask) < parameters.min_surface_pixels:
        return nothing
    pixel = _interior_pixel(mask, centrality, window, parameters)
    return SegmentedObject(points[mask], pixel, valid_fraction)


def _centrality(window: Window, box: FloatArray) -> FloatArray:
    """Gaussian weights (h, w): 1 at the box's centre, with a width in units of the box's size."""
    centre, half = (box[:2] + box[2:]) / 2, np.maximum((box[2:] - box[:2]) / 2, 1)
    weights: FloatArray = np.exp(-2 * (((window.pixels - centre) / half) ** 2).sum(axis=-1))
    return weights


def _without_plane(
    points: FloatArray,
    ring: FloatArray,
    candidates: BoolArray,
    centrality: FloatArray,
    parameters: LiftParameters,
) -> BoolArray:
    """Keep the candidates (h, w) of points (h, w, 3) that stand out of the ring's plane.

    ring: (N, 3) points around the box. All candidates are kept if they lie on no dominant plane.
    """
    plane = _dominant_plane(ring, parameters)
    if plane is None:
        return candidates
    on_plane = _heights(ring[_inliers(ring, plane, parameters)], plane)
    noise = MAD_TO_SIGMA * float(np.median(np.abs(on_plane)))
    heights = _heights(points, plane)
    object_mask = candidates & (heights > 3 * max(noise, parameters.depth_noise_floor))
    # A flat object, or a part of a large surface: then the box shows the plane itself.
    if centrality[object_mask].sum() < _MIN_OBJECT_SHARE * centrality[candidates].sum():
        return candidates
    return object_mask


def _dominant_plane(points: FloatArray, parameters: LiftParameters) -> FloatArray | None:
    """Plane m (3,), m.X = 1, of at least half of the points (N, 3): RANSAC, then least squares.

    None without such a plane.
    """
    if len(points) < 3 * parameters.min_surface_pixels:
        return None
    # A fixed seed, so that an image always gives the same result.
    triples = np.random.default_rng(0).integers(len(points), size=(_PLANE_TRIALS, 3))
    thinned = points[:: max(1, len(points) // 300)]
    planes = _planes_through(points[triples])
    if not len(planes):
        return None
    support = np.count_nonzero(_inliers(thinned, planes, parameters), axis=0)
    if 2 * support.max() < len(thinned):
        return None
    plane: FloatArray = planes[np.argmax(support)]
    for _ in range(2):
        inliers = points[_inliers(points, plane, parameters)]
        if len(inliers) < 3:
            return None
        rays, inverse = inliers / inliers[:, 2:], 1 / inliers[:, 2]
        plane = np.asarray(np.linalg.lstsq(rays, inverse, rcond=None)[0], dtype=np.float64)
    return plane


def _planes_through(triples: FloatArray) -> FloatArray:
    """Planes m (M, 3), m.X = 1, through triples of points (N, 3, 3), without the collinear ones."""
    first, second, third = triples.swapaxes(0, 1)
    normals = np.cross(second - first, third - first)
    with np.errstate(divide="ignore", invalid="ignore"):
        planes: FloatArray = normals / (normals * first).sum(axis=1, keepdims=True)
    return planes[np.isfinite(planes).all(axis=1)]


def _heights(points: FloatArray, plane: FloatArray) -> FloatArray:
    """Signed distances (...) of points (..., 3) from a plane, positive on the camera's side."""
    heights: FloatArray = (1 - points @ plane) / np.linalg.norm(plane)
    return heights


def _inliers(points: FloatArray, planes: FloatArray, parameters: LiftParameters) -> BoolArray:
    """Inliers (N,) or (N, M) among points (N, 3) of one plane (3,) or several (M, 3).

    Within three sigma of the sensor's noise in depth.
    """
    z = points[:, 2]
    tolerance = 3 * parameters.sigma(z) / z
    residuals = np.abs(1 - points @ planes.T)
    inliers: BoolArray = residuals <= (tolerance if residuals.ndim == 1 else tolerance[:, None])
    return inliers


def _nearest_mode(
    metres: NDArray[np.float32],
    candidates: BoolArray,
    centrality: FloatArray,
    parameters: LiftParameters,
) -> tuple[int, int]:
    """Return the most central pixel (row, column) in the nearest mode of the weighted depths."""
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


def _merge_nearby(
    labels: NDArray[np.int32], seed: int, points: FloatArray, parameters: LiftParameters
) -> BoolArray:
    """Mask (h, w) of the seed surface and of all surfaces close to it in space.

    Holes and noise split an object into several surfaces.
    """
    mask = labels == seed
    frontier = points[mask]
    sizes = np.bincount(labels.ravel())
    large = set(np.flatnonzero(sizes >= parameters.min_surface_pixels).tolist())
    pending = large - {0, int(seed)}
    while pending and len(frontier):
        tree = cKDTree(_thinned(frontier))
        close = {
            label
            for label in pending
            if tree.query(_thinned(points[labels == label]))[0].min() <= _MAX_GAP
        }
        added = np.isin(labels, list(close))
        frontier = points[added]
        mask |= added
        pending -= close
    return mask


def _thinned(points: FloatArray) -> FloatArray:
    return points[:: max(1, len(points) // 500)]


def _interior_pixel(
    mask: BoolArray, centrality: FloatArray, window: Window, parameters: LiftParameters
) -> FloatArray:
    """Return the depth pixel (2,) in the mask's interior that is nearest to the box's centre.

    Interior: the patch around the pixel lies inside the mask, or as far as the mask's size allows.
    """
    padded = np.pad(mask, 1).astype(np.uint8)
    distance = cv2.distanceTransform(padded, cv2.DIST_C, 3)[1:-1, 1:-1]
    wanted = min(parameters.max_patch_radius / window.step, 0.6 * float(distance.max()))
    best = int(np.argmax(np.where(distance >= wanted, centrality, -1.0)))
    row, column = np.unravel_index(best, mask.shape)
    pixel: FloatArray = window.pixels[row, column]
    return pixel
