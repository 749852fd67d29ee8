# SPDX-License-Identifier: Apache-2.0
"""Depth images, against REP-118."""

from __future__ import annotations

import numpy as np
import pytest
from support.analytic_scene import camera

from robobrain_ros.tf_projection import DepthImage, LiftStatus, depth_to_metres, lift_points


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
