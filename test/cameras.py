# SPDX-License-Identifier: Apache-2.0
"""Camera topics for tests: one real rendered frame, published well or with one thing wrong."""

from __future__ import annotations

import threading
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rclpy
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from tf2_ros import StaticTransformBroadcaster

from robobrain_ros.spinning import SpinThread

PERIOD_S = 0.1


@dataclass(frozen=True)
class Faults:
    """How a camera publishes; the defaults are a good one."""

    encoding: str = "rgb8"
    depth_encoding: str | None = "32FC1"
    depth_every: int = 1  # the depth image is made of every n-th row and column
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
            self._static.sendTransform(camera.transform())
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
        self._node = node
        self._name = name
        self._scene = scene
        self._color = color_message(scene.truth.frame.rgb, faults.encoding)
        self._depth = depth_message(scene.truth.frame.depth, faults)
        self._info = info_message(scene)
        topics = [(Image, "color/image_raw"), (CameraInfo, "color/camera_info")]
        if self._depth is not None:
            topics.append((Image, "aligned_depth_to_color/image_raw"))
        self._publishers = [node.create_publisher(kind, f"{name}/{t}", 2) for kind, t in topics]

    @property
    def frame(self) -> str:
        return f"{self._name}_color_optical_frame"

    def publish(self) -> None:
        now = self._node.get_clock().now() - Duration(seconds=self.faults.age_s)
        depth_stamp = now - Duration(seconds=self.faults.depth_age_s)
        stamps = (now, now, depth_stamp)
        messages = (self._color, self._info if self.faults.info else None, self._depth)
        for publisher, message, stamp in zip(self._publishers, messages, stamps, strict=False):
            if message is not None:
                message.header.stamp = stamp.to_msg()
                message.header.frame_id = self.frame
                publisher.publish(message)

    def transform(self) -> TransformStamped:
        message = TransformStamped(child_frame_id=self.frame)
        message.header.frame_id = "table"
        pose = self._scene.pose
        move, turn = message.transform.translation, message.transform.rotation
        move.x, move.y, move.z = map(float, pose[:3, 3])
        turn.x, turn.y, turn.z, turn.w = map(float, Rotation.from_matrix(pose[:3, :3]).as_quat())
        return message

    def close(self) -> None:
        for publisher in self._publishers:
            self._node.destroy_publisher(publisher)


def color_message(rgb: np.ndarray, encoding: str = "rgb8") -> Image:
    """Encode (H, W, 3) uint8 RGB as rgb8, bgr8, rgba8 or mono8."""
    height, width = rgb.shape[:2]
    pixels = {
        "rgb8": lambda: rgb,
        "bgr8": lambda: rgb[:, :, ::-1],
        "rgba8": lambda: np.dstack([rgb, np.full((height, width), 255, np.uint8)]),
        "mono8": lambda: (rgb @ [0.299, 0.587, 0.114]).astype(np.uint8),
    }[encoding]()
    data = pixels.tobytes()
    return Image(
        height=height,
        width=width,
        encoding=encoding,
        step=len(data) // height,
        data=array("B", data),
    )


def depth_message(depth: np.ndarray, faults: Faults) -> Image | None:
    if faults.depth_encoding is None:
        return None
    depth = depth[:: faults.depth_every, :: faults.depth_every]
    values = depth if faults.depth_encoding == "32FC1" else (1000 * depth).astype(np.uint16)
    height, width = values.shape
    data = values.tobytes()
    return Image(
        height=height,
        width=width,
        encoding=faults.depth_encoding,
        step=len(data) // height,
        data=array("B", data),
    )


def info_message(scene: Any) -> CameraInfo:
    height, width = scene.truth.frame.labels.shape
    return CameraInfo(
        height=height,
        width=width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=scene.intrinsics.ravel().tolist(),
    )
