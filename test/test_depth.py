# SPDX-License-Identifier: Apache-2.0
"""Intrinsics and depth images, against OpenCV and REP-118."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from analytic_scene import LENSES, all_rays, camera, info, lens
from hypothesis import given
from hypothesis import strategies as st

from robobrain_ros.tf_projection import (
    DepthImage,
    Intrinsics,
    LiftStatus,
    depth_to_metres,
    lift_points,
)

CAMERA = camera()


class TestIntrinsics:
    def test_are_read_from_a_camera_info(self):
        intrinsics = Intrinsics.from_camera_info(info(d=[0.1, 0.0, 0.0, 0.0, 0.0]))
        assert (intrinsics.width, intrinsics.height, intrinsics.focal) == (640, 480, 525.0)
        np.testing.assert_array_equal(intrinsics.distortion, [0.1, 0, 0, 0, 0])

    @pytest.mark.parametrize("d", [[], [0.0] * 5])
    def test_no_distortion_needs_no_model(self, d):
        assert Intrinsics.from_camera_info(info(d=d, distortion_model="")).distortion.size == 0

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"k": [0.0] * 9}, "not calibrated"),
            ({"k": [np.nan] * 9}, "finite"),
            ({"k": [525.0, 0.0, 319.5]}, "nine"),
            ({"k": [525.0, 0, 319.5, 0, -525.0, 239.5, 0, 0, 1]}, "not calibrated"),
            ({"k": [525.0, 9.0, 319.5, 0, 525.0, 239.5, 0, 0, 1]}, "fx 0 cx"),
            ({"width": 0}, "size"),
            ({"d": [0.1, np.inf, 0, 0, 0]}, "finite"),
            ({"d": [0.1, 0.2]}, "2 coefficients"),
            ({"d": [0.1] * 5, "distortion_model": "thin_prism"}, "thin_prism"),
        ],
    )
    def test_that_describe_no_camera_are_refused(self, changes, sentence):
        with pytest.raises(ValueError, match=sentence):
            Intrinsics.from_camera_info(info(**changes))

    @pytest.mark.parametrize("model", LENSES)
    def test_project_and_rays_agree_with_opencv(self, model):
        intrinsics = lens(model)
        rays = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
        points = np.column_stack([rays, np.ones(50)]) * 1.7
        project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
        pixels = project(
            points[:, None], np.zeros(3), np.zeros(3), intrinsics.matrix, intrinsics.distortion
        )[0].reshape(-1, 2)
        np.testing.assert_allclose(intrinsics.project(rays), pixels, atol=1e-6)
        np.testing.assert_allclose(intrinsics.rays(pixels), rays, atol=1e-6)

    @given(u=st.floats(0, 639), v=st.floats(0, 479), model=st.sampled_from(["none", *LENSES]))
    def test_a_pixel_comes_back_from_its_ray(self, u, v, model):
        intrinsics = CAMERA if model == "none" else lens(model)
        pixel = np.array([[u, v]])
        np.testing.assert_allclose(intrinsics.project(intrinsics.rays(pixel)), pixel, atol=1e-3)

    @pytest.mark.parametrize("model", LENSES)
    def test_what_isnt_finite_stays_so(self, model):
        pixels = np.array([[np.nan, 1.0], [320.0, 240.0]])
        rays = lens(model).rays(pixels)
        assert np.isnan(rays[0]).all() and np.isfinite(rays[1]).all()
        assert np.isnan(lens(model).project(rays)[0]).all()

    def test_a_pixel_beyond_a_fisheye_has_no_ray(self):
        matrix = np.array([[200.0, 0, 319.5], [0, 200.0, 239.5], [0, 0, 1]])
        fisheye = Intrinsics(640, 480, matrix, np.array([0.01, 0, 0, 0]), "equidistant")
        rays = fisheye.rays(np.array([[0.0, 239.5], [100.0, 239.5]]))  # 91 and 63 degrees
        assert np.isnan(rays[0]).all() and np.isfinite(rays[1]).all()

    def test_scaling_keeps_the_borders(self):
        small = CAMERA.scaled(320, 120)
        corners = np.array([[-0.5, -0.5], [639.5, 479.5]])
        scaled = np.array([[-0.5, -0.5], [319.5, 119.5]])
        np.testing.assert_allclose(small.project(CAMERA.rays(corners)), scaled)


class TestDepthImage:
    def test_both_encodings_become_metres_with_nan_holes(self):
        millimetres = np.array([[0, 1234]], np.uint16)
        metres = np.array([[np.nan, np.inf, -np.inf, 0.0, -1.0, 1.234]], np.float32)
        for encoding in ("16UC1", "mono16"):
            np.testing.assert_allclose(depth_to_metres(millimetres, encoding), [[np.nan, 1.234]])
        np.testing.assert_allclose(depth_to_metres(metres, "32FC1"), [[np.nan] * 5 + [1.234]])

    def test_big_endian_is_understood(self):
        assert depth_to_metres(np.array([[1500]], ">u2"), "16UC1")[0, 0] == pytest.approx(1.5)

    @pytest.mark.parametrize(
        ("dtype", "encoding"), [("u2", "rgb8"), ("u2", "32FC1"), ("f4", "16UC1"), ("f8", "32FC1")]
    )
    def test_what_is_no_depth_is_refused(self, dtype, encoding):
        with pytest.raises(ValueError, match=encoding):
            depth_to_metres(np.ones((2, 2), dtype), encoding)
        with pytest.raises(ValueError, match=encoding):
            DepthImage(np.ones((2, 2), dtype), encoding)

    @pytest.mark.parametrize("shape", [(4, 4, 1), (0, 4), (4,)])
    def test_another_shape_is_refused(self, shape):
        with pytest.raises(ValueError, match="shape"):
            DepthImage(np.ones(shape, np.uint16), "16UC1")

    def test_only_the_patch_is_converted(self):
        # As an array of metres this image would take 160 GB.
        vast = np.broadcast_to(np.array(900, np.uint16), (200_000, 200_000))
        intrinsics = camera(200_000, 200_000, 2e5)
        lifted = lift_points([(150_000, 60_000)], DepthImage(vast, "16UC1"), intrinsics, np.eye(4))[
            0
        ]
        assert lifted.status is LiftStatus.OK and lifted.depth == pytest.approx(0.9)


def test_rays_of_the_scene_are_the_cameras():
    """The scenes' own geometry: a ray's pixel is where it was drawn."""
    np.testing.assert_allclose(
        CAMERA.project(all_rays(CAMERA)[[7, 400], [30, 600], :2]), [[30, 7], [600, 400]]
    )
