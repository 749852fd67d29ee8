# SPDX-License-Identifier: Apache-2.0
"""Pixels and boxes of a camera image to 3D positions, normals and boxes in a target frame, with
their quality.

Pure: numpy in, dataclasses out; the one class that meets TF takes the buffer it is given. Units are
metres, quaternions (x, y, z, w), matrices `a_from_b` take points of frame b to frame a, and the
camera frame is the optical frame of REP-103 (x right, y down, z forward).
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.core.results import (
    IDENTITY_QUATERNION,
    LiftedPoint,
    LiftedRegion,
    LiftStatus,
    failed_point,
)
from robobrain_ros.lifting.depth_image import DepthImage, Intrinsics
from robobrain_ros.lifting.object_segmentation import surface_in_box
from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.plane_fitting import Surfaces, surfaces_at
from robobrain_ros.lifting.registration import against_view, cell_size, registered
from robobrain_ros.lifting.surface_selection import ColorImage, Evidence
from robobrain_ros.lifting.transforms import (
    checked_rigid,
    quaternion_from_matrix,
)

# A flying pixel or two at the silhouette must not stretch a 3D box.
_EXTENT_PERCENTILES = (0.2, 99.8)
_MIN_BOX = 4.0  # depth pixels; a thinner box is widened
_BOX_SURROUNDINGS = 0.25  # of a box's size, on each side: what segmentation.py looks at


def lift_points(
    pixels: ArrayLike,
    depth: DepthImage | None,
    color: Intrinsics | None,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None = None,
    rgb: NDArray[np.uint8] | None = None,
) -> list[LiftedPoint]:
    """Lift pixels (N, 2) of the color image; one result each, in order, with a status that says
    how it went.

    depth: of any size, in the color image's optical frame or with its pose in it; None gives
    NO_DEPTH_CAMERA. Depths in the results are along the color camera's axis in any case. color:
    may be None only without depth. target_from_camera: (4, 4) at the image's stamp; None gives
    NO_TRANSFORM, with depth and quality. rgb: (H, W, 3) the color image, which decides where two
    surfaces contest a pixel; DEPTH_HOLE where it can't. Raises ValueError for arguments of the
    wrong shape.
    """
    pixels = _rows(pixels, 2, "pixels")
    if depth is None:
        return [failed_point(pixel, LiftStatus.NO_DEPTH_CAMERA) for pixel in pixels]
    color = _required(color)
    rays = color.rays(pixels)
    if depth.color_from_depth is not None:
        return _lift_from_elsewhere(
            pixels, rays, depth, color, target_from_camera, parameters or LiftParameters(), rgb
        )
    return _lift(
        pixels, rays, depth.locate(rays, color), depth, color, target_from_camera, parameters, rgb
    )


def _lift_from_elsewhere(
    pixels: FloatArray,
    rays: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters,
    rgb: NDArray[np.uint8] | None,
) -> list[LiftedPoint]:
    """Lift pixels by the depth of another camera or moment, registered around them."""
    points = np.tile(pixels, 2) + [-1, -1, 1, 1]
    margin = parameters.max_patch_radius * cell_size(depth, color)
    near, seen = registered(depth, color, points, parameters, margin)
    located = near.locate(rays, color)
    located[~seen] = np.nan
    return _lift(pixels, rays, located, near, color, target_from_camera, parameters, rgb, depth)


def lift_boxes(
    boxes: ArrayLike,
    depth: DepthImage | None,
    color: Intrinsics | None,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None = None,
) -> list[LiftedRegion]:
    """Lift boxes (M, 4) x1, y1, x2, y2 of the color image to the object that each one shows.

    The object is told from the plane it stands on and from what is behind it by depth. A box's
    coordinates are of edges, 0 to W, while those of points are of pixel centres: the centre of
    pixel i is at i + 0.5 between the edges. Other arguments and errors as of `lift_points`.
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
    near, seen = registered(depth, color, boxes - 0.5, parameters, margins)
    return [
        _lift_box(box, near, color, target_from_camera, parameters, depth)
        if inside
        else _region(box, failed_point(_centre(box), LiftStatus.OUTSIDE_DEPTH_VIEW))
        for box, inside in zip(boxes, seen)
    ]


def _lift_box(
    box: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None,
    source: DepthImage | None = None,
) -> LiftedRegion:
    seen = _box_in_depth(box, depth, color)
    if seen is None:
        return _region(box, failed_point(_centre(box), LiftStatus.OUTSIDE_DEPTH_VIEW))
    intrinsics = depth.intrinsics(color)
    surface = surface_in_box(depth, intrinsics, seen, parameters or LiftParameters())
    located = (_middle(seen) if surface.pixel is None else surface.pixel)[None]
    rays = intrinsics.rays(located)
    pixels = color.project(rays)
    point = _lift(
        pixels, rays, located, depth, color, target_from_camera, parameters, source=source
    )[0]
    if surface.pixel is None and point.status in (LiftStatus.OK, LiftStatus.NO_TRANSFORM):
        point = failed_point(point.pixel, LiftStatus.DEPTH_HOLE)
    if point.position is None or target_from_camera is None:
        return _region(box, point, surface.valid_fraction)
    target = np.asarray(target_from_camera, dtype=np.float64)
    points = surface.points @ target[:3, :3].T + target[:3, 3]
    low, high = np.percentile(points, _EXTENT_PERCENTILES, axis=0)
    return _region(box, point, surface.valid_fraction, (low + high) / 2, high - low)


def _box_in_depth(box: FloatArray, depth: DepthImage, color: Intrinsics) -> FloatArray | None:
    """Map a box of edges to depth pixels, whose centres are whole numbers: cut at the borders of
    both images and at least a few pixels wide.

    None where the depth doesn't see it.
    """
    corners = np.sort(box.reshape(2, 2), axis=0) - 0.5
    # A comparison with NaN is false, so a box that isn't a number is refused here too.
    if not ((corners[0] <= [color.width, color.height]) & (corners[1] >= -1)).all():
        return None
    border = np.array([color.width, color.height]) - 0.5
    mapped = depth.intrinsics(color).project(color.rays(np.clip(corners, -0.5, border)))
    if not ((mapped[0] <= depth.size) & (mapped[1] >= -1)).all():
        return None
    last = np.array(depth.size) - 1
    low, high = np.clip(np.sort(mapped, axis=0), 0, last)
    thin = np.maximum(0, _MIN_BOX - (high - low)) / 2
    return np.concatenate([np.maximum(low - thin, 0), np.minimum(high + thin, last)])


def _lift(
    pixels: FloatArray,
    rays: FloatArray,
    located: FloatArray,
    depth: DepthImage,
    color: Intrinsics,
    target_from_camera: ArrayLike | None,
    parameters: LiftParameters | None,
    rgb: NDArray[np.uint8] | None = None,
    source: DepthImage | None = None,
) -> list[LiftedPoint]:
    """Lift color pixels (N, 2) with their rays (N, 2) and depth pixels (N, 2; NaN outside its
    view). source: what the depth was registered from, if it was.
    """
    parameters = parameters or LiftParameters()
    target = None if target_from_camera is None else checked_rigid(target_from_camera)
    seen: BoolArray = np.all(np.isfinite(located), axis=1)
    if not seen.any():
        return [failed_point(pixel, LiftStatus.OUTSIDE_DEPTH_VIEW) for pixel in pixels]
    asked, arms, located = pixels[seen], rays[seen], located[seen]
    intrinsics = depth.intrinsics(color)
    evidence = None
    if rgb is not None:
        image = ColorImage(rgb, color, intrinsics)

        def evidence(row: int, radius: int) -> Evidence:
            return image.evidence(asked[row], located[row], radius)

    surfaces = surfaces_at(depth, intrinsics, located, arms, parameters, evidence)
    outside = np.zeros(len(asked), bool)
    if source is not None:
        # Beside a hole a surface may have been carried on to where it can't be.
        points = surfaces.depth[:, None] * np.column_stack([arms, np.ones(len(arms))])
        inside, through = against_view(points, source, color, parameters)
        outside = ~inside & np.isfinite(surfaces.depth)
        surfaces.depth[through] = np.nan
    statuses = _statuses(surfaces.depth, outside, target is not None, parameters)
    placed = iter(_placed(asked, arms, surfaces, statuses, target, color, parameters))
    return [
        next(placed) if is_seen else failed_point(pixel, LiftStatus.OUTSIDE_DEPTH_VIEW)
        for pixel, is_seen in zip(pixels, seen)
    ]


def _statuses(
    depths: FloatArray,
    outside: BoolArray,
    has_transform: bool,
    parameters: LiftParameters,
) -> list[LiftStatus]:
    known = LiftStatus.OK if has_transform else LiftStatus.NO_TRANSFORM
    statuses = []
    for z, is_outside in zip(depths.tolist(), outside.tolist()):
        if is_outside:
            statuses.append(LiftStatus.OUTSIDE_DEPTH_VIEW)
        elif math.isnan(z):
            statuses.append(LiftStatus.DEPTH_HOLE)
        elif not parameters.min_depth <= z <= parameters.max_depth:
            statuses.append(LiftStatus.OUT_OF_RANGE)
        else:
            statuses.append(known)
    return statuses


def _placed(
    pixels: FloatArray,
    rays: FloatArray,
    surfaces: Surfaces,
    statuses: list[LiftStatus],
    target: FloatArray | None,
    color: Intrinsics,
    parameters: LiftParameters,
) -> list[LiftedPoint]:
    """Put the surfaces at pixels (N, 2) with rays (N, 2) into the target frame."""
    frame = np.eye(4) if target is None else target
    rotation = frame[:3, :3]
    arms = np.ones((len(rays), 3))
    arms[:, :2] = rays
    positions = (surfaces.depth[:, None] * arms) @ rotation.T + frame[:3, 3]
    orientations = _orientations(surfaces.normals, rotation)
    has_normal = np.isfinite(surfaces.normals[:, 0]).tolist()
    covariances = rotation @ _covariances(arms, surfaces, color, parameters) @ rotation.T
    depths, spreads = surfaces.depth.tolist(), surfaces.spread.tolist()
    shares = surfaces.valid_fraction.tolist()
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
                valid_fraction=shares[row],
                spread=spreads[row],
                covariance=covariances[row],
            )
        elif status is LiftStatus.NO_TRANSFORM:
            point = failed_point(pixels[row], status, shares[row], depths[row], spreads[row])
        else:
            point = failed_point(pixels[row], status, shares[row])
        points.append(point)
    return points


def _covariances(
    arms: FloatArray, surfaces: Surfaces, color: Intrinsics, parameters: LiftParameters
) -> FloatArray:
    """Covariances (N, 3, 3) in the camera frame of the points depth * arms (N, 3; z = 1).

    The depth's sigma is what the sensor promises or the surface's spread, whichever is larger; u
    and v have the sigma pixel_noise. It isn't divided by the number of pixels: a stereo matcher's
    errors are shared by neighbours.
    """
    sigma = np.maximum(parameters.sigma(surfaces.depth), surfaces.spread)
    along = sigma[:, None] * arms
    lateral = np.zeros_like(arms)
    lateral[:, :2] = surfaces.depth[:, None] * parameters.pixel_noise / np.diag(color.matrix)[:2]
    covariances: FloatArray = along[:, :, None] * along[:, None, :]
    covariances += (lateral**2)[:, :, None] * np.eye(3)
    return covariances


def _orientations(normals: FloatArray, target_from_camera: FloatArray) -> FloatArray:
    """Quaternions (N, 4) in the target frame: z along the normals (N, 3; camera frame) and x as
    near as possible to the camera's right; the identity where the normal is NaN.
    """
    quaternions = np.tile(IDENTITY_QUATERNION, (len(normals), 1))
    known = np.isfinite(normals).all(axis=1)
    z = normals[known]
    if not z.size:
        return quaternions
    x = np.array([1.0, 0.0, 0.0]) - z[:, :1] * z
    length = np.sqrt((x**2).sum(axis=1))
    # A surface that faces along the camera's right: y points up in the image instead.
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
    """Return the pixel (2,), whose centres are whole numbers, in the middle of a box of edges."""
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
        raise ValueError("Depth can't be lifted without the intrinsics of the color image.")
    return color
