# SPDX-License-Identifier: Apache-2.0
"""What a grasp needs to know, over ROS: the node's answers in turned frames, and the depth."""

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
from robobrain_ros.tf_projection import Intrinsics, depth_to_metres, matrix_from_transform

TABLE = "table"

_HALF_TURN = round(np.pi / YAW_STEP)  # in steps; a box in a frame turned by half a turn is the same
_SHOW_TIMEOUT_S = 30.0
_STATIC_QOS = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)


class Asker:
    """Publishes the turned frames on /tf_static, and answers about objects in their words."""

    def __init__(self, brain: BrainClient, node: Node) -> None:
        self._brain = brain
        self._publisher = node.create_publisher(TFMessage, "/tf_static", _STATIC_QOS)
        stamp = node.get_clock().now().to_msg()
        frames = [
            transform(TABLE, _frame(step), turned(step * YAW_STEP)) for step in range(_HALF_TURN)
        ]
        for frame in frames:
            frame.header.stamp = stamp
        # One message: of those that come later, a node that starts after them hears the last only.
        self._publisher.publish(TFMessage(transforms=frames))

    def about(self, words: str) -> ServiceAnswers:
        """What the node says of an object, e.g. `the red can`, in the newest image."""
        return ServiceAnswers(self._brain, words)


class ServiceAnswers:
    """See grasping.Answers. Every question is asked when it is needed, of the newest image.

    error: why there was no answer the last time, "" where there was one.
    """

    def __init__(self, brain: BrainClient, words: str) -> None:
        self._brain, self._words = brain, words
        self.error = ""
        self.point = self._point()

    def part(self, yaw: float) -> Extent | None:
        """Where to touch it, in a frame of this yaw."""
        return self._region(self._brain.get_affordance, f"pick up {self._words}", yaw)

    def whole(self, yaw: float) -> Extent | None:
        """The object, in a frame of this yaw."""
        return self._region(self._brain.ground_object, self._words, yaw)

    def _point(self) -> SurfacePoint | None:
        text = f"Point to {self._words}"
        response = self._ask(self._brain.point_to, text, target_frame=TABLE, max_points=1)
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
        """The response, None where there is none; then `error` says why."""
        try:
            response = service(text, **fields)
        except NoAnswer as error:
            self.error = str(error)
            return None
        self.error = response.error_msg
        return response if response.success else None


class DepthView:
    """What the camera's newest depth image shows on the table, as a planner of ways would have it.

    Where the camera is, it learns from TF. node: spun on another thread.
    """

    def __init__(self, node: Node) -> None:
        self._newest: dict[type, Any] = {}
        self._buffer = Buffer(node=node)
        self._listener = TransformListener(self._buffer, node)
        for kind, topic in ((Image, "image_raw"), (CameraInfo, "camera_info")):
            topic = f"camera/aligned_depth_to_color/{topic}"
            node.create_subscription(kind, topic, partial(self._newest.__setitem__, kind), 2)

    def obstacles(self) -> Obstacles:
        """Surfaces that stand on the table. Raises NoAnswer without depth or its pose."""
        deadline = time.monotonic() + _SHOW_TIMEOUT_S
        while True:
            try:
                return self._obstacles()
            except (KeyError, TransformException) as error:
                if time.monotonic() > deadline:
                    raise NoAnswer(f"No depth image with its pose in {TABLE}: {error}") from error
                time.sleep(0.05)

    def _obstacles(self) -> Obstacles:
        image, info = self._newest[Image], self._newest[CameraInfo]
        stamped = self._buffer.lookup_transform(TABLE, image.header.frame_id, rclpy.time.Time())
        pixels = CvBridge().imgmsg_to_cv2(image, desired_encoding="passthrough")
        depth = depth_to_metres(pixels, image.encoding)
        return Obstacles.from_depth(
            depth, Intrinsics.from_camera_info(info), matrix_from_transform(stamped)
        )


class SceneSwitch:
    """Tells a running sim_camera which scene to show, and waits until it is the newest image.

    node: spun on another thread.
    """

    def __init__(self, brain: BrainClient, node: Node) -> None:
        self._brain = brain
        self._stamps: list[Time] = []
        node.create_subscription(TFMessage, "/tf_static", self._on_poses, _STATIC_QOS)

    def _on_poses(self, message: TFMessage) -> None:
        first = message.transforms[0]
        if not first.child_frame_id.startswith(_PREFIX):
            self._stamps.append(first.header.stamp)

    def show(self, seed: int) -> Time:
        """Show the scene of this seed; the stamp of its first frame, when its pose is known to all.

        Raises NoAnswer where the camera doesn't show it.
        """
        known = len(self._stamps)
        value = Parameter("seed", value=seed).to_parameter_msg()
        request = SetParameters.Request(parameters=[value])
        service = "sim_camera/set_parameters"
        set_to = self._brain.call(SetParameters, service, request, _SHOW_TIMEOUT_S).results[0]
        if not set_to.successful:
            raise NoAnswer(f"The simulated camera refused scene {seed}: {set_to.reason}")
        deadline = time.monotonic() + _SHOW_TIMEOUT_S
        while len(self._stamps) == known:
            if time.monotonic() > deadline:
                raise NoAnswer(f"The simulated camera never showed scene {seed}.")
            time.sleep(0.02)
        # Until the node has that image, too: at 10 Hz, three more of them.
        time.sleep(0.3)
        return self._stamps[-1]


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
