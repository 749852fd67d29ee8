# SPDX-License-Identifier: Apache-2.0
"""A camera's intrinsics and its depth image, converted to metres only where somebody looks.

Pixel coordinates follow OpenCV and sensor_msgs/CameraInfo: (0, 0) is the centre of the top left
pixel, so an image of width W spans -0.5 to W - 0.5. A ray is (x, y) with the direction (x, y, 1) in
the optical frame of REP-103 (x right, y down, z forward); a depth is the z of a point, not its
distance.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]

# Coefficient counts that OpenCV takes for each model of sensor_msgs/distortion_models.hpp.
_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
# undistortPoints iterates; its default of five steps leaves errors of a pixel in wide lenses.
_UNDISTORT_UNTIL = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-10)
# A ray this far from the axis (89.4 degrees) comes from inverting a lens model outside its domain.
_MAX_RAY = 100.0


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """A pinhole camera with lens distortion.

    width, height: pixels. matrix: (3, 3), K of CameraInfo. distortion: (n,) coefficients in
    OpenCV's order, empty for none. model: plumb_bob, rational_polynomial or equidistant. Raises
    ValueError with a sentence when the values describe no camera.
    """

    width: int
    height: int
    matrix: FloatArray
    distortion: FloatArray
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        distortion = np.array(self.distortion, dtype=np.float64).ravel()
        if self.width < 1 or self.height < 1:
            raise ValueError(
                f"The camera info gives an image size of {self.width}x{self.height}: "
                "the driver must publish the size of its images."
            )
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise ValueError(
                f"K must be nine finite numbers, got {matrix.tolist()}: calibrate the camera."
            )
        if matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
            raise ValueError(
                f"The focal lengths in K are {matrix[0, 0]:g} and {matrix[1, 1]:g}: the camera is "
                "not calibrated. Calibrate it, or let the driver publish its factory calibration."
            )
        if np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]) or matrix[2, 2] != 1:
            raise ValueError(f"K must be [fx 0 cx; 0 fy cy; 0 0 1], got {matrix.tolist()}.")
        if not np.isfinite(distortion).all():
            raise ValueError(
                f"The distortion coefficients must be finite, got {distortion.tolist()}."
            )
        if not distortion.any():
            distortion = distortion[:0]
        elif len(distortion) not in _COEFFICIENTS.get(self.model, ()):
            known = ", ".join(f"{name} with {counts}" for name, counts in _COEFFICIENTS.items())
            raise ValueError(
                f"The distortion model '{self.model}' with {len(distortion)} coefficients is not "
                f"known (known: {known}): publish a rectified image, or one of these models."
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "distortion", distortion)

    @classmethod
    def from_camera_info(cls, info: Any) -> Intrinsics:
        """Take K, D and the size of a sensor_msgs/CameraInfo, or of anything with the same fields.

        Raises ValueError with a sentence for an uncalibrated or unknown camera.
        """
        matrix = np.array(info.k, dtype=np.float64)
        if matrix.size != 9:
            raise ValueError(f"K must have nine numbers, got {matrix.size}.")
        distortion = np.array(info.d, dtype=np.float64)
        return cls(
            int(info.width),
            int(info.height),
            matrix.reshape(3, 3),
            distortion,
            info.distortion_model,
        )

    @property
    def focal(self) -> float:
        """The mean focal length in pixels."""
        return float(self._focals.mean())

    @cached_property
    def _focals(self) -> FloatArray:
        return np.array([self.matrix[0, 0], self.matrix[1, 1]])

    def scaled(self, width: int, height: int) -> Intrinsics:
        """Return the intrinsics of the same image resized to width x height.

        Pixel areas keep their place, as in cv2.resize: the outer border of the image stays its
        outer border.
        """
        scale = np.array([width / self.width, height / self.height])
        matrix = self.matrix.copy()
        matrix[:2] *= scale[:, None]
        matrix[:2, 2] += (scale - 1) / 2
        return Intrinsics(width, height, matrix, self.distortion, self.model)

    def rays(self, pixels: FloatArray) -> FloatArray:
        """Pixels (N, 2) to undistorted rays (N, 2); NaN where the lens model has no ray for a
        pixel.
        """
        if not self.distortion.size:
            return (pixels - self.matrix[:2, 2]) / self._focals
        finite = np.isfinite(pixels).all(axis=1)
        rays = np.full(pixels.shape, np.nan)
        if finite.any():
            points = np.ascontiguousarray(pixels[finite])[:, None]
            if self.model == "equidistant":
                found = cv2.fisheye.undistortPoints(points, self.matrix, self.distortion)
                # OpenCV clamps a distorted angle at 90 degrees instead of refusing it.
                angles = np.linalg.norm((points - self.matrix[:2, 2]) / self._focals, axis=-1)
                found[angles >= math.pi / 2] = np.nan
            else:
                found = cv2.undistortPointsIter(
                    points, self.matrix, self.distortion, np.eye(3), np.eye(3), _UNDISTORT_UNTIL
                )
            rays[finite] = found[:, 0]
        rays[~(np.abs(rays) < _MAX_RAY).all(axis=1)] = np.nan
        return rays

    def project(self, rays: FloatArray) -> FloatArray:
        """Rays (N, 2) to distorted pixels (N, 2); NaN for a ray that isn't finite."""
        if not self.distortion.size:
            return rays * self._focals + self.matrix[:2, 2]
        pixels = np.full(rays.shape, np.nan)
        finite = np.isfinite(rays).all(axis=1)
        if finite.any():
            points = np.column_stack([rays[finite], np.ones(finite.sum())])[:, None]
            project = (
                cv2.fisheye.projectPoints if self.model == "equidistant" else cv2.projectPoints
            )
            found, _ = project(points, np.zeros(3), np.zeros(3), self.matrix, self.distortion)
            pixels[finite] = found.reshape(-1, 2)
        return pixels


def depth_to_metres(array: ArrayLike, encoding: str) -> NDArray[np.float32]:
    """Convert a depth image, or any part of one, to float32 metres with holes as NaN (REP-118).

    16UC1 and mono16 are millimetres with 0 as the hole; 32FC1 is metres with NaN, infinity or <= 0
    as the hole. Raises ValueError for another encoding, and for an array whose type isn't the
    encoding's.
    """
    raw = np.asarray(array)
    _check_encoding(raw, encoding)
    metres = raw.astype(np.float32)
    if raw.dtype.kind == "u":
        metres *= np.float32(1e-3)
    metres[~((metres > 0) & np.isfinite(metres))] = np.nan
    return metres


def _check_encoding(raw: NDArray[Any], encoding: str) -> None:
    expected = {"16UC1": "u2", "mono16": "u2", "32FC1": "f4"}.get(encoding)
    if expected is None:
        raise ValueError(
            f"The depth encoding '{encoding}' is not known: publish 16UC1 (mm) or 32FC1 (m)."
        )
    if f"{raw.dtype.kind}{raw.dtype.itemsize}" != expected:
        raise ValueError(f"Depth of encoding {encoding} can't be an array of {raw.dtype}.")


@dataclass(frozen=True, eq=False)
class DepthImage:
    """A depth image as it came, (H, W); only the pixels that are asked for are ever converted.

    own_intrinsics: None when the depth is registered to the colour image, whose intrinsics then
    hold, scaled per axis where the two differ in size. Raises ValueError for an encoding or shape
    that is no depth image.
    """

    array: NDArray[Any]
    encoding: str
    own_intrinsics: Intrinsics | None = None

    def __post_init__(self) -> None:
        _check_encoding(self.array, self.encoding)
        if self.array.ndim != 2 or not self.array.size:
            raise ValueError(f"A depth image has the shape (H, W), not {self.array.shape}.")

    @cached_property
    def size(self) -> tuple[int, int]:
        """Width and height in pixels."""
        height, width = self.array.shape
        return width, height

    def intrinsics(self, colour: Intrinsics) -> Intrinsics:
        """Return the intrinsics that hold for this array: its own or the colour image's, at its
        size.
        """
        source = self.own_intrinsics or colour
        if (source.width, source.height) == self.size:
            return source
        return source.scaled(*self.size)

    def locate(self, rays: FloatArray, colour: Intrinsics) -> FloatArray:
        """Where rays (N, 2) of the colour camera meet this image: pixels (N, 2), NaN outside its
        view.

        Colour and depth share the optical frame. A pixel's width beyond the border still counts as
        the border, because models answer an image's very edge.
        """
        pixels = self.intrinsics(colour).project(rays)
        edge = np.array(self.size) - 1.0
        with np.errstate(invalid="ignore"):
            inside: NDArray[np.bool_] = np.all((pixels >= -1) & (pixels <= edge + 1), axis=1)
        return np.where(inside[:, None], np.clip(pixels, 0, edge), np.nan)

    def patches(
        self, pixels: FloatArray, radius: int
    ) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Square patches around pixels (N, 2): metres (N, S, S) with S = 2 radius + 1, and which of
        them exist.

        Holes and what lies beyond the border are NaN in the metres.
        """
        width, height = self.size
        steps = np.arange(-radius, radius + 1)
        centres = np.rint(pixels).astype(np.intp)
        columns = (centres[:, 0, None] + steps)[:, None, :]
        rows = (centres[:, 1, None] + steps)[:, :, None]
        exists = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
        raw = self.array[np.clip(rows, 0, height - 1), np.clip(columns, 0, width - 1)]
        metres = depth_to_metres(raw, self.encoding)
        metres[~exists] = np.nan
        return metres, exists

    def window(self, box: FloatArray, max_samples: int) -> Window:
        """The depth inside a box (x1, y1, x2, y2), thinned out evenly to about `max_samples`
        pixels.
        """
        width, height = self.size
        left, right = (math.floor(np.clip(x, 0, width - 1)) for x in box[[0, 2]])
        top, bottom = (math.floor(np.clip(y, 0, height - 1)) for y in box[[1, 3]])
        area = (right + 1 - left) * (bottom + 1 - top)
        step = max(1, math.ceil(math.sqrt(area / max_samples)))
        columns = np.arange(left, right + 1, step)
        rows = np.arange(top, bottom + 1, step)
        metres = depth_to_metres(
            self.array[top : bottom + 1 : step, left : right + 1 : step], self.encoding
        )
        return Window(
            metres, np.stack(np.meshgrid(columns, rows), axis=-1).astype(np.float64), step
        )


@dataclass(frozen=True, eq=False)
class Window:
    """A part of a depth image: metres (h, w), its pixels (h, w, 2), and the step between them in
    pixels.
    """

    metres: NDArray[np.float32]
    pixels: FloatArray
    step: int


__all__ = ["DepthImage", "Intrinsics", "Window", "depth_to_metres"]
