# SPDX-License-Identifier: Apache-2.0
"""A camera as a driver publishes it: one rendered table, its messages made once and sent on time.

Color (rgb8), its camera info and depth registered to it (16UC1), all of a frame with one stamp,
best effort, and the camera's pose in the frame `table` on `/tf_static`. Every color image differs
from the last one in a pixel, so that no cache knows it.
"""

from __future__ import annotations

from contextlib import suppress

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import StaticTransformBroadcaster

from robobrain_ros.sim.camera_node import camera_info, color_image, depth_image, transform
from robobrain_ros.sim.tabletop import Tabletop

FRAME = "camera_color_optical_frame"


class RgbdPublisher(Node):
    """Parameters: width and height in pixels, seed of the scene, rate in frames a second."""

    def __init__(self) -> None:
        super().__init__("rgbd_publisher")
        width, height, seed = (
            self.declare_parameter(name, default).value
            for name, default in (("width", 640), ("height", 480), ("seed", 2_000_003))
        )
        table = Tabletop(width, height)
        table.reset(seed)
        seen, intrinsics, pose = table.render(), table.K, table.world_from_optical
        table.close()
        self._color = color_image(seen.rgb, "rgb8")
        depth = depth_image(seen.depth, "16UC1", 1.0)
        info = camera_info(intrinsics, self._color, self._color)
        self._static = StaticTransformBroadcaster(self)
        self._static.sendTransform(transform("table", FRAME, pose))
        self._outputs = [
            (message, self.create_publisher(kind, f"camera/{topic}", qos_profile_sensor_data))
            for message, kind, topic in (
                (self._color, Image, "color/image_raw"),
                (info, CameraInfo, "color/camera_info"),
                (depth, Image, "aligned_depth_to_color/image_raw"),
            )
        ]
        self._count = 0
        self.create_timer(1 / self.declare_parameter("rate", 30.0).value, self._publish)

    def _publish(self) -> None:
        self._count += 1
        for channel in range(3):
            self._color.data[channel] = self._count >> 8 * channel & 255
        stamp = self.get_clock().now().to_msg()
        for message, publisher in self._outputs:
            message.header.stamp = stamp
            message.header.frame_id = FRAME
            publisher.publish(message)


if __name__ == "__main__":
    rclpy.init()
    with suppress(KeyboardInterrupt, ExternalShutdownException):
        rclpy.spin(RgbdPublisher())
