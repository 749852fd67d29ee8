# SPDX-License-Identifier: Apache-2.0
"""Every answer also goes out on topics and as TF frames, for RViz, planners and logs."""

from __future__ import annotations

from typing import Any

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import PoseArray
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image
from std_msgs.msg import Header
from tf2_ros import TransformBroadcaster
from vision_msgs.msg import Detection2DArray, Detection3DArray
from visualization_msgs.msg import MarkerArray

from robobrain_ros import messages
from robobrain_ros.drawing import draw
from robobrain_ros.families import TaskKind
from robobrain_ros.pipeline import Result

DEPTH = 10
MARKER_LIFETIME = Duration(sec=10)


class Outputs:
    """The node's lifecycle publishers; they are silent unless the node is active."""

    def __init__(self, node: LifecycleNode) -> None:
        self._frame_prefix = node.get_name()
        self._detections = node.create_lifecycle_publisher(Detection2DArray, "~/detections", DEPTH)
        self._boxes = node.create_lifecycle_publisher(Detection3DArray, "~/detections_3d", DEPTH)
        self._poses = node.create_lifecycle_publisher(PoseArray, "~/poses", DEPTH)
        self._path = node.create_lifecycle_publisher(Path, "~/path", DEPTH)
        self._markers = node.create_lifecycle_publisher(MarkerArray, "~/markers", DEPTH)
        self._picture = node.create_lifecycle_publisher(Image, "~/annotated_image", DEPTH)
        self._transforms = TransformBroadcaster(node)

    def picture(
        self, rgb: NDArray[np.uint8], result: Result, words: str, header: Header
    ) -> Image | None:
        """Draw the answer if somebody subscribes to the annotated image."""
        if not _is_heard(self._picture):
            return None
        return messages.image_from(draw(rgb, result, words), header)

    def publish(
        self, result: Result, words: str, response: Any, picture: Image | None, frame: str
    ) -> None:
        """Publish one answered request; `frame` is the target frame of its 3D results."""
        if picture is not None:
            self._picture.publish(picture)
        if result.answer.kind is TaskKind.ASK:
            return
        header = Header(stamp=response.header.stamp, frame_id=frame)
        if _is_heard(self._detections):
            self._detections.publish(messages.detections_2d(result, words, response.header))
        if _is_heard(self._boxes):
            self._boxes.publish(messages.detections_3d(result, words, header))
        if _is_heard(self._poses):
            self._poses.publish(messages.poses(result, header))
        if _is_heard(self._markers):
            self._markers.publish(messages.markers(result, words, header, MARKER_LIFETIME))
        if result.answer.kind is TaskKind.TRAJECTORY and _is_heard(self._path):
            self._path.publish(messages.path(result.points, header))
        prefix = f"{self._frame_prefix}/{result.answer.kind.value}"
        self._transforms.sendTransform(messages.transforms(result, prefix, header))


def _is_heard(publisher: Publisher) -> bool:
    """Whether a message is worth building."""
    return publisher.get_subscription_count() > 0
