# SPDX-License-Identifier: Apache-2.0
"""Which frames of a topic are held, and who is told of them."""

from __future__ import annotations

import random
import threading

import pytest

from robobrain_ros.ros.frame_buffer import NEWEST, FrameBuffer, LatestFrame

MS = 1_000_000
S = 1000 * MS


def buffer(**options) -> FrameBuffer[int]:
    """A buffer of frames that are nothing but their stamps."""
    return FrameBuffer(lambda stamp: stamp, **options)


def filled(frames: FrameBuffer[int], seconds: float, rate: float, start: int = 0) -> list[int]:
    stamps = [start + round(index * S / rate) for index in range(round(seconds * rate))]
    for stamp in stamps:
        frames.append(stamp)
    return stamps


def test_by_default_the_newest_frames_are_held_and_no_others():
    frames = buffer()
    stamps = filled(frames, 5, 30)
    assert frames.newest() == tuple(stamps[-NEWEST:]) == frames.window(0, 10 * S)


def test_frames_of_a_slow_topic_are_held_however_old():
    frames = buffer()
    assert filled(frames, 10, 1) == list(frames.newest())


@pytest.mark.parametrize("jitter", [0, 8 * MS])
def test_the_past_is_thinned_to_the_rate(jitter):
    frames = buffer(duration=4.0, rate=2.0)
    numbers = random.Random(0)
    for index in range(600):  # 30 Hz
        frames.append(round(index * S / 30) + numbers.randrange(jitter + 1))
    held = frames.window(0, 30 * S)
    past = held[: -len(frames.newest())]
    assert len(past) == pytest.approx(4.0 * 2.0, abs=1)
    assert all(S / 2 - 60 * MS < b - a < S / 2 + 60 * MS for a, b in zip(past, past[1:]))
    assert held[-1] - held[0] <= 4 * S
    assert held[-1] - held[0] > 3 * S


def test_memory_is_bounded_at_any_rate():
    frames = buffer(duration=2.0, rate=5.0, newest=4)
    for rate in (1, 7, 30, 1000):
        frames.clear()
        filled(frames, 10, rate)
        assert len(frames.window(0, 100 * S)) <= 4 + 2 * 5 + 1


def test_frames_slower_than_the_rate_are_all_held_for_the_duration():
    frames = buffer(duration=8.0, rate=5.0, newest=2)
    stamps = filled(frames, 20, 1)
    assert frames.window(0, 100 * S) == tuple(stamps[-9:])


def test_a_window_has_both_its_ends():
    frames = buffer()
    filled(frames, 1, 10)
    assert frames.window(300 * MS, 500 * MS) == (300 * MS, 400 * MS, 500 * MS)


def test_late_frames_are_put_in_order():
    frames = buffer()
    for stamp in (100, 33, 133, 66):
        assert frames.append(stamp * MS)
    assert frames.newest() == (33 * MS, 66 * MS, 100 * MS, 133 * MS)
    assert frames.last_stamp() == 133 * MS


def test_late_frames_are_in_order_in_the_past_too():
    frames = buffer(duration=10.0, rate=30.0, newest=2)
    numbers = random.Random(1)
    stamps = [index * S // 30 + numbers.randrange(100 * MS) for index in range(90)]
    for stamp in stamps:
        frames.append(stamp)
    held = frames.window(0, 10 * S)
    assert list(held) == sorted(held)
    assert max(stamps) in held


def test_a_jump_back_in_time_drops_what_was_held():
    frames = buffer(duration=5.0, rate=5.0)
    filled(frames, 3, 30, start=100 * S)
    assert not frames.append(50 * S)
    assert frames.window(0, 1000 * S) == (50 * S,)
    assert frames.append(50 * S - 900 * MS)  # late, by less than a second


def test_the_nearest_frame_on_either_side():
    frames = buffer()
    assert frames.nearest(0) is None and frames.last_stamp() is None
    filled(frames, 1, 10)
    assert [frames.nearest(ms * MS) for ms in (0, 349, 351, 5000)] == [
        0, 300 * MS, 400 * MS, 900 * MS,
    ]  # fmt: skip


def test_listeners_get_each_frame_until_they_unsubscribe():
    frames = buffer()
    first, second = [], []
    end_first = frames.subscribe(first.append)
    frames.subscribe(second.append)
    frames.append(1)
    end_first()
    frames.append(2)
    frames.clear()
    frames.append(3)
    assert (first, second) == ([1], [1, 2, 3])


def test_a_listener_may_look_into_the_buffer():
    frames = buffer()
    seen = []
    frames.subscribe(lambda stamp: seen.append((stamp, frames.newest())))
    frames.append(7)
    assert seen == [(7, (7,))]


def test_the_latest_frame_is_what_a_slow_listener_takes():
    frames, latest = buffer(), LatestFrame()
    frames.subscribe(latest)
    assert latest.take(0.0) is None
    for stamp in (1, 2, 3):
        frames.append(stamp)
    assert latest.take(0.0) == 3
    assert latest.take(0.0) is None


def test_a_frame_ends_the_wait_for_the_latest():
    frames, latest = buffer(), LatestFrame()
    frames.subscribe(latest)
    threading.Timer(0.05, frames.append, (9,)).start()
    assert latest.take(20.0) == 9


@pytest.mark.parametrize("wrong", [{"duration": -1.0}, {"rate": 0.0}, {"newest": 0}])
def test_impossible_sizes_are_refused(wrong):
    with pytest.raises(ValueError):
        buffer(**wrong)


def test_a_late_frame_takes_the_place_of_no_newer_one():
    frames = buffer(newest=3)
    for stamp in (100, 200, 300, 50):
        frames.append(stamp * MS)
    assert frames.newest() == (100 * MS, 200 * MS, 300 * MS)
    one = buffer(newest=1)
    for stamp in (10 * S, 10 * S - 100 * MS):
        one.append(stamp)
    assert one.last_stamp() == 10 * S


@pytest.mark.parametrize(
    "options", [{"rate": float("nan")}, {"rate": float("inf")}, {"duration": float("nan")}]
)
def test_settings_that_are_no_numbers_are_refused(options):
    with pytest.raises(ValueError, match="out of range"):
        buffer(**options)


def test_a_subscription_may_be_ended_twice():
    frames, seen = buffer(), []
    end = frames.subscribe(seen.append)
    end()
    end()
    frames.append(1)
    assert not seen
