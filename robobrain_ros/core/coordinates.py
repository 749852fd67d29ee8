# SPDX-License-Identifier: Apache-2.0
"""Image sizes and coordinates on the way to the model and back.

x runs right and y down. Engines send images at a size that the model's processor keeps, so that
the frame of an answer is known; answers are mapped back per axis, u = x * W_camera / W_sent, as
upstream and annotation tools do. Whether a model means a pixel's corner or its centre is finer than
what it resolves: points are pixels, (0, 0) the centre of the top left one as in CameraInfo; the
sides of a box are edges, from 0 to W.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.families import AxisOrder, CoordinateFrame

MAX_ASPECT_RATIO = 200  # Qwen-VL's own limit
# Models answer the border itself (1000 of 1000, x2 = W) and sometimes a pixel or two beyond.
EDGE_TOLERANCE = 0.01

_RELATIVE_SPAN = {
    CoordinateFrame.RELATIVE_1000: 1000.0,
    CoordinateFrame.RELATIVE_100: 100.0,
    CoordinateFrame.RELATIVE_1: 1.0,
}


def sent_size(
    width: int, height: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """The (width, height) at which to send an image so that the processor does not resize it.

    Sides are multiples of `factor` with an area within [min_pixels, max_pixels] and nearly the
    image's aspect ratio. It is the size that Qwen-VL's `smart_resize` chooses, unless that rule
    would resize its own choice again, as it may for narrow images and close limits: then it is the
    nearest size that it keeps. Raises ValueError for an empty image, an aspect ratio above 200, or
    limits that no size meets.
    """
    size = _smart_resize(width, height, factor, min_pixels, max_pixels)
    if _smart_resize(*size, factor, min_pixels, max_pixels) == size:
        return size
    return _nearest_kept(width, height, factor, min_pixels, max_pixels)


def _nearest_kept(
    width: int, height: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Of all sizes in multiples of `factor` within the limits, the nearest in aspect ratio."""
    fewest, most = math.ceil(min_pixels / factor**2), max_pixels // factor**2
    ratio = max(width, height) / min(width, height)
    best: tuple[float, int, int] | None = None
    for short in range(1, math.isqrt(max(most, 0)) + 1):
        lower = max(short, math.ceil(fewest / short))
        upper = min(MAX_ASPECT_RATIO * short, most // short)
        if lower <= upper:
            long = min(max(round(short * ratio), lower), upper)
            distortion = abs(math.log(long / short / ratio))
            best = min(best or (math.inf, 0, 0), (distortion, short, long))
    if best is None:
        raise ValueError(
            f"an image of {width}x{height} pixels has no size in multiples of {factor} with "
            f"between {min_pixels} and {max_pixels} pixels: allow more pixels"
        )
    short, long = best[1] * factor, best[2] * factor
    return (long, short) if width > height else (short, long)


def _smart_resize(
    width: int, height: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """One application of Qwen-VL's rule; its rounding (half to even) and order of tests matter."""
    if min(width, height) < 1:
        raise ValueError(f"an image of {width}x{height} pixels is empty")
    if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
        raise ValueError(
            f"an image of {width}x{height} pixels is too narrow: "
            f"the longer side may be at most {MAX_ASPECT_RATIO} times the shorter one"
        )
    columns, rows = round(width / factor), round(height / factor)
    if columns * rows * factor**2 > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        columns = max(1, math.floor(width / shrink / factor))
        rows = max(1, math.floor(height / shrink / factor))
    elif columns * rows * factor**2 < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        columns = math.ceil(width * grow / factor)
        rows = math.ceil(height * grow / factor)
    return columns * factor, rows * factor


def to_image_pixels(
    points: ArrayLike,
    frame: CoordinateFrame,
    axis_order: AxisOrder,
    sent: tuple[int, int],
    image: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map a model's points (N, 2) to camera pixels.

    `sent` and `image` are (width, height) of the image as sent and as the camera took it. Returns
    points (N, 2) in (u, v) order and which of them (N,) lie in the image. Those beyond an edge by
    less than 1 % of the image's side are clipped to its last pixel; the others are left as they
    are, for the caller to drop.
    """
    pixels = _scaled(
        np.asarray(points, dtype=np.float64).reshape(-1, 2), frame, axis_order, sent, image
    )
    size = np.array(image, dtype=np.float64)
    return _clipped(pixels, size, size - 1)


def boxes_to_image_pixels(
    boxes: ArrayLike,
    frame: CoordinateFrame,
    axis_order: AxisOrder,
    sent: tuple[int, int],
    image: tuple[int, int],
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Map a model's boxes (M, 4) to camera pixels (left, top, right, bottom; 0 to W and H).

    Returns the boxes and which of them (M,) lie in the image, with the tolerance of
    `to_image_pixels` for each corner.
    """
    corners = np.asarray(boxes, dtype=np.float64).reshape(-1, 2)
    size = np.array(image, dtype=np.float64)
    pixels, inside = _clipped(_scaled(corners, frame, axis_order, sent, image), size, size)
    return pixels.reshape(-1, 4), inside[0::2] & inside[1::2]


def _scaled(
    points: NDArray[np.float64],
    frame: CoordinateFrame,
    axis_order: AxisOrder,
    sent: tuple[int, int],
    image: tuple[int, int],
) -> NDArray[np.float64]:
    if axis_order == "yx":
        points = points[:, ::-1]
    span = sent if frame is CoordinateFrame.SENT_PIXELS else (_RELATIVE_SPAN[frame],) * 2
    return points * (np.array(image, dtype=np.float64) / np.array(span, dtype=np.float64))


def _clipped(
    pixels: NDArray[np.float64], size: NDArray[np.float64], last: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    tolerance = EDGE_TOLERANCE * size
    near = (pixels >= -tolerance) & (pixels <= size + tolerance)
    inside = near[:, 0] & near[:, 1]
    return np.where(inside[:, None], np.clip(pixels, 0.0, last), pixels), inside
