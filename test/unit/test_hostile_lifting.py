# SPDX-License-Identifier: Apache-2.0
"""Camera infos, depths and pixels with numbers that no camera has: refused, or lifted."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.small_camera import SIZE, K, info

from robobrain_ros.lifting.registration import _clipped
from robobrain_ros.tf_projection import (
    DepthImage,
    Intrinsics,
    LiftStatus,
    lift_boxes,
    lift_points,
)

RNG = np.random.default_rng(0)
HOLED = np.where(RNG.random(SIZE[::-1]) < 0.3, np.nan, RNG.uniform(0.2, 3.0, SIZE[::-1]))
PIXELS = [[32, 24], [0, 0], [63, 47], [1e300, 5], [np.nan, np.inf], [-0.4, 47.4]]
BOXES = [[10, 10, 30, 30], [0, 0, 64, 48], [np.nan, 1, 2, 3], [-1e300, -1e300, 1e300, 1e300]]

odd = st.one_of(st.floats(), st.sampled_from((0.0, 1e-320, 1e-9, 1.0, -60.0, 1e9, 1e300)))
focal = st.one_of(odd, st.just(60.0), st.floats(1e-3, 1e6))
centre = st.one_of(odd, st.floats(-100, 100))
shape = st.tuples(st.integers(1, 48), st.integers(1, 64))


def assert_lifts(depth: DepthImage, color: Intrinsics) -> None:
    points = lift_points(PIXELS, depth, color, np.eye(4), None, np.zeros((48, 64, 3), np.uint8))
    regions = lift_boxes(BOXES, depth, color, np.eye(4))
    assert (len(points), len(regions)) == (len(PIXELS), len(BOXES))
    for lifted in (*points, *regions):
        assert (lifted.position is not None) == (lifted.status is LiftStatus.OK)
        assert lifted.position is None or np.isfinite(lifted.position).all()


@pytest.mark.parametrize(
    "broken",
    [
        {"fx": 0.0, "fy": 0.0, "cx": 0.0, "cy": 0.0},
        {"fx": np.nan},
        {"cy": np.inf},
        {"d": [np.nan] * 5},
        {"d": [0.1] * 3000},
        {"model": "klingon", "d": [0.1]},
        {"width": 0},
        {"roi": SimpleNamespace(x_offset=2**32 - 1, y_offset=0, width=0, height=0)},
        {"binning_x": 2**32 - 1},
    ],
)
def test_a_camera_info_that_is_no_camera_is_refused(broken):
    with pytest.raises(ValueError, match="\\w+ \\w+"):
        Intrinsics.from_camera_info(info(**broken))


def test_a_focal_length_that_is_nothing_once_resized_is_refused_at_once():
    """It was refused where its image was resized, in the middle of a request."""
    with pytest.raises(ValueError, match="not calibrated"):
        Intrinsics.from_camera_info(info(fx=5e-324, fy=6.7e-7))


@settings(deadline=None)
@given(focal, focal, centre, centre, st.lists(odd, max_size=5), st.booleans())
def test_any_camera_info_is_refused_or_lifts_to_numbers(fx, fy, cx, cy, d, fisheye):
    with np.errstate(all="ignore"):
        try:
            given = info(fx, fy, cx, cy, d, "fisheye" if fisheye else "plumb_bob")
            color = Intrinsics.from_camera_info(given).fitted(*SIZE)
        except ValueError:
            return
        assert_lifts(DepthImage(HOLED.astype(np.float32), "32FC1"), color)


@settings(deadline=None)
@given(focal, focal, centre, st.floats(-3, 3), st.booleans())
def test_any_depth_camera_beside_is_refused_or_lifts_to_numbers(fx, fy, cx, away, bent):
    pose = np.eye(4)
    pose[0, 3] = away
    with np.errstate(all="ignore"):
        try:
            own = Intrinsics.from_camera_info(info(fx, fy, cx, d=[0.1, 0.01, 0, 0, 0] * bent))
        except ValueError:
            return
        depth = DepthImage(HOLED.astype(np.float32), "32FC1", own, pose)
        assert_lifts(depth, Intrinsics(*SIZE, K, ()))


def test_an_outline_at_the_end_of_the_world_is_drawn_beside_the_image():
    """OpenCV fills polygons row by row, in seconds where a row is a thousand millions away."""
    far = np.array([[3, 4], [1e30, -1e30], [np.inf, 0], [0, np.nan]], np.float32)
    np.testing.assert_array_equal(_clipped(far), np.array([[3, 4], [1e6, -1e6]], np.float32))


@settings(deadline=None)
@given(shape, st.sampled_from(("16UC1", "32FC1")), st.binary(min_size=4, max_size=64))
def test_a_depth_image_of_any_bits_and_size_lifts_to_numbers(sides, encoding, pattern):
    dtype = np.dtype(np.uint16 if encoding == "16UC1" else np.float32)
    values = np.frombuffer(pattern[: len(pattern) // 4 * 4], dtype)
    with np.errstate(all="ignore"):
        assert_lifts(DepthImage(np.resize(values, sides), encoding), Intrinsics(*SIZE, K, ()))


@pytest.mark.parametrize("sides", [(1, 1), (1, 64), (48, 1)])
def test_a_box_in_a_depth_image_of_one_row_or_column(sides):
    assert_lifts(DepthImage(np.ones(sides, np.float32), "32FC1"), Intrinsics(*SIZE, K, ()))
