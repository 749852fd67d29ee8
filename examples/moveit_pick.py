# SPDX-License-Identifier: Apache-2.0
"""From words to a grasp with MoveIt 2: `python3 moveit_pick.py "pick up the red mug"`.

Needs a running MoveIt (`move_group`) for a Panda with the planning groups `arm` and `gripper`, this
package's node with the camera connected to the arm's base by TF, and `pymoveit2` (5.0). Other arms
and groups: change the import of `robot`. CI has no MoveIt: it runs this with pymoveit2 and checks
the requests against recorded definitions (test/test_examples.py).
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
WHOLE_WAY = 0.99
"""The share of a straight way that must be possible. pymoveit2's default is 0: it would go as far
as it can, and call that a success."""
_HALF_TURN_ABOUT_X = Rotation.from_euler("x", 180, degrees=True)


def grasp_poses(region: LiftedRegion, standoff: float = STANDOFF) -> tuple[PoseStamped, ...]:
    """Pre-grasp and grasp of an end effector whose z axis points out of its fingers.

    A lifted pose's z is the surface normal, so the fingers come along -z: the end effector is that
    pose turned by half about its x. The pre-grasp is `standoff` metres before the surface.
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
    """Open, go to the pre-grasp, straight to the grasp, close, straight back; whether it went well.

    before, grasp: of the end effector, in any frame that MoveIt knows.
    """
    straight = {"cartesian": True, "cartesian_fraction_threshold": WHOLE_WAY}
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
    gripper.wait_until_executed()  # false with something between the fingers, as it should be
    arm.move_to_pose(before, **straight)
    return arm.wait_until_executed()


def main() -> int:
    """Ask where to grasp, then move there; returns the exit status."""
    from pymoveit2 import GripperInterface, MoveIt2
    from pymoveit2.robots import panda as robot

    task = " ".join(sys.argv[1:]) or "pick up the red mug"
    rclpy.init()
    with BrainClient() as brain:
        answer = brain.get_affordance(task, target_frame=robot.base_link_name())
    if not answer.success:
        print(answer.error_msg, file=sys.stderr)
        return 1
    region = answer.regions[0]
    if region.status != LiftedRegion.OK or not region.has_normal:
        print("There is no surface to grasp there: look from elsewhere.", file=sys.stderr)
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
        discovery_timeout_sec=5.0,  # it looks for the gripper's server once, here
    )
    try:
        with spinning(node):
            picked = pick(arm, gripper, *grasp_poses(region))
    finally:
        rclpy.shutdown()
    return 0 if picked else 1


if __name__ == "__main__":
    sys.exit(main())
