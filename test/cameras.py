# SPDX-License-Identifier: Apache-2.0
"""Camera topics for tests: one real rendered frame, published well or with one thing wrong."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import rclpy
from rclpy.duration import Duration
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import StaticTransformBroadcaster

from robobrain_ros.sim.camera_node import camera_info, color_image, depth_image, transform
from robobrain_ros.spinning import SpinThread

PERIOD_S = 0.1


@dataclass(frozen=True)
class Faults:
    """How a camera publishes; the defaults are a good one."""

    encoding: str = "rgb8"
    depth_encoding: str | None = "32FC1"
    depth_scale: float = 1.0  # size of the depth image relative to colour
    info: bool = True
    transform: bool = True
    age_s: float = 0.0  # how old the colour's stamp is
    depth_age_s: float = 0.0  # how much older the depth's stamp is than the colour's


class StillCameras:
    """Publishes cameras by name from a node of its own while their context is open."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("still_cameras")
        self._static = StaticTransformBroadcaster(self.node)
        self._spinner = SpinThread("still_cameras")
        self._spinner.executor.add_node(self.node)

    def __enter__(self) -> StillCameras:
        self._spinner.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()
        self.node.destroy_node()

    @contextmanager
    def publishing(self, name: str, scene: Any, **faults: Any) -> Iterator[None]:
        """Publish the scene's frame as the camera `name`, ten times a second."""
        camera = _StillCamera(self.node, name, scene, Faults(**faults))
        if camera.faults.transform:
            self._static.sendTransform(transform("table", camera.frame, scene.pose))
        done = threading.Event()

        def loop() -> None:
            while not done.wait(PERIOD_S):
                camera.publish()

        thread = threading.Thread(target=loop)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()
            camera.close()


class _StillCamera:
    def __init__(self, node: Any, name: str, scene: Any, faults: Faults) -> None:
        self.faults = faults
        self.frame = f"{name}_color_optical_frame"
        self._node = node
        frame = scene.truth.frame
        color = color_image(frame.rgb, faults.encoding)
        self._messages = [(Image, "color/image_raw", color, 0.0)]
        if faults.info:
            info = camera_info(scene.intrinsics, color, color)
            self._messages.append((CameraInfo, "color/camera_info", info, 0.0))
        if faults.depth_encoding:
            depth = depth_image(frame.depth, faults.depth_encoding, faults.depth_scale)
            topic = "aligned_depth_to_color/image_raw"
            self._messages.append((Image, topic, depth, faults.depth_age_s))
        self._publishers = [
            node.create_publisher(kind, f"{name}/{topic}", 2)
            for kind, topic, _, _ in self._messages
        ]

    def publish(self) -> None:
        now = self._node.get_clock().now() - Duration(seconds=self.faults.age_s)
        for publisher, (_, _, message, age_s) in zip(self._publishers, self._messages, strict=True):
            message.header.stamp = (now - Duration(seconds=age_s)).to_msg()
            message.header.frame_id = self.frame
            publisher.publish(message)

    def close(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)
