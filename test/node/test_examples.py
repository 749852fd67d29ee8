# SPDX-License-Identifier: Apache-2.0
"""The examples: what they tell planners, and what they need of this package.

MoveIt and Nav2 aren't here. The examples run against doubles of them, whose messages are made from
recorded definitions (recorded_interfaces/) and take no other fields or types.
"""

import importlib.util
import math
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import rclpy
import rclpy.action
import rclpy.time
from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation
from support.recorded_interfaces import recorded_packages
from support.recorded_interfaces.doubles import ActionClient, Node, Robot

from robobrain_ros.msg import LiftedPoint, LiftedRegion
from robobrain_ros.srv import GetAffordance, PointTo

ROOT = Path(__file__).resolve().parents[2]


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


@pytest.fixture
def robot(monkeypatch):
    """Doubles of MoveIt and Nav2, in the places of the real ones for the length of a test."""
    packages = recorded_packages()
    robot = Robot(packages)
    modules = robot.nav2_modules()
    for package in packages.values():
        modules |= package.modules()
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(rclpy.action, "ActionClient", ActionClient)
    monkeypatch.setattr("tf2_ros.TransformListener", robot.listen)
    yield robot
    for name in [name for name in sys.modules if name.split(".")[0] == "pymoveit2"]:
        del sys.modules[name]  # it has imported the doubles


class Brain:
    """As BrainClient, with the same answer to every question."""

    def __init__(self, answer):
        self.answer = answer

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def point_to(self, query, **fields):
        PointTo.Request(query=query, **fields)
        return self.answer

    def get_affordance(self, task, **fields):
        GetAffordance.Request(task=task, **fields)
        return self.answer


def run(name, answer, robot):
    """The exit status of an example whose node and servers are doubles."""
    module = example(name)
    module.BrainClient = lambda: Brain(answer)
    module.spinning = mock.MagicMock()
    module.rclpy = SimpleNamespace(
        init=lambda: None, shutdown=lambda: None, create_node=lambda _: Node(robot), time=rclpy.time
    )
    with mock.patch.object(sys, "argv", [name]):
        return module.main()


GRIPPER = "gripper_action_controller/gripper_cmd"


class TestMoveIt:
    def region(self):
        turn = Rotation.from_euler("xyz", [20, -35, 50], degrees=True).as_quat()
        region = LiftedRegion(pose=pose_at(0.4, 0.1, 0.2, turn), has_normal=True)
        region.pose.header.frame_id = "panda_link0"
        return region

    def pick(self, robot):
        """The example's exit status, and what was sent of each kind."""
        pytest.importorskip("pymoveit2")
        answer = GetAffordance.Response(success=True, regions=[self.region()])
        status = run("moveit_pick", answer, robot)
        return status, [name for name, _ in robot.sent], [message for _, message in robot.sent]

    def test_the_requests_are_as_moveit_defines_them(self, robot):
        status, names, messages = self.pick(robot)
        assert status == 0
        straight = ["compute_cartesian_path", "execute_trajectory"]
        to_pregrasp = ["plan_kinematic_path", "execute_trajectory"]
        assert names == [GRIPPER, *to_pregrasp, *straight, GRIPPER, *straight]
        before, grasp = example("moveit_pick").grasp_poses(self.region())
        (goal,) = messages[1].motion_plan_request.goal_constraints
        (position,), (orientation,) = goal.position_constraints, goal.orientation_constraints
        assert position.constraint_region.primitive_poses[0].position == before.pose.position
        assert orientation.orientation == before.pose.orientation
        for constraint in (position, orientation):
            assert constraint.header.frame_id == "panda_link0"
            assert constraint.link_name == "panda_hand_tcp"
        for message, target in ((messages[3], grasp), (messages[6], before)):
            assert message.waypoints == [target.pose]
            assert message.header.frame_id == "panda_link0"
        assert messages[0].command.position > messages[5].command.position

    def test_a_way_that_ends_early_is_no_grasp(self, robot):
        robot.share_of_way = 0.4
        status, names, _ = self.pick(robot)
        assert status == 1
        assert names.count(GRIPPER) == names.count("execute_trajectory") == 1

    def test_closed_fingers_go_nowhere(self, robot):
        robot.fails = lambda action, goal: action == GRIPPER and goal.command.position > 0
        status, names, _ = self.pick(robot)
        assert (status, names) == (1, [GRIPPER])

    def test_an_object_between_the_fingers_is_lifted(self, robot):
        robot.fails = lambda action, goal: action == GRIPPER and goal.command.position == 0
        status, names, _ = self.pick(robot)
        assert (status, names[-1]) == (0, "execute_trajectory")

    @pytest.mark.parametrize(
        ("message", "field", "kind"),
        [
            ("PositionConstraint", "link_name", None),
            ("OrientationConstraint", "weight", "string"),
            ("BoundingVolume", "primitive_poses", "geometry_msgs/PoseStamped[]"),
        ],
    )
    def test_another_definition_is_noticed(self, robot, message, field, kind):
        redefine(robot.packages["moveit_msgs"].interface("msg", message), field, kind)
        with pytest.raises((AttributeError, TypeError), match=field):
            self.pick(robot)

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


def redefine(message, field, kind):
    """Give a field of a recorded message another type, or none: then there is no such field."""
    del message.kinds[field]
    if kind:
        message.kinds[field] = kind


class TestNav2:
    def go(self, robot):
        """The example's exit status."""
        point = LiftedPoint(pose=pose_at(4.0, 3.0, 0.9))
        return run("nav2_go_to", PointTo.Response(success=True, points=[point]), robot)

    def test_the_goal_is_as_nav2_defines_it(self, robot):
        robot.base_in_map = (4.0, 1.0)
        assert self.go(robot) == 0
        ((action, goal),) = robot.sent
        assert action == "navigate_to_pose"
        assert goal.pose.header.frame_id == "map"
        assert goal.pose.header.stamp == Node(robot).get_clock().now().to_msg()
        at, turned = goal.pose.pose.position, goal.pose.pose.orientation
        assert (at.x, at.y) == pytest.approx((4.0, 2.2))
        assert (turned.z, turned.w) == pytest.approx((math.sqrt(0.5), math.sqrt(0.5)))

    def test_a_number_of_another_type_is_noticed(self, robot):
        goal = robot.packages["nav2_msgs"].interface("action", "NavigateToPose").Goal()
        goal.check()
        goal.pose.pose.position.x = "far"
        with pytest.raises(TypeError, match="'x'"):
            goal.check()

    def test_a_robot_that_does_not_get_there_says_so(self, robot):
        robot.fails = lambda action, goal: True
        assert self.go(robot) == 1

    @pytest.mark.parametrize("kind", [None, "geometry_msgs/Pose"])
    def test_another_definition_is_noticed(self, robot, kind):
        goal = robot.packages["nav2_msgs"].interface("action", "NavigateToPose").Goal
        redefine(goal, "pose", kind)
        with pytest.raises((AttributeError, TypeError), match="pose"):
            self.go(robot)

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


@pytest.mark.parametrize(("name", "succeeds"), [("camera", True), ("nowhere", False)])
def test_a_behaviour_tree_finds_things(brain, camera, scene, name, succeeds):
    py_trees = pytest.importorskip("py_trees")
    node = rclpy.create_node("tree")
    point_to = example("py_trees_point_to").PointTo
    fields = {"target_frame": "table", "camera": name}
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


def test_the_python_of_the_readme_runs(brain, camera, scene):
    (code,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code = code.replace("base_link", "table").replace("the red can", f"the {scene.name}")
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60.0)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("table geometry_msgs.msg.Point(x=")


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
