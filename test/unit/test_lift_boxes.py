# SPDX-License-Identifier: Apache-2.0
"""Boxes around objects on a table: the object must be told from what it stands on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation
from support.analytic_scene import (
    Box,
    Plane,
    Sphere,
    all_rays,
    as_metres,
    as_millimetres,
    camera,
    lens,
    looking_down,
    render,
    rigid,
    table_seen_from,
)

from robobrain_ros.tf_projection import LiftParameters, LiftStatus, lift_boxes

CAMERA = camera()
WORLD = looking_down(0.6, 0.7, 40)  # world_from_camera; the table is z = 0
FROM_WORLD = np.linalg.inv(WORLD)
TABLE = table_seen_from(WORLD)
SIZE = (0.06, 0.06, 0.12)


def block(x, y, size=SIZE, degrees=0.0):
    """A box that stands on the table."""
    turn = Rotation.from_euler("z", degrees, degrees=True)
    return Box(FROM_WORLD @ rigid(turn, (x, y, size[2] / 2)), size)


def ball(x, y, radius):
    return Sphere(tuple((FROM_WORLD @ [x, y, radius, 1])[:3]), radius)


def seen(thing, *others, intrinsics=CAMERA):
    """Depth, the tight box around what is visible of `thing`, and its points in the world."""
    depth = render(intrinsics, TABLE, thing, *others)
    rays = all_rays(intrinsics)
    visible = thing.depth(rays) == depth
    rows, columns = np.nonzero(visible)
    box = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], float)
    points = (rays * depth[..., None])[visible] @ WORLD[:3, :3].T + WORLD[:3, 3]
    return depth, box, points


def lift_one(box, depth, target=WORLD, intrinsics=CAMERA, parameters=None):
    return lift_boxes([box], depth, intrinsics, target, parameters)[0]


def assert_covers(region, points, tolerance):
    """The lifted 3D box is the one around the visible points, in metres."""
    low, high = points.min(axis=0), points.max(axis=0)
    np.testing.assert_allclose(region.centre, (low + high) / 2, atol=tolerance)
    np.testing.assert_allclose(region.size, high - low, atol=2 * tolerance)
    np.testing.assert_array_equal(region.box_orientation, [0, 0, 0, 1])


THINGS = {
    "block": block(0.05, 0.02),
    "turned block": block(-0.1, 0.1, degrees=35),
    "flat block": block(0.1, 0, (0.2, 0.15, 0.03), 20),
    "small block": block(0.05, 0.02, (0.03, 0.03, 0.015)),
    "carton": block(0.1, 0.0, (0.15, 0.05, 0.2), 70),
    "ball": ball(0.0, 0.05, 0.04),
}


@pytest.mark.parametrize("name", THINGS)
def test_the_box_covers_the_object_without_the_table(name):
    depth, box, points = seen(THINGS[name])
    region = lift_one(box, as_metres(depth))
    assert region.status is LiftStatus.OK
    assert_covers(region, points, 0.004)
    assert np.linalg.norm(points - region.position, axis=1).min() < 0.002
    assert region.has_normal and region.valid_fraction == 1
    np.testing.assert_array_equal(region.box, box)


def test_the_surface_centre_has_the_faces_normal():
    depth, box, _ = seen(block(0.0, 0.0, (0.1, 0.1, 0.1)))
    region = lift_one(box, as_metres(depth))
    x, _, z = Rotation.from_quat(region.orientation).as_matrix().T
    # The side that faces the camera; the edge to the top is nearer than the patch is wide.
    np.testing.assert_allclose(z, [0, -1, 0], atol=0.08)
    np.testing.assert_allclose(x, [1, 0, 0], atol=0.02)
    np.testing.assert_allclose(region.position[1], -0.05, atol=0.001)
    inside = (region.pixel >= box[:2]) & (region.pixel <= box[2:])
    assert inside.all()


@pytest.mark.parametrize("grow", [-0.1, 0.15, 0.3])
def test_the_box_need_not_be_tight(grow):
    depth, box, points = seen(THINGS["block"])
    margin = grow * (box[2:] - box[:2])
    loose = np.concatenate([box[:2] - margin, box[2:] + margin])
    region = lift_one(loose, as_metres(depth))
    assert_covers(region, points, 0.004 if grow > 0 else 0.02)


def test_noise_moves_it_by_millimetres():
    depth, box, points = seen(THINGS["block"])
    noise = np.random.default_rng(0).normal(0, 0.0025, depth.shape)
    assert_covers(lift_one(box, as_metres(1 / (1 / depth + noise))), points, 0.006)


def test_both_encodings_agree():
    depth, box, points = seen(THINGS["ball"])
    assert_covers(lift_one(box, as_millimetres(depth)), points, 0.004)


def test_through_a_lens():
    intrinsics = lens("plumb_bob")
    depth, box, points = seen(THINGS["carton"], intrinsics=intrinsics)
    assert_covers(lift_one(box, as_metres(depth), intrinsics=intrinsics), points, 0.004)


def test_depth_of_another_size():
    own = CAMERA.scaled(320, 240)
    depth, box, points = seen(THINGS["block"], intrinsics=own)
    assert_covers(lift_one(2 * box, as_metres(depth)), points, 0.005)


def test_what_is_behind_stays_out():
    depth, box, points = seen(THINGS["ball"], block(0.06, 0.35, (0.1, 0.1, 0.3)))
    assert_covers(lift_one(box, as_metres(depth)), points, 0.004)


def test_what_stands_in_front_of_a_corner_stays_out():
    carton = block(0.0, 0.15, (0.15, 0.05, 0.2))
    depth, box, points = seen(carton, block(0.1, -0.1, (0.05, 0.05, 0.15)))
    assert_covers(lift_one(box, as_metres(depth)), points, 0.012)


def test_a_table_is_itself():
    depth, _, _ = seen(THINGS["block"])
    region = lift_one([100, 300, 250, 400], as_metres(depth))
    assert region.status is LiftStatus.OK
    assert abs(region.position[2]) < 0.001 and region.size[2] < 0.002
    np.testing.assert_allclose(
        Rotation.from_quat(region.orientation).apply([0, 0, 1]), [0, 0, 1], atol=0.01
    )


def test_a_part_of_a_face_is_that_part():
    depth, box, _ = seen(block(0.0, 0.0, (0.2, 0.1, 0.2)))
    middle = (box[:2] + box[2:]) / 2
    region = lift_one([*(middle - 15), *(middle + 15)], as_metres(depth))
    assert region.position[1] == pytest.approx(-0.05, abs=0.001)
    assert region.size[1] < 0.002 and 0.02 < region.size[0] < 0.06


def test_holes_lower_the_valid_fraction_only():
    depth, box, points = seen(THINGS["carton"])
    depth[np.random.default_rng(1).uniform(size=depth.shape) < 0.3] = np.nan
    region = lift_one(box, as_metres(depth))
    assert_covers(region, points, 0.006)
    assert region.valid_fraction == pytest.approx(0.7, abs=0.05)


class TestStatus:
    DEPTH, BOX, _ = seen(THINGS["block"])

    def test_no_depth_camera(self):
        region = lift_one(self.BOX, None, None, None)
        assert (region.status, region.position) == (LiftStatus.NO_DEPTH_CAMERA, None)
        np.testing.assert_array_equal(region.size, np.zeros(3))

    def test_depth_hole(self):
        depth = self.DEPTH.copy()
        depth[150:280, 300:400] = np.nan
        region = lift_one(self.BOX, as_metres(depth))
        assert (region.status, region.valid_fraction) == (LiftStatus.DEPTH_HOLE, 0)

    @pytest.mark.parametrize("limits", [(2.0, 5.0), (0.1, 0.5)])
    def test_out_of_range(self, limits):
        region = lift_one(self.BOX, as_metres(self.DEPTH), parameters=LiftParameters(*limits))
        assert region.status is LiftStatus.OUT_OF_RANGE

    @pytest.mark.parametrize("far", [12.0, 1e30])
    def test_out_of_range_beside_something_in_range(self, far):
        depth = self.DEPTH.copy()
        depth[:, int(self.BOX[0]) + 5 :] = far
        region = lift_one(self.BOX, as_metres(depth))
        assert region.status is LiftStatus.OUT_OF_RANGE

    @pytest.mark.parametrize(
        "box", [(-90, 10, -20, 60), (650, 10, 700, 60), (10, 485, 50, 500), (np.nan, 1, 5, 5)]
    )
    def test_outside_depth_view(self, box):
        region = lift_one(box, as_metres(self.DEPTH))
        assert (region.status, region.position) == (LiftStatus.OUTSIDE_DEPTH_VIEW, None)

    def test_outside_the_view_of_a_narrower_depth(self):
        narrow = camera(320, 240, 525)
        depth = as_metres(render(narrow, TABLE), narrow)
        assert lift_one((0, 0, 60, 60), depth).status is LiftStatus.OUTSIDE_DEPTH_VIEW
        assert lift_one((280, 200, 360, 280), depth).status is LiftStatus.OK

    def test_no_transform_keeps_the_depth(self):
        region = lift_one(self.BOX, as_metres(self.DEPTH), None)
        assert (region.status, region.position) == (LiftStatus.NO_TRANSFORM, None)
        assert region.depth > 0.5
        np.testing.assert_array_equal(region.size, np.zeros(3))

    def test_each_box_has_its_own(self):
        boxes = [(-90, 10, -20, 60), self.BOX]
        regions = lift_boxes(boxes, as_metres(self.DEPTH), CAMERA, WORLD)
        assert [r.status for r in regions] == [LiftStatus.OUTSIDE_DEPTH_VIEW, LiftStatus.OK]
        assert lift_boxes(np.empty((0, 4)), as_metres(self.DEPTH), CAMERA, WORLD) == []


@pytest.mark.parametrize(
    "box",
    [
        (0, 0, 640, 480),
        (-50, -50, 900, 900),
        (320, 240, 320, 240),
        (360, 300, 300, 200),
        (0, 240, 640, 241),
        (639, 479, 640, 480),
    ],
)
def test_boxes_of_any_shape_lie_on_what_they_show(box):
    region = lift_one(box, as_metres(render(CAMERA, Plane((0.0, 0.0, 1.0), 1.0))), np.eye(4))
    assert region.status is LiftStatus.OK
    np.testing.assert_allclose(region.position[2], 1.0, atol=1e-4)
    assert region.size[2] < 1e-3 and (region.size >= 0).all()
