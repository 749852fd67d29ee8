# SPDX-License-Identifier: Apache-2.0
"""What goes out on topics, and that nothing is made for nobody."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from builtin_interfaces.msg import Time
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.sample_results import answer, answered, point
from visualization_msgs.msg import MarkerArray

from robobrain_ros.core.observations import Observation
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros import publishers
from robobrain_ros.ros.publishers import AnswerDisplay, ResultPublisher
from robobrain_ros.tf_projection import DepthScene
from robobrain_ros.visualization.style import PALETTE

HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id="camera_color_optical_frame")
SEEN = Observation(np.full((480, 640, 3), 120, np.uint8), DepthScene())
CAN = answer(TaskKind.POINT, [point((320, 300))])


@pytest.fixture
def nodes(ros):
    """A lifecycle node that is active, and one that looks on."""
    executor = SingleThreadedExecutor()
    node, onlooker = LifecycleNode("robobrain"), rclpy.create_node("onlooker")
    for one in (node, onlooker):
        executor.add_node(one)
    yield SimpleNamespace(node=node, onlooker=onlooker, executor=executor)
    executor.shutdown()
    for one in (node, onlooker):
        one.destroy_node()


def until(nodes, condition) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        nodes.executor.spin_once(timeout_sec=0.05)


def test_nothing_is_drawn_when_nobody_subscribes(nodes, monkeypatch):
    calls = []
    monkeypatch.setattr(publishers, "draw", lambda *arguments: calls.append(arguments))
    AnswerDisplay(nodes.node).on_result(answered(CAN), SEEN)()
    assert not calls


def test_annotated_image_and_markers_of_a_request_have_one_color(nodes):
    display = AnswerDisplay(nodes.node)
    nodes.node.trigger_configure()
    nodes.node.trigger_activate()
    images, markers = [], []
    topics = (("annotated_image", Image, images), ("markers", MarkerArray, markers))
    for name, kind, got in topics:
        nodes.onlooker.create_subscription(kind, f"/robobrain/{name}", got.append, 10)
    until(nodes, lambda: all(nodes.node.count_subscribers(f"/robobrain/{t[0]}") for t in topics))
    for text in ("the can", "the cup", "the can"):
        display.on_result(answered(CAN, text), SEEN)()
    until(nodes, lambda: len(images) == 3 and len(markers) == 3)
    colors = []
    for image, array in zip(images, markers):
        assert image.header == HEADER and (image.width, image.height) == (640, 480)
        dot = np.frombuffer(image.data, np.uint8).reshape(480, 640, 3)[300, 320]
        color = next(m.color for m in array.markers if m.ns == "points")
        assert tuple(round(255 * part) for part in (color.r, color.g, color.b)) == tuple(dot)
        colors.append(tuple(dot))
    assert set(colors) <= set(PALETTE)
    assert colors[0] == colors[2] != colors[1]


def test_markers_are_published_even_if_the_image_can_not_be_drawn(nodes, monkeypatch):
    def broken(*_):
        raise OSError("no font")

    monkeypatch.setattr(publishers, "draw", broken)
    display = AnswerDisplay(nodes.node)
    nodes.node.trigger_configure()
    nodes.node.trigger_activate()
    images, markers = [], []
    nodes.onlooker.create_subscription(Image, "/robobrain/annotated_image", images.append, 10)
    nodes.onlooker.create_subscription(MarkerArray, "/robobrain/markers", markers.append, 10)
    until(nodes, lambda: nodes.node.count_subscribers("/robobrain/annotated_image"))
    until(nodes, lambda: nodes.node.count_subscribers("/robobrain/markers"))
    display.on_result(answered(CAN), SEEN)()
    until(nodes, lambda: markers)
    assert not images


def test_an_answer_in_words_is_on_the_image_alone(nodes):
    words = answered(answer(TaskKind.ASK, text="two"))
    assert ResultPublisher(nodes.node).on_result(words, SEEN) is None
