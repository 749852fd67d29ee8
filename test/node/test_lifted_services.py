# SPDX-License-Identifier: Apache-2.0
"""3D answers through real nodes, under what real depth cameras do."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.cameras import DepthCamera
from support.node_parameters import set_parameter
from support.point_queries import lifted, position, seen_at

from robobrain_ros.client import BrainClient
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.processes import NodeProcess
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


@pytest.fixture(scope="module")
def brain(ros, tmp_path_factory):
    parameters = {"cameras": list(CAMERAS), "image_timeout": 2.0, "max_depth": 3.0}
    for name, topics in CAMERAS.items():
        parameters |= {f"{name}.{key}": topic for key, topic in topics.items()}
    with (
        open(tmp_path_factory.mktemp("log") / "brain.log", "w+b") as log,
        NodeProcess("robobrain_ros.brain_node", parameters, output=log),
        BrainClient() as client,
    ):
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        client.log = Path(log.name)
        yield client


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


def assert_on_object(scene, point, max_mm) -> None:
    assert point.status == LiftedPoint.OK
    assert scene.truth.distance_mm(scene.name, position(point)) <= max_mm


class TestStatus:
    """Every status of the contract."""

    def test_ok(self, brain, still_cameras, scene):
        with still_cameras.publishing("good", scene):
            _, point = lifted(brain, scene, "good", target_frame="table")
        assert_on_object(scene, point, 3)

    def test_no_depth_camera(self, brain, still_cameras, scene):
        with still_cameras.publishing("nodepth", scene, depth_encoding=None):
            _, point = lifted(brain, scene, "nodepth")
        assert point.status == LiftedPoint.NO_DEPTH_CAMERA

    def test_depth_hole(self, brain, still_cameras, scene):
        with still_cameras.publishing("hole", scene, depth_from=np.zeros_like):
            _, point = lifted(brain, scene, "hole")
        assert point.status == LiftedPoint.DEPTH_HOLE
        assert (point.depth, point.valid_fraction) == (0, 0)

    def test_out_of_range(self, brain, still_cameras, scene):
        with still_cameras.publishing("far", scene, depth_from=lambda depth: 10 * depth):
            _, point = lifted(brain, scene, "far")
        assert point.status == LiftedPoint.OUT_OF_RANGE

    def test_outside_depth_view(self, brain, still_cameras, scene, depth_camera):
        behind = np.diag([-1.0, 1.0, -1.0, 1.0])  # it looks the other way
        away = DepthCamera(depth_camera.depth, depth_camera.intrinsics, behind)
        with still_cameras.publishing("elsewhere", scene, depth_camera=away):
            _, point = lifted(brain, scene, "elsewhere", target_frame="table")
        assert point.status == LiftedPoint.OUTSIDE_DEPTH_VIEW

    def test_depth_stale_says_which_topic_lags_and_by_how_much(self, brain, still_cameras, scene):
        with still_cameras.publishing("late", scene, depth_age_s=0.3):
            _, point = lifted(brain, scene, "late")
        assert point.status == LiftedPoint.DEPTH_STALE
        (line,) = (line for line in brain.log.read_text().splitlines() if " lags " in line)
        assert "/late/aligned_depth_to_color/image_raw lags /late/color/image_raw" in line

    def test_no_transform(self, brain, still_cameras, scene):
        set_parameter(brain, "target_frame", "table")
        try:
            with still_cameras.publishing("notf", scene, transform=False):
                _, point = lifted(brain, scene, "notf")
        finally:
            set_parameter(brain, "target_frame", "")
        assert point.status == LiftedPoint.NO_TRANSFORM
        assert point.depth == pytest.approx(seen_at(scene, point.pixel)[2], abs=0.01)


class TestDepthAsItComes:
    def test_compressed_colour_and_depth(self, brain, still_cameras, scene):
        with still_cameras.publishing("packed", scene, depth_encoding="16UC1", compressed=True):
            _, point = lifted(brain, scene, "packed", target_frame="table")
        assert_on_object(scene, point, 4)

    def test_depth_of_another_camera(self, brain, still_cameras, scene, depth_camera):
        with still_cameras.publishing("beside", scene, depth_camera=depth_camera):
            _, point = lifted(brain, scene, "beside", target_frame="table")
        assert_on_object(scene, point, 4)
        assert point.depth == pytest.approx(seen_at(scene, point.pixel)[2], abs=0.005)

    def test_depth_of_another_frame_without_its_intrinsics_is_refused(
        self, brain, still_cameras, scene, depth_camera
    ):
        with still_cameras.publishing("unregistered", scene, depth_camera=depth_camera):
            response = brain.point_to("the red can", camera="unregistered")
        assert response.error_code == ErrorCode.NO_CAMERA_INFO
        assert "depth_info_topic" in response.error_msg
