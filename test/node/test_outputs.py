# SPDX-License-Identifier: Apache-2.0
"""What goes out on topics, and that nothing is made for nobody."""

from __future__ import annotations

import time
from types import SimpleNamespace

import numpy as np
import pytest
import rclpy
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from support.sample_results import answer, point
from visualization_msgs.msg import MarkerArray

from robobrain_ros.core.families import TaskKind
from robobrain_ros.ros import publishers
from robobrain_ros.ros.publishers import Outputs
from robobrain_ros.visualization.style import PALETTE

HEADER = Header(frame_id="camera_color_optical_frame")
RGB = np.full((480, 640, 3), 120, np.uint8)
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
    look = Outputs(nodes.node).look(RGB, CAN, "the can", HEADER)
    assert look.picture is None and not calls


def test_picture_and_markers_of_a_request_have_one_colour(nodes):
    out = Outputs(nodes.node)
    nodes.node.trigger_configure()
    nodes.node.trigger_activate()
    pictures, markers = [], []
    topics = (("annotated_image", Image, pictures), ("markers", MarkerArray, markers))
    for name, kind, got in topics:
        nodes.onlooker.create_subscription(kind, f"/robobrain/{name}", got.append, 10)
    until(nodes, lambda: all(nodes.node.count_subscribers(f"/robobrain/{t[0]}") for t in topics))
    response = SimpleNamespace(header=HEADER)
    looks = [out.look(RGB, CAN, words, HEADER) for words in ("the can", "the cup", "the can")]
    for look, words in zip(looks, ("the can", "the cup", "the can")):
        out.publish(CAN, words, response, look, "table")
    until(nodes, lambda: len(pictures) == 3 and len(markers) == 3)
    for look, picture, array in zip(looks, pictures, markers):
        assert picture.header == HEADER and (picture.width, picture.height) == (640, 480)
        dot = np.frombuffer(picture.data, np.uint8).reshape(480, 640, 3)[300, 320]
        color = next(m.color for m in array.markers if m.ns == "points")
        assert tuple(dot) == PALETTE[look.slot]
        assert tuple(round(255 * part) for part in (color.r, color.g, color.b)) == tuple(dot)
    assert looks[0].slot == looks[2].slot != looks[1].slot


def test_who_asked_has_the_answer_even_if_it_can_not_be_drawn(nodes, monkeypatch):
    def broken(*_):
        raise OSError("no font")

    monkeypatch.setattr(publishers, "draw", broken)
    out = Outputs(nodes.node)
    nodes.onlooker.create_subscription(Image, "/robobrain/annotated_image", print, 10)
    until(nodes, lambda: nodes.node.count_subscribers("/robobrain/annotated_image"))
    assert out.look(RGB, CAN, "the can", HEADER).picture is None
