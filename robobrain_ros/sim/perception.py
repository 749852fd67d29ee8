# SPDX-License-Identifier: Apache-2.0
"""The input of a grasp over ROS: the node's answers in rotated frames, and the camera's depth."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import rclpy.time
from builtin_interfaces.msg import Time
from cv_bridge import CvBridge
from geometry_msgs.msg import Pose
from rcl_interfaces.srv import SetParameters
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage
from tf2_ros import Buffer, TransformException, TransformListener

from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.msg import LiftedPoint, LiftedRegion
from robobrain_ros.sim.camera_node import transform
from robobrain_ros.sim.grasping import YAW_STEP, Extent, SurfacePoint
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.oracle import turned
from robobrain_ros.sim.tabletop import TABLE_FRAME
from robobrain_ros.tf_projection import Intrinsics, depth_to_metres, matrix_from_transform

_HALF_TURN = round(np.pi / YAW_STEP)  # in steps; a box in a frame turned by half a turn is the same
_SHOW_TIMEOUT_S = 30.0
_STATIC_QOS = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class ObjectPerception:
    """Answers about objects through the node's services, in frames rotated about the vertical.

    It publishes these frames on /tf_static.
    """

    def __init__(self, brain: BrainClient, node: Node) -> None:
        self._brain = brain
        self._publisher = node.create_publisher(TFMessage, "/tf_static", _STATIC_QOS)
        stamp = node.get_clock().now().to_msg()
        frames = [
            transform(TABLE_FRAME, _frame(step), turned(step * YAW_STEP))
            for step in range(_HALF_TURN)
        ]
        for frame in frames:
            frame.header.stamp = stamp
        # In one message: of several, a node that starts later receives only the last.
        self._publisher.publish(TFMessage(transforms=frames))

    def about(self, description: str) -> ServiceAnswers:
        """Return the node's answers about an object, e.g. `the red can`, in the newest image."""
        return ServiceAnswers(self._brain, description)


class ServiceAnswers:
    """grasping.Answers from the services; each request is sent when its answer is needed.

    error: the message of the last request, "" if it succeeded.
    """

    def __init__(self, brain: BrainClient, description: str) -> None:
        self._brain, self._description = brain, description
        self.error = ""
        self.point = self._point()

    def part(self, yaw: float) -> Extent | None:
        """Return the part to touch, in a frame of this yaw."""
        return self._region(self._brain.get_affordance, f"pick up {self._description}", yaw)

    def whole(self, yaw: float) -> Extent | None:
        """Return the object, in a frame of this yaw."""
        return self._region(self._brain.ground_object, self._description, yaw)

    def _point(self) -> SurfacePoint | None:
        text = f"Point to {self._description}"
        response = self._ask(self._brain.point_to, text, target_frame=TABLE_FRAME, max_points=1)
        if response is None or response.points[0].status != LiftedPoint.OK:
            return None
        lifted = response.points[0]
        position, rotation = _matrix(lifted.pose.pose)
        return SurfacePoint.of_pose(position, rotation if lifted.has_normal else None)

    def _region(self, service: Callable[..., Any], text: str, yaw: float) -> Extent | None:
        response = self._ask(service, text, target_frame=_frame_of(yaw))
        if response is None or response.regions[0].status != LiftedRegion.OK:
            return None
        box = response.regions[0].box3d
        centre, _ = _matrix(box.center)
        size = np.array([box.size.x, box.size.y, box.size.z])
        return Extent(yaw, turned(yaw)[:3, :3] @ centre, size)

    def _ask(self, service: Callable[..., Any], text: str, **fields: Any) -> Any:
        """Return the response; None after a failure, which `error` then describes."""
        try:
            response = service(text, **fields)
        except NoAnswer as error:
            self.error = str(error)
            return None
        self.error = response.error_msg
        return response if response.success else None


class DepthCamera:
    """Obstacles on the table from the camera's newest depth image and its pose in TF.

    node: spun on another thread.
    """

    def __init__(self, node: Node) -> None:
        self._newest: dict[type, Any] = {}
        self._buffer = Buffer(node=node)
        self._listener = TransformListener(self._buffer, node)
        for kind, topic in ((Image, "image_raw"), (CameraInfo, "camera_info")):
            topic = f"camera/aligned_depth_to_color/{topic}"
            node.create_subscription(kind, topic, partial(self._newest.__setitem__, kind), 2)

    def obstacles(self) -> Obstacles:
        """Return the surfaces above the table. Raises NoAnswer without depth or its pose."""
        deadline = time.monotonic() + _SHOW_TIMEOUT_S
        while True:
            try:
                return self._obstacles()
            except (KeyError, TransformException) as error:
                if time.monotonic() > deadline:
                    raise NoAnswer(
                        f"No depth image with its pose in {TABLE_FRAME}: {error}"
                    ) from error
                time.sleep(0.05)

    def _obstacles(self) -> Obstacles:
        image, info = self._newest[Image], self._newest[CameraInfo]
        stamped = self._buffer.lookup_transform(
            TABLE_FRAME, image.header.frame_id, rclpy.time.Time()
        )
        pixels = CvBridge().imgmsg_to_cv2(image, desired_encoding="passthrough")
        depth = depth_to_metres(pixels, image.encoding)
        return Obstacles.from_depth(
            depth, Intrinsics.from_camera_info(info), matrix_from_transform(stamped)
        )


class SceneSwitch:
    """Sets the scene of a running sim_camera, and waits until its images show it.

    node: spun on another thread.
    """

    def __init__(self, brain: BrainClient, node: Node) -> None:
        self._brain = brain
        self._stamps: list[Time] = []
        self._newest_image = Time()
        node.create_subscription(TFMessage, "/tf_static", self._on_poses, _STATIC_QOS)
        node.create_subscription(Image, "camera/color/image_raw", self._on_image, 2)

    def _on_poses(self, message: TFMessage) -> None:
        first = message.transforms[0]
        if not first.child_frame_id.startswith(_PREFIX):
            self._stamps.append(first.header.stamp)

    def _on_image(self, message: Image) -> None:
        self._newest_image = message.header.stamp

    def show(self, seed: int) -> Time:
        """Show the scene of a seed; returns the stamp of its first frame.

        Raises NoAnswer if the camera doesn't show it.
        """
        known = len(self._stamps)
        value = Parameter("seed", value=seed).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        service = "sim_camera/set_parameters"
        set_to = self._brain.call(SetParameters, service, request, _SHOW_TIMEOUT_S).results[0]
        if not set_to.successful:
            raise NoAnswer(f"The simulated camera refused scene {seed}: {set_to.reason}")
        missing = f"The simulated camera never showed scene {seed}."
        _wait_until(lambda: len(self._stamps) > known, missing)
        first = self._stamps[-1]
        # A later image is here: then the node, which subscribes to the same topic, has the first.
        _wait_until(lambda: _seconds(self._newest_image) > _seconds(first), missing)
        return first


def _wait_until(condition: Callable[[], bool], message: str) -> None:
    deadline = time.monotonic() + _SHOW_TIMEOUT_S
    while not condition():
        if time.monotonic() > deadline:
            raise NoAnswer(message)
        time.sleep(0.02)


def _seconds(stamp: Time) -> float:
    return stamp.sec + 1e-9 * stamp.nanosec


_PREFIX = "table_turned_"


def _frame(step: int) -> str:
    return f"{_PREFIX}{step}"


def _frame_of(yaw: float) -> str:
    return _frame(round(yaw / YAW_STEP) % _HALF_TURN)


def _matrix(pose: Pose) -> tuple[np.ndarray, np.ndarray]:
    """Position (3,) and rotation (3, 3) of a message."""
    at, turn = pose.position, pose.orientation
    rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
    return np.array([at.x, at.y, at.z]), rotation
