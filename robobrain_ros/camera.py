# SPDX-License-Identifier: Apache-2.0
"""Camera topics in, stamp-matched snapshots out; frames are kept as they came."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, Image

from robobrain_ros.errors import BrainError, ErrorCode
from robobrain_ros.tf_projection import LiftStatus

RING_LENGTH = 10
"""Frames held per topic: a third of a second at 30 Hz, under 50 MB for 720p colour and depth."""

KEPT_SNAPSHOTS = 4
"""Snapshots held after they were asked about, so that a second question can be about the same."""

_NS = 1_000_000_000


@dataclass(frozen=True)
class Topics:
    """Topic names of one camera; an empty name means that the camera has no such topic."""

    color: str
    info: str
    depth: str
    depth_info: str


@dataclass(frozen=True, eq=False)
class Snapshot:
    """One moment of one camera: a colour image and what belongs to it by stamp.

    `depth_status` is OK exactly when `depth` is there; otherwise it is the reason for its absence.
    """

    color: Image
    info: CameraInfo | None = None
    depth: Image | None = None
    depth_info: CameraInfo | None = None
    depth_status: LiftStatus = LiftStatus.NO_DEPTH_CAMERA


class Camera:
    """Subscribes to one camera's topics on `node` and pairs them by stamp.

    Callbacks run on the cameras' executor thread, `find` and `best` on any other.
    """

    def __init__(self, node: Node, name: str, topics: Topics, sync_tolerance_s: float) -> None:
        self.name = name
        self._node = node
        self._topics = topics
        self._tolerance_ns = int(sync_tolerance_s * _NS)
        self._lock = threading.Lock()
        self._colors: deque[Image] = deque(maxlen=RING_LENGTH)
        self._depths: deque[Image] = deque(maxlen=RING_LENGTH)
        self._kept: deque[Snapshot] = deque(maxlen=KEPT_SNAPSHOTS)
        self._info: CameraInfo | None = None
        self._depth_info: CameraInfo | None = None
        self._subscriptions = [
            self._subscribe(kind, topic, callback)
            for kind, topic, callback in (
                (Image, topics.color, self._on_color),
                (CameraInfo, topics.info, self._on_info),
                (Image, topics.depth, self._on_depth),
                (CameraInfo, topics.depth_info, self._on_depth_info),
            )
            if topic
        ]

    def close(self) -> None:
        """Unsubscribe and let go of the frames.

        On the cameras' own thread: its executor may be looking at these subscriptions just now,
        and ends with InvalidHandle when one is destroyed under its hands.
        """
        self._node.executor.create_task(self._unsubscribe)

    def _unsubscribe(self) -> None:
        for subscription in self._subscriptions:
            self._node.destroy_subscription(subscription)
        self._subscriptions = []
        with self._lock:
            for held in (self._colors, self._depths, self._kept):
                held.clear()

    def keep(self, snapshot: Snapshot) -> None:
        """Hold a snapshot for later requests with its stamp, longer than the frames around it."""
        with self._lock:
            if earlier := self._kept_at(stamp_of(snapshot.color)):
                self._kept.remove(earlier)  # the new one may have the depth that was missing
            self._kept.append(snapshot)

    def find(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return the colour image asked for with its depth and intrinsics, or None if not all here.

        stamp_ns: 0 = the newest that is complete, at most `max_age_s` old at `now_ns`.
        """
        with self._lock:
            kept = self._kept_at(stamp_ns)
            if kept and kept.info and kept.depth_status is not LiftStatus.DEPTH_STALE:
                return kept
            for color in self._candidates(stamp_ns, now_ns, max_age_s):
                depth = self._nearest(self._depths, stamp_of(color))
                if self._is_complete(depth):
                    return self._snapshot(color, depth)
        return None

    def find_color(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return the colour image asked for with whatever else is here, or None without colour."""
        with self._lock:
            if kept := self._kept_at(stamp_ns):
                return kept
            for color in self._candidates(stamp_ns, now_ns, max_age_s):
                return self._snapshot(color, self._nearest(self._depths, stamp_of(color)))
        return None

    def absence(self, stamp_ns: int, now_ns: int, max_age_s: float) -> BrainError:
        """Say why `find_color` finds nothing: NO_IMAGE or IMAGE_STALE."""
        topic = self._node.resolve_topic_name(self._topics.color)
        with self._lock:
            stamps = [stamp_of(color) for color in self._colors]
        if not stamps:
            publishers = self._node.count_publishers(topic)
            hint = (
                "start the camera driver, or set the parameter "
                f"{self.name}.color_topic to its topic"
                if publishers == 0
                else f"{publishers} publisher(s) send nothing that arrives: large images need the "
                "Fast DDS profile config/fastdds_large_images.xml on both sides"
            )
            return BrainError(ErrorCode.NO_IMAGE, f"No image on {topic}: {hint}.")
        if stamp_ns:
            held = f"{(now_ns - stamps[0]) / _NS:.2f} to {(now_ns - stamps[-1]) / _NS:.2f} s"
            return BrainError(
                ErrorCode.IMAGE_STALE,
                f"No image of {topic} with that stamp is held (those held are {held} old): "
                "ask sooner, or use stamp 0 for the newest.",
            )
        age = (now_ns - max(stamps)) / _NS
        return BrainError(
            ErrorCode.IMAGE_STALE,
            f"The newest image on {topic} is {age:.2f} s old, the limit max_image_age is "
            f"{max_age_s:.2f} s: check the camera, and that its clock is this machine's.",
        )

    def expects(self, stamp_ns: int) -> bool:
        """Whether an image of this stamp may still arrive (0 = the newest: always)."""
        with self._lock:
            return not stamp_ns or not self._colors or stamp_ns > stamp_of(self._colors[-1])

    def _subscribe(self, kind: type, topic: str, callback: Callable):
        return self._node.create_subscription(
            kind,
            topic,
            callback,
            qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _on_color(self, message: Image) -> None:
        with self._lock:
            self._colors.append(message)

    def _on_depth(self, message: Image) -> None:
        with self._lock:
            self._depths.append(message)

    def _on_info(self, message: CameraInfo) -> None:
        self._info = message

    def _on_depth_info(self, message: CameraInfo) -> None:
        self._depth_info = message

    def _candidates(self, stamp_ns: int, now_ns: int, max_age_s: float) -> list[Image]:
        if stamp_ns:
            nearest = self._nearest(self._colors, stamp_ns)
            return [] if nearest is None else [nearest]
        oldest = now_ns - int(max_age_s * _NS)
        return [color for color in reversed(self._colors) if stamp_of(color) >= oldest]

    def _kept_at(self, stamp_ns: int) -> Snapshot | None:
        if not stamp_ns:
            return None
        return next((kept for kept in self._kept if stamp_of(kept.color) == stamp_ns), None)

    def _nearest(self, ring: deque[Image], stamp_ns: int) -> Image | None:
        nearest = min(ring, key=lambda image: abs(stamp_of(image) - stamp_ns), default=None)
        if nearest is None or abs(stamp_of(nearest) - stamp_ns) > self._tolerance_ns:
            return None
        return nearest

    def _is_complete(self, depth: Image | None) -> bool:
        if not self._has_depth_camera():
            return True
        return (
            depth is not None
            and self._info is not None
            and (self._depth_info is not None or not self._topics.depth_info)
        )

    def _has_depth_camera(self) -> bool:
        return bool(self._topics.depth) and bool(
            self._depths or self._node.count_publishers(self._topics.depth)
        )

    def _snapshot(self, color: Image, depth: Image | None) -> Snapshot:
        if depth is not None:
            status = LiftStatus.OK
        elif self._has_depth_camera():
            status = LiftStatus.DEPTH_STALE
        else:
            status = LiftStatus.NO_DEPTH_CAMERA
        return Snapshot(color, self._info, depth, self._depth_info, status)


def stamp_of(message: Image) -> int:
    """Return the header's stamp in nanoseconds."""
    return nanoseconds(message.header.stamp)


def nanoseconds(stamp: Time) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return stamp.sec * _NS + stamp.nanosec
