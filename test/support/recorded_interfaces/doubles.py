# SPDX-License-Identifier: Apache-2.0
"""A robot with MoveIt and Nav2, as far as the examples' clients can tell: it keeps what it is sent.

The signatures are rclpy's, tf2_ros's and nav2_simple_commander's (Jazzy's), narrowed to what is
used: a name that is not here raises. Every request and goal is checked when it is sent.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum
from types import ModuleType, SimpleNamespace
from typing import Any

from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Time
from geometry_msgs.msg import PoseStamped, TransformStamped
from rclpy.task import Future
from sensor_msgs.msg import JointState

from support.recorded_interfaces import RecordedPackage


def done(result: Any) -> Future:
    future = Future()
    future.set_result(result)
    return future


class Robot:
    """Its answers are what a test sets; its planner, controllers and navigator take no time."""

    def __init__(self, packages: dict[str, RecordedPackage]) -> None:
        self.packages = packages
        self.sent: list[tuple[str, Any]] = []
        """Service or action, and the request or goal, in order."""
        self.share_of_way = 1.0
        """How much of a straight way the arm can go."""
        self.fails: Callable[[str, Any], bool] = lambda action, goal: False
        """Which goals end as aborted."""
        self.joints = [f"panda_joint{number}" for number in range(1, 8)]
        self.joints += ["panda_finger_joint1", "panda_finger_joint2"]
        self.base_in_map = (0.0, 0.0)
        """Where the base is, metres in the frame `map`."""

    def take(self, name: str, message: Any) -> None:
        message.check()
        self.sent.append((name, message))

    def respond(self, service: type) -> Any:
        """A service's response: all well, but that a straight way can end early."""
        response = service.Response()
        plan = response if hasattr(response, "fraction") else response.motion_plan_response
        plan.error_code.val = type(plan.error_code).SUCCESS
        if plan is response:
            plan.fraction = self.share_of_way
        return response

    def nav2_modules(self) -> dict[str, ModuleType]:
        """`nav2_simple_commander`, by the modules' names."""
        package = ModuleType("nav2_simple_commander")
        navigator = ModuleType("nav2_simple_commander.robot_navigator")
        navigator.BasicNavigator = lambda: BasicNavigator(self)
        navigator.TaskResult = TaskResult
        return {module.__name__: module for module in (package, navigator)}

    def listen(self, buffer: Any, node: Any, *, spin_thread: bool = False) -> None:
        """As a tf2_ros.TransformListener that hears the base's transform at once."""
        transform = TransformStamped(child_frame_id="base_link")
        transform.header.frame_id = "map"
        at = transform.transform.translation
        at.x, at.y = self.base_in_map
        buffer.set_transform_static(transform, "robot")


class Logger:
    """An error fails the test."""

    def warning(self, message: str) -> None:
        pass

    def error(self, message: str) -> None:
        raise AssertionError(message)


class Node:
    """As an rclpy Node; a subscription hears the joints' state at once."""

    def __init__(self, robot: Robot) -> None:
        self.robot = robot

    def get_logger(self) -> Logger:
        return Logger()

    def get_clock(self) -> SimpleNamespace:
        now = SimpleNamespace(to_msg=lambda: Time(sec=1_700_000_000))
        return SimpleNamespace(now=lambda: now)

    def create_publisher(self, msg_type: type, topic: str, qos_profile: Any) -> None:
        pass

    def create_subscription(
        self, msg_type: type, topic: str, callback: Any, qos_profile: Any, callback_group: Any
    ) -> None:
        assert (msg_type, topic) == (JointState, "joint_states")
        joints = self.robot.joints
        callback(JointState(name=joints, position=[0.0] * len(joints)))

    def create_client(
        self, srv_type: type, srv_name: str, qos_profile: Any, callback_group: Any
    ) -> ServiceClient:
        return ServiceClient(self.robot, srv_type, srv_name)

    def destroy_node(self) -> None:
        pass


class ServiceClient:
    def __init__(self, robot: Robot, service: type, name: str) -> None:
        self._robot, self._service, self.srv_name = robot, service, name

    def wait_for_service(self, timeout_sec: float | None = None) -> bool:
        return True

    def service_is_ready(self) -> bool:
        return True

    def call_async(self, request: Any) -> Future:
        assert isinstance(request, self._service.Request)
        self._robot.take(self.srv_name, request)
        return done(self._robot.respond(self._service))


class ActionClient:
    """As rclpy's."""

    def __init__(self, node: Node, action_type: type, action_name: str, **_qos: Any) -> None:
        self._robot, self._action, self._action_name = node.robot, action_type, action_name

    def wait_for_server(self, timeout_sec: float | None = None) -> bool:
        return True

    def server_is_ready(self) -> bool:
        return True

    def send_goal_async(self, goal: Any, feedback_callback: Any = None) -> Future:
        assert isinstance(goal, self._action.Goal)
        self._robot.take(self._action_name, goal)
        fails = self._robot.fails(self._action_name, goal)
        status = GoalStatus.STATUS_ABORTED if fails else GoalStatus.STATUS_SUCCEEDED
        result = self._action.Result()
        if hasattr(result, "reached_goal"):
            result.reached_goal = not fails
        outcome = SimpleNamespace(status=status, result=result)
        return done(SimpleNamespace(accepted=True, get_result_async=lambda: done(outcome)))

    def destroy(self) -> None:
        pass


class TaskResult(Enum):
    UNKNOWN = 0
    SUCCEEDED = 1
    CANCELED = 2
    FAILED = 3


class BasicNavigator(Node):
    """As nav2_simple_commander's, which makes the goal so."""

    def goToPose(self, pose: PoseStamped, behavior_tree: str = "") -> bool:
        goal = self.robot.packages["nav2_msgs"].interface("action", "NavigateToPose").Goal()
        goal.pose = pose
        goal.behavior_tree = behavior_tree
        self.robot.take("navigate_to_pose", goal)
        self._failed = self.robot.fails("navigate_to_pose", goal)
        return True

    def isTaskComplete(self) -> bool:
        return True

    def getResult(self) -> TaskResult:
        return TaskResult.FAILED if self._failed else TaskResult.SUCCEEDED
