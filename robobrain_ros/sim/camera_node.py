# SPDX-License-Identifier: Apache-2.0
"""`sim_camera`: shows one simulated tabletop scene as a RealSense driver would, without its truth.

Publishes `<name>/color/image_raw` and `<name>/aligned_depth_to_color/image_raw` with their
`camera_info`, all of a frame with one stamp, and on `/tf_static` the frames `table` ->
`<name>_link` (REP-103: x forward, z up) -> `<name>_color_optical_frame` (x right, z forward).
The scene stands still: it is rendered once a seed and published again and again.
"""

from __future__ import annotations

import threading
from array import array
from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import rclpy
from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.signals import SignalHandlerOptions
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from robobrain_ros.core.extras import starting_with
from robobrain_ros.ros.executors import until_signalled
from robobrain_ros.ros.parameters import Spec, not_a_choice
from robobrain_ros.sim.assets import AssetsNotFound
from robobrain_ros.sim.depth_sensor import StereoDepthSensor

with starting_with("sim"):
    from robobrain_ros.sim.layout import NoLayout
    from robobrain_ros.sim.tabletop import Tabletop

_FROM_RGB = {
    "rgb8": None,
    "bgr8": cv2.COLOR_RGB2BGR,
    "rgba8": cv2.COLOR_RGB2RGBA,
    "mono8": cv2.COLOR_RGB2GRAY,
}
_DEPTH_ENCODINGS = ("32FC1", "16UC1")

_SPECS = (
    Spec("name", "camera", "Prefix of the camera's topics and frames."),
    Spec("seed", 2_000_000, "Which scene is shown; may change at any time.", range=(0, 2**31 - 1)),
    Spec("rate", 10.0, "Frames a second.", range=(0.1, 120.0)),
    Spec("width", 640, "Width of the color image, pixels.", range=(16, 4096)),
    Spec("height", 480, "Height of the color image, pixels.", range=(16, 4096)),
    Spec("color_encoding", "rgb8", "Encoding of the color image.", choices=tuple(_FROM_RGB)),
    Spec("depth_encoding", "32FC1", "Metres or millimetres.", choices=_DEPTH_ENCODINGS),
    Spec(
        "depth_sensor",
        "exact",
        "Depth as it is, or as a stereo camera such as a RealSense measures it.",
        choices=("exact", "stereo"),
    ),
    Spec("depth_scale", 1.0, "Size of the depth image relative to color.", range=(0.05, 4.0)),
    Spec("publish_depth", True, "Whether the camera has depth."),
    Spec("publish_info", True, "Whether the camera publishes its intrinsics."),
    Spec("publish_tf", True, "Whether the camera's pose is known."),
    Spec("shadows", True, "Whether objects cast shadows."),
)

# Axes of REP-103's optical frame (x right, y down, z forward) in a body frame (x forward, y left).
LINK_FROM_OPTICAL = np.array([[0, 0, 1, 0], [-1, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 1]], float)

# REP-2003: sensors publish reliably, which is compatible with both kinds of subscribers.
_SENSOR_QOS = QoSProfile(depth=2, reliability=ReliabilityPolicy.RELIABLE)
_STATIC_QOS = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def color_image(rgb: NDArray[np.uint8], encoding: str) -> Image:
    """(H, W, 3) uint8 RGB as an Image of one of the encodings rgb8, bgr8, rgba8, mono8."""
    code = _FROM_RGB[encoding]
    return _image(rgb if code is None else cv2.cvtColor(rgb, code), encoding)


def depth_image(depth: NDArray[np.float32], encoding: str, scale: float) -> Image:
    """(H, W) metres, NaN = hole, as 32FC1 metres or 16UC1 millimetres with 0 = hole, resized by
    `scale`, nearest neighbour.
    """
    if scale != 1.0:
        depth = cv2.resize(depth, None, fx=scale, fy=scale, interpolation=cv2.INTER_NEAREST_EXACT)
    if encoding == "16UC1":
        return _image(np.rint(1000 * np.nan_to_num(depth)).astype("<u2"), encoding)
    return _image(depth.astype("<f4"), encoding)


def _image(pixels: NDArray[np.generic], encoding: str) -> Image:
    height, width = pixels.shape[:2]
    # rosidl copies an array.array at once, but checks a numpy array byte by byte.
    data = array("B", pixels.tobytes())
    return Image(height=height, width=width, encoding=encoding, step=len(data) // height, data=data)


def camera_info(intrinsics: NDArray[np.float64], color: Image, image: Image) -> CameraInfo:
    """Intrinsics of `image`, where K (3, 3) belongs to `color`: the same view at another size."""
    ratio = np.array([image.width / color.width, image.height / color.height, 1.0])
    k = intrinsics * ratio[:, None]
    # Pixel centres are at integers, so that an image begins half a pixel before 0.
    k[:2, 2] += ratio[:2] / 2 - 0.5
    return CameraInfo(
        height=image.height,
        width=image.width,
        distortion_model="plumb_bob",
        d=[0.0] * 5,
        k=k.ravel().tolist(),
        r=np.eye(3).ravel().tolist(),
        p=np.hstack([k, np.zeros((3, 1))]).ravel().tolist(),
    )


def transform(parent: str, child: str, parent_from_child: NDArray[np.float64]) -> TransformStamped:
    """The (4, 4) pose of `child` in `parent`; the stamp is left to the caller."""
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = parent_from_child[:3, 3].tolist()
    rotation = Rotation.from_matrix(parent_from_child[:3, :3])
    turn.x, turn.y, turn.z, turn.w = rotation.as_quat().tolist()
    return message


class SimCamera(Node):
    """Publishes the scene of its parameter `seed`. Lives on one thread: OpenGL renders there."""

    def __init__(self) -> None:
        """Raises AssetsNotFound, NoLayout, or rclpy's invalid-parameter exceptions."""
        super().__init__("sim_camera")
        self.add_on_set_parameters_callback(self._check)
        for spec in _SPECS:
            descriptor = spec.descriptor()
            descriptor.read_only = spec.name != "seed"
            self.declare_parameter(spec.name, spec.default, descriptor)
        self._tabletop = Tabletop(
            self._value("width"), self._value("height"), shadows=self._value("shadows")
        )
        self._static = self.create_publisher(TFMessage, "/tf_static", _STATIC_QOS)
        name = self._value("name")
        self._optical_frame = f"{name}_color_optical_frame"
        self._outputs = {
            key: self.create_publisher(kind, f"{name}/{topic}", _SENSOR_QOS)
            for key, kind, topic in self._topics()
        }
        self._shown_seed: int | None = None
        self._messages: dict[str, Image | CameraInfo] = {}
        self.create_timer(1 / self._value("rate"), self._publish)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    def _topics(self) -> list[tuple[str, type, str]]:
        topics = [("color", Image, "color/image_raw")]
        if self._value("publish_depth"):
            topics.append(("depth", Image, "aligned_depth_to_color/image_raw"))
        if self._value("publish_info"):
            infos = [(f"{key}_info", CameraInfo, topic) for key, _, topic in topics]
            topics += [(key, kind, t.replace("image_raw", "camera_info")) for key, kind, t in infos]
        return topics

    def _check(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        reason = not_a_choice(_SPECS, parameters)
        return SetParametersResult(successful=not reason, reason=reason)

    def _publish(self) -> None:
        changed = self._shown_seed != self._value("seed")
        if changed:
            self._show(self._value("seed"))
        stamp = self.get_clock().now().to_msg()
        if changed and self._value("publish_tf"):
            self._static.publish(self._poses(stamp))
        for key, publisher in self._outputs.items():
            message = self._messages[key]
            message.header.stamp = stamp
            message.header.frame_id = self._optical_frame
            publisher.publish(message)

    def _show(self, seed: int) -> None:
        """Render the scene of `seed` into the messages that are published from now on."""
        self._tabletop.reset(seed)
        self._shown_seed = seed
        frame = self._tabletop.render()
        color = color_image(frame.rgb, self._value("color_encoding"))
        metres = frame.depth
        if self._value("depth_sensor") == "stereo":
            rng = np.random.default_rng(seed)
            metres = StereoDepthSensor().measure(metres, self._tabletop.K, rng, rgb=frame.rgb)
        depth = depth_image(metres, self._value("depth_encoding"), self._value("depth_scale"))
        self._messages = {
            "color": color,
            "depth": depth,
            "color_info": camera_info(self._tabletop.K, color, color),
            "depth_info": camera_info(self._tabletop.K, color, depth),
        }
        self.get_logger().info(f"Scene {seed}: {', '.join(o.name for o in self._tabletop.objects)}")

    def _poses(self, stamp: Time) -> TFMessage:
        link = f"{self._value('name')}_link"
        table_from_link = self._tabletop.world_from_optical @ np.linalg.inv(LINK_FROM_OPTICAL)
        poses = [
            transform("table", link, table_from_link),
            transform(link, self._optical_frame, LINK_FROM_OPTICAL),
        ]
        for pose in poses:
            pose.header.stamp = stamp
        return TFMessage(transforms=poses)

    def destroy_node(self) -> None:
        """Free the renderer, then the node."""
        self._tabletop.close()
        super().destroy_node()


def main(args: list[str] | None = None) -> int:
    """Publish until SIGINT or SIGTERM; exit status 1 with a logged sentence if it can't start."""
    asked_to_end = until_signalled()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(asked_to_end)
    except (
        AssetsNotFound,
        NoLayout,
        InvalidParameterTypeException,
        InvalidParameterValueException,
    ) as error:
        get_logger("sim_camera").fatal(str(error))
        return 1
    finally:
        rclpy.shutdown()


def _run(asked_to_end: threading.Event) -> int:
    node = SimCamera()
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    try:
        while not asked_to_end.is_set():
            executor.spin_once(timeout_sec=0.1)
    finally:
        executor.shutdown()
        node.destroy_node()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
