# SPDX-License-Identifier: Apache-2.0
"""The tree of frames over time, without ROS communication."""

from __future__ import annotations

import math
import threading
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.time import Time

from .exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TransformException,
)
from .frame_history import Sample, StaticHistory, TimedHistory, seconds
from .rigid import Rigid, canonical, normalize

# tf2's limit: a longer path is taken for a loop.
MAX_GRAPH_DEPTH = 1000

# What tf2 calls the parent of a frame whose transforms were all forgotten.
NO_PARENT = "NO_PARENT"

# In nanoseconds, the shortest span that tf2 takes a frame's rate over.
SHORTEST_SPAN = 100_000


class BufferCore:
    """Keeps transforms for cache_time (default 10 s) between any two frames. Thread-safe."""

    def __init__(self, cache_time: Duration | None = None) -> None:
        self._cache_time = nanoseconds(
            cache_time if cache_time is not None else Duration(seconds=10)
        )
        self._histories: dict[str, StaticHistory | TimedHistory] = {}
        self._authorities: dict[str, str] = {}
        # Every frame that was named, oldest first: tf2 lists them in this order.
        self._known: dict[str, None] = {}
        self._lock = threading.RLock()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        """Take in a transform from /tf. An unusable one is logged and ignored."""
        self._insert(transform, authority, lambda: TimedHistory(self._cache_time))

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        """Take in a transform from /tf_static. An unusable one is logged and ignored."""
        self._insert(transform, authority, StaticHistory)

    def _insert(self, transform: TransformStamped, authority: str, new_history: Any) -> None:
        parent, child = (
            name.removeprefix("/") for name in (transform.header.frame_id, transform.child_frame_id)
        )
        t, r = transform.transform.translation, transform.transform.rotation
        pose = Rigid((t.x, t.y, t.z), (r.x, r.y, r.z, r.w))
        flaw = _flaw(parent, child, pose)
        if flaw:
            get_logger("tf2").error(
                f'{flaw}: ignoring the transform of "{child}" in "{parent}" from "{authority}"'
            )
            return
        sample = Sample(
            nanoseconds(transform.header.stamp),
            parent,
            pose._replace(rotation=canonical(normalize(pose.rotation))),
        )
        with self._lock:
            self._known |= {child: None, parent: None}
            history = new_history()
            # A frame that turns from moving to static or back loses its past.
            if type(self._histories.get(child)) is not type(history):
                self._histories[child] = history
            if self._histories[child].insert(sample):
                self._authorities[child] = authority
            else:
                get_logger("tf2").warning(
                    f'TF_OLD_DATA ignoring data from the past for frame "{child}" '
                    f'at time {seconds(sample.stamp)} from "{authority}"'
                )

    def lookup_transform_core(
        self, target_frame: str, source_frame: str, time: Any
    ) -> TransformStamped:
        """The transform that takes points of source_frame to target_frame.

        Time 0 is the latest common time. Raises InvalidArgumentException, LookupException,
        ConnectivityException or ExtrapolationException.
        """
        with self._lock:
            stamp, pose = self._lookup(target_frame, source_frame, nanoseconds(time))
        return _message(target_frame, source_frame, stamp, pose)

    def lookup_transform_full_core(
        self,
        target_frame: str,
        target_time: Any,
        source_frame: str,
        source_time: Any,
        fixed_frame: str,
    ) -> TransformStamped:
        """As lookup_transform_core, between two times, over a frame that does not move."""
        with self._lock:
            stamp, pose = self._lookup_full(
                target_frame,
                nanoseconds(target_time),
                source_frame,
                nanoseconds(source_time),
                fixed_frame,
            )
        return _message(target_frame, source_frame, stamp, pose)

    def can_transform_core(
        self, target_frame: str, source_frame: str, time: Any
    ) -> tuple[bool, str]:
        """Whether lookup_transform_core would succeed, and why not."""
        try:
            with self._lock:
                self._lookup(target_frame, source_frame, nanoseconds(time))
        except TransformException as error:
            return False, str(error)
        return True, ""

    def can_transform_full_core(
        self,
        target_frame: str,
        target_time: Any,
        source_frame: str,
        source_time: Any,
        fixed_frame: str,
    ) -> tuple[bool, str]:
        """Whether lookup_transform_full_core would succeed, and why not."""
        try:
            with self._lock:
                self._lookup_full(
                    target_frame,
                    nanoseconds(target_time),
                    source_frame,
                    nanoseconds(source_time),
                    fixed_frame,
                )
        except TransformException as error:
            return False, str(error)
        return True, ""

    def get_latest_common_time(self, target_frame: str, source_frame: str) -> Time:
        """The newest time at which both frames are known; 0 between static frames.

        As in tf2, a missing connection or a loop is a plain TransformException here.
        """
        with self._lock:
            for frame in (target_frame, source_frame):
                self._validate("get_latest_common_time", frame)
            try:
                return Time(nanoseconds=self._latest_common_time(target_frame, source_frame))
            except TransformException as error:
                raise TransformException(str(error)) from error

    def all_frames_as_yaml(self) -> str:
        """The tree as a YAML document, which tools such as view_frames draw."""
        with self._lock:
            lines = [
                line
                for child, history in self._listed()
                if len(history)
                for line in self._described(child, history)
            ]
            return "".join(f"{line}\n" for line in lines) if self._known else "[]"

    def _described(self, child: str, history: StaticHistory | TimedHistory) -> tuple[str, ...]:
        newest, oldest = history.latest(), history.oldest()
        span = newest.stamp - oldest.stamp
        return (
            f"{child}: ",
            f"  parent: '{newest.parent}'",
            f"  broadcaster: '{self._authorities[child]}'",
            f"  rate: {len(history) * 1e9 / max(span, SHORTEST_SPAN):.3f}",
            f"  most_recent_transform: {seconds(newest.stamp)}",
            f"  oldest_transform: {seconds(oldest.stamp)}",
            f"  buffer_length: {span * 1e-9:.3f}",
        )

    def all_frames_as_string(self) -> str:
        """The tree, a sentence per frame."""
        with self._lock:
            return "".join(
                f"Frame {child} exists with parent "
                f"{history.latest().parent if len(history) else NO_PARENT}.\n"
                for child, history in self._listed()
            )

    def _listed(self) -> list[tuple[str, StaticHistory | TimedHistory]]:
        return [(name, self._histories[name]) for name in self._known if name in self._histories]

    def clear(self) -> None:
        """Forget what was received on /tf."""
        with self._lock:
            for history in self._histories.values():
                history.clear()

    def _validate(self, argument: str, frame: str) -> None:
        if not frame:
            raise InvalidArgumentException(
                f'Invalid argument "" passed to {argument} - in tf2 frame_ids cannot be empty'
            )
        if frame.startswith("/"):
            raise InvalidArgumentException(
                f'Invalid argument "{frame}" passed to {argument} - '
                "in tf2 frame_ids cannot start with a '/'"
            )
        if frame not in self._known:
            raise LookupException(f'"{frame}" passed to {argument} does not exist. ')

    def _lookup(self, target: str, source: str, time: int) -> tuple[int, Rigid]:
        if target == source:
            # As in tf2, an unknown frame is at rest in itself.
            return (time or self._latest_common_time(target, source)), Rigid()
        self._validate("lookupTransform argument target_frame", target)
        self._validate("lookupTransform argument source_frame", source)
        time = time or self._latest_common_time(target, source)
        try:
            return time, self._walk(target, source, time)
        except ExtrapolationException as error:
            raise ExtrapolationException(
                f"{error}, when looking up transform from frame [{source}] to frame [{target}]"
            ) from error

    def _lookup_full(
        self, target: str, target_time: int, source: str, source_time: int, fixed: str
    ) -> tuple[int, Rigid]:
        for argument, frame in (("target", target), ("source", source), ("fixed", fixed)):
            self._validate(f"lookupTransform argument {argument}_frame", frame)
        _, to_fixed = self._lookup(fixed, source, source_time)
        stamp, from_fixed = self._lookup(target, fixed, target_time)
        return stamp, from_fixed @ to_fixed

    def _walk(self, target: str, source: str, time: int) -> Rigid:
        """Climb from the source to the root, the target or a gap, then from the target to there."""
        top_from_source, top, gap = Rigid(), source, None
        depth = 0
        while top != target and top in self._histories:
            try:
                sample = self._histories[top].at(time)
            except ExtrapolationException as error:
                gap = error
                break
            top_from_source, top = sample.pose @ top_from_source, sample.parent
            depth = self._deeper(depth)
        top_from_target, frame = Rigid(), target
        depth = 0
        while frame != top and frame in self._histories:
            sample = self._histories[frame].at(time)
            if frame == source:
                return top_from_target.inverse()
            top_from_target, frame = sample.pose @ top_from_target, sample.parent
            depth = self._deeper(depth)
        if frame == top:
            return top_from_target.inverse() @ top_from_source
        raise gap if gap else _unconnected(target, source)

    def _latest_common_time(self, target: str, source: str) -> int:
        """Nanoseconds; 0 where only static frames lie between."""
        if target == source:
            history = self._histories.get(source)
            return history.latest().stamp if history else 0
        # The latest time at which the source is known in each of its ancestors.
        known_until = {source: math.inf}
        frame, stamp, depth = source, math.inf, 0
        while frame != target and (history := self._histories.get(frame)):
            sample = history.latest()
            frame, stamp = sample.parent, min(stamp, sample.stamp or math.inf)
            known_until.setdefault(frame, stamp)
            depth = self._deeper(depth)
        frame, stamp, depth = target, math.inf, 0
        while frame not in known_until:
            history = self._histories.get(frame)
            if not history:
                raise _unconnected(target, source)
            sample = history.latest()
            frame, stamp = sample.parent, min(stamp, sample.stamp or math.inf)
            depth = self._deeper(depth)
        stamp = min(stamp, known_until[frame])
        return 0 if stamp == math.inf else stamp

    def _deeper(self, depth: int) -> int:
        if depth >= MAX_GRAPH_DEPTH:
            raise LookupException(
                "The tf tree is invalid because it contains a loop.\n"
                f"{self.all_frames_as_string()}\n"
            )
        return depth + 1


def nanoseconds(time: Any) -> int:
    """Nanoseconds of a Time or Duration, of rclpy or as a message."""
    if hasattr(time, "sec") and hasattr(time, "nanosec"):
        return time.sec * 1_000_000_000 + time.nanosec
    if hasattr(time, "nanoseconds"):
        return time.nanoseconds
    raise TypeError("time must have sec and nanosec, or nanoseconds.")


def _flaw(parent: str, child: str, pose: Rigid) -> str:
    """tf2's name of what is wrong with a transform, or ""."""
    if parent == child:
        return "TF_SELF_TRANSFORM"
    if not child:
        return "TF_NO_CHILD_FRAME_ID"
    if not parent:
        return "TF_NO_FRAME_ID"
    if any(map(math.isnan, (*pose.translation, *pose.rotation))):
        return "TF_NAN_INPUT"
    if not 0.0 < sum(a * a for a in pose.rotation) < math.inf:
        return "TF_DENORMALIZED_QUATERNION"
    return ""


def _unconnected(target: str, source: str) -> ConnectivityException:
    return ConnectivityException(
        f"Could not find a connection between '{target}' and '{source}' "
        "because they are not part of the same tree.Tf has two or more unconnected trees."
    )


def _message(target: str, source: str, stamp: int, pose: Rigid) -> TransformStamped:
    message = TransformStamped()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp, 1_000_000_000)
    message.header.frame_id = target
    message.child_frame_id = source
    translation, rotation = message.transform.translation, message.transform.rotation
    translation.x, translation.y, translation.z = pose.translation
    rotation.x, rotation.y, rotation.z, rotation.w = canonical(normalize(pose.rotation))
    return message
