# SPDX-License-Identifier: Apache-2.0
"""Where a snapshot's depth was taken, relative to its color image."""

from __future__ import annotations

import numpy as np
import pytest
from rclpy.time import Time
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import Header
from tf2_ros import BufferCore, TransformException

from robobrain_ros.ros.acquisition import _color_from_depth, _is_elsewhere
from robobrain_ros.ros.camera import Snapshot
from robobrain_ros.sim.camera_node import transform
from robobrain_ros.tf_projection import TransformLookup, TransformUnavailable

MS = 1_000_000
MOUNT = np.eye(4)  # the depth camera beside the color camera
MOUNT[:3, 3] = (-0.015, 0.0, 0.002)
COLOR, DEPTH = "color_optical", "depth_optical"


def pose(stamp_ns: int) -> np.ndarray:
    """The color camera in `odom`: 0.5 m/s forward, 1 rad/s."""
    seconds = stamp_ns * 1e-9
    matrix = np.eye(4)
    matrix[:3, :3] = Rotation.from_euler("y", seconds).as_matrix()
    matrix[:3, 3] = (0.5 * seconds, 1.0, 0.2)
    return matrix


class Lookups(BufferCore):
    """A real tf2_ros buffer of a moving camera, with the names that tf2_ros.Buffer gives them."""

    lookup_transform = BufferCore.lookup_transform_core
    lookup_transform_full = BufferCore.lookup_transform_full_core


@pytest.fixture
def transforms():
    buffer = Lookups()
    for stamp in range(0, 1000 * MS, 10 * MS):
        moving = transform("odom", COLOR, pose(stamp))
        moving.header.stamp = Time(nanoseconds=stamp).to_msg()
        buffer.set_transform(moving, "test")
    buffer.set_transform_static(transform(COLOR, DEPTH, MOUNT), "test")
    return TransformLookup(buffer, (TransformException,))


def snapshot(depth_ms: float, frame: str = COLOR, info: bool = False) -> Snapshot:
    """Color at 500 ms, and depth."""

    def header(ms: float, name: str) -> Header:
        return Header(stamp=Time(nanoseconds=int(ms * MS)).to_msg(), frame_id=name)

    return Snapshot(
        Image(header=header(500, COLOR)),
        CameraInfo(),
        Image(header=header(depth_ms, frame)),
        CameraInfo() if info else None,
    )


@pytest.mark.parametrize(
    ("seen", "elsewhere"),
    [
        (snapshot(500), False),
        (snapshot(500.5), False),
        (snapshot(510), True),
        (snapshot(490), True),
        (snapshot(500, DEPTH, info=True), True),
        (snapshot(500, COLOR, info=True), False),
    ],
)
def test_depth_of_another_frame_or_moment_is_elsewhere(seen, elsewhere):
    assert _is_elsewhere(seen) is elsewhere


def test_registered_depth_of_another_moment_has_moved_with_the_camera(transforms):
    found = _color_from_depth(snapshot(515), "odom", transforms)
    exact = np.linalg.inv(pose(500 * MS)) @ pose(515 * MS)
    np.testing.assert_allclose(found, exact, atol=2e-5)
    assert np.linalg.norm(found[:3, 3]) > 0.007


def test_another_cameras_depth_of_another_moment(transforms):
    found = _color_from_depth(snapshot(485, DEPTH, info=True), "odom", transforms)
    exact = np.linalg.inv(pose(500 * MS)) @ pose(485 * MS) @ MOUNT
    np.testing.assert_allclose(found, exact, atol=2e-5)


def test_without_a_frame_that_stands_still_the_cameras_are_one_body(transforms):
    found = _color_from_depth(snapshot(485, DEPTH, info=True), COLOR, transforms)
    np.testing.assert_allclose(found, MOUNT, atol=1e-9)


def test_a_fixed_frame_that_nobody_publishes_is_named(transforms):
    with pytest.raises(TransformUnavailable, match="map"):
        _color_from_depth(snapshot(515), "map", transforms)
