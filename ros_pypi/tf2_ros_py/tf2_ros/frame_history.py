# SPDX-License-Identifier: Apache-2.0
"""What is known about one frame over time: its parent and its pose there. Times in nanoseconds."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from typing import NamedTuple

from .exceptions import ExtrapolationException
from .rigid import Rigid


class Sample(NamedTuple):
    """pose takes points of the frame to its parent."""

    stamp: int
    parent: str
    pose: Rigid


class StaticHistory:
    """A frame from /tf_static: one pose, valid at any time."""

    def __init__(self) -> None:
        self._sample: Sample | None = None

    def insert(self, sample: Sample) -> bool:
        self._sample = sample._replace(stamp=0)
        return True

    def at(self, time: int) -> Sample:
        return self._sample

    def latest(self) -> Sample:
        """The sample has stamp 0, which stands for any time."""
        return self._sample

    def oldest(self) -> Sample:
        return self._sample

    def clear(self) -> None:
        """Keeps the pose: what is static does not age."""

    def __len__(self) -> int:
        return 1


class TimedHistory:
    """A frame from /tf: the samples of the last cache_time nanoseconds, oldest first."""

    def __init__(self, cache_time: int) -> None:
        self._cache_time = cache_time
        self._samples: list[Sample] = []
        self._stamps: list[int] = []

    def insert(self, sample: Sample) -> bool:
        """Returns False for a sample older than all that is kept."""
        if self._samples:
            horizon = self._stamps[-1] - self._cache_time
            expired = bisect_left(self._stamps, horizon)
            del self._samples[:expired], self._stamps[:expired]
            if sample.stamp < horizon:
                return False
        first, last = (
            bisect_left(self._stamps, sample.stamp),
            bisect_right(self._stamps, sample.stamp),
        )
        if sample not in self._samples[first:last]:
            self._samples.insert(last, sample)
            self._stamps.insert(last, sample.stamp)
        return True

    def at(self, time: int) -> Sample:
        """The sample at a time, interpolated between two. Raises ExtrapolationException."""
        if not self._samples:
            raise ExtrapolationException(
                "Lookup would require extrapolation, but no data is in the buffer"
            )
        first, last = self._samples[0], self._samples[-1]
        if time == last.stamp:
            return last
        if time == first.stamp:
            return first
        if len(self._samples) == 1:
            raise ExtrapolationException(
                f"Lookup would require extrapolation at time {seconds(time)}, "
                f"but only time {seconds(first.stamp)} is in the buffer"
            )
        if time > last.stamp:
            raise ExtrapolationException(
                "Lookup would require extrapolation into the future.  "
                f"Requested time {seconds(time)} "
                f"but the latest data is at time {seconds(last.stamp)}"
            )
        if time < first.stamp:
            raise ExtrapolationException(
                "Lookup would require extrapolation into the past.  "
                f"Requested time {seconds(time)} "
                f"but the earliest data is at time {seconds(first.stamp)}"
            )
        index = bisect_right(self._stamps, time)
        older, newer = self._samples[index - 1], self._samples[index]
        if older.parent != newer.parent:
            return older
        ratio = (time - older.stamp) / (newer.stamp - older.stamp)
        return older._replace(pose=older.pose.interpolate(newer.pose, ratio))

    def latest(self) -> Sample | None:
        return self._samples[-1] if self._samples else None

    def oldest(self) -> Sample | None:
        return self._samples[0] if self._samples else None

    def clear(self) -> None:
        self._samples.clear()
        self._stamps.clear()

    def __len__(self) -> int:
        return len(self._samples)


def seconds(nanoseconds: int) -> str:
    """A time as tf2 writes it."""
    whole, rest = divmod(nanoseconds, 1_000_000_000)
    return f"{whole + rest * 1e-9:.6f}"
