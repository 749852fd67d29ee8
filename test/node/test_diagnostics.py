# SPDX-License-Identifier: Apache-2.0
"""What /diagnostics says of the node, its requests and its cameras."""

from dataclasses import replace

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from rclpy.qos import QoSProfile, ReliabilityPolicy, qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from support.polling import diagnosed, until, values
from support.sample_results import answer, answered

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros.camera_health import TopicHealth
from robobrain_ros.ros.diagnostics import Health, statuses
from robobrain_ros.ros.metrics import Metrics

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
TOPIC = "/camera/color/image_raw"
# It asks for reliable images.
BRAIN = {"parameters": {f"qos_overrides.{TOPIC}.subscription.reliability": "reliable"}}


def request(kind=TaskKind.POINT, seconds=1.0, **generation):
    result = answer(kind)
    return answered(
        replace(result, generation=replace(result.generation, **generation)), seconds=seconds
    )


class TestMetrics:
    def test_latencies_are_told_per_task(self):
        metrics = Metrics()
        for number in range(1, 101):
            metrics.answered(request(seconds=number / 100))
        metrics.answered(request(TaskKind.ASK, seconds=7.0))
        values = metrics.values()
        assert float(values["point p50 (s)"]) == pytest.approx(0.505)
        assert float(values["point p95 (s)"]) == pytest.approx(0.95, abs=0.01)
        assert float(values["ask p95 (s)"]) == 7.0
        assert values["answers with NONE"] == "101"

    def test_speed_and_known_images(self):
        metrics = Metrics()
        metrics.answered(request(tokens_out=30, decode_s=1.0))
        metrics.answered(request(tokens_out=10, decode_s=1.0, cached_tokens=80))
        assert metrics.values()["tokens per second"] == "20.0"
        assert metrics.values()["images known already (%)"] == "50"

    def test_a_failure_is_counted_for_ever_and_told_once(self):
        metrics = Metrics()
        metrics.failed(BrainError(ErrorCode.BUSY, "ask again later."))
        assert metrics.new_failures() == ["BUSY: ask again later."]
        assert metrics.new_failures() == []
        assert metrics.values()["answers with BUSY"] == "1"


class TestStatuses:
    def parts(self, **health):
        found = statuses("/arm/robobrain", Health("active", "nano", **health).parts())
        assert all(one.hardware_id == "arm/robobrain" for one in found)
        return {one.name.removeprefix("arm/robobrain: "): one for one in found}

    def test_all_is_well(self):
        topics = [TopicHealth(TOPIC, 0.03), TopicHealth("/camera/info", 0.03)]
        parts = self.parts(cameras={"camera": topics}, max_image_age_s=1.0)
        assert [part.level for part in parts.values()] == [OK, OK, OK]
        assert parts["camera camera"].values[0].value == "0.030"

    def test_an_error_of_the_last_second_warns(self):
        parts = self.parts(failures=["NO_IMAGE: start the camera."])
        assert (parts["requests"].level, parts["model"].level) == (WARN, OK)
        assert parts["requests"].message == "NO_IMAGE: start the camera."

    def test_a_model_that_answers_nobody_any_more_is_an_error(self):
        part = self.parts(failure="The model's thread has ended.")["model"]
        assert (part.level, part.message) == (ERROR, "The model's thread has ended.")

    @pytest.mark.parametrize(
        ("age", "words"), [(3.0, "3.00 s old"), (-3.0, "3.00 s in the future")]
    )
    def test_an_old_image_warns(self, age, words):
        parts = self.parts(cameras={"wrist": [TopicHealth(TOPIC, age)]}, max_image_age_s=1.0)
        assert parts["camera wrist"].level == WARN
        assert words in parts["camera wrist"].message

    def test_a_silent_topic_is_an_error(self):
        topics = [TopicHealth(TOPIC, 0.1), TopicHealth("/depth", None, "nobody publishes /depth")]
        parts = self.parts(cameras={"camera": topics}, max_image_age_s=1.0)
        assert (parts["camera camera"].level, parts["camera camera"].message) == (
            ERROR,
            "nobody publishes /depth",
        )


def newest(seen, part) -> DiagnosticStatus:
    """The last status of a part, an empty one while there is none."""
    return seen.get(part, [DiagnosticStatus()])[-1]


def test_images_that_can_not_come_name_the_two_settings(brain, own_node):
    """A best-effort camera for a node that asks for reliable images."""
    publisher = own_node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    words = f"qos_overrides.{TOPIC}.subscription.reliability of robobrain_cameras to best_effort"
    with diagnosed() as seen:
        until(lambda: words in newest(seen, "camera camera").message)
        camera = newest(seen, "camera camera")
    assert camera.level == ERROR
    assert "the publisher's reliability to reliable" in camera.message
    refused = brain.point_to("the cup")
    assert refused.error_code == ErrorCode.NO_IMAGE
    assert words in refused.error_msg
    own_node.destroy_publisher(publisher)


def test_requests_are_told_of(brain, own_node):
    """Answers by code, latency by task, and how old the camera's images are."""
    reliable = QoSProfile(depth=5, reliability=ReliabilityPolicy.RELIABLE)
    publisher = own_node.create_publisher(Image, TOPIC, reliable)
    info = own_node.create_publisher(CameraInfo, "/camera/color/camera_info", reliable)
    image = Image(height=48, width=64, encoding="rgb8", step=192, data=bytes(48 * 192))

    def send() -> None:
        image.header.stamp = own_node.get_clock().now().to_msg()
        publisher.publish(image)
        info.publish(CameraInfo(header=image.header))

    timer = own_node.create_timer(0.1, send)

    try:
        with diagnosed() as seen:

            def age() -> str:
                return values(newest(seen, "camera camera")).get(f"age of {TOPIC} (s)", "none")

            until(lambda: age() != "none")
            answer = brain.ask("is there a mug?")
            assert answer.success, answer.error_msg
            until(lambda: "ask p95 (s)" in values(newest(seen, "requests")))
            requests = values(newest(seen, "requests"))
        assert 0 < float(requests["ask p50 (s)"]) <= float(requests["ask p95 (s)"])
        assert int(requests["answers with NONE"]) == 1
        assert float(requests["tokens per second"]) > 0
        assert abs(float(age())) < 5
    finally:
        own_node.destroy_timer(timer)
        own_node.destroy_publisher(publisher)
        own_node.destroy_publisher(info)
