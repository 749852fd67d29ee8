# SPDX-License-Identifier: Apache-2.0
"""Joint trajectories of the simulated Panda to a grasp and up, by inverse kinematics (mink)."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import mink
import mujoco
import numpy as np

from robobrain_ros.core.arrays import BoolArray, FloatArray
from robobrain_ros.sim.grasping import Grasp
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.panda import ARM_BASE
from robobrain_ros.sim.physics import ARM_JOINTS, GRIP_SITE, add_arm

PRE_GRASP, LIFT = 0.10, 0.15  # metres before the grasp and above it

_TIP = 0.009  # metres from the grip site to the fingertips, along the hand
_TILTS = np.radians((0, 12, 24, 36, 48))  # what is far away can't be reached from straight above
_READY = np.array([0.0, -0.4, 0.0, -2.3, 0.0, 1.9, np.pi / 4])
_ITERATIONS, _POSITION_ERROR, _ANGLE_ERROR = 80, 0.001, 0.01  # m, rad
_STEPS = 12  # of a straight line
_SELF_MARGIN = 0.03  # metres around the arm's own boxes: the depth of an edge is uncertain
_HIGH, _HIGH_RADIUS = 0.34, 0.62  # metres: fingertips above all objects, and from the arm's axis


class Unreachable(Exception):
    """Inverse kinematics finds no trajectory to a grasp."""


@dataclass(frozen=True, eq=False)
class Motion:
    """Joint angles, (N, 7) radians: to before the grasp, from there to it, and up."""

    approach: FloatArray
    descend: FloatArray
    lift: FloatArray


@functools.lru_cache(maxsize=1)
def _arm_model() -> mujoco.MjModel:
    spec = mujoco.MjSpec()
    add_arm(spec)
    return spec.compile()


class Arm:
    """The Panda alone, for planning."""

    def __init__(self) -> None:
        """Raises AssetsNotFound without robosuite's arm."""
        model = _arm_model()
        self._configuration = mink.Configuration(model)
        self._joints = [int(model.joint(name).qposadr[0]) for name in ARM_JOINTS]
        self._hand = mink.FrameTask(GRIP_SITE, "site", position_cost=1.0, orientation_cost=0.3)
        # A hint of the ready pose, which settles the elbow: the arm has a joint more than needed.
        self._posture = mink.PostureTask(model, cost=1e-3)
        self._limits = [mink.ConfigurationLimit(model, min_distance_from_limits=0.02)]

    def covers(self, points: FloatArray, joints: Sequence[float]) -> BoolArray:
        """Return which points (N, 3) are on the arm at joints (7,) or within a margin of it."""
        model, data = self._configuration.model, self._configuration.data
        self._configuration.update(self._full(joints))
        covered = np.zeros(len(points), bool)
        for geom in range(model.ngeom):
            local = (points - data.geom_xpos[geom]) @ data.geom_xmat[geom].reshape(3, 3)
            centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
            covered |= (np.abs(local - centre) < half + _SELF_MARGIN).all(1)
        return covered

    def plan(
        self, grasp: Grasp, start: Sequence[float], obstacles: Obstacles | None = None
    ) -> Motion:
        """The motion from joints `start` (7,) to the first hand pose for the grasp that the arm
        can reach and nothing blocks, as upright as possible. Raises Unreachable.
        """
        for tilt in _TILTS:
            if obstacles and obstacles.block(grasp, hand_rotation(grasp, 0.0, tilt)):
                continue
            # The gripper is symmetric; one of the two turns may be beyond the last joint's limit.
            motions = [self._motion(grasp, turn, tilt, start) for turn in (0.0, np.pi)]
            found = [motion for motion in motions if motion is not None]
            if found:
                return min(found, key=lambda motion: np.abs(np.diff(motion.approach[[0, -1], 6])))
        raise Unreachable("The arm reaches the grasp at no tilt of the hand that is free.")

    def _motion(
        self, grasp: Grasp, turn: float, tilt: float, start: Sequence[float]
    ) -> Motion | None:
        rotation = hand_rotation(grasp, turn, tilt)
        away = -PRE_GRASP * rotation[:, 2]
        before = self._solve(grasp.position + away, rotation, self._guess(grasp))
        if before is None:
            return None
        descend = self._line(grasp.position + away, grasp.position, rotation, before)
        if descend is None:
            return None
        lifted = grasp.position + (0, 0, LIFT)
        lift = self._line(grasp.position, lifted, rotation, descend[-1])
        if lift is None:
            return None
        high = self._solve(_above(grasp), hand_rotation(grasp, turn, 0.0), before)
        if high is None:
            return None
        return Motion(np.array([start, high, before]), descend, lift)

    def _full(self, joints: Sequence[float]) -> FloatArray:
        full = np.zeros(self._configuration.model.nq)
        full[self._joints] = joints
        return full

    @staticmethod
    def _guess(grasp: Grasp) -> FloatArray:
        joints = _READY.copy()
        joints[0] = np.arctan2(*(grasp.position - ARM_BASE)[1::-1])
        return joints

    def _line(
        self, begin: FloatArray, end: FloatArray, rotation: FloatArray, joints: FloatArray
    ) -> FloatArray | None:
        """Joints (N, 7) that move the fingertips straight, None where that leads out of reach."""
        way = [joints]
        for share in np.linspace(0, 1, _STEPS + 1)[1:]:
            found = self._solve(begin + share * (end - begin), rotation, way[-1])
            # A jump would be another branch: the fingers wouldn't move on the line.
            if found is None or np.abs(found - way[-1]).max() > 0.35:
                return None
            way.append(found)
        return np.array(way)

    def _solve(
        self, tips: FloatArray, rotation: FloatArray, guess: FloatArray
    ) -> FloatArray | None:
        """Joints (7,) that bring the fingertips' middle to `tips` (3,), None where none do."""
        full = self._full(guess)
        self._configuration.update(full)
        self._posture.set_target(full)
        target = np.eye(4)
        target[:3, :3], target[:3, 3] = rotation, tips - _TIP * rotation[:, 2]
        self._hand.set_target(mink.SE3.from_matrix(target))
        tasks = [self._hand, self._posture]
        for _ in range(_ITERATIONS):
            error = self._hand.compute_error(self._configuration)
            if (
                np.linalg.norm(error[:3]) < _POSITION_ERROR
                and np.linalg.norm(error[3:]) < _ANGLE_ERROR
            ):
                return self._configuration.q[self._joints].copy()
            velocity = mink.solve_ik(
                self._configuration, tasks, 1.0, "daqp", damping=1e-4, limits=self._limits
            )
            self._configuration.integrate_inplace(velocity, 1.0)
        return None


def hand_rotation(grasp: Grasp, turn: float, tilt: float) -> FloatArray:
    """Return the hand's orientation (3, 3): x the closing, z the pointing direction.

    turn: added to the grasp's yaw. tilt: how far the hand leans back towards the arm, about the
    line between the fingers, so that both stay at one height.
    """
    yaw = grasp.yaw + turn
    closing = np.array([np.cos(yaw), np.sin(yaw), 0.0])
    level = np.array([-closing[1], closing[0], 0.0])
    if level @ (grasp.position - ARM_BASE) < 0:
        level = -level
    pointing = np.sin(tilt) * level - np.cos(tilt) * np.array([0.0, 0.0, 1.0])
    return np.stack([closing, np.cross(pointing, closing), pointing], axis=1)


def _above(grasp: Grasp) -> FloatArray:
    """Return a position (3,) for the fingertips above all objects, on the way to the grasp."""
    reach = grasp.position[:2] - ARM_BASE[:2]
    reach = reach * min(1.0, _HIGH_RADIUS / np.linalg.norm(reach))
    return np.array([*(reach + ARM_BASE[:2]), _HIGH])
