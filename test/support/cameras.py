# SPDX-License-Identifier: Apache-2.0
"""Camera topics for tests: one real rendered frame, published well or with something special."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from sensor_msgs.msg import CompressedImage, Image
from tf2_ros import StaticTransformBroadcaster, TransformBroadcaster

from robobrain_ros.ros.executors import SpinThread
from robobrain_ros.sim.camera_node import camera_info, color_image, depth_image, transform

PERIOD_S = 0.1
TF_PERIOD_S = 0.02


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
    compressed: bool = False  # colour and depth, as image_transport does it
    depth_from: Callable[[np.ndarray], np.ndarray] = lambda depth: depth
    depth_camera: DepthCamera | None = None  # the depth is this one's, and not registered
    motion: Callable[[float], np.ndarray] | None = None
    """Pose (4, 4) of the optical frame in `odom` at a time in seconds, sent as TF at 50 Hz."""
    tf_late_s: float = 0.0  # how long after its stamp that TF is sent
    frame: str = ""  # of the images, for one named after the camera


@dataclass(frozen=True)
class DepthCamera:
    """depth: (H, W) metres. intrinsics: (3, 3). pose: (4, 4) in the colour's optical frame."""

    depth: np.ndarray
    intrinsics: np.ndarray
    pose: np.ndarray


@contextmanager
def repeating(act: Callable[[], None], period_s: float) -> Iterator[None]:
    """Act on a thread of its own, first after a period, until the context is left."""
    done = threading.Event()

    def loop() -> None:
        while not done.wait(period_s):
            act()

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


class StillCameras:
    """Publishes cameras by name from a node of its own while their context is open."""

    def __init__(self, **node_options: Any) -> None:
        self.node = rclpy.create_node("still_cameras", **node_options)
        self._moving = TransformBroadcaster(self.node)
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
        ticks = itertools.count()

        def publish() -> None:
            if camera.faults.motion is not None:
                self._moving.sendTransform(camera.moved())
            if next(ticks) % round(PERIOD_S / TF_PERIOD_S) == 0:
                camera.publish()

        try:
            with repeating(publish, TF_PERIOD_S):
                yield
        finally:
            camera.close()


class _StillCamera:
    def __init__(self, node: Any, name: str, scene: Any, faults: Faults) -> None:
        self.faults = faults
        self.frame = faults.frame or f"{name}_color_optical_frame"
        self.depth_frame = f"{name}_depth_optical_frame" if faults.depth_camera else self.frame
        self._node = node
        frame = scene.truth.frame
        color = color_image(frame.rgb, faults.encoding)
        self._messages = [("color/image_raw", color, self.frame, 0.0)]
        if faults.info:
            info = camera_info(scene.intrinsics, color, color)
            self._messages.append(("color/camera_info", info, self.frame, 0.0))
        if faults.depth_encoding:
            self._messages += self._depth(frame.depth)
        if faults.compressed:
            self._messages = [_compressed(*message) for message in self._messages]
        # Not the node's one: what is published to late subscribers must end with this camera.
        self._static = StaticTransformBroadcaster(node)
        self._static.sendTransform(self._standing(scene.pose))
        self._publishers = [
            node.create_publisher(type(message), f"{name}/{topic}", 2)
            for topic, message, _, _ in self._messages
        ]

    def _standing(self, pose: np.ndarray) -> list[TransformStamped]:
        transforms = []
        if self.faults.motion is None and self.faults.transform:
            transforms.append(transform("table", self.frame, pose))
        if other := self.faults.depth_camera:
            transforms.append(transform(self.frame, self.depth_frame, other.pose))
        return transforms

    def _depth(self, aligned: np.ndarray) -> list[tuple[str, Any, str, float]]:
        faults, other = self.faults, self.faults.depth_camera
        metres = aligned if other is None else other.depth
        depth = depth_image(faults.depth_from(metres), faults.depth_encoding, faults.depth_scale)
        if other is None:
            return [("aligned_depth_to_color/image_raw", depth, self.frame, faults.depth_age_s)]
        info = camera_info(other.intrinsics, depth, depth)
        frame = self.depth_frame
        return [
            ("depth/image_rect_raw", depth, frame, faults.depth_age_s),
            ("depth/camera_info", info, frame, faults.depth_age_s),
        ]

    def now(self) -> rclpy.time.Time:
        return self._node.get_clock().now() - Duration(seconds=self.faults.age_s)

    def moved(self) -> TransformStamped:
        now = self.now() - Duration(seconds=self.faults.tf_late_s)
        message = transform("odom", self.frame, self.faults.motion(now.nanoseconds * 1e-9))
        message.header.stamp = now.to_msg()
        return message

    def publish(self) -> None:
        now = self.now()
        for publisher, (_, message, frame, age_s) in zip(
            self._publishers, self._messages, strict=True
        ):
            message.header.stamp = (now - Duration(seconds=age_s)).to_msg()
            message.header.frame_id = frame
            publisher.publish(message)

    def close(self) -> None:
        for publisher in [*self._publishers, self._static.pub_tf]:
            self._node.destroy_publisher(publisher)


def _compressed(topic: str, message: Any, frame: str, age_s: float) -> tuple[str, Any, str, float]:
    """The message as image_transport would compress it, where it is an image."""
    if not isinstance(message, Image):
        return topic, message, frame, age_s
    if message.encoding == "16UC1":
        pixels = np.frombuffer(message.data, "<u2").reshape(message.height, message.width)
        packed = CompressedImage(format="16UC1; compressedDepth png")
        packed.data.frombytes(bytes(12) + cv2.imencode(".png", pixels)[1].tobytes())
        return f"{topic}/compressedDepth", packed, frame, age_s
    rgb = np.frombuffer(message.data, np.uint8).reshape(message.height, message.width, 3)
    packed = CompressedImage(format="rgb8; png compressed bgr8")
    packed.data.frombytes(cv2.imencode(".png", rgb[:, :, ::-1])[1].tobytes())
    return f"{topic}/compressed", packed, frame, age_s
