# SPDX-License-Identifier: Apache-2.0
"""The least that an rclpy node can do with a camera: take its three topics and answer at once."""

from __future__ import annotations

import ctypes
from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image

from robobrain_ros.msg import LiftedPoint
from robobrain_ros.srv import PointTo

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE = 32 << 20  # bytes


class TrivialNode(Node):
    """Serves `~/point_to` with one empty point, and subscribes as the brain node does."""

    def __init__(self) -> None:
        super().__init__("trivial")
        self._color_images = self._depth_images = 0
        qos = qos_profile_sensor_data
        self.create_subscription(Image, "camera/color/image_raw", self._on_color, qos)
        self.create_subscription(CameraInfo, "camera/color/camera_info", lambda info: None, qos)
        depth_topic = "camera/aligned_depth_to_color/image_raw"
        self.create_subscription(Image, depth_topic, self._on_depth, qos)
        self.create_service(PointTo, "~/point_to", self._serve)

    def _on_color(self, image: Image) -> None:
        self._color_images += 1

    def _on_depth(self, image: Image) -> None:
        self._depth_images += 1

    def _serve(self, request: PointTo.Request, response: PointTo.Response) -> PointTo.Response:
        response.success = True
        response.answer = f"{self._color_images} {self._depth_images}"
        response.points = [LiftedPoint()]
        return response


def keep_freed_memory() -> None:
    """Let malloc reuse the memory of images. Left alone it may give it back to the system after
    each image, by the chance of what lies behind it, which more than doubles this node's cost.
    """
    libc = ctypes.CDLL(None)
    for threshold in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
        libc.mallopt(threshold, _LARGE)


if __name__ == "__main__":
    keep_freed_memory()
    rclpy.init()
    try:
        with suppress(KeyboardInterrupt, ExternalShutdownException):
            rclpy.spin(TrivialNode())
    except RuntimeError:
        if rclpy.ok():  # else it ended while a message was being taken, which rclpy can't
            raise
