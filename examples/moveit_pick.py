# SPDX-License-Identifier: Apache-2.0
"""Grasp an object named in words with MoveIt 2: `python3 moveit_pick.py "pick up the red mug"`.

Needs a running MoveIt (`move_group`) for a Panda with the planning groups `arm` and `gripper`, this
package's node with the camera connected to the arm's base by TF, and `pymoveit2` (5.0). For other
arms and groups change the import of `robot`. CI has no MoveIt: it runs this with pymoveit2 and
checks the requests against recorded definitions (test/node/test_examples.py).
"""

from __future__ import annotations

import copy
import sys
from typing import TYPE_CHECKING

import numpy as np
import rclpy
from geometry_msgs.msg import PoseStamped
from scipy.spatial.transform import Rotation

from robobrain_ros.client import BrainClient
from robobrain_ros.msg import LiftedRegion
from robobrain_ros.ros.executors import spinning

if TYPE_CHECKING:
    from pymoveit2 import GripperInterface, MoveIt2

STANDOFF = 0.10
"""Distance of the pre-grasp from the surface, metres."""
COMPLETE_FRACTION = 0.99
"""The fraction of a straight path that must be reachable. pymoveit2's default is 0: it would move
as far as it can and report success."""
_HALF_TURN_ABOUT_X = Rotation.from_euler("x", 180, degrees=True)


def grasp_poses(region: LiftedRegion, standoff: float = STANDOFF) -> tuple[PoseStamped, ...]:
    """Pre-grasp and grasp of an end effector whose z axis points out of its fingers.

    The z axis of a lifted pose is the surface normal, so the fingers approach along -z: the end
    effector's pose is that pose rotated by 180 degrees about its x axis. The pre-grasp is
    `standoff` metres in front of the surface.
    """
    axes = region.pose.pose.orientation
    surface = Rotation.from_quat([axes.x, axes.y, axes.z, axes.w])
    normal = surface.as_matrix()[:, 2]
    poses = []
    for distance in (standoff, 0.0):
        pose = copy.deepcopy(region.pose)
        at, turned = pose.pose.position, pose.pose.orientation
        at.x, at.y, at.z = np.array([at.x, at.y, at.z]) + distance * normal
        turned.x, turned.y, turned.z, turned.w = (surface * _HALF_TURN_ABOUT_X).as_quat()
        poses.append(pose)
    return tuple(poses)


def pick(arm: MoveIt2, gripper: GripperInterface, before: PoseStamped, grasp: PoseStamped) -> bool:
    """Open, go to the pre-grasp, straight to the grasp, close, straight back; returns success.

    before, grasp: poses of the end effector, in any frame that MoveIt knows.
    """
    straight = {"cartesian": True, "cartesian_fraction_threshold": COMPLETE_FRACTION}
    gripper.open()
    if not gripper.wait_until_executed():
        return False
    arm.move_to_pose(before)
    if not arm.wait_until_executed():
        return False
    arm.move_to_pose(grasp, **straight)
    if not arm.wait_until_executed():
        return False
    gripper.close()
    gripper.wait_until_executed()  # False with an object between the fingers, as expected
    arm.move_to_pose(before, **straight)
    return arm.wait_until_executed()


def main() -> int:
    """Ask where to grasp, then move there; returns the exit status."""
    try:
        from pymoveit2 import GripperInterface, MoveIt2
        from pymoveit2.robots import panda as robot
    except ModuleNotFoundError as error:
        print(
            f"The Python module {error.name} is missing: run `sudo apt install ros-jazzy-moveit` "
            "and `pip install pymoveit2==5.0.0`.",
            file=sys.stderr,
        )
        return 1

    task = " ".join(sys.argv[1:]) or "pick up the red mug"
    rclpy.init()
    with BrainClient() as brain:
        answer = brain.get_affordance(task, target_frame=robot.base_link_name())
    if not answer.success:
        print(answer.error_msg, file=sys.stderr)
        return 1
    region = answer.regions[0]
    if region.status != LiftedRegion.OK or not region.has_normal:
        print(
            "There is no graspable surface: move the camera.",
            file=sys.stderr,
        )
        return 1
    node = rclpy.create_node("moveit_pick")
    arm = MoveIt2(
        node=node,
        joint_names=robot.joint_names(),
        base_link_name=robot.base_link_name(),
        end_effector_name=robot.end_effector_name(),
        group_name=robot.MOVE_GROUP_ARM,
    )
    gripper = GripperInterface(
        node=node,
        gripper_joint_names=robot.gripper_joint_names(),
        open_gripper_joint_positions=robot.OPEN_GRIPPER_JOINT_POSITIONS,
        closed_gripper_joint_positions=robot.CLOSED_GRIPPER_JOINT_POSITIONS,
        gripper_group_name=robot.MOVE_GROUP_GRIPPER,
        discovery_timeout_sec=5.0,  # the gripper's server is looked up once, here
    )
    try:
        with spinning(node):
            picked = pick(arm, gripper, *grasp_poses(region))
    finally:
        rclpy.shutdown()
    return 0 if picked else 1


if __name__ == "__main__":
    sys.exit(main())
