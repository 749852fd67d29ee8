# SPDX-License-Identifier: Apache-2.0
"""Stamped frames of one topic, newest and recent past. Imports no ROS."""

from __future__ import annotations

import math
import queue
import threading
from bisect import bisect_left, insort
from collections.abc import Callable
from typing import Generic, TypeVar

NEWEST = 10
"""Frames held at full rate: a third of a second at 30 Hz, under 50 MB for 720p color and depth."""

_NS = 1_000_000_000
_RESET_NS = _NS  # a stamp this far before the newest comes from a clock that was set back

Frame = TypeVar("Frame")


class FrameBuffer(Generic[Frame]):
    """References to a topic's frames, ordered by stamp; for any thread.

    The newest frames are all held. Those before them are held for `duration` seconds before the
    newest one, thinned to one for each period of `rate`, so that at most
    `newest + ceil(duration * rate) + 1` frames are held whatever rate they arrive at.
    """

    def __init__(
        self,
        stamp: Callable[[Frame], int],
        duration: float = 0.0,
        rate: float = 1.0,
        newest: int = NEWEST,
    ) -> None:
        """stamp: returns a frame's stamp, ns. duration: seconds, 0 = none but the newest.

        rate: frames per second. newest: number of frames.
        """
        if not (0 <= duration < math.inf and 0 < rate < math.inf and newest >= 1):
            raise ValueError(
                f"duration {duration} s, rate {rate} Hz or newest {newest} is out of range"
            )
        self._stamp = stamp
        self._duration_ns = round(duration * _NS)
        self._period_ns = _NS / rate
        self._capacity = newest
        self._lock = threading.Lock()
        self._newest: list[Frame] = []
        self._past: list[Frame] = []  # at most one for each period
        self._listeners: list[Callable[[Frame], None]] = []

    def append(self, frame: Frame) -> bool:
        """Hold a frame and pass it to the listeners; returns False if time has jumped back.

        All older frames are dropped then, because a bag was started again or a simulation reset.
        Frames may be late by less than a second: networks and threaded drivers mix their order up.
        """
        stamp = self._stamp(frame)
        with self._lock:
            reset = bool(self._newest) and stamp < self._stamp(self._newest[-1]) - _RESET_NS
            if reset:
                self._clear()
            insort(self._newest, frame, key=self._stamp)
            if len(self._newest) > self._capacity:
                self._retire(self._newest.pop(0))
            self._expire()
            listeners = tuple(self._listeners)
        for listener in listeners:
            listener(frame)
        return not reset

    def newest(self) -> tuple[Frame, ...]:
        """Return the newest frames, oldest first."""
        with self._lock:
            return tuple(self._newest)

    def window(self, start_ns: int, end_ns: int) -> tuple[Frame, ...]:
        """Return all frames held with a stamp in [start_ns, end_ns], oldest first."""
        with self._lock:
            # Sorted, because a late frame may be newer than one that has been retired.
            frames = sorted((*self._past, *self._newest), key=self._stamp)
        return tuple(frame for frame in frames if start_ns <= self._stamp(frame) <= end_ns)

    def nearest(self, stamp_ns: int) -> Frame | None:
        """Return the frame with the nearest stamp among the newest, None without one."""
        return min(self.newest(), key=lambda one: abs(self._stamp(one) - stamp_ns), default=None)

    def last_stamp(self) -> int | None:
        """Return the newest stamp, ns, None without a frame."""
        with self._lock:
            return self._stamp(self._newest[-1]) if self._newest else None

    def clear(self) -> None:
        """Drop all frames; the listeners stay."""
        with self._lock:
            self._clear()

    def subscribe(self, listener: Callable[[Frame], None]) -> Callable[[], None]:
        """Call `listener` with each frame as it arrives; returns what ends that.

        It is called on the thread that appends, so it must return at once and must not raise: use a
        `LatestFrame` to work on another thread.
        """
        with self._lock:
            self._listeners.append(listener)

        def unsubscribe() -> None:
            with self._lock:
                if listener in self._listeners:
                    self._listeners.remove(listener)

        return unsubscribe

    def _retire(self, frame: Frame) -> None:
        """Move a frame from the newest to the past, if its period has none."""
        if not self._duration_ns:
            return
        index = bisect_left(self._past, self._period(frame), key=self._period)
        if index == len(self._past) or self._period(self._past[index]) != self._period(frame):
            self._past.insert(index, frame)

    def _expire(self) -> None:
        """Drop the past that is older than `duration`."""
        limit = self._stamp(self._newest[-1]) - self._duration_ns
        del self._past[: bisect_left(self._past, limit, key=self._stamp)]

    def _period(self, frame: Frame) -> int:
        return int(self._stamp(frame) // self._period_ns)

    def _clear(self) -> None:
        self._newest.clear()
        self._past.clear()


class LatestFrame(Generic[Frame]):
    """A listener that holds the latest frame until another thread takes it: a queue of one."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Frame] = queue.Queue(maxsize=1)

    def __call__(self, frame: Frame) -> None:
        """Replace the frame that nobody has taken."""
        while True:
            try:
                self._queue.put_nowait(frame)
                return
            except queue.Full:
                self.take(0.0)

    def take(self, timeout_s: float) -> Frame | None:
        """Wait for a frame that has not been taken yet; None after the timeout."""
        try:
            return self._queue.get(timeout_s > 0, timeout_s)
        except queue.Empty:
            return None
