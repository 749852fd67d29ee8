# SPDX-License-Identifier: Apache-2.0
"""The versions of rclpy that the patches were tried with, and the node without the patches."""

from __future__ import annotations

import signal
import threading
from importlib.metadata import version

import pytest
from action_msgs.msg import GoalStatus
from rclpy.action import ActionServer
from rclpy.executors import SingleThreadedExecutor
from support.action_goals import Goal
from support.running_brain import running_brain

from robobrain_ros.action import Infer
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.ros import rclpy_patches


def test_the_patches_were_tried_with_this_rclpy():
    found = version("rclpy")
    assert found.startswith(rclpy_patches.TRIED_WITH), (
        f"ros/rclpy_patches.py was not tried with rclpy {found}: run test/node with it, and with "
        f"{rclpy_patches.SWITCH}=0; then add it to TRIED_WITH."
    )


def test_this_rclpy_has_what_the_patches_rely_on():
    missing = rclpy_patches.missing_internals()
    assert not missing, f"Nodes run without patches, because {'; '.join(missing)}."


@pytest.mark.parametrize(
    ("owner", "name", "changed"),
    [
        (ActionServer, "_execute_goal", lambda self, goal_handle: None),
        (rclpy_patches, "EventsExecutor", None),
    ],
)
def test_without_its_internals_a_node_runs_on_plain_rclpy(ros, monkeypatch, owner, name, changed):
    assert rclpy_patches.in_use()
    monkeypatch.setattr(owner, name, changed)
    assert not rclpy_patches.in_use()
    assert any(name in clause for clause in rclpy_patches.missing_internals())
    executor = rclpy_patches.create_executor()
    assert type(executor) is SingleThreadedExecutor
    executor.shutdown()


def test_the_node_works_without_patches(own_node, still_cameras, scene, monkeypatch):
    """Lifecycle, services, and the action with a cancel."""
    monkeypatch.setenv(rclpy_patches.SWITCH, "0")
    with running_brain({"image_timeout": 60.0}, state=None) as client:
        assert client.state() == "unconfigured"
        assert client.point_to("the cup").error_code == ErrorCode.NOT_ACTIVE
        configured: list[bool] = []
        asked = threading.Thread(target=lambda: configured.append(client.configure()))
        asked.start()
        states = []
        while asked.is_alive():
            states.append(client.state())
        assert configured == [True] and len(states) > 3
        assert client.activate()
        # There is no camera yet: these wait.
        waiting = [Goal(own_node, **goal_of("the cup")) for _ in range(2)]
        waiting[0].wait_for(Infer.Feedback.STAGE_WAITING)
        waiting[0].cancel()
        status, result = waiting[0].outcome()
        assert status == GoalStatus.STATUS_CANCELED and result.error_code == ErrorCode.CANCELLED
        with still_cameras.publishing("camera", scene):
            query = f"Point to the {scene.name}"
            served = client.point_to(query, target_frame="table")
            assert served.success, served.error_msg
            goal = Goal(own_node, **goal_of(query), target_frame="table")
            status, result = goal.outcome()
            assert status == GoalStatus.STATUS_SUCCEEDED and result.answer == served.answer
            assert waiting[1].outcome()[0] != GoalStatus.STATUS_CANCELED
        assert client.deactivate() and client.cleanup() and client.state() == "unconfigured"
        assert client.process.end(signal.SIGTERM) == 0
        assert "Traceback" not in client.log()


def goal_of(query: str) -> dict:
    return {"task": Infer.Goal.TASK_POINT, "query": query}
