# SPDX-License-Identifier: Apache-2.0
"""Grasps for a parallel gripper from above, from the answers of the node alone.

The part to touch (get_affordance), or else the whole
object (ground_object), is taken across its narrowest side; where even that is too wide, one finger
goes inside, over the object's edge. How deep depends on the hand, which must not meet the object's
top. Where the object's box isn't where its point (point_to) is, the box shows something in front
of it, and the point has to do.

3D boxes are aligned with the frame they are asked for, so the narrowest side is found by asking in
frames that are turned about the vertical. Metres, radians, frame `table`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from robobrain_ros.core.arrays import BoolArray, FloatArray

YAW_STEP = np.radians(7.5)
"""Boxes are asked for at multiples of this."""
MAX_WIDTH = 0.076
"""The widest that is taken between fingers that open 80 mm; the rest is for errors."""

_COARSE = 3 * np.arange(4)  # of YAW_STEP; each frame shows two directions
_CLEARANCE = 0.010  # on each side of what is between the fingers
_OPEN = 0.08
_FINGER_LENGTH = 0.036  # from the fingertips up to where the palm would touch
_FLOOR = 0.008  # fingertips above the table
_LEAST_HOLD = 0.012  # of the part that must be between the fingers
# The back of an object is hidden, so that it may be wider along the view than it looks.
_HIDDEN_SHARE = 1.0
_RIM_DEPTH, _RIM_OPENING, _WALL = 0.022, 0.044, 0.004
_STICKS_OUT = 0.02  # how far a handle's middle is from its object's at least
_FINGER_RADIUS = 0.013  # of the fingers, across their closing direction
_NEAR = 0.02  # how far a point may be outside the box of the same object
# Of an object that is known by a point of its surface only.
_POINT_INWARDS, _POINT_DEPTH = 0.02, 0.02


@dataclass(frozen=True, eq=False)
class Extent:
    """A region's 3D box in a frame that is turned by `yaw` about the vertical.

    centre (3,): in the frame `table`. size (3,): along the turned frame's axes.
    """

    yaw: float
    centre: FloatArray
    size: FloatArray

    @property
    def top(self) -> float:
        """Height of its highest point."""
        return float(self.centre[2] + self.size[2] / 2)

    def turned(self) -> Extent:
        """Return the same box with its horizontal axes swapped."""
        return replace(self, yaw=self.yaw + np.pi / 2, size=self.size[[1, 0, 2]])

    def contains(self, points: FloatArray, margin: float) -> BoolArray:
        """Return which points (N, 3) are in the box or within a margin of it."""
        offsets = points - self.centre
        axes = np.stack([_level(self.yaw), _level(self.yaw + np.pi / 2)], axis=1)
        local = np.column_stack([offsets[:, :2] @ axes, offsets[:, 2]])
        return (np.abs(local) < self.size / 2 + margin).all(axis=1)


@dataclass(frozen=True, eq=False)
class SurfacePoint:
    """A point on a surface: position (3,); right, outwards: (2,) level directions, the camera's
    right and away from the surface. None where the surface's normal is unknown.
    """

    position: FloatArray
    right: FloatArray | None
    outwards: FloatArray | None

    @classmethod
    def of_pose(cls, position: FloatArray, rotation: FloatArray | None) -> SurfacePoint:
        """rotation (3, 3): a lifted pose's, None where it has no normal."""
        if rotation is None:
            return cls(position, None, None)
        return cls(position, rotation[:2, 0], rotation[:2, 2])


Measure = Callable[[float], Extent | None]


class Answers(Protocol):
    """The node's answers about one object; None without an answer, or without a 3D one."""

    @property
    def point(self) -> SurfacePoint | None:
        """A point on its surface (point_to)."""

    def part(self, yaw: float) -> Extent | None:
        """The part to touch (get_affordance), in a frame of this yaw."""

    def whole(self, yaw: float) -> Extent | None:
        """The object (ground_object), in a frame of this yaw."""


@dataclass(frozen=True, eq=False)
class Grasp:
    """Fingertips' middle `position` (3,), closing along `yaw` from `opening`. width: what should
    be between them. rim: whether one finger is inside. own: boxes that all hold the object, so that
    it isn't taken for an obstacle.
    """

    position: FloatArray
    yaw: float
    opening: float
    width: float
    rim: bool = False
    own: tuple[Extent, ...] = ()


def propose(answers: Answers) -> Iterator[Grasp]:
    """Yield grasps, the best first; none without a position of the object.

    Later ones take more requests, which are sent when they are needed.
    """
    point, box = answers.point, answers.whole(0.0)
    if box is None or not (point is None or box.contains(point.position[None], _NEAR)[0]):
        yield from () if point is None else _at_point(point)
        return
    diagonal = answers.whole(6 * YAW_STEP)
    own = (box, diagonal) if diagonal else (box,)
    for grasp in _by_box(answers, box, None if point is None else point.right):
        yield replace(grasp, own=own)


def _by_box(answers: Answers, whole: Extent, right: FloatArray | None) -> Iterator[Grasp]:
    held = False
    for side in _sides_to_hold(answers, whole, right):
        grasp = _straddle(side, whole.top, right)
        if grasp:
            held = True
            yield grasp
    if not held:
        yield from _over_rim(_ranked(_sides(answers.whole), right), whole.top)


def _sides_to_hold(answers: Answers, whole: Extent, right: FloatArray | None) -> Iterator[Extent]:
    part = answers.part(0.0)
    if part is not None and whole.contains(part.centre[None], _NEAR)[0]:
        handle = _handle(answers.part, part.centre - whole.centre)
        if handle:
            yield handle
        yield from _ranked(_sides(answers.part, refined=True), right)
    yield from _ranked(_sides(answers.whole, refined=True), right)


def _handle(measure: Measure, offset: FloatArray) -> Extent | None:
    """A part that sticks out from its object by `offset` (3,), to be taken across that direction
    and at its outer end; None for a part in the middle.
    """
    if np.hypot(*offset[:2]) < _STICKS_OUT:
        return None
    outwards = np.arctan2(offset[1], offset[0])
    side = measure(float(YAW_STEP * np.round((outwards - np.pi / 2) / YAW_STEP)))
    if side is None:
        return None
    shift = (side.size[1] / 2 - _FINGER_RADIUS) * _level(side.yaw + np.pi / 2)
    return replace(side, centre=side.centre + (*shift, 0.0))


def _sides(measure: Measure, *, refined: bool = False) -> list[Extent]:
    """Boxes whose x axis is each direction that was asked for; refined: also two beside the
    narrowest.
    """
    asked = [measure(float(step * YAW_STEP)) for step in _COARSE]
    sides = [side for box in asked if box for side in (box, box.turned())]
    if refined and sides:
        best = min(sides, key=lambda side: side.size[0])
        beside = (measure(best.yaw + turn) for turn in (-YAW_STEP, YAW_STEP))
        sides += [box for box in beside if box]
    return sides


def _ranked(sides: Sequence[Extent], right: FloatArray | None) -> list[Extent]:
    return sorted(sides, key=lambda side: _possible_width(side, right))


def _possible_width(side: Extent, right: FloatArray | None) -> float:
    """Return the possible width of an object whose visible part this is."""
    along_view = 0.0 if right is None else abs(np.sin(side.yaw - np.arctan2(right[1], right[0])))
    return float(side.size[0] * (1 + _HIDDEN_SHARE * along_view))


def _straddle(side: Extent, top: float, right: FloatArray | None) -> Grasp | None:
    """Take a part between the fingers, as deep as the palm allows; None where that won't hold."""
    width = float(side.size[0])
    height = max(top - _FINGER_LENGTH, _FLOOR)
    if width > MAX_WIDTH or side.top - height < _LEAST_HOLD:
        return None
    position = np.array([*side.centre[:2], height])
    opening = min(_OPEN, _possible_width(side, right) + 2 * _CLEARANCE)
    return Grasp(position, side.yaw, opening, width)


def _over_rim(sides: Sequence[Extent], top: float) -> Iterator[Grasp]:
    """Yield grasps of a hollow object's wall, in the middle of each side of its box."""
    height = max(top - _RIM_DEPTH, _FLOOR)
    for side in sides:
        for sign in (-1, 1):
            edge = side.centre[:2] + sign * (side.size[0] - _WALL) / 2 * _level(side.yaw)
            yield Grasp(np.array([*edge, height]), side.yaw, _RIM_OPENING, _WALL, rim=True)


def _at_point(point: SurfacePoint) -> Iterator[Grasp]:
    """Take what is behind a point with the hand wide open, across the view if that is known."""
    inwards = np.zeros(2) if point.outwards is None else -_POINT_INWARDS * point.outwards
    height = max(point.position[2] - _POINT_DEPTH, _FLOOR)
    position = np.array([*(point.position[:2] + inwards), height])
    across = 0.0 if point.right is None else float(np.arctan2(point.right[1], point.right[0]))
    for yaw in (across, across + np.pi / 2):
        yield Grasp(position, yaw, _OPEN, MAX_WIDTH)


def _level(yaw: float) -> FloatArray:
    return np.array([np.cos(yaw), np.sin(yaw)])
