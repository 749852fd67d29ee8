# SPDX-License-Identifier: Apache-2.0
"""Camera topics in, stamp-matched snapshots out; frames are kept as they came."""

from __future__ import annotations

import threading
from bisect import insort
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from builtin_interfaces.msg import Time
from rclpy.node import Node
from rclpy.qos import qos_profile_sensor_data
from rclpy.qos_overriding_options import QoSOverridingOptions
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.ros.camera_health import TopicHealth, topic_health
from robobrain_ros.tf_projection import LiftStatus

RING_LENGTH = 10
"""Frames held per topic: a third of a second at 30 Hz, under 50 MB for 720p colour and depth."""

KEPT_SNAPSHOTS = 4
"""Snapshots held after they were asked about, so that a second question can be about the same."""

_NS = 1_000_000_000
_RESET_NS = _NS  # a stamp this far before the newest comes from a clock that was set back

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
    """One moment of one camera: a colour image and what belongs to it by stamp.

    `depth_status` is OK exactly when `depth` is there; otherwise it is the reason for its absence,
    and `absence` a sentence about it.
    """

    color: AnyImage
    info: CameraInfo | None = None
    depth: AnyImage | None = None
    depth_info: CameraInfo | None = None
    depth_status: LiftStatus = LiftStatus.NO_DEPTH_CAMERA
    absence: str = ""
    rectified: bool = False


class Camera:
    """Subscribes to one camera's topics on `node` and pairs them by stamp.

    Callbacks run on the cameras' executor thread, what is asked of it on any other.
    """

    def __init__(self, node: Node, name: str, topics: Topics, sync_tolerance_s: float) -> None:
        self.name = name
        self._node = node
        self._topics = topics
        self._tolerance_ns = int(sync_tolerance_s * _NS)
        self._lock = threading.Lock()
        self._colors: deque[AnyImage] = deque(maxlen=RING_LENGTH)
        self._depths: deque[AnyImage] = deque(maxlen=RING_LENGTH)
        self._infos: deque[CameraInfo] = deque(maxlen=RING_LENGTH)
        self._depth_infos: deque[CameraInfo] = deque(maxlen=RING_LENGTH)
        self._kept: deque[Snapshot] = deque(maxlen=KEPT_SNAPSHOTS)
        self._subscriptions = [
            (self._subscribe(kind, topic, ring), ring)
            for kind, topic, ring in (
                (_image_type(topics.color), topics.color, self._colors),
                (CameraInfo, topics.info, self._infos),
                (_image_type(topics.depth), topics.depth, self._depths),
                (CameraInfo, topics.depth_info, self._depth_infos),
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
        with self._lock:
            subscriptions, self._subscriptions = self._subscriptions, []
            for held in (self._colors, self._depths, self._infos, self._depth_infos, self._kept):
                held.clear()
        for subscription, _ in subscriptions:
            self._node.destroy_subscription(subscription)

    def keep(self, snapshot: Snapshot) -> None:
        """Hold a snapshot for later requests with its stamp, longer than the frames around it."""
        with self._lock:
            if earlier := self._kept_at(stamp_of(snapshot.color)):
                self._kept.remove(earlier)  # the new one may have the depth that was missing
            self._kept.append(snapshot)

    def find(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return the colour image asked for with its depth and intrinsics, or None if not all here.

        stamp_ns: 0 = the newest that is complete, at most `max_age_s` from `now_ns`.
        """
        with self._lock:
            kept = self._kept_at(stamp_ns)
            if kept and kept.info and kept.depth_status is not LiftStatus.DEPTH_STALE:
                return kept
            candidates = self._candidates(stamp_ns, now_ns, max_age_s)
            return next(filter(self._is_complete, candidates), None)

    def find_color(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return the colour image asked for with whatever else is here, or None without colour."""
        with self._lock:
            return self._kept_at(stamp_ns) or next(
                self._candidates(stamp_ns, now_ns, max_age_s), None
            )

    def find_fullest(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Snapshot | None:
        """Return what `find_color` does, or rather an older image if only that has its depth."""
        with self._lock:
            if kept := self._kept_at(stamp_ns):
                return kept
            found = list(self._candidates(stamp_ns, now_ns, max_age_s))
        with_depth = (snapshot for snapshot in found if snapshot.depth is not None)
        return next(with_depth, found[0] if found else None)

    def absence(self, stamp_ns: int, now_ns: int, max_age_s: float) -> BrainError:
        """Say why `find_color` finds nothing: NO_IMAGE or IMAGE_STALE."""
        topic = self._node.resolve_topic_name(self._topics.color)
        with self._lock:
            stamps = [stamp_of(color) for color in self._colors]
        if not stamps:
            colour = next(
                iter(self.topics(now_ns)), TopicHealth(topic, None, "The camera is closed.")
            )
            return BrainError(ErrorCode.NO_IMAGE, f"No image on {topic}: {colour.trouble}")
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
        """Tell whether each topic brings something, colour first; for any thread."""
        with self._lock:
            newest = [(s, stamp_of(ring[-1]) if ring else None) for s, ring in self._subscriptions]
        return [topic_health(self._node, *one, now_ns) for one in newest]

    def expects(self, stamp_ns: int) -> bool:
        """Whether an image of this stamp may still arrive (0 = the newest: always)."""
        with self._lock:
            return not stamp_ns or not self._colors or stamp_ns > stamp_of(self._colors[-1])

    def _subscribe(self, kind: type, topic: str, ring: deque):
        return self._node.create_subscription(
            kind,
            topic,
            partial(self._hold, ring),
            qos_profile_sensor_data,
            qos_overriding_options=QoSOverridingOptions.with_default_policies(),
        )

    def _hold(self, ring: deque, message: AnyImage | CameraInfo) -> None:
        if message.header.stamp.sec < 0:  # nor can rclpy's Time be before 1970
            self._node.get_logger().warning(
                f"Camera {self.name}: a {type(message).__name__} with a negative stamp is ignored.",
                throttle_duration_sec=5.0,
            )
            return
        with self._lock:
            if ring and stamp_of(message) < stamp_of(ring[-1]) - _RESET_NS:
                ring.clear()  # time went back: a bag loops, a simulation was reset
                self._kept.clear()
            if len(ring) == RING_LENGTH:
                ring.popleft()
            insort(ring, message, key=stamp_of)  # networks and threaded drivers mix the order up

    def _candidates(self, stamp_ns: int, now_ns: int, max_age_s: float) -> Iterator[Snapshot]:
        """Of the colour image asked for, or of those that may be it, newest first."""
        if stamp_ns:
            nearest = self._within_tolerance(self._colors, stamp_ns)
            colors = [] if nearest is None else [nearest]
        else:
            # Nor from the future: what is left from before a jump back in time is no newest image.
            colors = [
                color
                for color in reversed(self._colors)
                if abs(now_ns - stamp_of(color)) <= max_age_s * _NS
            ]
        return map(self._snapshot, colors)

    def _kept_at(self, stamp_ns: int) -> Snapshot | None:
        if not stamp_ns:
            return None
        return next((kept for kept in self._kept if stamp_of(kept.color) == stamp_ns), None)

    def _within_tolerance(self, ring: deque, stamp_ns: int) -> AnyImage | None:
        nearest = _nearest(ring, stamp_ns)
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
            self._depths or self._node.count_publishers(self._topics.depth)
        )

    def _snapshot(self, color: AnyImage) -> Snapshot:
        stamp = stamp_of(color)
        depth = self._within_tolerance(self._depths, stamp)
        status, absence = LiftStatus.OK, ""
        if depth is None and self._has_depth_camera():
            status, absence = LiftStatus.DEPTH_STALE, self._lag(stamp)
        elif depth is None:
            status = LiftStatus.NO_DEPTH_CAMERA
        return Snapshot(
            color,
            # Without a tolerance: drivers may send intrinsics once, or at a lower rate.
            _nearest(self._infos, stamp),
            depth,
            _nearest(self._depth_infos, stamp if depth is None else stamp_of(depth)),
            status,
            absence,
            self._topics.rectified,
        )

    def _lag(self, stamp_ns: int) -> str:
        """Say which topic lags and by how much, where no depth is near a colour stamp."""
        color, depth = map(self._node.resolve_topic_name, (self._topics.color, self._topics.depth))
        nearest = _nearest(self._depths, stamp_ns)
        if nearest is None:
            return f"{depth} has a publisher, but no depth image has arrived."
        lead = (stamp_of(nearest) - stamp_ns) / _NS
        late, early = (depth, color) if lead < 0 else (color, depth)
        return (
            f"{late} lags {early}: the nearest depth is {abs(lead):.3f} s "
            f"{'older' if lead < 0 else 'newer'} than the colour image, sync_tolerance is "
            f"{self._tolerance_ns / _NS:.3f} s. Let the driver synchronise the two, or raise it."
        )


def _image_type(topic: str) -> type[AnyImage]:
    return CompressedImage if topic.endswith(("/compressed", "/compressedDepth")) else Image


def _nearest(ring: deque, stamp_ns: int):
    return min(ring, key=lambda message: abs(stamp_of(message) - stamp_ns), default=None)


def stamp_of(message: AnyImage | CameraInfo) -> int:
    """Return the header's stamp in nanoseconds."""
    return nanoseconds(message.header.stamp)


def nanoseconds(stamp: Time) -> int:
    """Return a builtin_interfaces/Time in nanoseconds."""
    return stamp.sec * _NS + stamp.nanosec
