# SPDX-License-Identifier: Apache-2.0
"""Cameras that move, clocks that jump, and answers that come seconds later."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import rclpy
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile
from rclpy.time import Time
from rosgraph_msgs.msg import Clock
from scipy.spatial.transform import Rotation
from support.cameras import StillCameras
from support.point_queries import lifted, position, seen_at
from support.polling import until
from support.running_brain import running_brain

from robobrain_ros.msg import LiftedPoint

PARAMETERS = {"cameras": ["arm"], "target_frame": "odom"}
MOTION_RADIUS_M, MOTION_RAD_S = 0.5, 1.0  # 0.5 m/s on a circle, turning with it


def circling(seconds: float) -> np.ndarray:
    """A camera on a turntable: its pose (4, 4) in `odom`."""
    angle = MOTION_RAD_S * seconds
    arm = np.array([np.cos(angle), np.sin(angle), 0.0])
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_euler("z", angle).as_matrix()
    pose[:3, 3] = MOTION_RADIUS_M * arm + (0.0, 0.0, 1.0)
    return pose


def test_moving_camera_and_slow_inference_give_where_the_point_was(still_cameras, scene):
    # The picture rides along: whatever the camera sees is at circling(stamp) of where it sees it.
    with (
        running_brain(PARAMETERS, module="support.slow_brain") as brain,
        still_cameras.publishing("arm", scene, motion=circling, tf_late_s=0.2),
    ):
        for _ in range(3):
            response, point = lifted(brain, scene, "arm")
            answered = still_cameras.node.get_clock().now().nanoseconds * 1e-9
            stamp = seconds_of(response)
            seen = seen_at(scene, point.pixel)
            error = np.linalg.norm((circling(stamp) @ seen)[:3] - position(point))
            with_latest = np.linalg.norm(((circling(answered) - circling(stamp)) @ seen)[:3])
            assert answered - stamp >= 2.0
            assert point.status == LiftedPoint.OK and error <= 0.010
            assert with_latest >= 0.2
            assert point.pose.header.stamp == response.header.stamp


class SimulatedClock:
    """Publishes /clock at 100 Hz from `seconds` on, which may be set at any time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._node = rclpy.create_node("simulator")
        self._publisher = self._node.create_publisher(Clock, "/clock", QoSProfile(depth=10))
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._done.set()
        self._thread.join()
        self._node.destroy_node()

    def _run(self) -> None:
        while not self._done.wait(0.01):
            self.seconds += 0.01
            self._publisher.publish(Clock(clock=Time(nanoseconds=int(self.seconds * 1e9)).to_msg()))


@pytest.fixture(scope="module")
def simulated(ros, scene):
    """A clock, and an active node in its time with the circling camera `arm`."""
    parameters = PARAMETERS | {"use_sim_time": True, "image_timeout": 2.0}
    sim_time = Parameter("use_sim_time", value=True)
    with (
        SimulatedClock(1000.0) as clock,
        StillCameras(parameter_overrides=[sim_time]) as cameras,
        running_brain(parameters) as brain,
        cameras.publishing("arm", scene, motion=circling),
    ):
        yield clock, brain


def test_simulated_time_may_jump_back(simulated, scene):
    clock, brain = simulated
    assert 1000 < stamp_of_correct_answer(brain, scene) <= clock.seconds
    clock.seconds = 500.0
    until(lambda: is_lifted(response := ask(brain, scene)) and seconds_of(response) < 1000)
    assert 500 <= stamp_of_correct_answer(brain, scene) <= clock.seconds


def test_a_clock_that_jumps_under_load_costs_no_answer(simulated, scene):
    clock, brain = simulated
    clock.seconds = max(clock.seconds, 1000.0)
    with ThreadPoolExecutor(2) as threads:
        asked = [threads.submit(ask, brain, scene) for _ in range(40)]
        # Forward at last: a transform that arrives after a jump back, stamped before it, would have
        # tf2 ignore all that follow.
        for number, seconds in enumerate((500.0, 2000.0, 100.0, 0.5, 1e6), start=1):
            until(lambda number=number: sum(one.done() for one in asked) >= 5 * number)
            clock.seconds = seconds
        answers = [answer.result() for answer in asked]
    assert all(answer.success == (answer.error_code == 0) for answer in answers)
    until(lambda: is_lifted(ask(brain, scene)))
    assert stamp_of_correct_answer(brain, scene) <= clock.seconds


def ask(brain, scene):
    return brain.point_to(scene.name, camera="arm")


def seconds_of(response) -> float:
    return Time.from_msg(response.header.stamp).nanoseconds * 1e-9


def is_lifted(response) -> bool:
    return response.success and response.points[0].status == LiftedPoint.OK


def stamp_of_correct_answer(brain, scene) -> float:
    response, point = lifted(brain, scene, "arm")
    stamp = seconds_of(response)
    exact = (circling(stamp) @ seen_at(scene, point.pixel))[:3]
    assert np.linalg.norm(exact - position(point)) <= 0.010
    return stamp
