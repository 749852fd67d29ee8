# SPDX-License-Identifier: Apache-2.0
"""Picks in the simulator: the rule by which it grasps, and real ones with physics."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("mink")

from scipy.spatial import Delaunay

from robobrain_ros.sim.grasping import Extent, Grasp, SurfacePoint, propose
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.oracle import Oracle, turned
from robobrain_ros.sim.physics import GRIP_SITE, PhysicsScene
from robobrain_ros.sim.picking import Outcome, Picker
from robobrain_ros.sim.pool import load_pool
from robobrain_ros.sim.solids import convex_pieces, grip_width
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import named_object

DOWN = np.diag([1.0, -1.0, -1.0])
"""A hand that points down and closes along x."""


class BlockAnswers:
    """Perfect answers about a block of a size (3,), turned by yaw, whose foot is at `foot` (2,)."""

    def __init__(self, size, yaw=0.0, foot=(0.1, 0.05), part=None, point=None) -> None:
        self.size, self.yaw, self.foot = np.asarray(size), yaw, np.asarray(foot)
        self._part = part
        self.point = point

    def whole(self, yaw: float) -> Extent:
        corners = np.array([(x, y) for x in (-1, 1) for y in (-1, 1)]) * self.size[:2] / 2
        seen = corners @ turned(self.yaw - yaw)[:2, :2].T
        size = np.array([*(seen.max(0) - seen.min(0)), self.size[2]])
        return Extent(yaw, np.array([*self.foot, self.size[2] / 2]), size)

    def part(self, yaw: float) -> Extent:
        return (self._part or self).whole(yaw)


class NoAnswers:
    """The service knows nothing, except perhaps a point."""

    def __init__(self, point=None) -> None:
        self.point = point

    def whole(self, yaw: float) -> None:
        return None

    part = whole


def first(answers) -> Grasp:
    return next(iter(propose(answers)))


def across(yaw: float, other: float) -> float:
    """The angle (degrees) between two directions without a sense."""
    return np.degrees(np.arccos(min(1.0, abs(np.cos(yaw - other)))))


@pytest.mark.parametrize("degrees", [0, 13, 30, 71, 90, 128, 171])
def test_fingers_close_across_the_narrow_side(degrees):
    grasp = first(BlockAnswers((0.11, 0.04, 0.10), np.radians(degrees)))
    assert across(grasp.yaw, np.radians(degrees + 90)) <= 7.5 + 1e-6
    assert 0.04 <= grasp.width < 0.06 and grasp.width < grasp.opening <= 0.08
    assert grasp.position[:2] == pytest.approx((0.1, 0.05))


def test_the_palm_stays_above_the_top_and_the_fingers_above_the_table():
    assert first(BlockAnswers((0.05, 0.05, 0.20))).position[2] == pytest.approx(0.20 - 0.036)
    assert first(BlockAnswers((0.05, 0.05, 0.03))).position[2] == pytest.approx(0.008)


def test_a_side_whose_back_is_hidden_is_not_taken_for_narrow():
    position = np.array([0.1, 0.05, 0.05])
    # The camera looks along x, so that y is its right; it sees less of the thing along x.
    point = SurfacePoint(position, np.array([0.0, 1.0]), np.array([-1.0, 0.0]))
    size = (0.045, 0.065, 0.1)
    assert across(first(BlockAnswers(size, point=point)).yaw, np.pi / 2) < 1
    assert across(first(BlockAnswers(size)).yaw, 0.0) < 1


def test_what_is_too_wide_is_taken_over_its_edge():
    grasps = list(propose(BlockAnswers((0.13, 0.13, 0.06))))
    assert grasps and all(grasp.rim for grasp in grasps)
    for grasp in grasps[:2]:
        offset = grasp.position[:2] - (0.1, 0.05)
        assert np.hypot(*offset) == pytest.approx(0.063, abs=0.001)
        assert across(np.arctan2(offset[1], offset[0]), grasp.yaw) < 1


def test_a_handle_is_taken_across_the_way_it_sticks_out():
    handle = BlockAnswers((0.03, 0.012, 0.08), foot=(0.1 + 0.055, 0.05))
    grasp = first(BlockAnswers((0.09, 0.09, 0.09), part=handle))
    assert across(grasp.yaw, np.pi / 2) < 1 and not grasp.rim
    assert grasp.position[0] == pytest.approx(0.155 + 0.015 - 0.013)
    assert grasp.position[2] == pytest.approx(0.09 - 0.036)  # the hand clears the whole object


def test_a_part_that_is_elsewhere_is_not_believed():
    elsewhere = BlockAnswers((0.02, 0.02, 0.1), foot=(-0.2, 0.0))
    grasp = first(BlockAnswers((0.05, 0.05, 0.1), part=elsewhere))
    assert grasp.position[:2] == pytest.approx((0.1, 0.05))


def test_a_box_without_the_point_shows_something_else():
    point = SurfacePoint(np.array([-0.1, 0.2, 0.05]), np.array([0.0, 1.0]), np.array([1.0, 0.0]))
    grasp = first(BlockAnswers((0.05, 0.05, 0.1), point=point))
    assert grasp.position == pytest.approx((-0.12, 0.2, 0.03))
    assert across(grasp.yaw, np.pi / 2) < 1


def test_no_answer_gives_no_grasp_and_a_point_alone_gives_one():
    assert list(propose(NoAnswers())) == []
    assert list(propose(NoAnswers(SurfacePoint(np.array([0.0, 0.0, 0.05]), None, None))))


def test_the_hand_avoids_what_stands_beside_the_object_but_not_the_object():
    grasp = first(BlockAnswers((0.05, 0.05, 0.1), foot=(0.0, 0.0)))
    grasp = replace(grasp, yaw=0.0)
    rng = np.random.default_rng(0)
    own = rng.uniform((-0.025, -0.025, 0.0), (0.025, 0.025, 0.1), (500, 3))
    assert not Obstacles(own).block(grasp, DOWN)
    beside_finger = own * (0.2, 0.2, 1.0) + (0.05, 0, 0)
    assert Obstacles(np.concatenate([own, beside_finger])).block(grasp, DOWN)
    assert not Obstacles(beside_finger + (0, 0.08, 0)).block(grasp, DOWN)
    under_palm = own * (0.2, 0.2, 2.0) + (0.08, 0, 0)
    assert Obstacles(under_palm).block(grasp, DOWN)


def test_the_longest_name_in_a_query_is_meant():
    names = ("can", "soda can", "red mug")
    assert named_object("the soda can", names) == "soda can"
    assert named_object("Pick the RED mug, please", names) == "red mug"
    assert named_object("the leftmost thing", names) is None


@pytest.mark.parametrize(("kind", "radius", "z"), [("mug", 0.037, 0.05), ("bowl", 0.0623, 0.045)])
def test_a_hollow_thing_is_hollow_and_has_a_wall(kind, radius, z):
    pool = load_pool()
    pieces = [Delaunay(piece) for piece in convex_pieces(pool.model, pool.instances[kind][0])]

    def solid(points) -> np.ndarray:
        return np.any([piece.find_simplex(points) >= 0 for piece in pieces], axis=0)

    angle = np.radians(np.arange(0, 360, 7))
    ring = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    assert solid(np.insert(radius * ring, 2, z, axis=1)).all()
    assert not solid(np.insert(0.7 * radius * ring, 2, z, axis=1)).any()
    assert solid([(0, 0, 0.004)]).all()


def test_what_can_be_held_is_decided_by_the_part_to_grasp():
    pool = load_pool()
    widths = {kind: grip_width(pool.model, pool.instances[kind][0]) for kind in pool.instances}
    assert widths["cube"] == pytest.approx(0.052, abs=1e-4)
    assert widths["box"] == pytest.approx(0.070, abs=1e-4)
    assert widths["can"] == pytest.approx(0.066, abs=1e-3)
    assert widths["mug"] == pytest.approx(0.011, abs=1e-3)  # its handle
    assert widths["bowl"] < 0.01 and widths["tray"] == float("inf")


@functools.cache
def table() -> Tabletop:
    return Tabletop()


def picked(seed: int, name: str, moved=(0.0, 0.0, 0.0)):
    table().reset(seed)
    oracle, scene = Oracle(table(), seed), PhysicsScene(table())
    grasps = [
        replace(grasp, position=grasp.position + moved) for grasp in propose(oracle.about(name))
    ]
    return Picker(scene).pick(name, grasps, oracle.obstacles)


def test_the_physics_scene_is_the_scene_that_the_camera_sees():
    table().reset(2_000_017)
    scene = PhysicsScene(table())
    assert scene.data.site(GRIP_SITE).xpos == pytest.approx(table().gripper, abs=1e-5)
    before = {name: scene.position(name) for name in scene.names}
    for item in table().objects:
        assert before[item.name][:2] == pytest.approx(item.foot[:2], abs=0.03)
    joints = scene.arm_joints
    for _ in range(250):
        scene.step()
    for name, position in before.items():
        assert np.linalg.norm(scene.position(name) - position) < 0.003, name
    assert scene.arm_joints == pytest.approx(joints, abs=1e-3)


@pytest.mark.parametrize(
    ("seed", "name"),
    [(2_000_000, "green bottle"), (2_000_017, "orange bowl"), (2_000_010, "blue mug")],
)
def test_an_object_is_picked(seed, name):
    done = picked(seed, name)
    assert done.outcome is Outcome.PICKED
    assert done.risen[name] > 0.12


def test_a_grasp_beside_the_object_picks_nothing():
    done = picked(2_000_000, "green bottle", moved=(-0.07, 0.07, 0.0))
    assert done.outcome is not Outcome.PICKED
    assert max(done.risen.values()) < 0.01


def test_a_grasp_out_of_reach_is_refused():
    assert picked(2_000_000, "green bottle", moved=(0.5, 0, 0)).outcome is Outcome.UNREACHABLE


def test_another_object_than_the_one_asked_for_is_no_success():
    table().reset(2_000_000)
    oracle, scene = Oracle(table(), 0), PhysicsScene(table())
    grasps = propose(oracle.about("green bottle"))
    assert Picker(scene).pick("lemon", grasps).outcome is Outcome.WRONG_OBJECT
