# SPDX-License-Identifier: Apache-2.0
"""Lifting: pixels and boxes of a color image to 3D positions, normals and boxes, with quality.

Units and frames as in tf_projection.py.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from robobrain_ros.core.arrays import BoolArray, FloatArray, RgbImage
from robobrain_ros.core.results import (
    IDENTITY_QUATERNION,
    LiftedPoint,
    LiftedRegion,
    LiftStatus,
    failed_point,
)
from robobrain_ros.lifting.depth_image import DepthImage
from robobrain_ros.lifting.intrinsics import Intrinsics, ray_directions
from robobrain_ros.lifting.object_segmentation import segment_object
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.plane_fitting import Surfaces, fit_surfaces
from robobrain_ros.lifting.registration import cell_size, check_visibility, register_depth
from robobrain_ros.lifting.surface_selection import ColorImage, ColorPatch
from robobrain_ros.lifting.transforms import checked_rigid, quaternion_from_matrix

# A few flying pixels at the silhouette must not enlarge a 3D box.
_EXTENT_PERCENTILES = (0.2, 99.8)
_MIN_BOX = 4.0  # depth pixels; a narrower box is widened
_BOX_SURROUNDINGS = 0.25  # of a box's size, on each side: what object_segmentation.py uses


def lift_points(
    pixels: ArrayLike,
    depth: DepthImage | None,
    color: Intrinsics | None,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None = None,
    rgb: RgbImage | None = None,
) -> list[LiftedPoint]:
    """Lift pixels (N, 2) of the color image; one result per pixel, in order.

    depth: of any size, in the color image's optical frame or with its pose in that frame; None
    gives NO_DEPTH_CAMERA. Depths in the results are along the color camera's optical axis in either
    case. color: intrinsics of the color image, None only without depth. target_from_camera: (4, 4)
    at the image's stamp; None gives NO_TRANSFORM, with depth and quality. rgb: (H, W, 3) the color
    image, by which a surface is selected at depth edges and holes; DEPTH_HOLE where it is
    inconclusive. Raises ValueError for arguments of the wrong shape.
    """
    pixels = _rows(pixels, 2, "pixels")
    if depth is None:
        return [failed_point(pixel, LiftStatus.NO_DEPTH_CAMERA) for pixel in pixels]
    color = _required(color)
    rays = color.rays(pixels)
    if depth.color_from_depth is not None:
        return _lift_registered(
            pixels, rays, depth, color, target_from_camera, parameters or LiftParameters(), rgb
        )
    return _lift(
        pixels, rays, depth.locate(rays, color), depth, color, target_from_camera, parameters, rgb
    )


def _lift_registered(
    pixels: FloatArray,
    rays: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters,
    rgb: RgbImage | None,
) -> list[LiftedPoint]:
    """Lift pixels by depth of another camera or time, registered to color around them."""
    points = np.tile(pixels, 2) + [-1, -1, 1, 1]
    margin = parameters.max_patch_radius * cell_size(depth, color)
    registered, visible = register_depth(depth, color, points, parameters, margin)
    depth_pixels = registered.locate(rays, color)
    depth_pixels[~visible] = np.nan
    return _lift(
        pixels, rays, depth_pixels, registered, color, target_from_camera, parameters, rgb, depth
    )


def lift_boxes(
    boxes: ArrayLike,
    depth: DepthImage | None,
    color: Intrinsics | None,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None = None,
) -> list[LiftedRegion]:
    """Lift boxes (M, 4) x1, y1, x2, y2 of the color image to the object in each of them.

    The object is segmented by depth from its supporting plane and the background. Boxes have edge
    coordinates, 0 to W, whereas points have those of pixel centres: the centre of pixel i is at
    i + 0.5 between the edges. Other arguments and errors as of `lift_points`.
    """
    boxes = _rows(boxes, 4, "boxes")
    if depth is None:
        return [
            _region(box, failed_point(_centre(box), LiftStatus.NO_DEPTH_CAMERA)) for box in boxes
        ]
    color = _required(color)
    if depth.color_from_depth is None:
        return [_lift_box(box, depth, color, target_from_camera, parameters) for box in boxes]
    parameters = parameters or LiftParameters()
    margins = np.maximum(
        _BOX_SURROUNDINGS * np.abs(boxes[:, 2:] - boxes[:, :2]),
        parameters.max_patch_radius * cell_size(depth, color),
    )
    registered, visible = register_depth(depth, color, boxes - 0.5, parameters, margins)
    return [
        _lift_box(box, registered, color, target_from_camera, parameters, depth)
        if is_visible
        else _region(box, failed_point(_centre(box), LiftStatus.OUTSIDE_DEPTH_VIEW))
        for box, is_visible in zip(boxes, visible)
    ]


def _lift_box(
    box: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None,
    source: DepthImage | None = None,
) -> LiftedRegion:
    depth_box = _depth_box(box, depth, color)
    if depth_box is None:
        return _region(box, failed_point(_centre(box), LiftStatus.OUTSIDE_DEPTH_VIEW))
    intrinsics = depth.intrinsics(color)
    found = segment_object(depth, intrinsics, depth_box, parameters or LiftParameters())
    depth_pixels = (_middle(depth_box) if found.pixel is None else found.pixel)[None]
    rays = intrinsics.rays(depth_pixels)
    pixels = color.project(rays)
    point = _lift(
        pixels, rays, depth_pixels, depth, color, target_from_camera, parameters, source=source
    )[0]
    if found.pixel is None and point.status in (LiftStatus.OK, LiftStatus.NO_TRANSFORM):
        point = failed_point(point.pixel, LiftStatus.DEPTH_HOLE)
    if point.position is None or target_from_camera is None:
        return _region(box, point, found.valid_fraction)
    target = np.asarray(target_from_camera, dtype=np.float64)
    points = found.points @ target[:3, :3].T + target[:3, 3]
    low, high = np.percentile(points, _EXTENT_PERCENTILES, axis=0)
    return _region(box, point, found.valid_fraction, (low + high) / 2, high - low)


def _depth_box(box: FloatArray, depth: DepthImage, color: Intrinsics) -> FloatArray | None:
    """Map a box with edge coordinates (4,) to depth pixels (4,), whose centres are whole numbers.

    Clipped to both images and at least a few pixels wide; None outside the depth's view.
    """
    corners = np.sort(box.reshape(2, 2), axis=0) - 0.5
    # NaN compares as false, so a box that is not a number is rejected here as well.
    if not ((corners[0] <= [color.width, color.height]) & (corners[1] >= -1)).all():
        return None
    border = np.array([color.width, color.height]) - 0.5
    mapped = depth.intrinsics(color).project(color.rays(np.clip(corners, -0.5, border)))
    if not ((mapped[0] <= depth.size) & (mapped[1] >= -1)).all():
        return None
    last = np.array(depth.size) - 1
    low, high = np.clip(np.sort(mapped, axis=0), 0, last)
    widening = np.maximum(0, _MIN_BOX - (high - low)) / 2
    return np.concatenate([np.maximum(low - widening, 0), np.minimum(high + widening, last)])


def _lift(
    pixels: FloatArray,
    rays: FloatArray,
    depth_pixels: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None,
    rgb: RgbImage | None = None,
    source: DepthImage | None = None,
) -> list[LiftedPoint]:
    """Lift color pixels (N, 2), given their rays (N, 2) and depth pixels (N, 2).

    Depth pixels are NaN outside the depth's view. source: the depth image that `depth` was
    registered from, if any.
    """
    parameters = parameters or LiftParameters()
    target = None if target_from_camera is None else checked_rigid(target_from_camera)
    visible: BoolArray = np.all(np.isfinite(depth_pixels), axis=1)
    if not visible.any():
        return [failed_point(pixel, LiftStatus.OUTSIDE_DEPTH_VIEW) for pixel in pixels]
    query_pixels, rays, depth_pixels = pixels[visible], rays[visible], depth_pixels[visible]
    intrinsics = depth.intrinsics(color)
    color_patch = None
    if rgb is not None:
        image = ColorImage(rgb, color, intrinsics)

        def color_patch(row: int, radius: int) -> ColorPatch:
            return image.patch(query_pixels[row], depth_pixels[row], radius)

    surfaces = fit_surfaces(depth, intrinsics, depth_pixels, rays, parameters, color_patch)
    outside = np.zeros(len(query_pixels), bool)
    if source is not None:
        # At a hole a surface may have been extrapolated to where the depth camera saw free space.
        points = surfaces.depth[:, None] * ray_directions(rays)
        inside, is_free = check_visibility(points, source, color, parameters)
        outside = ~inside & np.isfinite(surfaces.depth)
        surfaces.depth[is_free] = np.nan
    statuses = _statuses(surfaces.depth, outside, target is not None, parameters)
    lifted = iter(_results(query_pixels, rays, surfaces, statuses, target, color, parameters))
    return [
        next(lifted) if is_visible else failed_point(pixel, LiftStatus.OUTSIDE_DEPTH_VIEW)
        for pixel, is_visible in zip(pixels, visible)
    ]


def _statuses(
    depths: FloatArray,
    outside: BoolArray,
    has_transform: bool,
    parameters: LiftParameters,
) -> list[LiftStatus]:
    measured = LiftStatus.OK if has_transform else LiftStatus.NO_TRANSFORM
    statuses = []
    for z, is_outside in zip(depths.tolist(), outside.tolist()):
        if is_outside:
            statuses.append(LiftStatus.OUTSIDE_DEPTH_VIEW)
        elif math.isnan(z):
            statuses.append(LiftStatus.DEPTH_HOLE)
        elif not parameters.min_depth <= z <= parameters.max_depth:
            statuses.append(LiftStatus.OUT_OF_RANGE)
        else:
            statuses.append(measured)
    return statuses


def _results(
    pixels: FloatArray,
    rays: FloatArray,
    surfaces: Surfaces,
    statuses: list[LiftStatus],
    target: FloatArray | None,
    color: Intrinsics,
    parameters: LiftParameters,
) -> list[LiftedPoint]:
    """Results in the target frame of the surfaces at pixels (N, 2) with rays (N, 2)."""
    frame = np.eye(4) if target is None else target
    rotation = frame[:3, :3]
    directions = ray_directions(rays)
    positions = (surfaces.depth[:, None] * directions) @ rotation.T + frame[:3, 3]
    orientations = _orientations(surfaces.normals, rotation)
    has_normal = np.isfinite(surfaces.normals[:, 0]).tolist()
    covariances = rotation @ _covariances(directions, surfaces, color, parameters) @ rotation.T
    depths, spreads = surfaces.depth.tolist(), surfaces.spread.tolist()
    valid_fractions = surfaces.valid_fraction.tolist()
    points = []
    for row, status in enumerate(statuses):
        if status is LiftStatus.OK:
            point = LiftedPoint(
                pixel=pixels[row],
                status=status,
                position=positions[row],
                orientation=orientations[row],
                has_normal=has_normal[row],
                depth=depths[row],
                valid_fraction=valid_fractions[row],
                spread=spreads[row],
                covariance=covariances[row],
            )
        elif status is LiftStatus.NO_TRANSFORM:
            point = failed_point(
                pixels[row], status, valid_fractions[row], depths[row], spreads[row]
            )
        else:
            point = failed_point(pixels[row], status, valid_fractions[row])
        points.append(point)
    return points


def _covariances(
    directions: FloatArray, surfaces: Surfaces, color: Intrinsics, parameters: LiftParameters
) -> FloatArray:
    """Covariances (N, 3, 3) in the camera frame of the points depth * directions (N, 3; z = 1).

    The sigma of the depth is the larger of the sensor's noise and the surface's spread, that of u
    and v is pixel_noise. They are not divided by the number of pixels, because the errors of a
    stereo matcher are correlated between neighbours.
    """
    sigma = np.maximum(parameters.sigma(surfaces.depth), surfaces.spread)
    along = sigma[:, None] * directions
    lateral = np.zeros_like(directions)
    lateral[:, :2] = surfaces.depth[:, None] * parameters.pixel_noise / np.diag(color.matrix)[:2]
    covariances: FloatArray = along[:, :, None] * along[:, None, :]
    covariances += (lateral**2)[:, :, None] * np.eye(3)
    return covariances


def _orientations(normals: FloatArray, target_from_camera: FloatArray) -> FloatArray:
    """Quaternions (N, 4) in the target frame of surfaces with normals (N, 3) in the camera frame.

    z is along the normal, x as close as possible to the camera's right; the identity where the
    normal is NaN.
    """
    quaternions = np.tile(IDENTITY_QUATERNION, (len(normals), 1))
    known = np.isfinite(normals).all(axis=1)
    z = normals[known]
    if not z.size:
        return quaternions
    x = np.array([1.0, 0.0, 0.0]) - z[:, :1] * z
    length = np.sqrt((x**2).sum(axis=1))
    # The normal is along the camera's right: y points up in the image instead.
    sideways = length < 1e-3
    if sideways.any():
        x[sideways] = np.cross([0.0, -1.0, 0.0], z[sideways])
        length[sideways] = np.linalg.norm(x[sideways], axis=1)
    x /= length[:, None]
    y = z[:, [1, 2, 0]] * x[:, [2, 0, 1]] - z[:, [2, 0, 1]] * x[:, [1, 2, 0]]
    camera_from_surface = np.stack([x, y, z], axis=-1)
    quaternions[known] = quaternion_from_matrix(target_from_camera @ camera_from_surface)
    return quaternions


def _region(
    box: FloatArray,
    point: LiftedPoint,
    valid_fraction: float = 0.0,
    centre: FloatArray | None = None,
    size: FloatArray | None = None,
) -> LiftedRegion:
    return LiftedRegion(
        box=box,
        pixel=point.pixel,
        status=point.status,
        position=point.position,
        orientation=point.orientation,
        has_normal=point.has_normal,
        centre=np.zeros(3) if centre is None else centre,
        size=np.zeros(3) if size is None else size,
        box_orientation=IDENTITY_QUATERNION.copy(),
        depth=point.depth,
        valid_fraction=valid_fraction,
        spread=point.spread,
        covariance=point.covariance,
    )


def _middle(box: FloatArray) -> FloatArray:
    return (box[:2] + box[2:]) / 2


def _centre(box: FloatArray) -> FloatArray:
    """Pixel (2,) at the centre of a box with edge coordinates (4,)."""
    return _middle(box) - 0.5


def _rows(values: ArrayLike, columns: int, name: str) -> FloatArray:
    rows = np.array(values, dtype=np.float64)
    if rows.size == 0:
        return rows.reshape(0, columns)
    if rows.ndim != 2 or rows.shape[1] != columns:
        raise ValueError(f"{name} must have the shape (N, {columns}), not {rows.shape}.")
    return rows


def _required(color: Intrinsics | None) -> Intrinsics:
    if color is None:
        raise ValueError(
            "Depth can't be lifted without the intrinsics of the color image: pass them as `color`."
        )
    return color
