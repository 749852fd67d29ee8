# SPDX-License-Identifier: Apache-2.0
"""The examples: what they tell planners, and what they need of this package."""

import importlib.util
import math
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import rclpy
from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation

from robobrain_ros.client import BrainClient
from robobrain_ros.msg import LiftedRegion
from robobrain_ros.sim.processes import NodeProcess

ROOT = Path(__file__).resolve().parents[1]


def example(name):
    """The module of a file in examples/."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def pose_at(x, y, z=0.0, quaternion=(0.0, 0.0, 0.0, 1.0)):
    pose = PoseStamped()
    pose.header.frame_id = "map"
    pose.pose.position.x, pose.pose.position.y, pose.pose.position.z = x, y, z
    turned = pose.pose.orientation
    turned.x, turned.y, turned.z, turned.w = map(float, quaternion)
    return pose


def axes_of(pose):
    turned = pose.pose.orientation
    return Rotation.from_quat([turned.x, turned.y, turned.z, turned.w]).as_matrix()


class TestMoveIt:
    def test_fingers_come_along_the_normal(self):
        turn = Rotation.from_euler("xyz", [20, -35, 50], degrees=True)
        region = LiftedRegion(pose=pose_at(0.4, 0.1, 0.2, turn.as_quat()))
        before, grasp = example("moveit_pick").grasp_poses(region, standoff=0.1)
        normal = turn.as_matrix()[:, 2]
        for pose in (before, grasp):
            assert pose.header == region.pose.header
            np.testing.assert_allclose(axes_of(pose)[:, 2], -normal, atol=1e-9)
            np.testing.assert_allclose(axes_of(pose)[:, 0], turn.as_matrix()[:, 0], atol=1e-9)
        at = [before.pose.position.x, before.pose.position.y, before.pose.position.z]
        np.testing.assert_allclose(at, np.array([0.4, 0.1, 0.2]) + 0.1 * normal)
        assert grasp.pose.position == region.pose.pose.position


class TestNav2:
    def goal(self, target, robot):
        return example("nav2_go_to").goal_before(pose_at(*target, 0.9), robot, 0.8)

    def test_the_robot_stops_short_and_looks_at_the_target(self):
        goal = self.goal((4.0, 3.0), (0.0, 0.0))
        way = math.hypot(4.0 - goal.pose.position.x, 3.0 - goal.pose.position.y)
        assert way == pytest.approx(0.8)
        assert goal.pose.position.z == 0.0
        heading = axes_of(goal)[:, 0]
        np.testing.assert_allclose(heading, (0.8, 0.6, 0.0), atol=1e-9)

    def test_a_robot_that_is_near_only_turns(self):
        goal = self.goal((1.0, 0.5), (1.0, 0.0))
        assert (goal.pose.position.x, goal.pose.position.y) == (1.0, 0.0)
        np.testing.assert_allclose(axes_of(goal)[:, 0], (0, 1, 0), atol=1e-9)

    def test_on_the_spot_it_stays(self):
        goal = self.goal((1.0, 0.5), (1.0, 0.5))
        assert (goal.pose.position.x, goal.pose.position.y) == (1.0, 0.5)


@pytest.mark.parametrize(("camera", "succeeds"), [("camera", True), ("nowhere", False)])
def test_a_behaviour_tree_finds_things(ros, brain, scene, camera, succeeds):
    py_trees = pytest.importorskip("py_trees")
    node = rclpy.create_node("tree")
    point_to = example("py_trees_point_to").PointTo
    fields = {"target_frame": "table", "camera": camera}
    behaviour = point_to("find", node, f"Point to the {scene.name}", "/target", **fields)
    board = py_trees.blackboard.Client(name="reader")
    board.register_key("/target", py_trees.common.Access.READ)
    statuses = []
    for _ in range(600):
        behaviour.tick_once()
        statuses.append(behaviour.status)
        if behaviour.status is not py_trees.common.Status.RUNNING:
            break
        rclpy.spin_once(node, timeout_sec=0.05)
    node.destroy_node()
    assert py_trees.common.Status.RUNNING in statuses
    if succeeds:
        assert statuses[-1] is py_trees.common.Status.SUCCESS, behaviour.feedback_message
        assert board.target.header.frame_id == "table"
    else:
        assert statuses[-1] is py_trees.common.Status.FAILURE
        assert len(behaviour.feedback_message) > 10


@pytest.fixture(scope="module")
def brain(ros, scene):
    with (
        NodeProcess("robobrain_ros.sim.camera_node", {"seed": scene.seed}),
        NodeProcess("robobrain_ros.brain_node"),
        BrainClient() as client,
    ):
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        yield client


@pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake here")
def test_a_cpp_client_compiles_links_and_runs(tmp_path):
    """Against the installed headers and libraries, found by CMake; all but rclcpp itself."""
    build = ["cmake", "-S", ROOT / "test" / "cpp", "-B", tmp_path, "-DCMAKE_BUILD_TYPE=Debug"]
    for command in (build, ["cmake", "--build", tmp_path]):
        run = subprocess.run(command, capture_output=True, text=True)
        assert run.returncode == 0, run.stdout + run.stderr
    run = subprocess.run([tmp_path / "types"], capture_output=True, text=True, env=os.environ)
    assert run.returncode == 0, run.stderr
    assert run.stdout == "the red mug 0.5\n"
