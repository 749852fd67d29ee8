# SPDX-License-Identifier: Apache-2.0
"""Answers on topics and as TF frames, for RViz, planners and logs."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from functools import partial

from geometry_msgs.msg import PoseArray
from nav_msgs.msg import Path
from rclpy.lifecycle import LifecycleNode
from rclpy.publisher import Publisher
from sensor_msgs.msg import Image
from tf2_ros import TransformBroadcaster
from vision_msgs.msg import Detection2DArray, Detection3DArray
from visualization_msgs.msg import MarkerArray

from robobrain_ros.core.answered_request import AnsweredRequest
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.tasks import TASKS, AnswerType
from robobrain_ros.ros import conversions
from robobrain_ros.ros.markers import MarkerBoard
from robobrain_ros.visualization.annotate import draw
from robobrain_ros.visualization.style import PALETTE, Slots

DEPTH = 10


class ResultPublisher:
    """A result listener for programs: detections, poses, path and TF frames.

    Its lifecycle publishers are silent unless the node is active.
    """

    def __init__(self, node: LifecycleNode) -> None:
        self._frame_prefix = node.get_name()
        self._detections = _publisher(node, Detection2DArray, "~/detections")
        self._boxes = _publisher(node, Detection3DArray, "~/detections_3d")
        self._poses = _publisher(node, PoseArray, "~/poses")
        self._path = _publisher(node, Path, "~/path")
        self._transforms = TransformBroadcaster(node)

    def on_result(
        self, answered: AnsweredRequest, observation: Observation | None
    ) -> Callable[[], None] | None:
        """See `core.answered_request.ResultListener`."""
        answer_type = TASKS[answered.result.answer.kind].answer
        return partial(self._publish, answered, answer_type) if answer_type.has_places else None

    def _publish(self, answered: AnsweredRequest, answer_type: AnswerType) -> None:
        result, header = answered.result, conversions.target_header(answered)
        if _is_heard(self._detections):
            image_header = conversions.image_header(answered)
            self._detections.publish(conversions.detections_2d(answered, image_header))
        if _is_heard(self._boxes):
            self._boxes.publish(conversions.detections_3d(answered, header))
        if _is_heard(self._poses):
            self._poses.publish(conversions.poses(result, header))
        if answer_type is AnswerType.WAYPOINTS and _is_heard(self._path):
            self._path.publish(conversions.path(result.points, header))
        frame = answered.target_frame
        # Results in the frame of a result could end in a loop; in no frame, in nothing.
        if frame and not frame.startswith(f"{self._frame_prefix}/"):
            prefix = f"{self._frame_prefix}/{result.answer.kind.value}"
            self._transforms.sendTransform(conversions.transforms(result, prefix, header))


class AnswerDisplay:
    """A result listener for people: markers and the annotated image, in one color per request."""

    def __init__(self, node: LifecycleNode) -> None:
        self._markers = _publisher(node, MarkerArray, "~/markers")
        self._annotated = _publisher(node, Image, "~/annotated_image")
        self._logger = node.get_logger()
        self._slots = Slots()
        self._board = MarkerBoard()

    def on_result(
        self, answered: AnsweredRequest, observation: Observation | None
    ) -> Callable[[], None] | None:
        """Choose the answer's color, and draw it if somebody subscribes to the annotated image.

        See `core.answered_request.ResultListener`.
        """
        slot = self._slots.take(f"{answered.result.answer.kind.value} {answered.text}")
        annotated = None
        if observation is not None and _is_heard(self._annotated):
            annotated = self._drawn(answered, observation, slot)
        return partial(self._publish, answered, slot, annotated)

    def _drawn(
        self, answered: AnsweredRequest, observation: Observation, slot: int
    ) -> Image | None:
        try:
            drawn = draw(observation.rgb, answered.result, answered.text, PALETTE[slot])
        # The markers are still to be published, whatever is wrong with the image.
        except Exception:  # noqa: BLE001
            self._logger.error(f"Can't draw the answer: {traceback.format_exc()}")
            return None
        return conversions.image_from(drawn, conversions.image_header(answered))

    def _publish(self, answered: AnsweredRequest, slot: int, annotated: Image | None) -> None:
        if annotated is not None:
            self._annotated.publish(annotated)
        result, header = answered.result, conversions.target_header(answered)
        if TASKS[result.answer.kind].answer.has_places and _is_heard(self._markers):
            shown = self._board.show(result, answered.text, header, answered.camera_frame, slot)
            self._markers.publish(shown)


def _publisher(node: LifecycleNode, kind: type, name: str) -> Publisher:
    return node.create_lifecycle_publisher(kind, name, DEPTH)


def _is_heard(publisher: Publisher) -> bool:
    """Whether a message is worth building."""
    return publisher.get_subscription_count() > 0
