# SPDX-License-Identifier: Apache-2.0
"""Registration: depth of another camera, or of another time, in the color camera's view.

Only the depth pixels that can be visible to the color camera inside given boxes are converted: the
poses and lenses of the two cameras determine which; splatting.py resamples them.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage
from robobrain_ros.lifting.intrinsics import Intrinsics
from robobrain_ros.lifting.parameters import MAX_SLOPE, LiftParameters
from robobrain_ros.lifting.splatting import (
    MIN_Z,
    SURFACE_SIGMAS,
    CameraPair,
    Cells,
    IntArray,
    splat_depth,
)
from robobrain_ros.lifting.transforms import checked_rigid

_MIN_Z_SHARE = 0.02  # of the depth along color, below which a point is out of the depth view
_MAX_PIXEL = 1e6  # beyond any real lens, but not beyond what a camera info may lead to
# Corner pairs of the edges of a cuboid whose corners are numbered by bits: x, y, inverse depth.
_EDGES = np.array([(i, i | 1 << bit) for bit in range(3) for i in range(8) if not i >> bit & 1])


def register_depth(
    depth: DepthImage,
    color: Intrinsics,
    boxes: FloatArray,
    parameters: LiftParameters,
    margins: ArrayLike = 0.0,
) -> tuple[DepthImage, BoolArray]:
    """Resample a depth image to the color camera's view inside boxes of the color image.

    boxes: (M, 4) x1, y1, x2, y2 in pixels of the color image, whose centres are whole numbers.
    margins: pixels around each box to be resampled as well; broadcast to (M, 2), across and down.
    Returns the registered depth image and which boxes (M,) are visible. The image is in the color
    camera's optical frame and has its intrinsics, scaled to about the depth camera's angular
    resolution but never above color's; it is NaN outside the boxes, in the depth image's holes, and
    where a nearer surface occluded the depth camera's view. A box (without margin) is visible if
    any part of it is in the depth camera's view at any depth from min_depth to max_depth. Raises
    ValueError for a color_from_depth that is not rigid.
    """
    pose = checked_rigid(np.eye(4) if depth.color_from_depth is None else depth.color_from_depth)
    grid = _grid(depth, color)
    pair = CameraPair(depth.intrinsics(color), grid, pose[:3, :3], pose[:3, 3])
    array = np.full((grid.height, grid.width), np.nan, np.float32)
    boxes = np.sort(np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2), axis=1)
    margin = np.broadcast_to(margins, boxes[:, 0].shape)
    wide = boxes + np.stack([-margin, margin], axis=1)
    rectangles, inside = _rectangles(np.stack([wide, boxes]), color, grid)
    in_color = inside[1]
    visible = np.zeros(len(in_color), bool)
    if in_color.any():
        indices, visible[in_color] = _relevant_pixels(rectangles[:, in_color], pair, parameters)
        cells = Cells(rectangles[0, in_color].astype(np.intp), grid)
        cells.write(splat_depth(indices, depth, pair, cells, parameters), array)
    return DepthImage(array, "32FC1", grid), visible


def cell_size(depth: DepthImage, color: Intrinsics) -> float:
    """Size of a registered depth pixel, in pixels of the color image."""
    return max(1.0, color.focal / depth.intrinsics(color).focal)


def check_visibility(
    points: FloatArray, depth: DepthImage, color: Intrinsics, parameters: LiftParameters
) -> tuple[BoolArray, BoolArray]:
    """Compare points (N, 3; m, color camera's optical frame) with the depth image.

    Returns which points (N,) are inside the depth camera's view, and which of those lie in free
    space, where the camera measured something farther away. NaN points are neither.
    """
    pose = np.eye(4) if depth.color_from_depth is None else depth.color_from_depth
    intrinsics = depth.intrinsics(color)
    in_depth_frame = (points - pose[:3, 3]) @ pose[:3, :3]
    z = np.where(in_depth_frame[:, 2] > MIN_Z, in_depth_frame[:, 2], np.nan)
    pixels = intrinsics.project(in_depth_frame[:, :2] / z[:, None])
    last = np.array(depth.size) - 1.0
    # As in DepthImage.locate, up to one pixel beyond the border counts as the border.
    inside: BoolArray = np.all((pixels >= -1) & (pixels <= last + 1), axis=1)
    is_free = np.zeros(len(points), bool)
    if inside.any():
        metres, _ = depth.patches(np.clip(pixels[inside], 0, last), 1)
        nearest = np.fmin.reduce(metres.reshape(len(metres), -1), axis=1)
        z = z[inside]
        tolerance = SURFACE_SIGMAS * parameters.sigma(z) + MAX_SLOPE * z / intrinsics.focal
        is_free[inside] = nearest - z > tolerance
    return inside, is_free


def _grid(depth: DepthImage, color: Intrinsics) -> Intrinsics:
    size = cell_size(depth, color)
    width, height = (max(1, round(side / size)) for side in (color.width, color.height))
    same = (width, height) == (color.width, color.height)
    return color if same else color.scaled(width, height)


def _rectangles(
    boxes: FloatArray, color: Intrinsics, grid: Intrinsics
) -> tuple[FloatArray, BoolArray]:
    """Rectangles (..., 4) of cells that cover boxes of the color image, and which are in the grid.

    boxes: (..., 2, 2), two corners. A rectangle is its first column and row, last column and row.
    """
    scale = np.array([grid.width / color.width, grid.height / color.height])
    low, high = np.moveaxis((boxes + 0.5) * scale - 0.5, -2, 0)
    last = np.array([grid.width, grid.height]) - 1.0
    with np.errstate(invalid="ignore"):
        inside = np.all((low <= last + 0.5) & (high >= -0.5), axis=-1)
    low, high = np.clip(np.floor(low), 0, last), np.clip(np.ceil(high), 0, last)
    return np.concatenate([low, high], axis=-1), inside


def _relevant_pixels(
    rectangles: FloatArray, pair: CameraPair, parameters: LiftParameters
) -> tuple[IntArray, BoolArray]:
    """Indices in the flat image of the depth pixels that rectangles of cells can show.

    rectangles: (2, M, 4) with margins and without. Also returns which of those without (M,) are in
    the depth camera's view somewhere from min_depth to max_depth.
    """
    count, (width, height) = rectangles.shape[1], (pair.depth.width, pair.depth.height)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    # Depth pixels up to one cell away contribute to a cell.
    low, high = _ray_bounds(rectangles.reshape(-1, 4) + [-1, -1, 1, 1], pair.grid)
    far, near = 1 / parameters.max_depth, 1 / max(parameters.min_depth, MIN_Z)
    # Depth beyond max_depth is included, because OUT_OF_RANGE is not DEPTH_HOLE.
    depths = np.repeat([(0.0, near), (far, near)], count, axis=0)
    outlines, within = np.split(_outlines(low, high, depths, pair), 2)
    visible: BoolArray = np.all((within >= corners[0]) & (within <= corners[2]), axis=2).any(axis=1)
    for row in np.flatnonzero(~visible):
        hull = cv2.convexHull(_clipped(within[row]))
        visible[row] = hull is not None and cv2.intersectConvexConvex(hull, corners)[0] > 0
    mask = np.zeros((height, width), np.uint8)
    for outline in outlines:
        hull = cv2.convexHull(np.rint(_clipped(outline) * 16).astype(np.int32))
        if hull is not None:
            cv2.fillConvexPoly(mask, hull, 1, cv2.LINE_8, 4)
            if pair.depth.distortion.size:  # which bends straight edges
                cv2.polylines(mask, [hull], True, 1, 5, cv2.LINE_8, 4)
    return np.flatnonzero(mask.view(bool)), visible


def _clipped(outline: NDArray[np.float32]) -> NDArray[np.float32]:
    """Finite points (P, 2), clipped: OpenCV fills polygons row by row, even far off the image."""
    return np.clip(outline[np.isfinite(outline).all(axis=1)], -_MAX_PIXEL, _MAX_PIXEL)


def _ray_bounds(cells: FloatArray, grid: Intrinsics) -> tuple[FloatArray, FloatArray]:
    """Smallest and largest x and y (M, 2) of the rays in rectangles of cells (M, 4)."""
    low, high = cells[:, None, :2], cells[:, None, 2:]
    if not grid.distortion.size:
        corners = grid.rays(cells.reshape(-1, 2)).reshape(-1, 2, 2)
        return corners.min(axis=1), corners.max(axis=1)
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 2), axis=-1).reshape(-1, 2)
    rays = grid.rays((low + steps * (high - low)).reshape(-1, 2)).reshape(-1, len(steps), 2)
    first, last = rays.min(axis=1), rays.max(axis=1)
    slack = 0.02 * (last - first)  # for the curvature between the steps
    # A rectangle partly outside the lens model is bounded by the end of the model only.
    first = np.where(np.isfinite(first), first - slack, -grid.max_radius)
    last = np.where(np.isfinite(last), last + slack, grid.max_radius)
    return first, last


def _outlines(
    low: FloatArray, high: FloatArray, depths: FloatArray, pair: CameraPair
) -> NDArray[np.float32]:
    """Points (M, P, 2) of the depth image whose convex hull contains a part of the color view.

    low, high: (M, 2) bounds of the part's rays. depths: (M, 2) bounds of its inverse depth. Points
    behind the depth camera are NaN. In x, y and inverse depth q the part is a cuboid, and the map
    to the depth camera's frame is linear: q X' = R'((x, y, 1) - q t). So the cuboid's edges are
    enough, clipped where they get behind the camera.
    """
    numbers, rotation = np.arange(8), pair.rotation
    rays = np.where(numbers[:, None] >> np.arange(2) & 1, high[:, None], low[:, None])
    inverse = np.where(numbers >> 2 & 1, depths[:, 1:], depths[:, :1])[..., None]
    directions = rays @ rotation[:2] + rotation[2] - inverse * (pair.translation @ rotation)
    distorted = pair.depth.distortion.size > 0
    if not distorted and (directions[..., 2] >= _MIN_Z_SHARE).all():
        return _project(directions, pair.depth)
    start, end = directions[:, _EDGES[:, 0]], directions[:, _EDGES[:, 1]]
    start_z, end_z = start[..., 2:], end[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = start + (_MIN_Z_SHARE - start_z) / (end_z - start_z) * (end - start)
    first = np.where(start_z < _MIN_Z_SHARE, cut, start)
    last = np.where(end_z < _MIN_Z_SHARE, cut, end)
    first[np.maximum(start_z, end_z)[..., 0] < _MIN_Z_SHARE] = np.nan
    steps = np.linspace(0, 1, 9 if distorted else 2)[:, None]
    edges = first[..., None, :] + steps * (last - first)[..., None, :]
    return _project(edges.reshape(len(low), -1, 3), pair.depth)


def _project(directions: FloatArray, camera: Intrinsics) -> NDArray[np.float32]:
    """Pixels (M, P, 2) of directions (M, P, 3), clipped to the domain of the lens model."""
    rays = (directions[..., :2] / directions[..., 2:]).reshape(-1, 2)
    if camera.distortion.size:
        # Whatever is outside the domain is outside the image as well.
        length = np.maximum(np.hypot(rays[:, 0], rays[:, 1]), 1e-9)
        rays *= np.minimum(1, 0.999 * camera.max_radius / length)[:, None]
    return camera.project(rays).reshape(len(directions), -1, 2).astype(np.float32)
