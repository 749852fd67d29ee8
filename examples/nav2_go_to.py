# SPDX-License-Identifier: Apache-2.0
"""Drive to an object named in words with Nav2: `python3 nav2_go_to.py "the sofa"`.

Needs a running Nav2, this package's node with the robot's camera, and `nav2_simple_commander`. CI
has no Nav2: it checks the goal against a recorded definition (test/node/test_examples.py).
"""

from __future__ import annotations

import math
import sys

import rclpy
from geometry_msgs.msg import PoseStamped

from robobrain_ros.client import BrainClient
from robobrain_ros.msg import LiftedPoint

DISTANCE = 0.8
"""Distance from the object at which the robot stops, metres."""


def goal_before(target: PoseStamped, robot: tuple[float, float], distance: float) -> PoseStamped:
    """Goal pose that faces `target`: on the straight line to it, `distance` metres short.

    target: in the map frame; robot: x, y in that frame. The goal is on the ground. A robot that is
    already nearer than `distance` stays where it is and turns.
    """
    dx = target.pose.position.x - robot[0]
    dy = target.pose.position.y - robot[1]
    length = math.hypot(dx, dy)
    fraction = max(0.0, 1 - distance / length) if length > 0 else 0.0
    goal = PoseStamped()
    goal.header.frame_id = target.header.frame_id
    goal.pose.position.x = robot[0] + fraction * dx
    goal.pose.position.y = robot[1] + fraction * dy
    heading = math.atan2(dy, dx)
    goal.pose.orientation.z, goal.pose.orientation.w = math.sin(heading / 2), math.cos(heading / 2)
    return goal


def main() -> int:
    """Point at the object in the camera's image, then drive there; returns the exit status."""
    try:
        from nav2_simple_commander.robot_navigator import BasicNavigator, TaskResult
    except ModuleNotFoundError as error:
        print(
            f"The Python module {error.name} is missing: "
            "run `sudo apt install ros-jazzy-nav2-simple-commander`.",
            file=sys.stderr,
        )
        return 1
    from tf2_ros import Buffer, TransformListener

    query = " ".join(sys.argv[1:]) or "the sofa"
    rclpy.init()
    with BrainClient() as brain:
        answer = brain.point_to(query, target_frame="map", max_points=1)
    if not answer.success:
        print(answer.error_msg, file=sys.stderr)
        return 1
    point = answer.points[0]
    if point.status != LiftedPoint.OK:
        print("No depth at that pixel: move the camera closer, or turn it.", file=sys.stderr)
        return 1
    navigator = BasicNavigator()
    buffer = Buffer()
    listener = TransformListener(buffer, navigator, spin_thread=False)
    while not buffer.can_transform("map", "base_link", rclpy.time.Time()):
        rclpy.spin_once(navigator, timeout_sec=0.1)
    at = buffer.lookup_transform("map", "base_link", rclpy.time.Time()).transform.translation
    goal = goal_before(point.pose, (at.x, at.y), DISTANCE)
    goal.header.stamp = navigator.get_clock().now().to_msg()
    navigator.goToPose(goal)
    while not navigator.isTaskComplete():
        pass  # it spins for up to 0.1 s each time
    del listener
    return 0 if navigator.getResult() == TaskResult.SUCCEEDED else 1


if __name__ == "__main__":
    sys.exit(main())
