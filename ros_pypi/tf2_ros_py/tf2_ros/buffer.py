# SPDX-License-Identifier: Apache-2.0
"""A buffer that can also be waited for."""

from __future__ import annotations

import threading
import time as wall_time
from collections.abc import Callable
from typing import Any

from geometry_msgs.msg import TransformStamped
from rclpy.clock import Clock, JumpThreshold
from rclpy.duration import Duration
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.task import Future
from rclpy.time import Time
from tf2_msgs.srv import FrameGraph

from .buffer_core import BufferCore
from .exceptions import TransformException

# tf2_ros's interval between two looks while it waits in can_transform.
POLL_S = 0.02

NO_WAIT = Duration()


class Buffer(BufferCore):
    """BufferCore with time-outs and futures; with a node it also serves the tree as tf2_frames.

    The buffer is cleared when the node's clock jumps back.
    """

    def __init__(self, cache_time: Duration | None = None, node: Node | None = None) -> None:
        super().__init__(cache_time)
        self._new_data_callbacks: list[Callable[[], None]] = []
        self._callbacks_lock = threading.RLock()
        self.clock = node.get_clock() if node is not None else Clock()
        if node is not None:
            self.srv = node.create_service(FrameGraph, "tf2_frames", self._serve_frames)
        threshold = JumpThreshold(
            min_forward=None, min_backward=Duration(seconds=-1), on_clock_change=True
        )
        self.jump_handle = self.clock.create_jump_callback(
            threshold, post_callback=self.time_jump_callback
        )

    def _serve_frames(
        self, request: FrameGraph.Request, response: FrameGraph.Response
    ) -> FrameGraph.Response:
        response.frame_yaml = self.all_frames_as_yaml()
        return response

    def time_jump_callback(self, time_jump: Any) -> None:
        get_logger("tf2_buffer").warning("Detected jump back in time. Clearing tf buffer.")
        self.clear()

    def set_transform(self, transform: TransformStamped, authority: str) -> None:
        super().set_transform(transform, authority)
        self._call_new_data_callbacks()

    def set_transform_static(self, transform: TransformStamped, authority: str) -> None:
        super().set_transform_static(transform, authority)
        self._call_new_data_callbacks()

    def _call_new_data_callbacks(self) -> None:
        with self._callbacks_lock:
            for callback in list(self._new_data_callbacks):
                callback()

    def can_transform(
        self,
        target_frame: str,
        source_frame: str,
        time: Time,
        timeout: Duration = NO_WAIT,
        return_debug_tuple: bool = False,
    ) -> bool | tuple[bool, str]:
        """Whether lookup_transform would succeed within the timeout. Blocks and polls."""
        return self._poll(
            lambda: self.can_transform_core(target_frame, source_frame, time),
            timeout,
            return_debug_tuple,
        )

    def can_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration = NO_WAIT,
        return_debug_tuple: bool = False,
    ) -> bool | tuple[bool, str]:
        """Whether lookup_transform_full would succeed within the timeout. Blocks and polls."""
        frames = (target_frame, target_time, source_frame, source_time, fixed_frame)
        return self._poll(
            lambda: self.can_transform_full_core(*frames), timeout, return_debug_tuple
        )

    @staticmethod
    def _poll(
        check: Callable[[], tuple[bool, str]], timeout: Duration, return_debug_tuple: bool
    ) -> bool | tuple[bool, str]:
        deadline = wall_time.monotonic() + timeout.nanoseconds * 1e-9
        result = check()
        while not result[0] and wall_time.monotonic() < deadline:
            wall_time.sleep(POLL_S)
            result = check()
        return result if return_debug_tuple else result[0]

    def lookup_transform(
        self, target_frame: str, source_frame: str, time: Time, timeout: Duration = NO_WAIT
    ) -> TransformStamped:
        """The transform that takes points of source_frame to target_frame.

        Time 0 is the latest common time. Raises a TransformException when it is not
        there after the timeout, during which it blocks.
        """
        self.can_transform(target_frame, source_frame, time, timeout)
        return self.lookup_transform_core(target_frame, source_frame, time)

    def lookup_transform_full(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
        timeout: Duration = NO_WAIT,
    ) -> TransformStamped:
        """As lookup_transform, between two times, over a frame that does not move between them."""
        frames = (target_frame, target_time, source_frame, source_time, fixed_frame)
        self.can_transform_full(*frames, timeout)
        return self.lookup_transform_full_core(*frames)

    def wait_for_transform_async(self, target_frame: str, source_frame: str, time: Time) -> Future:
        """A future of the transform, set by the thread that feeds the buffer."""
        return self._future(
            lambda: self.can_transform_core(target_frame, source_frame, time)[0],
            lambda: self.lookup_transform_core(target_frame, source_frame, time),
        )

    def wait_for_transform_full_async(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
    ) -> Future:
        """As wait_for_transform_async, between two times, over a frame that does not move."""
        frames = (target_frame, target_time, source_frame, source_time, fixed_frame)
        return self._future(
            lambda: self.can_transform_full_core(*frames)[0],
            lambda: self.lookup_transform_full_core(*frames),
        )

    def _future(
        self, is_there: Callable[[], bool], look_up: Callable[[], TransformStamped]
    ) -> Future:
        future = Future()

        def on_new_data() -> None:
            if future.done() or not is_there():
                return
            try:
                future.set_result(look_up())
            except TransformException as error:  # another thread's data pushed it out
                future.set_exception(error)

        def forget(_: Future) -> None:
            with self._callbacks_lock:
                if on_new_data in self._new_data_callbacks:
                    self._new_data_callbacks.remove(on_new_data)

        with self._callbacks_lock:
            self._new_data_callbacks.append(on_new_data)
        future.add_done_callback(forget)
        on_new_data()
        return future

    async def lookup_transform_async(
        self, target_frame: str, source_frame: str, time: Time
    ) -> TransformStamped:
        """lookup_transform for coroutines: it waits without blocking or a time-out."""
        await self.wait_for_transform_async(target_frame, source_frame, time)
        return self.lookup_transform_core(target_frame, source_frame, time)

    async def lookup_transform_full_async(
        self,
        target_frame: str,
        target_time: Time,
        source_frame: str,
        source_time: Time,
        fixed_frame: str,
    ) -> TransformStamped:
        """lookup_transform_full for coroutines: it waits without blocking or a time-out."""
        frames = (target_frame, target_time, source_frame, source_time, fixed_frame)
        await self.wait_for_transform_full_async(*frames)
        return self.lookup_transform_full_core(*frames)
