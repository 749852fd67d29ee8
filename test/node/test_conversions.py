# SPDX-License-Identifier: Apache-2.0
"""Results to ROS messages, and the parameters' file against their declaration."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml
from builtin_interfaces.msg import Time
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.sample_results import answered

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.parsing import Answer, EmptyAnswer, UnparsableAnswer
from robobrain_ros.core.requests import FinishReason, Generation
from robobrain_ros.core.results import Result
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.engines.base import EngineBusy, EngineError, EngineOutOfMemory, EngineUnavailable
from robobrain_ros.msg import LiftedPoint as LiftedPointMsg
from robobrain_ros.ros import conversions, parameters
from robobrain_ros.ros.acquisition import Poses
from robobrain_ros.ros.camera import Snapshot
from robobrain_ros.ros.services import as_brain_error
from robobrain_ros.sim.camera_node import camera_info, color_image, depth_image
from robobrain_ros.tf_projection import (
    DepthImage,
    Intrinsics,
    LiftStatus,
    TransformUnavailable,
    lift_boxes,
    lift_points,
)

HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id="table")
K = np.array([[100, 0, 32], [0, 100, 24], [0, 0, 1.0]])
DEPTH = np.full((48, 64), 0.5, np.float32)
DEPTH[:, 40:] = np.nan
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def result() -> Result:
    """Two points, the second in a depth hole, and one box."""
    depth = DepthImage(DEPTH, "32FC1")
    intrinsics = Intrinsics(64, 48, K, ())
    points = lift_points([[20, 24], [60, 24]], depth, intrinsics, np.eye(4))
    regions = lift_boxes([[4, 4, 30, 30]], depth, intrinsics, np.eye(4))
    generation = Generation("", FinishReason.EOS, ((64, 48),), 200, 9, 0, 0.1, 0.2, 0.3)
    return Result(Answer(TaskKind.TRAJECTORY, text="x"), generation, points, regions, 0.4)


def test_a_lifted_point_keeps_header_status_and_quality(result):
    good, hole = (conversions.lifted_point(point, HEADER) for point in result.points)
    assert good.pose.header == HEADER
    assert good.status == LiftedPointMsg.OK and good.has_normal
    assert good.pose.pose.position.z == pytest.approx(0.5)
    assert good.valid_fraction == 1.0 and good.depth == pytest.approx(0.5)
    assert hole.status == LiftedPointMsg.DEPTH_HOLE and not hole.has_normal
    assert (hole.pixel.x, hole.pixel.y) == (60, 24)
    assert hole.pose.header == HEADER


def test_a_path_has_only_waypoints_with_a_position(result):
    assert len(conversions.path(result.points, HEADER).poses) == 1


def test_a_region_has_both_boxes(result):
    region = conversions.lifted_region(result.regions[0], HEADER)
    assert (region.box.center.position.x, region.box.size_x) == (17, 26)
    assert region.box3d.size.x == pytest.approx(0.13, abs=0.02)


def test_detections_have_a_box_per_answer_and_no_invented_confidence(result):
    request = answered(result, "Point to the can.")
    flat = conversions.detections_2d(request, HEADER)
    solid = conversions.detections_3d(request, HEADER)
    assert len(flat.detections) == 3 and len(solid.detections) == 2
    hypothesis = solid.detections[0].results[0].hypothesis
    assert hypothesis.class_id == "can" and np.isnan(hypothesis.score)


def test_a_detection_has_one_id_in_2d_and_3d_and_its_covariance(result):
    request = answered(result)
    flat = conversions.detections_2d(request, HEADER).detections
    solid = conversions.detections_3d(request, HEADER).detections
    assert len({detection.id for detection in flat}) == len(flat)
    in_2d = {detection.id: detection.bbox.center.position for detection in flat}
    lifted = [one for one in (*result.regions, *result.points) if one.position is not None]
    for detection, one in zip(solid, lifted, strict=True):
        assert one.covariance.any()
        pose = detection.results[0].pose
        np.testing.assert_array_equal(pose.covariance.reshape(6, 6)[:3, :3], one.covariance)
        box = getattr(one, "box", np.tile(one.pixel, 2))
        assert in_2d[detection.id].x == pytest.approx((box[0] + box[2]) / 2)


def test_every_lifted_answer_is_a_tf_frame(result):
    frames = conversions.transforms(result, "robobrain/point", HEADER)
    assert [f.child_frame_id for f in frames] == ["robobrain/point_0", "robobrain/point_1"]
    assert frames[0].header == HEADER


def test_timing_adds_up(result):
    timing = conversions.timing(result.generation, result.lift_s, 1.5)
    parts = (timing.wait, timing.preprocess, timing.prefill, timing.decode, timing.lift)
    assert sum(parts) == pytest.approx(timing.total) and timing.tokens_in == 200


@pytest.mark.parametrize("encoding", ["rgb8", "bgr8", "rgba8"])
def test_colour_encodings_decode_to_the_same_rgb(encoding):
    rgb = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8)
    np.testing.assert_array_equal(conversions.rgb_from(color_image(rgb, encoding)), rgb)


def test_mono8_decodes_to_grey():
    grey = np.full((4, 6, 3), 77, np.uint8)
    np.testing.assert_array_equal(conversions.rgb_from(color_image(grey, "mono8")), grey)


@pytest.mark.parametrize(
    "broken",
    [
        Image(),
        Image(width=4, height=4, encoding="rgb8", step=12),
        Image(width=4, height=4, encoding="rgb8", step=3, data=[0] * 48),
        Image(width=4, height=4, encoding="klingon8", step=12, data=[0] * 48),
    ],
)
def test_broken_images_are_bad_requests(broken):
    with pytest.raises(BrainError) as error:
        conversions.rgb_from(broken)
    assert error.value.code is ErrorCode.BAD_REQUEST


def test_an_observation_needs_intrinsics_only_for_depth():
    color = color_image(np.zeros((48, 64, 3), np.uint8), "rgb8")
    depth = depth_image(DEPTH, "32FC1", 1.0)
    info = camera_info(K, color, color)
    flat = conversions.observation(Snapshot(color), Poses("table", None)).scene
    assert flat.depth is None and flat.depth_status is LiftStatus.NO_DEPTH_CAMERA
    seen = conversions.observation(
        Snapshot(color, info, depth, None, LiftStatus.OK), Poses("table", np.eye(4))
    )
    assert seen.scene.depth.size == (64, 48)
    info.k = [0.0] * 9
    for unusable in (None, info):
        with pytest.raises(BrainError) as error:
            conversions.observation(
                Snapshot(color, unusable, depth, None, LiftStatus.OK), Poses("table", None)
            )
        assert error.value.code is ErrorCode.NO_CAMERA_INFO


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UnparsableAnswer("x"), ErrorCode.UNPARSABLE_ANSWER),
        (EmptyAnswer("x"), ErrorCode.EMPTY_ANSWER),
        (TransformUnavailable("x"), ErrorCode.TF_ERROR),
        (EngineOutOfMemory("x"), ErrorCode.OUT_OF_MEMORY),
        (EngineBusy("x"), ErrorCode.BUSY),
        (EngineUnavailable("x"), ErrorCode.ENGINE_UNAVAILABLE),
        (EngineError("x"), ErrorCode.BAD_REQUEST),
        (BrainError(ErrorCode.NO_IMAGE, "x"), ErrorCode.NO_IMAGE),
    ],
)
def test_known_failures_have_a_code(error, code):
    assert as_brain_error(error).code is code


def test_an_unknown_failure_has_none():
    assert as_brain_error(RuntimeError("?")) is None


def test_the_parameter_file_holds_every_parameter_with_its_default():
    file = yaml.safe_load((ROOT / "config/brain.yaml").read_text())
    values = file["/**"]["robobrain"]["ros__parameters"]
    topics = values.pop("camera")
    assert values == {spec.name: spec.default for spec in parameters.SPECS}
    defaults = {
        key: default.format(name="camera") if isinstance(default, str) else default
        for key, (default, _) in parameters.CAMERA_PARAMETERS.items()
    }
    assert topics == defaults
