# SPDX-License-Identifier: Apache-2.0
"""Camera intrinsics: pixels to rays and back, for the lens models of sensor_msgs/CameraInfo.

Pixel coordinates follow OpenCV and sensor_msgs/CameraInfo: (0, 0) is the centre of the top left
pixel, so an image of width W spans -0.5 to W - 0.5. A ray (x, y) has the direction (x, y, 1) in the
optical frame of REP-103 (x right, y down, z forward).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import FloatArray

# Numbers of coefficients that OpenCV accepts for the models of sensor_msgs/distortion_models.hpp.
_COEFFICIENTS = {"plumb_bob": (4, 5), "rational_polynomial": (8, 12, 14), "equidistant": (4,)}
_ALIASES = {"fisheye": "equidistant"}
# undistortPoints iterates; its default of five steps leaves errors of a pixel in wide-angle lenses.
_UNDISTORT_CRITERIA = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 40, 1e-10)
# A ray this far off the axis (89.4 degrees) comes from inverting a lens model outside its domain.
_MAX_RAY = 100.0
_MAX_REPROJECTION_ERROR = 0.1  # pixels; with a larger one the inversion has not converged
_ASPECT_TOLERANCE = 0.01
_MIN_FOCAL = 1e-3  # pixels; no lens comes near it, and a smaller one becomes 0 when resized


@dataclass(frozen=True, eq=False)
class Intrinsics:
    """A pinhole camera with lens distortion.

    width, height: pixels. matrix: (3, 3), K of CameraInfo; focal lengths may be negative, as
    drivers publish them that mirror or rotate an image within its frame. distortion: (n,)
    coefficients in OpenCV's order, empty without distortion; all zeros mean no distortion whatever
    the model, as in image_geometry. model: plumb_bob, rational_polynomial or equidistant (alias
    fisheye). Raises ValueError for values that describe no camera.
    """

    width: int
    height: int
    matrix: FloatArray
    distortion: FloatArray
    model: str = "plumb_bob"

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        distortion = np.array(self.distortion, dtype=np.float64).ravel()
        model = _ALIASES.get(self.model, self.model)
        if self.width < 1 or self.height < 1:
            raise ValueError(
                f"The camera info gives an image size of {self.width}x{self.height}: "
                "the driver must publish the size of its images."
            )
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all():
            raise ValueError(
                f"K must be nine finite numbers, got {matrix.tolist()}: calibrate the camera."
            )
        _check_focal(matrix, minimum=0.0)
        if np.any(matrix[[0, 1, 2, 2], [1, 0, 0, 1]]) or matrix[2, 2] != 1:
            raise ValueError(f"K must be [fx 0 cx; 0 fy cy; 0 0 1], got {matrix.tolist()}.")
        if not np.isfinite(distortion).all():
            raise ValueError(
                f"The distortion coefficients must be finite, got {distortion.tolist()}."
            )
        if not distortion.any():
            distortion = distortion[:0]
        elif len(distortion) not in _COEFFICIENTS.get(model, ()):
            known = ", ".join(f"{name} with {counts}" for name, counts in _COEFFICIENTS.items())
            raise ValueError(
                f"The distortion model '{self.model}' with {len(distortion)} coefficients is not "
                f"supported (supported: {known}): publish rectified images, or use one of these "
                "models."
            )
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "distortion", distortion)
        object.__setattr__(self, "model", model)

    @classmethod
    def from_camera_info(cls, info: Any, rectified: bool = False) -> Intrinsics:
        """Read the intrinsics of the published image from a sensor_msgs/CameraInfo.

        rectified: the image is rectified, so the left 3x3 of P holds, without distortion; R and the
        baseline in P's fourth column are ignored, because positions are in the rectified camera's
        own optical frame. K, P and the size in the message refer to the full sensor; the region of
        interest (offset in sensor pixels) is cropped from it, then binned. Binning averages pixels
        (CameraInfo.msg), so the centre of a binned pixel is the centre of its neighbourhood:
        c' = (c - offset + 1/2) / binning - 1/2. image_geometry::PinholeCameraModel omits the
        halves, an error of (binning - 1) / (2 binning) pixels. Raises ValueError for a camera that
        is not calibrated or whose model is not supported.
        """
        if rectified:
            matrix = _reshaped(info.p, (3, 4), "P must have twelve")[:, :3]
            distortion = np.empty(0)
            if not matrix.any():
                raise ValueError(
                    "P of the camera info is empty (all zeros): configure the images as not "
                    "rectified, or calibrate the camera."
                )
        else:
            matrix = _reshaped(info.k, (3, 3), "K must have nine")
            distortion = np.array(info.d, dtype=np.float64)
        _check_focal(matrix, _MIN_FOCAL)
        offset, size = _region(info)
        # 0 means 1 (CameraInfo.msg).
        binning = [max(1, int(getattr(info, name, 0))) for name in ("binning_x", "binning_y")]
        matrix = matrix.copy()
        matrix[:2, 2] += 0.5 - np.array(offset)
        matrix[:2] /= np.array(binning)[:, None]
        matrix[:2, 2] -= 0.5
        width, height = (side // step for side, step in zip(size, binning))
        return cls(width, height, matrix, distortion, info.distortion_model)

    @cached_property
    def focal(self) -> float:
        """Mean focal length in pixels, above 0."""
        return float(abs(self.matrix[0, 0]) + abs(self.matrix[1, 1])) / 2

    @cached_property
    def _focals(self) -> FloatArray:
        return np.array([self.matrix[0, 0], self.matrix[1, 1]])

    def scaled(self, width: int, height: int) -> Intrinsics:
        """Return the intrinsics of the same image resized to width x height.

        As in cv2.resize, the image's outer border stays in place, not the centres of its border
        pixels.
        """
        scale = np.array([width / self.width, height / self.height])
        matrix = self.matrix.copy()
        matrix[:2] *= scale[:, None]
        matrix[:2, 2] += (scale - 1) / 2
        return Intrinsics(width, height, matrix, self.distortion, self.model)

    def fitted(self, width: int, height: int) -> Intrinsics:
        """Return the intrinsics for an image of this size: the same image, possibly resized.

        Raises ValueError when the aspect ratios differ by more than 1 %, because the camera info
        then describes another image.
        """
        if (self.width, self.height) == (width, height):
            return self
        stretch = (width * self.height) / (height * self.width) if height > 0 else 0.0
        if abs(stretch - 1) > _ASPECT_TOLERANCE:
            raise ValueError(
                f"The image is {width}x{height}, but its camera info describes one of "
                f"{self.width}x{self.height}: they don't belong together. Check that both topics "
                "belong to the same camera and that the camera info contains the driver's binning "
                "and region of interest."
            )
        return self.scaled(width, height)

    def rays(self, pixels: FloatArray) -> FloatArray:
        """Undistorted rays (N, 2) of pixels (N, 2); NaN where the lens model has no ray."""
        if not self.distortion.size:
            return (pixels - self.matrix[:2, 2]) / self._focals
        rays = np.full(pixels.shape, np.nan)
        finite = np.isfinite(pixels).all(axis=1)
        if not finite.any():
            return rays
        points = np.ascontiguousarray(pixels[finite])
        if self.model == "equidistant":
            found = cv2.fisheye.undistortPoints(points[:, None], self.matrix, self.distortion)
        else:
            found = cv2.undistortPointsIter(
                points[:, None],
                self.matrix,
                self.distortion,
                np.eye(3),
                np.eye(3),
                _UNDISTORT_CRITERIA,
            )
        # Outside the model's domain OpenCV returns the ray of some other pixel.
        error = np.abs(self.project(found[:, 0]) - points).max(axis=1)
        rays[finite] = np.where((error < _MAX_REPROJECTION_ERROR)[:, None], found[:, 0], np.nan)
        return rays

    def project(self, rays: FloatArray) -> FloatArray:
        """Distorted pixels (N, 2) of rays (N, 2).

        NaN for a ray that is not finite or lies outside the lens model's domain, where it would be
        mapped back into the image.
        """
        if not self.distortion.size:
            return rays * self._focals + self.matrix[:2, 2]
        with np.errstate(over="ignore"):
            inside = rays[:, 0] ** 2 + rays[:, 1] ** 2 <= self.max_radius**2
        if len(self.distortion) == 14:
            return self._project_tilted(rays, inside)
        # In numpy: cv2.projectPoints takes twenty times as long, because it computes derivatives.
        x, y = np.where(inside, rays.T, np.nan)
        squared = x**2 + y**2
        radial = self._radial(squared)
        distorted = np.array([x * radial, y * radial])
        if self.model != "equidistant":
            p1, p2 = self.distortion[2:4]
            distorted[0] += 2 * p1 * x * y + p2 * (squared + 2 * x**2)
            distorted[1] += 2 * p2 * x * y + p1 * (squared + 2 * y**2)
            if len(self.distortion) == 12:
                s1, s2, s3, s4 = self.distortion[8:12]
                distorted[0] += squared * (s1 + s2 * squared)
                distorted[1] += squared * (s3 + s4 * squared)
        distorted *= self._focals[:, None]
        distorted += self.matrix[:2, 2:]
        return distorted.T

    def back_project(self, pixels: FloatArray, depths: ArrayLike) -> FloatArray:
        """Points (N, 3) in the optical frame of pixels (N, 2) at depths (N,); metres.

        A depth is the point's z, not its distance; NaN (a hole) gives a NaN point, as does a pixel
        that the lens model has no ray for.
        """
        points: FloatArray = ray_directions(self.rays(pixels)) * np.asarray(depths)[:, None]
        return points

    @cached_property
    def max_radius(self) -> float:
        """Length of a ray up to which the lens model is invertible; inf without distortion."""
        if not self.distortion.size:
            return math.inf
        lengths = np.tan(np.linspace(0, math.atan(_MAX_RAY), 2000))
        distorted = lengths * self._radial(lengths**2)
        turns = np.flatnonzero(~(np.diff(distorted) > 0))
        return float(lengths[turns[0]] if turns.size else _MAX_RAY)

    def _radial(self, squared: FloatArray) -> FloatArray:
        """Radial distortion factors (N,) of rays with these squared lengths (N,).

        Formulas of OpenCV's calib3d (pinhole and fisheye), to which CameraInfo refers.
        """
        d = self.distortion
        if self.model == "equidistant":
            length = np.sqrt(np.maximum(squared, 1e-24))
            angle = np.arctan(length)
            a2 = angle**2
            return angle / length * (1 + a2 * (d[0] + a2 * (d[1] + a2 * (d[2] + a2 * d[3]))))
        k3 = d[4] if len(d) > 4 else 0.0
        factor = 1 + squared * (d[0] + squared * (d[1] + squared * k3))
        if len(d) > 5:
            divisor = 1 + squared * (d[5] + squared * (d[6] + squared * d[7]))
            # Beyond its first pole a rational model is undefined.
            factor = factor / np.where(divisor > 0, divisor, np.nan)
        radial: FloatArray = factor
        return radial

    def _project_tilted(self, rays: FloatArray, inside: NDArray[np.bool_]) -> FloatArray:
        pixels = np.full(rays.shape, np.nan)
        if inside.any():
            points = np.column_stack([rays[inside], np.ones(inside.sum())])[:, None]
            found, _ = cv2.projectPoints(
                points, np.zeros(3), np.zeros(3), self.matrix, self.distortion
            )
            pixels[inside] = found.reshape(-1, 2)
        return pixels


def ray_directions(rays: FloatArray) -> FloatArray:
    """Directions (..., 3) in the optical frame of rays (..., 2): x, y and z = 1."""
    directions = np.ones((*rays.shape[:-1], 3))
    directions[..., :2] = rays
    return directions


def _check_focal(matrix: FloatArray, minimum: float) -> None:
    focals = matrix[0, 0], matrix[1, 1]
    if min(map(abs, focals)) <= minimum:
        raise ValueError(
            f"The focal lengths are {focals[0]:g} and {focals[1]:g}: the camera is not calibrated. "
            "Calibrate it, or let the driver publish its factory calibration."
        )


def _reshaped(values: Any, shape: tuple[int, int], complaint: str) -> FloatArray:
    matrix = np.array(values, dtype=np.float64)
    if matrix.size != shape[0] * shape[1]:
        raise ValueError(f"{complaint} numbers, got {matrix.size}.")
    return matrix.reshape(shape)


def _region(info: Any) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return offset and size, in sensor pixels, of the region that the image covers.

    A size of 0 means the rest of the sensor, all of it without an offset (CameraInfo.msg).
    """
    roi = getattr(info, "roi", None)
    if roi is None:
        return (0, 0), (int(info.width), int(info.height))
    x, y = int(roi.x_offset), int(roi.y_offset)
    return (x, y), (int(roi.width) or int(info.width) - x, int(roi.height) or int(info.height) - y)
