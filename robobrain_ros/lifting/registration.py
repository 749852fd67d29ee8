# SPDX-License-Identifier: Apache-2.0
"""Depth of another camera, or of another moment, as the color camera would see it.

Only what the color camera looks at through the boxes asked for is ever converted: which depth
pixels those can be follows from the two cameras; what becomes of them is in splatting.py.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.lifting.depth_image import DepthImage, Intrinsics
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.splatting import (
    AGREEING,
    NEAREST,
    STEEPEST,
    Cells,
    IntArray,
    Views,
    splatted,
)
from robobrain_ros.lifting.transforms import checked_rigid

_GRAZING = 0.02  # a depth camera sees nothing at less than this share of its distance to color
_FARTHEST = 1e6  # pixels; no lens has an outline beyond, but the numbers of a camera info may
# Corner pairs of a cuboid whose corners are numbered by bits: x, y, inverse depth.
_EDGES = np.array([(i, i | 1 << bit) for bit in range(3) for i in range(8) if not i >> bit & 1])


def registered(
    depth: DepthImage,
    color: Intrinsics,
    boxes: FloatArray,
    parameters: LiftParameters,
    margins: ArrayLike = 0.0,
) -> tuple[DepthImage, BoolArray]:
    """Return what the depth image knows inside boxes of the color image, as the color camera sees
    it, and which of the boxes (M,) it can see.

    boxes: (M, 4) x1, y1, x2, y2 in pixels of the color image, whose centres are whole numbers.
    margins: pixels around each box that are looked at as well; broadcast to (M, 2), across and
    down. The result is in the color camera's optical frame and has its intrinsics, scaled to about
    the depth camera's angular resolution but never above its own; it is NaN outside the boxes,
    where the depth camera measured nothing, and where something nearer to it hid what color sees.
    A box (without its margin) counts as seen when any of it is inside the depth camera's view at
    any depth from min_depth to max_depth. Raises ValueError for a color_from_depth that isn't
    rigid.
    """
    pose = checked_rigid(np.eye(4) if depth.color_from_depth is None else depth.color_from_depth)
    grid = _grid(depth, color)
    views = Views(depth.intrinsics(color), grid, pose[:3, :3], pose[:3, 3])
    array = np.full((grid.height, grid.width), np.nan, np.float32)
    boxes = np.sort(np.asarray(boxes, dtype=np.float64).reshape(-1, 2, 2), axis=1)
    margin = np.broadcast_to(margins, boxes[:, 0].shape)
    wide = boxes + np.stack([-margin, margin], axis=1)
    rectangles, inside = _rectangles(np.stack([wide, boxes]), color, grid)
    known = inside[1]
    seen = np.zeros(len(known), bool)
    if known.any():
        band, seen[known] = _band(rectangles[:, known], views, parameters)
        cells = Cells(rectangles[0, known].astype(np.intp), grid)
        cells.write(splatted(band, depth, views, cells, parameters), array)
    return DepthImage(array, "32FC1", grid), seen


def cell_size(depth: DepthImage, color: Intrinsics) -> float:
    """The size of a registered depth pixel in pixels of the color image."""
    return max(1.0, color.focal / depth.intrinsics(color).focal)


def against_view(
    points: FloatArray, depth: DepthImage, color: Intrinsics, parameters: LiftParameters
) -> tuple[BoolArray, BoolArray]:
    """Compare points (N, 3; m, color camera's optical frame) with what the depth camera saw.

    Returns which of them (N,) are inside its view, and which of those can't be there, because it
    looked through them at something farther away. Points that are NaN are neither.
    """
    pose = np.eye(4) if depth.color_from_depth is None else depth.color_from_depth
    own = depth.intrinsics(color)
    there = (points - pose[:3, 3]) @ pose[:3, :3]
    z = np.where(there[:, 2] > NEAREST, there[:, 2], np.nan)
    pixels = own.project(there[:, :2] / z[:, None])
    last = np.array(depth.size) - 1.0
    # As in DepthImage.locate: a pixel's width beyond the border counts as the border.
    inside: BoolArray = np.all((pixels >= -1) & (pixels <= last + 1), axis=1)
    through = np.zeros(len(points), bool)
    if inside.any():
        metres, _ = depth.patches(np.clip(pixels[inside], 0, last), 1)
        nearest = np.fmin.reduce(metres.reshape(len(metres), -1), axis=1)
        z = z[inside]
        through[inside] = nearest - z > AGREEING * parameters.sigma(z) + STEEPEST * z / own.focal
    return inside, through


def _grid(depth: DepthImage, color: Intrinsics) -> Intrinsics:
    size = cell_size(depth, color)
    width, height = (max(1, round(side / size)) for side in (color.width, color.height))
    same = (width, height) == (color.width, color.height)
    return color if same else color.scaled(width, height)


def _rectangles(
    boxes: FloatArray, color: Intrinsics, grid: Intrinsics
) -> tuple[FloatArray, BoolArray]:
    """Boxes (..., 2, 2; two corners) of the color image as first and last column and row of the
    grid (..., 4), and which of them are in it.
    """
    scale = np.array([grid.width / color.width, grid.height / color.height])
    low, high = np.moveaxis((boxes + 0.5) * scale - 0.5, -2, 0)
    last = np.array([grid.width, grid.height]) - 1.0
    with np.errstate(invalid="ignore"):
        inside = np.all((low <= last + 0.5) & (high >= -0.5), axis=-1)
    low, high = np.clip(np.floor(low), 0, last), np.clip(np.ceil(high), 0, last)
    return np.concatenate([low, high], axis=-1), inside


def _band(
    rectangles: FloatArray, views: Views, parameters: LiftParameters
) -> tuple[IntArray, BoolArray]:
    """Find the depth pixels that can be behind rectangles of cells, as places in the flat image.

    rectangles: (2, M, 4) with margins and without. Returns also of which of those without (M,) the
    depth camera can see anything within min_depth to max_depth.
    """
    count, (width, height) = rectangles.shape[1], (views.own.width, views.own.height)
    corners = np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float32) - 0.5
    # Depth pixels up to one cell away have a share in a cell.
    low, high = _ray_bounds(rectangles.reshape(-1, 4) + [-1, -1, 1, 1], views.grid)
    far, near = 1 / parameters.max_depth, 1 / max(parameters.min_depth, NEAREST)
    # What is too far is looked at as well: it has a status of its own.
    depths = np.repeat([(0.0, near), (far, near)], count, axis=0)
    outlines, within = np.split(_outlines(low, high, depths, views), 2)
    seen: BoolArray = np.all((within >= corners[0]) & (within <= corners[2]), axis=2).any(axis=1)
    for row in np.flatnonzero(~seen):
        hull = cv2.convexHull(_finite(within[row]))
        seen[row] = hull is not None and cv2.intersectConvexConvex(hull, corners)[0] > 0
    band = np.zeros((height, width), np.uint8)
    for outline in outlines:
        hull = cv2.convexHull(np.rint(_finite(outline) * 16).astype(np.int32))
        if hull is not None:
            cv2.fillConvexPoly(band, hull, 1, cv2.LINE_8, 4)
            if views.own.distortion.size:  # bends the edges that were straight
                cv2.polylines(band, [hull], True, 1, 5, cv2.LINE_8, 4)
    return np.flatnonzero(band.view(bool)), seen


def _finite(outline: NDArray[np.float32]) -> NDArray[np.float32]:
    """The points (P, 2) that are somewhere, and none so far away that OpenCV, which goes there row
    by row, takes seconds.
    """
    return np.clip(outline[np.isfinite(outline).all(axis=1)], -_FARTHEST, _FARTHEST)


def _ray_bounds(cells: FloatArray, grid: Intrinsics) -> tuple[FloatArray, FloatArray]:
    """The smallest and largest x and y (M, 2) of the rays in rectangles of cells (M, 4)."""
    low, high = cells[:, None, :2], cells[:, None, 2:]
    if not grid.distortion.size:
        corners = grid.rays(cells.reshape(-1, 2)).reshape(-1, 2, 2)
        return corners.min(axis=1), corners.max(axis=1)
    steps = np.stack(np.meshgrid(*[np.linspace(0, 1, 5)] * 2), axis=-1).reshape(-1, 2)
    rays = grid.rays((low + steps * (high - low)).reshape(-1, 2)).reshape(-1, len(steps), 2)
    first, last = rays.min(axis=1), rays.max(axis=1)
    slack = 0.02 * (last - first)  # for what bends between the steps
    # A rectangle that the lens model covers in part may show anything up to the model's end.
    first = np.where(np.isfinite(first), first - slack, -grid.reach)
    last = np.where(np.isfinite(last), last + slack, grid.reach)
    return first, last


def _outlines(
    low: FloatArray, high: FloatArray, depths: FloatArray, views: Views
) -> NDArray[np.float32]:
    """Points (M, P, 2) of the depth image, whose convex hull holds all that bundles of rays, low to
    high (M, 2), can meet between two inverse depths (M, 2); NaN where the depth camera looks away.

    In x, y and inverse depth q a bundle is a cuboid, and the map to the depth camera's frame is
    linear: q X' = R'((x, y, 1) - q t). So the cuboid's edges will do, cut where they get behind the
    camera.
    """
    numbers, rotation = np.arange(8), views.rotation
    rays = np.where(numbers[:, None] >> np.arange(2) & 1, high[:, None], low[:, None])
    inverse = np.where(numbers >> 2 & 1, depths[:, 1:], depths[:, :1])[..., None]
    there = rays @ rotation[:2] + rotation[2] - inverse * (views.translation @ rotation)
    bent = views.own.distortion.size > 0
    if not bent and (there[..., 2] >= _GRAZING).all():
        return _seen_at(there, views.own)
    start, end = there[:, _EDGES[:, 0]], there[:, _EDGES[:, 1]]
    start_z, end_z = start[..., 2:], end[..., 2:]
    with np.errstate(divide="ignore", invalid="ignore"):
        cut = start + (_GRAZING - start_z) / (end_z - start_z) * (end - start)
    first = np.where(start_z < _GRAZING, cut, start)
    last = np.where(end_z < _GRAZING, cut, end)
    first[np.maximum(start_z, end_z)[..., 0] < _GRAZING] = np.nan
    steps = np.linspace(0, 1, 9 if bent else 2)[:, None]
    edges = first[..., None, :] + steps * (last - first)[..., None, :]
    return _seen_at(edges.reshape(len(low), -1, 3), views.own)


def _seen_at(directions: FloatArray, own: Intrinsics) -> NDArray[np.float32]:
    """Pixels (M, P, 2) of directions (M, P, 3), as if the lens model held beyond its domain."""
    rays = (directions[..., :2] / directions[..., 2:]).reshape(-1, 2)
    if own.distortion.size:
        # What is beyond it is beyond the border as well.
        length = np.maximum(np.hypot(rays[:, 0], rays[:, 1]), 1e-9)
        rays *= np.minimum(1, 0.999 * own.reach / length)[:, None]
    return own.project(rays).reshape(len(directions), -1, 2).astype(np.float32)
