# SPDX-License-Identifier: Apache-2.0
"""Publishers of transforms."""

from __future__ import annotations

from collections.abc import Iterable

from geometry_msgs.msg import TransformStamped
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from tf2_msgs.msg import TFMessage


class TransformBroadcaster:
    """Sends transforms on /tf."""

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        self.pub_tf = node.create_publisher(
            TFMessage, "/tf", QoSProfile(depth=100) if qos is None else qos
        )

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        self.pub_tf.publish(TFMessage(transforms=_listed(transform)))


class StaticTransformBroadcaster:
    """Sends transforms on /tf_static, each time all of them: only the last message is latched.

    As in Jazzy's tf2_ros, the first transform of a child frame stays: a later one is not
    sent. (Rolling's replaces it.)
    """

    def __init__(self, node: Node, qos: QoSProfile | int | None = None) -> None:
        if qos is None:
            qos = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.pub_tf = node.create_publisher(TFMessage, "/tf_static", qos)
        self.net_message = TFMessage()

    def sendTransform(self, transform: TransformStamped | Iterable[TransformStamped]) -> None:
        for added in _listed(transform):
            if all(
                added.child_frame_id != sent.child_frame_id for sent in self.net_message.transforms
            ):
                self.net_message.transforms.append(added)
        self.pub_tf.publish(self.net_message)


def _listed(transform: TransformStamped | Iterable[TransformStamped]) -> list[TransformStamped]:
    return list(transform) if isinstance(transform, Iterable) else [transform]
