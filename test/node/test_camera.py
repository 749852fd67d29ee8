# SPDX-License-Identifier: Apache-2.0
"""Snapshots from real topics."""

from __future__ import annotations

import time
from functools import partial

import pytest
import rclpy
from builtin_interfaces.msg import Time
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from support.polling import until

from robobrain_ros.ros.camera import Camera, Topics, nanoseconds
from robobrain_ros.tf_projection import LiftStatus

STAMP = Time(sec=7)
ARGUMENTS = (nanoseconds(STAMP), nanoseconds(STAMP), 1.0)


def publish_until(publishers, found):
    """Publish an empty message of STAMP on each until `found()` gives something."""
    for _ in range(100):
        for publisher in publishers:
            publisher.publish(publisher.msg_type(header=Header(stamp=STAMP)))
        if (value := found()) is not None:
            return value
        time.sleep(0.1)
    pytest.fail("the camera never found what was published")


def test_depth_that_comes_after_its_colour_was_asked_about_is_used(own_node):
    camera = Camera(own_node, "late", Topics("late/color", "late/info", "late/depth", ""), 0.02)
    depth = own_node.create_publisher(Image, "late/depth", 2)
    color = own_node.create_publisher(Image, "late/color", 2)
    info = own_node.create_publisher(CameraInfo, "late/info", 2)
    first = publish_until([color, info], lambda: camera.find_color(*ARGUMENTS))
    assert first.depth is None
    camera.keep(first)
    whole = publish_until([info, depth], lambda: camera.find(*ARGUMENTS))
    assert whole.depth is not None and whole.depth_status is LiftStatus.OK
    camera.keep(whole)
    assert camera.find_color(*ARGUMENTS) is camera.find(*ARGUMENTS) is whole


def test_images_that_come_out_of_order_are_put_in_order(own_node):
    """The newest was taken to be what came last."""
    camera = Camera(own_node, "mixed", Topics("mixed/color", "mixed/info", "", ""), 0.02)
    color = own_node.create_publisher(Image, "mixed/color", 5)
    info = own_node.create_publisher(CameraInfo, "mixed/info", 5)
    now = nanoseconds(STAMP)
    publish_until([color, info], lambda: camera.find_color(now, now, 1.0))
    order = [int(ms * 1e6) + now for ms in (100, 33, 133, 66)]
    for stamp in order:
        header = Header(stamp=rclpy.time.Time(nanoseconds=stamp).to_msg())
        color.publish(Image(header=header))
        info.publish(CameraInfo(header=header))
    for stamp in order:
        until(partial(camera.find, stamp, now, 1.0))
    newest = camera.find(0, max(order), 1.0)
    assert nanoseconds(newest.color.header.stamp) == max(order)


def test_an_image_whose_depth_is_still_on_its_way_did_not_hide_one_that_had_it(own_node):
    """Without camera info the answer was now NO_CAMERA_INFO and now one without 3D."""
    camera = Camera(own_node, "few", Topics("few/color", "few/info", "few/depth", ""), 0.02)
    color = own_node.create_publisher(Image, "few/color", 5)
    depth = own_node.create_publisher(Image, "few/depth", 5)
    now = nanoseconds(STAMP)
    publish_until([color, depth], lambda: with_depth(camera.find_fullest(0, now, 1.0)))
    later = now + 100_000_000
    color.publish(Image(header=Header(stamp=rclpy.time.Time(nanoseconds=later).to_msg())))
    until(lambda: nanoseconds(camera.find_color(0, later, 1.0).color.header.stamp) == later)
    assert camera.find_color(0, later, 1.0).depth is None
    assert nanoseconds(camera.find_fullest(0, later, 1.0).color.header.stamp) == now
    assert camera.find_fullest(later, later, 1.0).depth is None  # the very image was asked for


def with_depth(snapshot):
    return snapshot if snapshot and snapshot.depth else None
