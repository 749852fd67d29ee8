# SPDX-License-Identifier: Apache-2.0
"""Error model of a stereo depth camera such as Intel's RealSense D435, for exact depth images.

The errors are made where they arise, in the disparity d = f b / z between a left imager, whose
view the depth image is, and a right one at a distance b:

1. Edges. A matcher compares windows, so a depth edge lies up to a pixel off and the nearer surface
   grows a little (`lateral_noise`, `fattening`), and some pixels at a jump get a disparity in
   between (`flying_pixels`).
2. Holes. What the right imager can't see (`occlusion`), and pixels that the matcher doesn't trust:
   at jumps, on dark, shiny or grazing surfaces, and here and there (`*_holes`, `speckle`).
3. Noise of the disparity, alike at every distance and correlated over the window, then rounding.

Sources, in the fields' comments by these names:
    Keselman: Keselman et al., "Intel RealSense Stereoscopic Depth Cameras", CVPR workshops 2017.
    Tuning: Grunnet-Jepsen et al., "Tuning depth cameras for best performance", Intel.
    Datasheet: "Intel RealSense D400 Series Datasheet", Intel.
    Nguyen: Nguyen, Izadi and Lovell, "Modeling Kinect Sensor Noise for Improved 3D Reconstruction
    and Tracking", 3DIMPVT 2012.
    Handa: Handa et al., "A Benchmark for RGB-D Visual Odometry, 3D Reconstruction and SLAM", ICRA
    2014, after Barron and Malik, "Intrinsic Scene Properties from a Single RGB-D Image", CVPR 2013.
    Hirschmüller: "Stereo Processing by Semiglobal Matching and Mutual Information", PAMI 2008.
    Borders: Hirschmüller, Innocent and Garibaldi, "Real-Time Correlation-Based Stereo Vision with
    Reduced Border Errors", IJCV 2002.
Where a field says "chosen", no source gives a number; the value makes pictures like a D435's.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from statistics import NormalDist
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import ArrayLike, NDArray

Image = NDArray[np.float32]
BoolImage = NDArray[np.bool_]

# A step of the disparity over its surfaces' slopes, px, from which on it is an edge.
_EDGE = 0.1
# Hirschmüller's SGM takes changes of one pixel or less for a slope (P1), more for a jump (P2).
_JUMP = 1.0
# Disparities are held below so many times the searched range, lest they need a boundless image.
_NEAREST = 8
_CENTRE_AND_NEIGHBOURS = ((0, 0), (0, -1), (0, 1), (-1, 0), (1, 0))
_SQUARE = np.ones((3, 3), np.uint8)
_STEEPEST = math.radians(85)  # where the growth of the noise with the angle ends
_SIGMAS = 4  # half the table of the normal distribution, 200 entries per sigma
_NORMAL_CDF = np.array([NormalDist().cdf(i / 200 - _SIGMAS) for i in range(400 * _SIGMAS + 1)])


class _Disparity(NamedTuple):
    """A disparity image and the slopes of its surfaces along u and v, all (H, W), px and px/px.

    A slope is the smaller of those to both sides, so that a jump belongs to neither surface.
    """

    value: Image
    slope_u: Image
    slope_v: Image

    @classmethod
    def of(cls, value: Image) -> _Disparity:
        return cls(value, _surface_slope(value, 1), _surface_slope(value, 0))

    def step(self) -> Image:
        """Return how much the disparity changes within a pixel beyond its slope, px, at least 0."""
        change = cv2.morphologyEx(self.value, cv2.MORPH_GRADIENT, _SQUARE)
        return np.maximum(change - 2 * (np.abs(self.slope_u) + np.abs(self.slope_v)), 0)


@dataclass(frozen=True)
class StereoDepthSensor:
    """A stereo depth camera; the defaults are a RealSense D435.

    A strength of 0 switches its effect off. Pixels are those of the image given to `measure`, as if
    the matcher ran at its resolution: 640x480 with a focal length of 625 px is the middle of a
    D435's 1280x720 (focal length about 640 px).
    """

    baseline: float = 0.05
    """m between the imagers (Datasheet: 50 mm)."""
    subpixel_noise: float = 0.08
    """px rms of the disparity: sigma_z = z² subpixel_noise / (f b) (Tuning, Keselman eq. 2).

    What Intel advises to expect; 0.032 at best (librealsense, issue 3904).
    """
    grazing_noise: float = 0.05
    """Growth of that noise with the angle t of incidence: 1 + grazing_noise t² / (pi/2 - t)².

    Nguyen's axial noise at 1 m: 0.1 mm over 1.9 mm.
    """
    noise_window: float = 1.5
    """px, sigma of the Gaussian over which noise is correlated.

    Keselman: costs are summed over 7x7 pixels (sigma 2) in the R200, with filters that keep edges
    in the D400.
    """
    disparity_step: float = 1 / 32
    """px, rounding of the disparity (Intel, "Subpixel Linearity Improvement": 5 bits)."""
    lateral_noise: float = 0.6
    """px, sigma of an edge's place along u and v (Handa: 0.5; Nguyen: 0.8)."""
    lateral_window: float = 2.0
    """px, sigma of the Gaussian over which edges move together; chosen, see noise_window."""
    fattening: float = 1.0
    """px that nearer surfaces grow at their edges.

    Windows move borders by up to half their size (Borders); chosen for filters that keep edges.
    """
    flying_pixels: float = 0.4
    """Share of the pixels beside a jump that lie between its sides; chosen."""
    occlusion: float = 1.0
    """Share of the baseline over which surfaces hide others from the right imager.

    At 1, what geometry says: a band of as many px as the disparities differ, left of nearer
    surfaces (the depth is the left imager's: Datasheet). Objects beyond the image hide nothing.
    """
    left_band: float = 0.0
    """Share of the columns at the left border, f b / z wide, that only the left imager sees.

    1 for a raw depth image (Datasheet: "invalid depth band"); 0 where the picture is narrower
    than the imagers', such as depth aligned to the color camera of a D435.
    """
    edge_holes: float = 0.2
    """Share of holes at jumps of a pixel and more, less at smaller steps; chosen."""
    edge_reach: float = 2.0
    """px from a jump to where its holes end; chosen: the window's radius."""
    dark_holes: float = 0.7
    """Share of holes on black (Tuning: black absorbs the projected light); chosen."""
    dark_level: float = 30.0
    """Luminance (BT.601, of 255) where holes begin; half of it has dark_holes. Chosen."""
    shiny_holes: float = 0.8
    """Share of holes in highlights, which are elsewhere for the other imager; chosen."""
    saturation: int = 250
    """A pixel whose red, green and blue all reach this is a highlight."""
    grazing_holes: float = 1.0
    """Share of holes on surfaces steeper than grazing_angle + 15 degrees; chosen."""
    grazing_angle: float = 70.0
    """Degrees of incidence where holes begin; chosen."""
    speckle: float = 0.001
    """Share of holes anywhere, such as with a fill rate over 99 % on a wall (Datasheet)."""
    hole_size: float = 2.0
    """px, sigma of the Gaussian over which pixels are trusted alike: holes come in clumps."""
    disparity_range: float = 126.0
    """px that are searched, so z ≥ f b / disparity_range (librealsense, issue 3039)."""
    max_depth: float = 10.0
    """m beyond which there are holes (Datasheet: up to 10 m); less than the simulator's FAR."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{field.name} must be a number of at least 0, got {value}.")
        for name in ("baseline", "disparity_range", "max_depth"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be more than 0: the camera would measure nothing.")

    def measure(
        self,
        depth: ArrayLike,
        intrinsics_matrix: ArrayLike,
        rng: np.random.Generator,
        *,
        rgb: NDArray[np.uint8] | None = None,
        shiny: BoolImage | None = None,
    ) -> Image:
        """Measure an exact depth image; the same rng gives the same picture.

        depth: (H, W) m along the optical axis of the left imager, rectified; 0, NaN or infinite
        where nothing is. intrinsics_matrix: (3, 3), K, px. rgb: (H, W, 3), for holes on dark
        surfaces and highlights. shiny: (H, W), True on surfaces that reflect like a mirror.
        Returns (H, W) float32 m, NaN = hole. What is drawn doesn't depend on the strengths, so
        sensors that differ in one of them differ in its effect only.

        Raises ValueError when a shape is wrong.
        """
        exact = _checked_depth(depth)
        matrix = _checked_matrix(intrinsics_matrix)
        _check_appearance(exact.shape, rgb, shiny)
        scale = matrix[0, 0] * self.baseline
        seen = (exact > 0) & np.isfinite(exact)
        near = np.maximum(exact, scale / (_NEAREST * self.disparity_range))
        true = _Disparity.of(np.divide(scale, near, out=np.zeros_like(exact), where=seen))
        incidence = _incidence(true, matrix)

        ragged = self._with_ragged_edges(true, rng)
        step = ragged.step()
        mixed = self._with_flying_pixels(ragged, step, rng)
        noise = _correlated_noise(exact.shape, self.noise_window, rng)
        steep = np.minimum(incidence, _STEEPEST)
        growth = 1 + self.grazing_noise * np.square(steep / (math.pi / 2 - steep))
        measured = mixed + self.subpixel_noise * growth * noise
        if self.disparity_step:
            measured = self.disparity_step * np.rint(measured / self.disparity_step)

        # A share of holes is a threshold for a uniform variable that varies smoothly.
        trust = _uniform(_correlated_noise(exact.shape, self.hole_size, rng))
        holes = trust < self._share_of_holes(step, incidence, rgb, shiny)
        holes |= _hidden(ragged.value, self.occlusion)
        holes |= np.arange(exact.shape[1]) < self.left_band * ragged.value
        for disparity in (mixed, measured):
            holes |= (disparity < scale / self.max_depth) | (disparity > self.disparity_range)
        return np.divide(scale, measured, out=np.full_like(exact, np.nan), where=~holes)

    def _with_ragged_edges(self, true: _Disparity, rng: np.random.Generator) -> _Disparity:
        """Let each pixel near an edge see what is nearest around a place beside it.

        Unlike in Handa, surfaces are extended to the pixel along their slope: only the choice of
        the surface moves, so that tilted ones get neither noise nor bias from it.
        """
        shape = true.value.shape
        shift_u = self.lateral_noise * _correlated_noise(shape, self.lateral_window, rng)
        shift_v = self.lateral_noise * _correlated_noise(shape, self.lateral_window, rng)
        reach = math.ceil(3 * self.lateral_noise + self.fattening)
        if not reach:
            return true
        near_edge = _grown(true.step() > _EDGE, reach)
        v, u = np.nonzero(near_edge)
        nearest = np.zeros(len(u), np.float32)
        for to_v, to_u in _CENTRE_AND_NEIGHBOURS:
            source_u = np.rint(u + shift_u[v, u] + self.fattening * to_u).astype(int)
            source_v = np.rint(v + shift_v[v, u] + self.fattening * to_v).astype(int)
            source_u = source_u.clip(0, shape[1] - 1)
            source_v = source_v.clip(0, shape[0] - 1)
            source = source_v, source_u
            extended = true.value[source] + true.slope_u[source] * (u - source_u)
            extended += true.slope_v[source] * (v - source_v)
            # Where nothing is, nothing extends.
            extended[true.value[source] == 0] = 0
            np.maximum(nearest, extended, out=nearest)
        ragged = true.value.copy()
        ragged[v, u] = nearest
        return _Disparity.of(ragged)

    def _with_flying_pixels(
        self, disparity: _Disparity, step: Image, rng: np.random.Generator
    ) -> Image:
        """Mix the two sides of an edge at some of its pixels."""
        chance, share = rng.random((2, *step.shape), np.float32)
        flying = (step > _EDGE) & (chance < self.flying_pixels)
        low = cv2.erode(disparity.value, _SQUARE)[flying]
        high = cv2.dilate(disparity.value, _SQUARE)[flying]
        mixed = disparity.value.copy()
        # Shares nearer to 0 or 1 are no different from the surfaces themselves.
        mixed[flying] = low + (0.1 + 0.8 * share[flying]) * (high - low)
        return mixed

    def _share_of_holes(
        self,
        step: Image,
        incidence: Image,
        rgb: NDArray[np.uint8] | None,
        shiny: BoolImage | None,
    ) -> Image:
        """Probability (H, W) that the matcher doesn't trust a pixel, of independent causes."""
        near = cv2.dilate(np.minimum(step / _JUMP, 1), _disc(self.edge_reach))
        steep = np.clip((np.degrees(incidence) - self.grazing_angle) / 15, 0, 1)
        causes = [self.edge_holes * near, self.grazing_holes * steep]
        glossy = np.zeros(step.shape, bool) if shiny is None else shiny
        if rgb is not None:
            luminance = cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
            half = max(self.dark_level / 2, 1e-3)
            causes.append(self.dark_holes * np.clip(2 - luminance / half, 0, 1))
            glossy = glossy | (cv2.inRange(rgb, (self.saturation,) * 3, (255,) * 3) > 0)
        causes.append(self.shiny_holes * glossy)
        trusted = np.full(step.shape, 1 - min(self.speckle, 1), np.float32)
        for cause in causes:
            trusted *= 1 - np.minimum(cause, 1)
        return 1 - trusted


def _hidden(disparity: Image, share: float) -> BoolImage:
    """Return where the right imager sees a nearer surface instead, by a depth buffer of its view.

    A pixel at u is seen by the right imager at u - share * disparity.
    """
    height, width = disparity.shape
    right_u = np.arange(width, dtype=np.float32) - share * disparity
    margin = math.ceil(share * float(disparity.max(initial=0))) + 1
    stride = width + margin + 1
    row = stride * np.arange(height)[:, None] + margin
    buffer = np.zeros(height * stride, np.float32)
    # A surface that recedes to the right is wider in the right view: two samples leave no gaps.
    for offset in (-0.25, 0.25):
        index = row + np.rint(right_u + offset).astype(int)
        np.maximum.at(buffer, index.ravel(), disparity.ravel())
    return buffer[row + np.rint(right_u).astype(int)] - disparity > _JUMP / 2


def _incidence(disparity: _Disparity, matrix: NDArray[np.float64]) -> Image:
    """Angle (H, W) in radians between each pixel's ray and its surface's normal.

    A plane n.X = c is linear in inverse depth, 1/z = (n/c).(x, y, 1), and so in the disparity.
    """
    height, width = disparity.value.shape
    x = ((np.arange(width) - matrix[0, 2]) / matrix[0, 0]).astype(np.float32)
    y = ((np.arange(height) - matrix[1, 2]) / matrix[1, 1]).astype(np.float32)[:, None]
    normal_x = disparity.slope_u * np.float32(matrix[0, 0])
    normal_y = disparity.slope_v * np.float32(matrix[1, 1])
    normal_z = disparity.value - x * normal_x - y * normal_y
    lengths = np.sqrt(
        (x * x + y * y + 1) * (normal_x * normal_x + normal_y * normal_y + normal_z * normal_z)
    )
    cosine = np.divide(disparity.value, lengths, out=np.ones_like(lengths), where=lengths > 0)
    return np.arccos(np.clip(cosine, 0, 1))


def _surface_slope(value: Image, axis: int) -> Image:
    """Of the differences to the neighbours on both sides, the smaller one."""
    difference = np.diff(value, axis=axis)
    first, last = difference.take([0], axis), difference.take([-1], axis)
    before = np.concatenate([first, difference], axis)
    after = np.concatenate([difference, last], axis)
    return np.where(np.abs(before) < np.abs(after), before, after)


def _correlated_noise(shape: tuple[int, ...], sigma: float, rng: np.random.Generator) -> Image:
    """Gaussian noise of variance 1, correlated over a Gaussian of sigma px."""
    radius = math.ceil(3 * sigma)
    height, width = shape
    white = rng.standard_normal((height + 2 * radius, width + 2 * radius), np.float32)
    if not radius:
        return white
    kernel = cv2.getGaussianKernel(2 * radius + 1, sigma)
    # The sum of n independent values has the variance of their squared weights; by u and by v.
    smooth = cv2.sepFilter2D(white, cv2.CV_32F, kernel, kernel / float(np.square(kernel).sum()))
    return smooth[radius : radius + height, radius : radius + width]


def _uniform(normal: Image) -> NDArray[np.float64]:
    """Turn a standard normal variable into one that is uniform between 0 and 1."""
    entry = 200 * normal.clip(-_SIGMAS, _SIGMAS) + (200 * _SIGMAS + 0.5)
    return _NORMAL_CDF[entry.astype(np.intp)]


def _grown(mask: BoolImage, radius: float) -> BoolImage:
    return cv2.dilate(mask.astype(np.uint8), _disc(radius)) > 0


def _disc(radius: float) -> NDArray[np.uint8]:
    size = 2 * math.ceil(radius) + 1
    return cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (size, size))


def _checked_depth(depth: ArrayLike) -> Image:
    image = np.ascontiguousarray(depth, np.float32)
    if image.ndim != 2 or min(image.shape) < 2:
        raise ValueError(
            f"The depth must be an image (H, W) of at least 2x2 pixels, got the shape "
            f"{image.shape}: give one frame without a channel axis."
        )
    return image


def _checked_matrix(intrinsics_matrix: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(intrinsics_matrix, np.float64)
    if matrix.shape != (3, 3) or not (matrix[0, 0] > 0 and matrix[1, 1] > 0):
        raise ValueError(
            f"The intrinsics must be a (3, 3) matrix K in pixels, got {matrix.tolist()}."
        )
    return matrix


def _check_appearance(
    shape: tuple[int, ...], rgb: NDArray[np.uint8] | None, shiny: BoolImage | None
) -> None:
    if rgb is not None and (rgb.shape != (*shape, 3) or rgb.dtype != np.uint8):
        raise ValueError(
            f"rgb must be uint8 of the shape {(*shape, 3)}, as the depth's, got {rgb.dtype} of the "
            f"shape {rgb.shape}: render both at one size."
        )
    if shiny is not None and (shiny.shape != shape or shiny.dtype != np.bool_):
        raise ValueError(
            f"shiny must be bool of the shape {shape}, as the depth's, got {shiny.dtype} of the "
            f"shape {shiny.shape}."
        )
