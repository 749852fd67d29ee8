# SPDX-License-Identifier: Apache-2.0
"""Every answer also goes out on topics and as TF frames, for RViz, planners and logs."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from typing import Any

import numpy as np
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

from robobrain_ros.core.families import TaskKind
from robobrain_ros.core.results import Result
from robobrain_ros.ros import conversions
from robobrain_ros.ros.executors import NO_EVENTS
from robobrain_ros.ros.markers import MarkerBoard
from robobrain_ros.visualization.annotate import draw
from robobrain_ros.visualization.style import PALETTE, Slots

DEPTH = 10


@dataclass(frozen=True)
class Look:
    """How one answer is shown: its slot (style.py), and its picture if somebody wants that."""

    slot: int
    picture: Image | None


class Outputs:
    """The node's lifecycle publishers; they are silent unless the node is active."""

    def __init__(self, node: LifecycleNode) -> None:
        self._frame_prefix = node.get_name()

        def publisher(kind: type, name: str) -> Publisher:
            return node.create_lifecycle_publisher(kind, name, DEPTH, event_callbacks=NO_EVENTS)

        self._detections = publisher(Detection2DArray, "~/detections")
        self._boxes = publisher(Detection3DArray, "~/detections_3d")
        self._poses = publisher(PoseArray, "~/poses")
        self._path = publisher(Path, "~/path")
        self._markers = publisher(MarkerArray, "~/markers")
        self._picture = publisher(Image, "~/annotated_image")
        self._transforms = TransformBroadcaster(node)
        self._logger = node.get_logger()
        self._slots = Slots()
        self._board = MarkerBoard()

    def look(self, rgb: NDArray[np.uint8], result: Result, words: str, header: Header) -> Look:
        """Give the answer its colour, and draw it if somebody subscribes to the annotated image.

        On the engine's thread. rgb: (H, W, 3) the image that was asked about; header: its own.
        """
        slot = self._slots.take(f"{result.answer.kind.value} {words}")
        if not _is_heard(self._picture):
            return Look(slot, None)
        try:
            drawn = draw(rgb, result, words, PALETTE[slot])
        # Who asked gets the answer, whatever is wrong with its picture.
        except Exception:  # noqa: BLE001
            self._logger.error(f"Can't draw the answer: {traceback.format_exc()}")
            return Look(slot, None)
        return Look(slot, conversions.image_from(drawn, header))

    def publish(self, result: Result, words: str, response: Any, look: Look, frame: str) -> None:
        """Publish one answered request; `frame` is the target frame of its 3D results."""
        if look.picture is not None:
            self._picture.publish(look.picture)
        if result.answer.kind is TaskKind.ASK:
            return
        header = Header(stamp=response.header.stamp, frame_id=frame)
        if _is_heard(self._detections):
            self._detections.publish(conversions.detections_2d(result, words, response.header))
        if _is_heard(self._boxes):
            self._boxes.publish(conversions.detections_3d(result, words, header))
        if _is_heard(self._poses):
            self._poses.publish(conversions.poses(result, header))
        if _is_heard(self._markers):
            camera_frame = response.header.frame_id
            shown = self._board.show(result, words, header, camera_frame, look.slot)
            self._markers.publish(shown)
        if result.answer.kind is TaskKind.TRAJECTORY and _is_heard(self._path):
            self._path.publish(conversions.path(result.points, header))
        # Results in the frame of a result could end in a loop; in no frame, in nothing.
        if frame and not frame.startswith(f"{self._frame_prefix}/"):
            prefix = f"{self._frame_prefix}/{result.answer.kind.value}"
            self._transforms.sendTransform(conversions.transforms(result, prefix, header))


def _is_heard(publisher: Publisher) -> bool:
    """Whether a message is worth building."""
    return publisher.get_subscription_count() > 0
