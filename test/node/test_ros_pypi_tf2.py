# SPDX-License-Identifier: Apache-2.0
"""The stand-in for tf2_ros behaves as tf2_ros: these tests pass with Jazzy's as well.

Where that is not obvious, a comment names the file of geometry2 that decides it.
"""

from __future__ import annotations

import math
import threading
import time

import numpy as np
import pytest
import yaml

pytest.importorskip("tf2_ros", reason="needs a ROS 2 shell: run `make test`")

from builtin_interfaces.msg import Time as TimeMessage
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.time import Time
from scipy.spatial.transform import Rotation, Slerp
from tf2_ros import (
    Buffer,
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    StaticTransformBroadcaster,
    TransformBroadcaster,
    TransformException,
    TransformListener,
)

LATEST = Time()
WHO = "test"


def at(seconds: float) -> Time:
    return Time(nanoseconds=round(seconds * 1e9))


def pose(parent, child, seconds, translation=(0, 0, 0), rotation=(0, 0, 0, 1)) -> TransformStamped:
    message = TransformStamped(child_frame_id=child)
    message.header.frame_id = parent
    message.header.stamp = at(seconds).to_msg()
    t, r = message.transform.translation, message.transform.rotation
    t.x, t.y, t.z = map(float, translation)
    r.x, r.y, r.z, r.w = map(float, rotation)
    return message


def turned(degrees: float) -> tuple[float, ...]:
    return tuple(Rotation.from_euler("z", degrees, degrees=True).as_quat())


def matrix(message: TransformStamped) -> np.ndarray:
    t, r = message.transform.translation, message.transform.rotation
    result = np.eye(4)
    result[:3, :3] = Rotation.from_quat([r.x, r.y, r.z, r.w]).as_matrix()
    result[:3, 3] = t.x, t.y, t.z
    return result


def stamp_of(message: TransformStamped) -> float:
    return message.header.stamp.sec + message.header.stamp.nanosec * 1e-9


def x_of(message: TransformStamped) -> float:
    return message.transform.translation.x


def quaternion_of(message: TransformStamped) -> tuple[float, ...]:
    r = message.transform.rotation
    return (r.x, r.y, r.z, r.w)


@pytest.fixture
def buffer() -> Buffer:
    return Buffer()


@pytest.fixture
def moving(buffer) -> Buffer:
    """cam moves in world along x, 1 m/s, from 10 s to 12 s; tip is fixed to cam."""
    for second in (10, 11, 12):
        buffer.set_transform(pose("world", "cam", second, (second, 0, 0)), WHO)
    buffer.set_transform_static(pose("cam", "tip", 0, (0, 1, 0)), WHO)
    return buffer


def test_result_takes_points_of_the_source_to_the_target(buffer):
    buffer.set_transform_static(pose("world", "cam", 0, (1, 2, 3), turned(90)), WHO)
    found = buffer.lookup_transform("world", "cam", LATEST)
    assert (found.header.frame_id, found.child_frame_id) == ("world", "cam")
    np.testing.assert_allclose(matrix(found) @ (1, 0, 0, 1), (1, 3, 3, 1), atol=1e-12)


@pytest.mark.parametrize("seconds", [0, 0.5, 1e9])
def test_static_transform_holds_at_any_time(buffer, seconds):
    buffer.set_transform_static(pose("world", "cam", 7, (1, 0, 0)), WHO)
    found = buffer.lookup_transform("world", "cam", at(seconds))
    assert x_of(found) == 1
    assert stamp_of(found) == seconds


def test_between_samples_translation_is_linear_and_rotation_slerp(buffer):
    # -q is the same rotation as q: the shorter arc is taken.
    rotations = Rotation.from_quat([turned(20), turned(80)])
    buffer.set_transform(pose("world", "cam", 1, (0, 0, 0), rotations[0].as_quat()), WHO)
    buffer.set_transform(pose("world", "cam", 2, (4, 0, 8), -rotations[1].as_quat()), WHO)
    found = matrix(buffer.lookup_transform("world", "cam", at(1.25)))
    np.testing.assert_allclose(found[:3, 3], (1, 0, 2), atol=1e-9)
    expected = Slerp([1, 2], rotations)(1.25).as_matrix()
    np.testing.assert_allclose(found[:3, :3], expected, atol=1e-9)


@pytest.mark.parametrize("sign", [1, -1])
def test_half_turn_is_interpolated_the_same_way_for_q_and_minus_q(buffer, sign):
    # LinearMath/Matrix3x3.h, getRotation: which of the two is kept.
    buffer.set_transform(pose("world", "cam", 1), WHO)
    buffer.set_transform(pose("world", "cam", 2, rotation=(0, 0, sign, 0)), WHO)
    quarter = quaternion_of(buffer.lookup_transform("world", "cam", at(1.5)))
    assert quarter == pytest.approx((0, 0, 0.5**0.5, 0.5**0.5))


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("given", [(0.6, 0, 0, 0.8), (-0.6, 0, 0, 0.8), (0.96, 0, 0, -0.28)])
def test_sign_of_the_quaternion_is_always_the_same(buffer, given, sign):
    # Up to a turn of 120 degrees w > 0, beyond that the largest of x, y and z.
    received = pose("world", "cam", 0, rotation=[sign * number for number in given])
    buffer.set_transform_static(received, WHO)
    found = quaternion_of(buffer.lookup_transform("world", "cam", LATEST))
    assert found == pytest.approx(given)


def test_stamps_of_our_days_count_to_the_nanosecond(buffer):
    # As seconds in a float these four would all be the same.
    start = 1_700_000_000_123_456_789
    for passed in (0, 10):
        sample = pose("world", "cam", 0, (passed, 0, 0))
        sample.header.stamp = Time(nanoseconds=start + passed).to_msg()
        buffer.set_transform(sample, WHO)
    for passed in (0, 1, 10):
        found = buffer.lookup_transform("world", "cam", Time(nanoseconds=start + passed))
        assert x_of(found) == pytest.approx(passed)
        assert found.header.stamp.nanosec == 123_456_789 + passed
    for passed in (-1, 11):
        with pytest.raises(ExtrapolationException):
            buffer.lookup_transform("world", "cam", Time(nanoseconds=start + passed))


def test_samples_may_arrive_out_of_order(buffer):
    for second in (3, 1, 2):
        buffer.set_transform(pose("world", "cam", second, (second**2, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", at(1.5))) == pytest.approx(2.5)
    assert x_of(buffer.lookup_transform("world", "cam", at(2))) == pytest.approx(4)


def test_last_of_equal_stamps_counts(buffer):
    for x in (1, 2):
        buffer.set_transform(pose("world", "cam", 5, (x, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", LATEST)) == 2


def test_time_may_be_a_message(moving):
    stamp = TimeMessage(sec=10, nanosec=500_000_000)
    assert x_of(moving.lookup_transform("world", "tip", stamp)) == pytest.approx(10.5)
    with pytest.raises(TypeError):
        moving.lookup_transform_core("world", "tip", 10.5)


@pytest.mark.parametrize(("seconds", "words"), [(12.001, "future"), (9.999, "past")])
def test_outside_of_the_samples_nothing_is_guessed(moving, seconds, words):
    with pytest.raises(ExtrapolationException, match=words):
        moving.lookup_transform("world", "tip", at(seconds))
    with pytest.raises(ExtrapolationException, match=words):
        moving.lookup_transform("tip", "world", at(seconds))
    assert not moving.can_transform("world", "tip", at(seconds))


def test_refusal_names_the_frames_the_time_and_what_is_there(moving):
    with pytest.raises(ExtrapolationException) as refusal:
        moving.lookup_transform("world", "tip", at(12.5))
    words = ("Requested time 12.500000", "latest data is at time 12.000000", "[tip]", "[world]")
    assert all(word in str(refusal.value) for word in words)


def test_one_sample_holds_for_its_own_time_only(buffer):
    buffer.set_transform(pose("world", "cam", 5, (1, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", at(5))) == 1
    with pytest.raises(ExtrapolationException, match="only time"):
        buffer.lookup_transform("world", "cam", at(5.1))


def test_gap_above_the_common_ancestor_does_not_matter(moving):
    moving.set_transform_static(pose("cam", "lens", 0, (0, 0, 1)), WHO)
    found = moving.lookup_transform("tip", "lens", at(99))
    np.testing.assert_allclose(matrix(found)[:3, 3], (0, -1, 1), atol=1e-12)


def test_time_zero_is_the_latest_common_time(moving):
    moving.set_transform(pose("world", "arm", 10.5, (0, 0, 1)), WHO)
    moving.set_transform(pose("world", "arm", 11.5, (0, 0, 2)), WHO)
    found = moving.lookup_transform("arm", "tip", LATEST)
    assert stamp_of(found) == 11.5
    np.testing.assert_allclose(matrix(found)[:3, 3], (11.5, 1, -2), atol=1e-9)
    assert moving.get_latest_common_time("arm", "tip").nanoseconds == at(11.5).nanoseconds


def test_latest_common_time_may_lie_before_the_only_sample_of_a_link(buffer):
    buffer.set_transform(pose("world", "cam", 5), WHO)
    buffer.set_transform(pose("world", "arm", 7), WHO)
    with pytest.raises(ExtrapolationException, match="at time 5.0.*only time 7.0"):
        buffer.lookup_transform("cam", "arm", LATEST)
    assert stamp_of(buffer.lookup_transform("world", "arm", LATEST)) == 7


def test_moving_frame_without_a_stamp_is_found_at_time_zero_only(buffer):
    # buffer_core.cpp, getLatestCommonTime: stamp 0 limits nothing.
    buffer.set_transform(pose("world", "cam", 0, (1, 0, 0)), WHO)
    buffer.set_transform(pose("world", "arm", 7), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", LATEST)) == 1
    for time_asked in (LATEST, at(7)):
        with pytest.raises(ExtrapolationException):
            buffer.lookup_transform("arm", "cam", time_asked)


def test_between_static_frames_the_latest_common_time_is_zero(buffer):
    buffer.set_transform_static(pose("world", "cam", 3), WHO)
    found = buffer.lookup_transform("cam", "world", LATEST)
    assert stamp_of(found) == 0


def test_any_two_frames_of_a_random_tree_against_matrices(buffer):
    rng = np.random.default_rng(1)
    world_from = {"0": np.eye(4)}
    for number in range(1, 12):
        parent = str(rng.integers(number))
        step = pose(parent, str(number), 0, rng.normal(size=3), Rotation.random(rng=rng).as_quat())
        buffer.set_transform_static(step, WHO)
        world_from[str(number)] = world_from[parent] @ matrix(step)
    for target in world_from:
        for source in world_from:
            found = matrix(buffer.lookup_transform(target, source, LATEST))
            expected = np.linalg.inv(world_from[target]) @ world_from[source]
            np.testing.assert_allclose(found, expected, atol=1e-9)


def test_unknown_frame(moving):
    for frames in (("nowhere", "cam"), ("cam", "nowhere")):
        with pytest.raises(LookupException, match='"nowhere" passed to lookupTransform'):
            moving.lookup_transform(*frames, LATEST)
        assert not moving.can_transform(*frames, LATEST)


@pytest.mark.parametrize("name", ["", "/cam"])
def test_invalid_frame_name(moving, name):
    for frames in (("world", name), (name, "world")):
        with pytest.raises(InvalidArgumentException):
            moving.lookup_transform(*frames, LATEST)
        assert not moving.can_transform(*frames, LATEST)


@pytest.mark.parametrize("when", [LATEST, at(5)])
def test_unconnected_trees(moving, when):
    moving.set_transform_static(pose("map", "dock", 0), WHO)
    with pytest.raises(ConnectivityException, match="'dock' and 'tip'"):
        moving.lookup_transform("dock", "tip", at(11) if when != LATEST else when)


def test_all_reasons_are_transform_exceptions():
    reasons = (
        ConnectivityException,
        ExtrapolationException,
        InvalidArgumentException,
        LookupException,
    )
    assert all(issubclass(reason, TransformException) for reason in reasons)


def test_frame_is_at_rest_in_itself_even_when_unknown(moving):
    found = moving.lookup_transform("nowhere", "nowhere", at(4))
    np.testing.assert_array_equal(matrix(found), np.eye(4))
    assert stamp_of(found) == 4
    latest = moving.lookup_transform("cam", "cam", LATEST)
    assert stamp_of(latest) == 12


def test_leading_slash_of_received_names_is_dropped(buffer):
    buffer.set_transform_static(pose("/world", "/cam", 0, (1, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", LATEST)) == 1


@pytest.mark.parametrize(
    "flawed",
    [
        pose("world", "world", 1),
        pose("world", "", 1),
        pose("", "cam", 1),
        pose("world", "cam", 1, (math.nan, 0, 0)),
        pose("world", "cam", 1, rotation=(0, 0, 0, 0)),
        pose("world", "cam", 1, rotation=(0, 0, math.inf, 1)),
    ],
)
def test_flawed_transform_is_ignored(buffer, flawed):
    buffer.set_transform(flawed, WHO)
    buffer.set_transform_static(flawed, WHO)
    assert not buffer.can_transform("world", "cam", LATEST)


def test_infinite_translation_is_taken_in(buffer):
    # buffer_core.cpp refuses NaN only: whoever uses the answer must look.
    buffer.set_transform_static(pose("world", "cam", 0, (math.inf, 0, 0)), WHO)
    assert not math.isfinite(x_of(buffer.lookup_transform("world", "cam", LATEST)))


def test_quaternion_is_normalized(buffer):
    buffer.set_transform_static(pose("world", "cam", 0, rotation=(0, 0, 3, 4)), WHO)
    rotation = buffer.lookup_transform("world", "cam", LATEST).transform.rotation
    assert (rotation.z, rotation.w) == pytest.approx((0.6, 0.8))


@pytest.mark.parametrize("when", [LATEST, at(1)], ids=["latest", "stamped"])
def test_loop_is_refused_when_a_look_up_runs_into_it(buffer, when):
    # buffer_core.cpp takes both transforms in; a path that ends before it closes is answered.
    buffer.set_transform_static(pose("a", "b", 0, (1, 0, 0)), WHO)
    buffer.set_transform_static(pose("b", "a", 0, (5, 0, 0)), WHO)
    buffer.set_transform_static(pose("a", "tip", 0, (0, 2, 0)), WHO)
    buffer.set_transform_static(pose("world", "cam", 0), WHO)
    for frames in (("world", "a"), ("world", "tip"), ("cam", "b")):
        with pytest.raises(LookupException, match="loop"):
            buffer.lookup_transform(*frames, when)
    assert x_of(buffer.lookup_transform("a", "b", when)) == 1
    assert x_of(buffer.lookup_transform("b", "a", when)) == 5
    found = matrix(buffer.lookup_transform("b", "tip", when))
    np.testing.assert_allclose(found[:3, 3], (5, 2, 0), atol=1e-12)


@pytest.mark.parametrize("when", [LATEST, at(1)], ids=["latest", "stamped"])
def test_path_of_more_than_1000_links_is_taken_for_a_loop(buffer, when):
    # buffer_core.h, MAX_GRAPH_DEPTH.
    for link in range(1001):
        buffer.set_transform_static(pose(str(link), str(link + 1), 0, (1, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("0", "1000", when)) == 1000
    assert x_of(buffer.lookup_transform("1000", "0", when)) == -1000
    for frames in (("0", "1001"), ("1001", "0")):
        with pytest.raises(LookupException, match="loop"):
            buffer.lookup_transform(*frames, when)


def test_samples_older_than_the_cache_time_are_dropped():
    buffer = Buffer(cache_time=Duration(seconds=2))
    for second in (10, 11, 13, 14):
        buffer.set_transform(pose("world", "cam", second), WHO)
    with pytest.raises(ExtrapolationException, match="past"):
        buffer.lookup_transform("world", "cam", at(10.5))
    buffer.set_transform(pose("world", "cam", 10.2), WHO)
    assert not buffer.can_transform("world", "cam", at(10.5))
    assert buffer.can_transform("world", "cam", at(13.5))


def test_cache_holds_ten_seconds_by_default(buffer):
    for second in (1, 10.9, 11.1):
        buffer.set_transform(pose("world", "cam", second), WHO)
    assert buffer.can_transform("world", "cam", at(1))
    buffer.set_transform(pose("world", "cam", 11.2), WHO)
    assert not buffer.can_transform("world", "cam", at(1))


def test_cache_time_counts_back_from_the_newest_stamp_and_its_end_is_kept():
    # cache.cpp, pruneList and insertData: by stamps alone, whatever the clock says.
    buffer = Buffer(cache_time=Duration(seconds=2))
    buffer.set_transform(pose("world", "cam", 14), WHO)
    buffer.set_transform(pose("world", "cam", 12, (1, 0, 0)), WHO)
    buffer.set_transform(pose("world", "cam", 11.999999999, (9, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", at(12))) == 1
    with pytest.raises(ExtrapolationException, match="past"):
        buffer.lookup_transform("world", "cam", at(11.999999999))


def test_frame_that_begins_to_move_loses_its_static_pose(buffer):
    buffer.set_transform_static(pose("world", "cam", 0, (5, 0, 0)), WHO)
    buffer.set_transform(pose("world", "cam", 3, (6, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cam", LATEST)) == 6
    with pytest.raises(ExtrapolationException):
        buffer.lookup_transform("world", "cam", at(2))


def test_frame_that_becomes_static_loses_its_past(moving):
    moving.set_transform_static(pose("world", "cam", 0, (5, 0, 0)), WHO)
    assert x_of(moving.lookup_transform("world", "cam", at(10.5))) == 5


def test_frame_with_a_new_parent(buffer):
    for parent in ("world", "base"):
        buffer.set_transform_static(
            pose("map", parent, 0, (0, 0, 1 if parent == "base" else 0)), WHO
        )
    buffer.set_transform(pose("world", "cup", 1, (1, 0, 0)), WHO)
    buffer.set_transform(pose("base", "cup", 2, (2, 0, 0)), WHO)
    # Between two parents nothing can be interpolated: the older sample holds.
    found = matrix(buffer.lookup_transform("map", "cup", at(1.5)))
    np.testing.assert_allclose(found[:3, 3], (1, 0, 0))
    np.testing.assert_allclose(
        matrix(buffer.lookup_transform("map", "cup", at(2)))[:3, 3], (2, 0, 1)
    )


def test_frame_taken_to_another_tree_is_found_in_each_at_its_time(buffer):
    buffer.set_transform(pose("world", "cup", 1, (1, 0, 0)), WHO)
    buffer.set_transform(pose("gripper", "cup", 2, (2, 0, 0)), WHO)
    assert x_of(buffer.lookup_transform("world", "cup", at(1))) == 1
    assert x_of(buffer.lookup_transform("gripper", "cup", LATEST)) == 2
    for frames, when in ((("world", "cup"), LATEST), (("gripper", "cup"), at(1))):
        with pytest.raises(ConnectivityException):
            buffer.lookup_transform(*frames, when)


def test_across_time_over_a_fixed_frame(moving):
    found = moving.lookup_transform_full("cam", at(12), "cam", at(10), "world")
    np.testing.assert_allclose(matrix(found)[:3, 3], (-2, 0, 0), atol=1e-9)
    assert stamp_of(found) == 12
    assert moving.can_transform_full("cam", at(12), "cam", at(10), "world")
    assert not moving.can_transform_full("cam", at(13), "cam", at(10), "world")
    with pytest.raises(LookupException, match="fixed_frame"):
        moving.lookup_transform_full("cam", at(12), "cam", at(10), "nowhere")


def test_debug_tuple_says_why(moving):
    answer, why = moving.can_transform("world", "tip", at(99), return_debug_tuple=True)
    assert not answer
    assert "future" in why
    assert moving.can_transform("world", "tip", at(11), return_debug_tuple=True)[0]


def test_timeout_waits_for_a_transform_and_no_longer(buffer):
    sent = threading.Timer(0.05, buffer.set_transform_static, (pose("world", "cam", 0), WHO))
    sent.start()
    assert buffer.can_transform("world", "cam", LATEST, Duration(seconds=20))
    sent.join()
    with pytest.raises(LookupException):
        buffer.lookup_transform("world", "nowhere", LATEST, Duration(nanoseconds=1))


def test_future_is_done_when_the_transform_is_there(moving):
    assert x_of(moving.wait_for_transform_async("world", "tip", at(11)).result()) == 11
    waiting = moving.wait_for_transform_async("world", "tip", at(13))
    moving.set_transform(pose("world", "cam", 12.5, (12.5, 0, 0)), WHO)
    assert not waiting.done()
    moving.set_transform(pose("world", "cam", 13.5, (13.5, 0, 0)), WHO)
    assert x_of(waiting.result()) == pytest.approx(13)


def test_future_waits_for_an_unknown_frame(buffer):
    waiting = buffer.wait_for_transform_async("world", "cam", LATEST)
    assert not waiting.done()
    buffer.set_transform_static(pose("world", "cam", 0), WHO)
    assert waiting.done()


def test_future_gets_the_error_of_a_look_up_that_comes_too_late(buffer):
    waiting = buffer.wait_for_transform_async("world", "cam", LATEST)

    def too_late(*_):
        raise ExtrapolationException("another thread was faster")

    buffer.lookup_transform_core = too_late
    buffer.set_transform(pose("world", "cam", 1), WHO)
    assert isinstance(waiting.exception(), ExtrapolationException)


def test_clear_keeps_what_is_static_and_the_names(moving):
    moving.clear()
    assert moving.can_transform("cam", "tip", LATEST)
    with pytest.raises(ConnectivityException):
        moving.lookup_transform("world", "tip", LATEST)
    with pytest.raises(ExtrapolationException):
        moving.lookup_transform("world", "tip", at(11))


def test_after_clear_an_older_stamp_is_welcome(moving):
    moving.clear()
    moving.set_transform(pose("world", "cam", 0.5, (7, 0, 0)), WHO)
    assert x_of(moving.lookup_transform("world", "tip", at(0.5))) == 7


def test_latest_common_time_of_unconnected_frames_is_a_plain_transform_exception(moving):
    moving.set_transform_static(pose("map", "dock", 0), WHO)
    with pytest.raises(TransformException, match="not part of the same tree") as refusal:
        moving.get_latest_common_time("dock", "tip")
    assert refusal.type is TransformException


def test_tree_as_yaml_has_what_view_frames_draws(moving):
    assert yaml.safe_load(Buffer().all_frames_as_yaml()) == []
    moving.set_transform(pose("world", "cam", 12, (12, 0, 0)), WHO)  # sent twice, kept once
    tree = yaml.safe_load(moving.all_frames_as_yaml())
    cam = {
        "parent": "world",
        "broadcaster": WHO,
        "rate": 1.5,  # three samples over two seconds
        "most_recent_transform": 12.0,
        "oldest_transform": 10.0,
        "buffer_length": 2.0,
    }
    still = {"rate": 1e4, "most_recent_transform": 0.0, "oldest_transform": 0.0}
    tip = {"parent": "cam", "broadcaster": WHO, "buffer_length": 0.0, **still}
    assert tree == {"cam": cam, "tip": tip}


def test_from_broadcasters_to_a_listener(ros):
    import rclpy
    from rclpy.executors import SingleThreadedExecutor

    node = rclpy.create_node("tf2_test")
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    # Static first: a listener that comes later must get both messages' frames.
    static = StaticTransformBroadcaster(node)
    static.sendTransform(pose("world", "cam", 0, (1, 0, 0)))
    static.sendTransform([pose("cam", "tip", 0, (0, 2, 0)), pose("world", "cam", 0, (9, 0, 0))])
    buffer = Buffer(node=node)
    listener = TransformListener(buffer, node)
    moving = TransformBroadcaster(node)
    deadline = time.monotonic() + 30
    while not buffer.can_transform("world", "cup", LATEST) and time.monotonic() < deadline:
        moving.sendTransform(pose("tip", "cup", 1, (0, 0, 3)))
        executor.spin_once(timeout_sec=0.05)
    found = matrix(buffer.lookup_transform("world", "cup", LATEST))
    # A child frame's first static transform stays.
    np.testing.assert_allclose(found[:3, 3], (1, 2, 3))
    listener.unregister()
    moving.sendTransform(pose("tip", "cup", 2, (0, 0, 9)))
    executor.spin_once(timeout_sec=0.2)
    assert stamp_of(buffer.lookup_transform("world", "cup", LATEST)) == 1
    executor.shutdown()
    node.destroy_node()


def test_clock_that_jumps_back_clears_what_moves(ros):
    import rclpy
    from rclpy.clock import ClockType
    from rclpy.parameter import Parameter

    simulated = [Parameter("use_sim_time", value=True)]
    node = rclpy.create_node("tf2_jumps", parameter_overrides=simulated)
    buffer = Buffer(node=node)
    buffer.set_transform_static(pose("world", "table", 0), WHO)

    def survives(change) -> bool:
        buffer.set_transform(pose("world", "cam", 1), WHO)
        change()
        assert buffer.can_transform("world", "table", LATEST)
        return bool(buffer.can_transform("world", "cam", LATEST))

    def clock_to(seconds: float):
        now = Time(nanoseconds=at(seconds).nanoseconds, clock_type=ClockType.ROS_TIME)
        return lambda: node.get_clock().set_ros_time_override(now)

    # buffer.py: any jump forward is fine, and one back of less than a second.
    kept = [survives(clock_to(seconds)) for seconds in (100, 500, 499.5, 498, 499, 0)]
    assert kept == [True, True, True, False, True, False]
    # A change to real time clears it too.
    real_time = [Parameter("use_sim_time", value=False)]
    assert not survives(lambda: node.set_parameters(real_time))
    node.destroy_node()
