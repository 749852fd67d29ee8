# SPDX-License-Identifier: Apache-2.0
"""Health of a camera's topics: the age of the newest message, or why there is none."""

from __future__ import annotations

from dataclasses import dataclass

from rclpy.node import Node
from rclpy.qos import QoSCompatibility, QoSProfile, qos_check_compatible
from rclpy.subscription import Subscription

_POLICIES = ("reliability", "durability", "liveliness")


@dataclass(frozen=True)
class TopicHealth:
    """State of one topic.

    age_s: of the newest message by its stamp, negative for the future, None without one. trouble:
    why no message arrives and what to do; empty where there is one.
    """

    topic: str
    age_s: float | None
    trouble: str = ""


def topic_health(
    node: Node, subscription: Subscription, newest_ns: int | None, now_ns: int
) -> TopicHealth:
    """Return the health of a subscription of `node`; newest_ns: stamp of its newest message."""
    topic = subscription.topic_name
    if newest_ns is not None:
        return TopicHealth(topic, (now_ns - newest_ns) / 1e9)
    return TopicHealth(topic, None, qos_conflict(node, subscription) or _silence(node, topic))


def qos_conflict(node: Node, subscription: Subscription) -> str:
    """Return which publisher's QoS is incompatible, and the settings that differ."""
    topic = subscription.topic_name
    for publisher in node.get_publishers_info_by_topic(topic):
        asked, offered = subscription.qos_profile, publisher.qos_profile
        if qos_check_compatible(offered, asked)[0] != QoSCompatibility.ERROR:
            continue
        policy = next((name for name in _POLICIES if _conflicts(name, offered, asked)), "deadline")
        theirs, ours = (_named(getattr(profile, policy)) for profile in (offered, asked))
        return (
            f"{publisher.node_name} offers {topic} with {policy} {theirs} and {node.get_name()} "
            f"asks for {ours}: set qos_overrides.{topic}.subscription.{policy} of "
            f"{node.get_name()} to {theirs}, or the publisher's {policy} to {ours}."
        )
    return ""


def _conflicts(policy: str, offered: QoSProfile, asked: QoSProfile) -> bool:
    """Whether this policy alone makes the two profiles incompatible."""
    one = {policy: getattr(offered, policy)}, {policy: getattr(asked, policy)}
    mine, theirs = (QoSProfile(depth=1, **values) for values in one)
    return qos_check_compatible(mine, theirs)[0] == QoSCompatibility.ERROR


def _named(value: object) -> str:
    return str(getattr(value, "short_key", value))


def _silence(node: Node, topic: str) -> str:
    count = node.count_publishers(topic)
    if count == 0:
        return (
            f"nobody publishes {topic}: start the camera driver, or set the parameter that names "
            "this topic, such as camera.color_topic."
        )
    return (
        f"{count} publisher(s) of {topic} send nothing that arrives: large images need the Fast "
        "DDS profile config/fastdds_large_images.xml on both sides."
    )
