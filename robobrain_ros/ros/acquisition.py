# SPDX-License-Identifier: Apache-2.0
"""Inputs of a request: a snapshot of the camera, and the transforms at its stamp.

All waits have a timeout and leave the executor free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from rclpy.node import Node
from rclpy.time import Time

from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.ros.camera import Camera, Snapshot, nanoseconds, stamp_of
from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.tf_projection import LiftStatus, TransformLookup, TransformUnavailable

PARTNER_WAIT_S = 0.25
"""Longest wait for the depth and intrinsics of a color image: several frames at 30 Hz."""

_SAME_MOMENT_NS = 1_000_000  # a camera at 1 m/s moves 1 mm
_STILL = 2e-4  # m and rad: a fifth of a millimeter at one meter

T = TypeVar("T")
Matrix = NDArray[np.float64]


@dataclass(frozen=True)
class Poses:
    """Camera poses of a snapshot; matrices are (4, 4), m.

    target_frame: its name. target_from_camera: from the color camera's optical frame, None without
    a transform. color_from_depth: from the depth's optical frame to the color's, each at its own
    stamp; None where the two are the same.
    """

    target_frame: str
    target_from_camera: Matrix | None
    color_from_depth: Matrix | None = None


class Acquisition:
    """Waits for the inputs of requests on the executor of `node`."""

    def __init__(self, node: Node, loop: EventLoop) -> None:
        self._node = node
        self._loop = loop

    async def snapshot(
        self, request: Any, camera: Camera, with_depth: bool, stop: StopSignal
    ) -> Snapshot:
        """Return the request's image with its depth and intrinsics, as far as they arrive in time.

        Raises BrainError NO_IMAGE or IMAGE_STALE.
        """
        max_age = self._value("max_image_age")
        stamp = nanoseconds(request.stamp)

        def now() -> int:
            return self._node.get_clock().now().nanoseconds

        def seek(find: Callable) -> Callable[[], Snapshot | None]:
            return lambda: find(stamp, now(), max_age)

        # Usually all have arrived already.
        found = seek(camera.find)() if with_depth else None
        if found is None:
            patience = self._value("image_timeout") if camera.expects(stamp) else 0.0
            found = await self._until(seek(camera.find_color), patience, stop)
            if found is None:
                raise camera.missing_image_error(stamp, now(), max_age)
            if with_depth:
                whole = await self._until(seek(camera.find), PARTNER_WAIT_S, stop)
                # Otherwise the fullest one now: the wait may have brought a part.
                found = whole or seek(camera.find_fullest)() or found
        camera.keep(found)
        return found

    async def poses(
        self, request: Any, snapshot: Snapshot, transforms: TransformLookup, stop: StopSignal
    ) -> tuple[Snapshot, Poses]:
        """Return the camera poses, and the snapshot without its depth if a transform is missing.

        To be called before inference, which may outlast the TF buffer. Raises TransformUnavailable
        for a frame that the request names; without the default frame the answer has pixels only.
        """
        header = snapshot.color.header
        target = request.target_frame or self._value("target_frame") or header.frame_id
        if snapshot.depth is None:
            return snapshot, Poses(target, np.eye(4))
        missing: list[TransformUnavailable] = []

        async def look_up(find: Callable[[], Matrix]) -> Matrix | None:
            missing.clear()

            def attempt() -> Matrix | None:
                try:
                    return find()
                except TransformUnavailable as error:
                    missing[:] = [error]
                    return None

            return await self._until(attempt, self._value("tf_timeout"), stop)

        stamp = Time.from_msg(header.stamp)
        camera = await look_up(lambda: transforms.try_lookup(target, header.frame_id, stamp))
        if camera is None and request.target_frame:
            raise missing[0]
        depth = None
        if _is_elsewhere(snapshot):
            fixed = self._value("fixed_frame") or target
            depth = await look_up(lambda: _color_from_depth(snapshot, fixed, transforms))
            if depth is None:
                return _without_depth(snapshot, missing[0]), Poses(target, camera)
            if np.abs(depth - np.eye(4)).max() < _STILL:
                depth = None
        return snapshot, Poses(target, camera, depth)

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    async def _until(
        self, ready: Callable[[], T | None], limit: float, stop: StopSignal
    ) -> T | None:
        """EventLoop.poll_until, ended early by the request's deadline or cancellation."""
        value = await self._loop.poll_until(lambda: stop.reason() or ready(), limit)
        stop.check()
        return value


def _is_elsewhere(snapshot: Snapshot) -> bool:
    """Whether the depth's optical frame differs, or may differ, from that of the color image."""
    color, depth = snapshot.color, snapshot.depth
    if snapshot.depth_info is not None and depth.header.frame_id != color.header.frame_id:
        return True
    return abs(stamp_of(depth) - stamp_of(color)) > _SAME_MOMENT_NS


def _color_from_depth(snapshot: Snapshot, fixed: str, transforms: TransformLookup) -> Matrix:
    color, depth = snapshot.color.header, snapshot.depth.header
    source = depth.frame_id if snapshot.depth_info is not None else color.frame_id
    if fixed == color.frame_id:
        # Without a fixed frame the two cameras are assumed to be one rigid body.
        return transforms.try_lookup(color.frame_id, source, Time.from_msg(depth.stamp))
    return transforms.try_lookup_between(
        color.frame_id, Time.from_msg(color.stamp), source, Time.from_msg(depth.stamp), fixed
    )


def _without_depth(snapshot: Snapshot, reason: TransformUnavailable) -> Snapshot:
    status = LiftStatus.NO_TRANSFORM
    return replace(snapshot, depth=None, depth_status=status, reason=str(reason))
