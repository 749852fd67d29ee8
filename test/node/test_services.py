# SPDX-License-Identifier: Apache-2.0
"""The node as its users meet it: a real process, real topics, real services, the shipped model."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Duration, Time
from rcl_interfaces.srv import DescribeParameters
from rclpy.callback_groups import ReentrantCallbackGroup
from sensor_msgs.msg import CameraInfo, Image
from support.node_parameters import set_parameter
from support.point_queries import assert_on_object, point
from support.polling import until

from robobrain_ros.client import AsyncBrainClient
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.msg import ErrorCode as ErrorCodeMsg
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.ros.executors import spinning
from robobrain_ros.sim.camera_node import color_image
from robobrain_ros.sim.truth import box_edges, box_iou
from robobrain_ros.srv import (
    Ask,
    GetAffordance,
    GroundObject,
    PointTo,
    PredictTrajectory,
)

CAMERAS = (
    "camera",
    "bgr8",
    "rgba8",
    "mono8",
    "mm",
    "small",
    "flat",
    "late",
    "old",
    "noinfo",
    "notf",
)
REQUESTS = (
    PointTo.Request(query="the red can"),
    GetAffordance.Request(task="pick up the red can"),
    PredictTrajectory.Request(task="reach for the red can"),
    GroundObject.Request(query="the red can"),
    Ask.Request(query="How many objects are on the table?"),
)


PARAMETERS = {"cameras": list(CAMERAS), "image_timeout": 1.0, "max_pending": 2, "max_batch": 1}
BRAIN = {"parameters": PARAMETERS}


def assert_failed(response, code: ErrorCode) -> None:
    assert not response.success
    assert ErrorCode(response.error_code) is code, response.error_msg
    assert response.error_msg.endswith((".", "!", ")")) and len(response.error_msg) > 20


def test_point_to_gives_pixel_and_position_on_the_object(brain, camera):
    response = point(brain, camera, target_frame="table")
    assert_on_object(response, camera)
    assert response.header.frame_id == "camera_color_optical_frame"
    assert response.header.stamp != Time()
    assert response.error_code == ErrorCode.NONE and not response.error_msg
    lifted = response.points[0]
    assert 0 < lifted.valid_fraction <= 1 and lifted.spread < 0.05
    assert np.all(np.linalg.eigvalsh(np.reshape(lifted.covariance, (3, 3))) > 0)
    timing = response.timing
    stages = (timing.wait, timing.preprocess, timing.prefill, timing.decode, timing.lift)
    assert all(seconds >= 0 for seconds in stages)
    assert timing.total == pytest.approx(sum(stages), abs=0.2)
    assert timing.tokens_in > 100 and timing.tokens_out > 5


def test_without_target_frame_the_pose_is_in_the_cameras_optical_frame(brain, camera):
    response = point(brain, camera)
    lifted = response.points[0]
    assert lifted.pose.header.frame_id == response.header.frame_id == "camera_color_optical_frame"
    assert lifted.pose.pose.position.z == pytest.approx(lifted.depth, abs=0.02)


def test_ground_object_gives_box_and_surface_centre(brain, camera):
    response = brain.ground_object(f"the {camera.name}", target_frame="table")
    assert response.success, response.error_msg
    region = response.regions[0]
    assert box_iou(box_edges(region.box), camera.truth.box(camera.name)) >= 0.6
    at = region.pose.pose.position
    assert camera.truth.distance_mm(camera.name, (at.x, at.y, at.z)) <= 15
    surface = camera.truth.surface(camera.name)
    middle = region.box3d.center.position
    np.testing.assert_allclose(
        [middle.x, middle.y, middle.z], (surface.min(0) + surface.max(0)) / 2, atol=0.03
    )


def test_get_affordance_gives_a_region_on_the_object(brain, camera):
    response = brain.get_affordance(f"pick up the {camera.name}", target_frame="table")
    assert response.success, response.error_msg
    at = response.regions[0].pose.pose.position
    assert camera.truth.distance_mm(camera.name, (at.x, at.y, at.z)) <= 30


def test_predict_trajectory_gives_waypoints_and_their_path(brain, camera):
    response = brain.predict_trajectory(f"reach for the {camera.name}", target_frame="table")
    assert response.success, response.error_msg
    with_position = [w for w in response.waypoints if w.status == LiftedPoint.OK]
    assert len(response.waypoints) >= 2
    assert [pose.pose for pose in response.path.poses] == [w.pose.pose for w in with_position]
    assert response.path.header.frame_id == "table"
    fewer = brain.predict_trajectory(f"reach for the {camera.name}", max_points=1)
    assert len(fewer.waypoints) == 1


def test_ask_answers_in_words(brain, camera):
    response = brain.ask("How many objects are on the table?")
    assert response.success, response.error_msg
    assert response.answer.strip()


@pytest.mark.parametrize("name", ["bgr8", "rgba8"])
def test_color_encodings_give_the_same_answer(brain, still_cameras, scene, name):
    with still_cameras.publishing(name, scene, encoding=name):
        assert_on_object(point(brain, scene, name, target_frame="table"), scene)


def test_mono8_is_answered(brain, still_cameras, scene):
    with still_cameras.publishing("mono8", scene, encoding="mono8"):
        response = point(brain, scene, "mono8", target_frame="table")
    # Without colours the model may point elsewhere: the image must be taken, not be right.
    assert response.success or response.error_code == ErrorCode.EMPTY_ANSWER, response.error_msg


def test_depth_in_millimetres(brain, still_cameras, scene):
    with still_cameras.publishing("mm", scene, depth_encoding="16UC1"):
        assert_on_object(point(brain, scene, "mm", target_frame="table"), scene)


def test_depth_of_another_size_than_colour(brain, still_cameras, scene):
    with still_cameras.publishing("small", scene, depth_scale=0.5):
        assert_on_object(point(brain, scene, "small", target_frame="table"), scene)


def test_without_depth_camera_pixels_still_are_an_answer(brain, still_cameras, scene):
    with still_cameras.publishing("flat", scene, depth_encoding=None):
        response = point(brain, scene, "flat", target_frame="table")
    assert response.success, response.error_msg
    pixel = response.points[0].pixel
    assert scene.truth.contains(scene.name, (pixel.x, pixel.y))
    assert response.points[0].status == LiftedPoint.NO_DEPTH_CAMERA


def test_depth_of_another_time_is_not_used(brain, still_cameras, scene):
    with still_cameras.publishing("late", scene, depth_age_s=60.0):
        response = point(brain, scene, "late")
    assert response.success, response.error_msg
    assert response.points[0].status == LiftedPoint.DEPTH_STALE


def test_missing_transform_to_the_default_frame_leaves_pixels(brain, still_cameras, scene):
    set_parameter(brain, "target_frame", "table")
    try:
        with still_cameras.publishing("notf", scene, transform=False):
            response = point(brain, scene, "notf")
    finally:
        set_parameter(brain, "target_frame", "")
    assert response.success, response.error_msg
    assert response.points[0].status == LiftedPoint.NO_TRANSFORM
    assert response.points[0].depth > 0


def test_image_in_the_request_is_used_and_gives_no_3d(brain, scene):
    response = point(brain, scene, image=color_image(scene.truth.frame.rgb, "rgb8"))
    assert response.success, response.error_msg
    pixel = response.points[0].pixel
    assert scene.truth.contains(scene.name, (pixel.x, pixel.y))
    assert response.points[0].status == LiftedPoint.NO_DEPTH_CAMERA


def test_an_image_by_its_stamp(brain, camera, own_node):
    """Also when it has left the ring of the newest frames: it was asked about."""
    first = point(brain, camera).header.stamp
    later = []
    topic = "camera/color/camera_info"
    subscription = own_node.create_subscription(CameraInfo, topic, later.append, 5)
    until(lambda: len(later) > 20)
    own_node.destroy_subscription(subscription)
    again = point(brain, camera, stamp=first)
    assert again.success, again.error_msg
    assert again.header.stamp == first


# Every failure has its code.


def test_no_image(brain):
    assert_failed(brain.point_to("the red can", camera="old"), ErrorCode.NO_IMAGE)


def test_image_stale(brain, still_cameras, scene):
    with still_cameras.publishing("old", scene, age_s=30.0):
        until(lambda: point(brain, scene, "old").error_code != ErrorCode.NO_IMAGE)
        assert_failed(point(brain, scene, "old"), ErrorCode.IMAGE_STALE)


def test_image_of_a_stamp_that_is_no_longer_held(brain, camera):
    point(brain, camera)
    assert_failed(point(brain, camera, stamp=Time(sec=1)), ErrorCode.IMAGE_STALE)


def test_no_camera_info(brain, still_cameras, scene):
    with still_cameras.publishing("noinfo", scene, info=False):
        assert_failed(point(brain, scene, "noinfo"), ErrorCode.NO_CAMERA_INFO)


def test_tf_error_for_a_frame_that_the_request_names(brain, camera):
    assert_failed(point(brain, camera, target_frame="nowhere"), ErrorCode.TF_ERROR)


@pytest.mark.parametrize("request_", REQUESTS, ids=lambda request: type(request).__qualname__)
def test_bad_requests(brain, request_):
    service = type(request_)
    text_field = "task" if hasattr(request_, "task") else "query"

    def refused(**fields):
        return brain.send(service(**{text_field: "the red can", **fields}))

    assert_failed(refused(**{text_field: "  "}), ErrorCode.BAD_REQUEST)
    assert_failed(refused(**{text_field: "x" * 5000}), ErrorCode.BAD_REQUEST)
    assert_failed(refused(camera="nobody"), ErrorCode.BAD_REQUEST)
    assert_failed(refused(think=7), ErrorCode.BAD_REQUEST)
    assert_failed(refused(timeout=Duration(sec=-1)), ErrorCode.BAD_REQUEST)
    broken = Image(width=64, height=48, encoding="rgb8", step=192)
    assert_failed(refused(image=broken), ErrorCode.BAD_REQUEST)
    unknown = color_image(np.zeros((48, 64, 3), np.uint8), "rgb8")
    unknown.encoding = "klingon8"
    assert_failed(refused(image=unknown), ErrorCode.BAD_REQUEST)


def test_thinking_on_request_comes_apart_from_the_answer(brain, camera):
    response = point(brain, camera, think=PointTo.Request.THINK_ON)
    assert response.success, response.error_msg
    assert len(response.thinking) > 10
    assert response.answer.startswith("[")
    assert not point(brain, camera).thinking


def test_ask_refuses_what_is_not_served_yet(brain):
    assert_failed(brain.ask("What happened?", window_s=2.0), ErrorCode.BAD_REQUEST)
    assert_failed(brain.ask("Which is fuller?", images=[Image(), Image()]), ErrorCode.BAD_REQUEST)


def test_timeout(brain, camera):
    response = point(brain, camera, timeout=Duration(nanosec=2_000_000))
    assert_failed(response, ErrorCode.TIMEOUT)


def test_busy(brain, camera):
    with ThreadPoolExecutor(8) as pool:
        responses = list(pool.map(lambda _: point(brain, camera), range(8)))
    codes = {ErrorCode(response.error_code) for response in responses}
    assert codes == {ErrorCode.NONE, ErrorCode.BUSY}
    assert all(response.success == (response.error_code == 0) for response in responses)


def test_unparsable_answer_when_it_is_cut_off(brain, camera):
    set_parameter(brain, "max_new_tokens", 3)
    try:
        assert_failed(point(brain, camera), ErrorCode.UNPARSABLE_ANSWER)
    finally:
        set_parameter(brain, "max_new_tokens", 768)


def test_error_codes_are_those_of_the_message():
    values = {name: getattr(ErrorCodeMsg, name) for name in dir(ErrorCodeMsg) if name.isupper()}
    of_message = {name: value for name, value in values.items() if isinstance(value, int)}
    assert {code.name: int(code) for code in ErrorCode} == of_message


# Parameters


def test_every_parameter_is_described(brain):
    from robobrain_ros.ros.parameters import SPECS

    request = DescribeParameters.Request(names=[spec.name for spec in SPECS])
    name = "robobrain/describe_parameters"
    described = brain.call(DescribeParameters, name, request, 10.0).descriptors
    assert len(described) == len(SPECS) and all(one.description for one in described)


@pytest.mark.parametrize(
    ("name", "value"),
    [("model", "nano"), ("cameras", ["a"]), ("camera.depth_topic", "x"), ("request_timeout", -1.0)],
)
def test_parameters_that_cannot_change_now_are_refused(brain, name, value):
    result = set_parameter(brain, name, value)
    assert not result.successful and result.reason


def test_the_async_client_is_awaited_in_a_callback_and_holds_nothing_up(brain, camera):
    node = rclpy.create_node("planner")
    client = AsyncBrainClient(node)
    answers, ticks, done = [], [], threading.Event()

    async def plan() -> None:
        once.cancel()
        asked = f"Point to the {camera.name}"
        answers.append(await client.point_to(asked, target_frame="table"))
        done.set()

    def tick() -> None:
        if not done.is_set():
            ticks.append(time.monotonic())

    once = node.create_timer(0.2, plan)
    node.create_timer(0.002, tick, callback_group=ReentrantCallbackGroup())
    with spinning(node):
        assert done.wait(30.0)
    assert_on_object(answers[0], camera)
    assert len(ticks) > 10  # the executor went on while the answer was awaited
