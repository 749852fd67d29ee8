# SPDX-License-Identifier: Apache-2.0
"""3D answers through real nodes, under what real depth cameras do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.cameras import DepthCamera
from support.node_parameters import set_parameter
from support.point_queries import assert_on_object, lifted, point, seen_at

from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.tabletop import Tabletop

CAMERAS = {
    "good": {},
    "nodepth": {},
    "hole": {},
    "far": {},
    "elsewhere": {
        "depth_topic": "elsewhere/depth/image_rect_raw",
        "depth_info_topic": "elsewhere/depth/camera_info",
    },
    "beside": {
        "depth_topic": "beside/depth/image_rect_raw",
        "depth_info_topic": "beside/depth/camera_info",
    },
    "unregistered": {"depth_topic": "unregistered/depth/image_rect_raw"},
    "late": {},
    "notf": {},
    "packed": {
        "color_topic": "packed/color/image_raw/compressed",
        "depth_topic": "packed/aligned_depth_to_color/image_raw/compressedDepth",
    },
}


PARAMETERS = {"cameras": list(CAMERAS), "image_timeout": 2.0, "max_depth": 3.0}
TOPICS = {
    f"{name}.{key}": topic for name, topics in CAMERAS.items() for key, topic in topics.items()
}
BRAIN = {"parameters": PARAMETERS | TOPICS}


@pytest.fixture(scope="module")
def depth_camera(scene):
    """A second camera 5 cm beside the scene's, turned towards it, of another resolution."""
    colour_from_depth = np.eye(4)
    colour_from_depth[:3, :3] = Rotation.from_euler("y", 3, degrees=True).as_matrix()
    colour_from_depth[:3, 3] = (-0.05, 0.004, 0.002)
    table = Tabletop(512, 384)
    table.reset(scene.seed)
    table.look_from(scene.pose @ colour_from_depth)
    depth, intrinsics = table.render().depth, table.K
    table.close()
    return DepthCamera(depth, intrinsics, colour_from_depth)


class TestStatus:
    """Every status of the contract."""

    def test_ok(self, brain, still_cameras, scene):
        with still_cameras.publishing("good", scene):
            response = point(brain, scene, "good", target_frame="table")
        assert_on_object(response, scene, 3)

    def test_no_depth_camera(self, brain, still_cameras, scene):
        with still_cameras.publishing("nodepth", scene, depth_encoding=None):
            _, found = lifted(brain, scene, "nodepth")
        assert found.status == LiftedPoint.NO_DEPTH_CAMERA

    def test_depth_hole(self, brain, still_cameras, scene):
        with still_cameras.publishing("hole", scene, depth_from=np.zeros_like):
            _, found = lifted(brain, scene, "hole")
        assert found.status == LiftedPoint.DEPTH_HOLE
        assert (found.depth, found.valid_fraction) == (0, 0)

    def test_out_of_range(self, brain, still_cameras, scene):
        with still_cameras.publishing("far", scene, depth_from=lambda depth: 10 * depth):
            _, found = lifted(brain, scene, "far")
        assert found.status == LiftedPoint.OUT_OF_RANGE

    def test_outside_depth_view(self, brain, still_cameras, scene, depth_camera):
        behind = np.diag([-1.0, 1.0, -1.0, 1.0])  # it looks the other way
        away = DepthCamera(depth_camera.depth, depth_camera.intrinsics, behind)
        with still_cameras.publishing("elsewhere", scene, depth_camera=away):
            _, found = lifted(brain, scene, "elsewhere", target_frame="table")
        assert found.status == LiftedPoint.OUTSIDE_DEPTH_VIEW

    def test_depth_stale_says_which_topic_lags_and_by_how_much(self, brain, still_cameras, scene):
        with still_cameras.publishing("late", scene, depth_age_s=0.3):
            _, found = lifted(brain, scene, "late")
        assert found.status == LiftedPoint.DEPTH_STALE
        (line,) = (line for line in brain.log().splitlines() if " lags " in line)
        assert "/late/aligned_depth_to_color/image_raw lags /late/color/image_raw" in line

    def test_no_transform(self, brain, still_cameras, scene):
        set_parameter(brain, "target_frame", "table")
        try:
            with still_cameras.publishing("notf", scene, transform=False):
                _, found = lifted(brain, scene, "notf")
        finally:
            set_parameter(brain, "target_frame", "")
        assert found.status == LiftedPoint.NO_TRANSFORM
        assert found.depth == pytest.approx(seen_at(scene, found.pixel)[2], abs=0.01)


class TestDepthAsItComes:
    def test_compressed_colour_and_depth(self, brain, still_cameras, scene):
        with still_cameras.publishing("packed", scene, depth_encoding="16UC1", compressed=True):
            response = point(brain, scene, "packed", target_frame="table")
        assert_on_object(response, scene, 4)

    def test_depth_of_another_camera(self, brain, still_cameras, scene, depth_camera):
        with still_cameras.publishing("beside", scene, depth_camera=depth_camera):
            response = point(brain, scene, "beside", target_frame="table")
        assert_on_object(response, scene, 4)
        first = response.points[0]
        assert first.depth == pytest.approx(seen_at(scene, first.pixel)[2], abs=0.005)

    def test_depth_of_another_frame_without_its_intrinsics_is_refused(
        self, brain, still_cameras, scene, depth_camera
    ):
        with still_cameras.publishing("unregistered", scene, depth_camera=depth_camera):
            response = brain.point_to("the red can", camera="unregistered")
        assert response.error_code == ErrorCode.NO_CAMERA_INFO
        assert "depth_info_topic" in response.error_msg
