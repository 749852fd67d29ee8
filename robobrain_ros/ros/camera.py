# SPDX-License-Identifier: Apache-2.0
"""A camera's topics paired by stamp into snapshots; frames are held as they arrive."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.subscription import Subscription
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.ros.camera_health import TopicHealth, topic_health
from robobrain_ros.ros.frame_buffer import FrameBuffer
from robobrain_ros.tf_projection import LiftStatus

KEPT_SNAPSHOTS = 4
"""Snapshots held after a request, so that a later one can name the same stamp."""

_NS = 1_000_000_000

AnyImage = Image | CompressedImage


@dataclass(frozen=True)
class Topics:
    """Topic names of one camera; an empty name means that the camera has no such topic.

    Image topics that end as image_transport's do, in `compressed` or `compressedDepth`, carry
    CompressedImage. rectified: the images are rectified, and P of the camera info holds for them.
    """

    color: str
    info: str
    depth: str
    depth_info: str
    rectified: bool = False

    @classmethod
    def of(cls, node: Node, name: str) -> Topics:
        """Those of the camera `name` by the parameters of `node` (`parameters.declare_camera`)."""
        keys = ("color_topic", "info_topic", "depth_topic", "depth_info_topic", "rectified")
        return cls(*(node.get_parameter(f"{name}.{key}").value for key in keys))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """A color image and the depth and intrinsics that belong to it by stamp.

    `depth_status` is OK exactly when there is a `depth`; otherwise `reason` is a sentence that says
    why it is missing, where a camera should have one.
    """

    color: AnyImage
    info: CameraInfo | None = None
    depth: AnyImage | None = None
    depth_info: CameraInfo | None = None
    depth_status: LiftStatus = LiftStatus.NO_DEPTH_CAMERA
    reason: str = ""
    rectified: bool = False


class Camera:
    """Subscribes to one camera's topics on `node` and pairs them by stamp.

    Frames arrive on the thread that spins `node`; the methods are for any thread. `color_frames`
    and `depth_frames` also take listeners (`FrameBuffer.subscribe`).
    """

    def __init__(self, node: Node, name: str, topics: Topics, sync_tolerance_s: float) -> None:
        self.name = name
        self._node = node
        self._topics = topics
        self._tolerance_ns = int(sync_tolerance_s * _NS)
        self._lock = threading.Lock()  # of _kept and _subscriptions
        self.color_frames: FrameBuffer[AnyImage] = FrameBuffer(stamp_of)
        self.depth_frames: FrameBuffer[AnyImage] = FrameBuffer(stamp_of)
        self._infos: FrameBuffer[CameraInfo] = FrameBuffer(stamp_of)
        self._depth_infos: FrameBuffer[CameraInfo] = FrameBuffer(stamp_of)
        self._kept: deque[Snapshot] = deque(maxlen=KEPT_SNAPSHOTS)
        self._subscriptions = [
            (self._subscribe(kind, topic, frames), frames)
            for kind, topic, frames in (
                (_image_type(topics.color), topics.color, self.color_frames),
                (CameraInfo, topics.info, self._infos),
                (_image_type(topics.depth), topics.depth, self.depth_frames),
                (CameraInfo, topics.depth_info, self._depth_infos),
            )
            if topic
        ]

    def close(self) -> None:
        """Unsubscribe and drop the frames.

        This happens on the thread that spins `node`, whose executor would end with InvalidHandle if
        a subscription were destroyed while it uses it.
        """
        self._node.executor.create_task(self._unsubscribe)

    def _unsubscribe(self) -> None:
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, []
            self._kept.clear()
        for subscription, frames in subscriptions:
            frames.clear()
            self._node.destroy_subscription(subscription)

    def keep(self, snapshot: Snapshot) -> None:
        """Hold a snapshot for later requests with its stamp, longer than its frames are held."""
        earlier = self._kept_at(stamp_of(snapshot.color))
        with self._lock:
            if earlier in self._kept:
                self._kept.remove(earlier)  # the new one may have the depth that was missing
            self._kept.append(snapshot)

    def find(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return a color image with its depth and intrinsics, or None if any of them is missing.

        stamp_ns: of the image; 0 = the newest that is complete, at most `max_age_s` from `now_ns`.
        """
        kept = self._kept_at(stamp_ns)
        if kept and kept.info and kept.depth_status is not LiftStatus.DEPTH_STALE:
            return kept
        candidates = self._candidates(stamp_ns, now_ns, max_age_s)
        return next(filter(self._is_complete, candidates), None)

    def find_color(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return a color image, as in `find`, with whatever belongs to it, or None without one."""
        kept = self._kept_at(stamp_ns)
        return kept or next(self._candidates(stamp_ns, now_ns, max_age_s), None)

    def find_fullest(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return what `find_color` does, or an older image if only that one has a depth."""
        if kept := self._kept_at(stamp_ns):
            return kept
        found = list(self._candidates(stamp_ns, now_ns, max_age_s))
        with_depth = (snapshot for snapshot in found if snapshot.depth is not None)
        return next(with_depth, found[0] if found else None)

    def missing_image_error(self, stamp_ns: int, now_ns: int, max_age_s: float) -> BrainError:
        """Return why `find_color` finds nothing: NO_IMAGE or IMAGE_STALE."""
        topic = self._node.resolve_topic_name(self._topics.color)
        stamps = [stamp_of(color) for color in self.color_frames.newest()]
        if not stamps:
            color = next(
                iter(self.topics(now_ns)), TopicHealth(topic, None, "The camera is closed.")
            )
            return BrainError(ErrorCode.NO_IMAGE, f"No image on {topic}: {color.trouble}")
        if stamp_ns:
            held = f"{(now_ns - stamps[0]) / _NS:.2f} to {(now_ns - stamps[-1]) / _NS:.2f} s"
            return BrainError(
                ErrorCode.IMAGE_STALE,
                f"No image of {topic} with that stamp is held (those held are {held} old): "
                "ask sooner, or use stamp 0 for the newest.",
            )
        age = (now_ns - stamps[-1]) / _NS
        when = f"{age:.2f} s old" if age >= 0 else f"{-age:.2f} s in the future"
        return BrainError(
            ErrorCode.IMAGE_STALE,
            f"The newest image on {topic} is {when}, the limit max_image_age is {max_age_s:.2f} s: "
            "check the camera, that its clock is this machine's, and for simulations and bags "
            "that use_sim_time is true and /clock is published.",
        )

    def topics(self, now_ns: int) -> list[TopicHealth]:
        """Return the health of each topic, color first."""
        with self._lock:
            subscriptions = list(self._subscriptions)
        return [
            topic_health(self._node, subscription, frames.last_stamp(), now_ns)
            for subscription, frames in subscriptions
        ]

    def expects(self, stamp_ns: int) -> bool:
        """Whether an image of this stamp may still arrive (0 = the newest: always)."""
        newest = self.color_frames.last_stamp()
        return not stamp_ns or newest is None or stamp_ns > newest

    def _subscribe(self, kind: type, topic: str, frames: FrameBuffer[Any]) -> Subscription:
        return self._node.create_subscription(
            kind,
            topic,
            partial(self._hold, frames),
            qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _hold(self, frames: FrameBuffer[Any], message: AnyImage | CameraInfo) -> None:
        if message.header.stamp.sec < 0:  # rclpy's Time can't be before 1970
            self._node.get_logger().warning(
                f"Camera {self.name}: a {type(message).__name__} with a negative stamp is ignored.",
                throttle_duration_sec=5.0,
            )
            return
        if not frames.append(message):
            with self._lock:
                self._kept.clear()  # their stamps come from before time jumped back

    def _candidates(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Iterator[Snapshot]:
        """Snapshots of the color image with a stamp, or of all that are recent, newest first."""
        if stamp_ns:
            nearest = self._within_tolerance(self.color_frames, stamp_ns)
            colors = [] if nearest is None else [nearest]
        else:
            # Not from the future either: those remain from before time jumped back.
            colors = [
                color
                for color in reversed(self.color_frames.newest())
                if abs(now_ns - stamp_of(color)) <= max_age_s * _NS
            ]
        return map(self._snapshot, colors)

    def _kept_at(self, stamp_ns: int) -> Snapshot | None:
        if not stamp_ns:
            return None
        with self._lock:
            return next((kept for kept in self._kept if stamp_of(kept.color) == stamp_ns), None)

    def _within_tolerance(self, frames: FrameBuffer[AnyImage], stamp_ns: int) -> AnyImage | None:
        nearest = frames.nearest(stamp_ns)
        if nearest is None or abs(stamp_of(nearest) - stamp_ns) > self._tolerance_ns:
            return None
        return nearest

    def _is_complete(self, snapshot: Snapshot) -> bool:
        if not self._has_depth_camera():
            return True
        return (
            snapshot.depth is not None
            and snapshot.info is not None
            and (snapshot.depth_info is not None or not self._topics.depth_info)
        )

    def _has_depth_camera(self) -> bool:
        return bool(self._topics.depth) and bool(
            self.depth_frames.newest() or self._node.count_publishers(self._topics.depth)
        )

    def _snapshot(self, color: AnyImage) -> Snapshot:
        stamp = stamp_of(color)
        depth = self._within_tolerance(self.depth_frames, stamp)
        status, reason = LiftStatus.OK, ""
        if depth is None and self._has_depth_camera():
            status, reason = LiftStatus.DEPTH_STALE, self._lag(stamp)
        elif depth is None:
            status = LiftStatus.NO_DEPTH_CAMERA
        return Snapshot(
            color,
            # Any distance: drivers may send intrinsics once, or at a lower rate.
            self._infos.nearest(stamp),
            depth,
            self._depth_infos.nearest(stamp if depth is None else stamp_of(depth)),
            status,
            reason,
            self._topics.rectified,
        )

    def _lag(self, stamp_ns: int) -> str:
        """Return which topic lags and by how much, where no depth is near a color stamp."""
        color, depth = map(self._node.resolve_topic_name, (self._topics.color, self._topics.depth))
        nearest = self.depth_frames.nearest(stamp_ns)
        if nearest is None:
            return f"{depth} has a publisher, but no depth image has arrived."
        lead = (stamp_of(nearest) - stamp_ns) / _NS
        late, early = (depth, color) if lead < 0 else (color, depth)
        return (
            f"{late} lags {early}: the nearest depth is {abs(lead):.3f} s "
            f"{'older' if lead < 0 else 'newer'} than the color image, sync_tolerance is "
            f"{self._tolerance_ns / _NS:.3f} s. Let the driver synchronize the two, or raise it."
        )


def _image_type(topic: str) -> type[AnyImage]:
    return CompressedImage if topic.endswith(("/compressed", "/compressedDepth")) else Image


def stamp_of(message: AnyImage | CameraInfo) -> int:
    """Return the header's stamp in nanoseconds."""
    return nanoseconds(message.header.stamp)


def nanoseconds(stamp: Time) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return stamp.sec * _NS + stamp.nanosec
