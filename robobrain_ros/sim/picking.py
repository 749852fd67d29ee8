# SPDX-License-Identifier: Apache-2.0
"""One pick in the physics scene: approach, close, lift, and its outcome."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.sim.arm import Arm, Motion, Unreachable
from robobrain_ros.sim.grasping import Grasp
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.physics import TIME_STEP, PhysicsScene

RISE = 0.08  # metres that a picked object is above where it stood
HOLD_S = 0.5

_SETTLE_S, _CLOSE_S, _PAUSE_S = 0.3, 0.6, 0.25
_FAST, _SLOW = 1.2, 0.5  # radians per second of the fastest joint


class Outcome(str, Enum):
    """Outcome of a pick."""

    PICKED = "picked"
    NO_ANSWER = "no answer"
    WRONG_OBJECT = "wrong object"
    UNREACHABLE = "IK"
    SLIPPED = "slipped"


@dataclass(frozen=True)
class Pick:
    """An outcome, and the height in meters that each object has risen."""

    outcome: Outcome
    risen: dict[str, float]
    grasp: Grasp | None = None


class Picker:
    """Moves the arm of one PhysicsScene. watch: called after every step, to film."""

    def __init__(self, scene: PhysicsScene, watch: Callable[[], None] = lambda: None) -> None:
        self._scene, self._watch = scene, watch

    def pick(
        self, name: str | None, grasps: Iterable[Grasp], obstacles: Obstacles | None = None
    ) -> Pick:
        """Carry out the first of the grasps that the arm reaches and nothing blocks, once; where
        all are blocked, the first that it reaches.

        name: the object asked for, None where any will do.
        """
        arm, start = Arm(), self._scene.arm_joints
        if obstacles:
            obstacles = obstacles.without(arm.covers(obstacles.points, start))
        tried: list[Grasp] = []
        grasp, motion = _first(arm, _kept(grasps, tried), start, obstacles)
        if not tried:
            return Pick(Outcome.NO_ANSWER, {})
        if grasp is None:
            grasp, motion = _first(arm, tried, start, None)
        if grasp is None:
            return Pick(Outcome.UNREACHABLE, {})
        self._wait(_SETTLE_S)
        before = self._heights()
        self._scene.open(grasp.opening)
        self._follow(motion.approach, _FAST)
        self._follow(motion.descend, _SLOW)
        self._scene.close()
        self._wait(_CLOSE_S)
        self._follow(motion.lift, _SLOW)
        self._wait(HOLD_S)
        risen = {one: height - before[one] for one, height in self._heights().items()}
        return Pick(self._outcome(name, risen, grasp), risen, grasp)

    def _outcome(self, name: str | None, risen: dict[str, float], grasp: Grasp) -> Outcome:
        picked = [one for one, height in risen.items() if height >= RISE]
        if name in picked or (name is None and picked):
            return Outcome.PICKED
        if picked or name not in (None, self._scene.nearest(grasp.position)):
            return Outcome.WRONG_OBJECT
        return Outcome.SLIPPED

    def _heights(self) -> dict[str, float]:
        return {name: float(self._scene.position(name)[2]) for name in self._scene.names}

    def _follow(self, way: FloatArray, speed: float) -> None:
        """Send the arm along joints (N, 7), and wait until it has come to rest there."""
        for begin, end in zip(way[:-1], way[1:], strict=True):
            seconds = np.abs(end - begin).max() / speed
            steps = max(1, round(seconds / TIME_STEP))
            for step in range(1, steps + 1):
                self._scene.command(begin + step / steps * (end - begin))
                self._step()
        self._wait(_PAUSE_S)

    def _wait(self, seconds: float) -> None:
        for _ in range(round(seconds / TIME_STEP)):
            self._step()

    def _step(self) -> None:
        self._scene.step()
        self._watch()


def _first(
    arm: Arm, grasps: Iterable[Grasp], start: Sequence[float], obstacles: Obstacles | None
) -> tuple[Grasp, Motion] | tuple[None, None]:
    for grasp in grasps:
        try:
            return grasp, arm.plan(grasp, start, obstacles)
        except Unreachable:
            continue
    return None, None


def _kept(grasps: Iterable[Grasp], into: list[Grasp]) -> Iterator[Grasp]:
    for grasp in grasps:
        into.append(grasp)
        yield grasp
