# SPDX-License-Identifier: Apache-2.0
"""Depth of a camera that stands elsewhere: what is lifted must be where geometry says that it is,
and what that camera can't see must not be claimed.
"""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support.analytic_scene import (
    LENSES,
    Box,
    Plane,
    Sphere,
    all_rays,
    camera,
    lens,
    render,
    rigid,
    table_seen_from,
)

from robobrain_ros.lifting.registration import cell_size, check_visibility, register_depth
from robobrain_ros.tf_projection import (
    DepthImage,
    Intrinsics,
    LiftParameters,
    LiftStatus,
    lift_boxes,
    lift_points,
)

COLOR = camera(1280, 720, 915.0)
DEPTH = camera(848, 480, 425.0)
IDENTITY = np.eye(4)
PARAMETERS = LiftParameters()


def aside(degrees, pivot=0.8, rise=0.0):
    """Pose of a camera that looks at the point `pivot` m ahead of color from the side."""
    turn = Rotation.from_euler("yx", [degrees, rise], degrees=True)
    return rigid(turn, tuple(np.array([0, 0, pivot]) - turn.apply([0, 0, pivot])))


POSES = {
    "15 mm": rigid(Rotation.identity(), (0.015, 0, 0)),
    "75 mm": rigid(Rotation.from_euler("z", 2, degrees=True), (-0.075, 0.004, 0.002)),
    "30 degrees": aside(30),
    "from above": aside(-10, rise=-25),
    "on its side": rigid(Rotation.from_euler("z", 90, degrees=True), (0.02, 0.05, -0.03)),
    "nearer": rigid(Rotation.from_euler("y", 5, degrees=True), (-0.05, 0.02, 0.25)),
    "farther": rigid(Rotation.from_euler("x", -4, degrees=True), (0.05, 0.02, -0.3)),
}


def moved(shape, pose):
    """A shape in the frame that `pose` takes its frame to."""
    turn, shift = pose[:3, :3], pose[:3, 3]
    if isinstance(shape, Plane):
        normal = turn @ shape.normal
        return Plane(tuple(normal), float(shape.offset + normal @ shift))
    if isinstance(shape, Sphere):
        return Sphere(tuple(turn @ shape.centre + shift), shape.radius)
    return Box(pose @ shape.camera_from_box, shape.size)


def seen_from(pose, *shapes, own=DEPTH, given=True, noise=None):
    """What a depth camera at `pose` in color's frame measures of shapes in color's frame."""
    metres = render(own, *(moved(shape, np.linalg.inv(pose)) for shape in shapes))
    if noise is not None:
        metres = 1 / (1 / metres + noise.normal(0, PARAMETERS.depth_noise, metres.shape))
    return DepthImage(metres.astype(np.float32), "32FC1", own if given else None, pose)


def lift(pixels, depth, color=COLOR, parameters=None):
    return lift_points(pixels, depth, color, IDENTITY, parameters)


def truth(pixels, *shapes, color=COLOR):
    """Exact positions (N, 3) of what color sees at pixels (N, 2)."""
    rays = np.column_stack([color.rays(np.asarray(pixels, float)), np.ones(len(pixels))])
    return rays * np.min([shape.depth(rays) for shape in shapes], axis=0)[:, None]


def pixels_of(points, color=COLOR):
    points = np.asarray(points, float)
    return color.project(points[:, :2] / points[:, 2:])


def tilted(degrees, about="x", distance=0.8):
    normal = Rotation.from_euler(about, degrees, degrees=True).apply([0.0, 0.0, -1.0])
    return Plane(tuple(normal), float(normal[2] * distance)), normal


def angle(lifted, normal):
    z = Rotation.from_quat(lifted.orientation).apply([0, 0, 1])
    return np.degrees(np.arccos(np.clip(z @ normal, -1, 1)))


WALL = Plane((0.0, 0.0, 1.0), 1.0)
MIDDLE = np.random.default_rng(0).uniform((560, 280), (720, 440), (20, 2))


class TestPosition:
    @pytest.mark.parametrize("name", POSES)
    @pytest.mark.parametrize(("degrees", "about"), [(0, "x"), (40, "x"), (-35, "y"), (25, "y")])
    def test_is_on_a_plane_and_so_is_the_normal(self, name, degrees, about):
        plane, normal = tilted(degrees, about)
        depth = seen_from(POSES[name], plane)
        for lifted, exact in zip(lift(MIDDLE, depth), truth(MIDDLE, plane), strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=5e-5)
            assert lifted.depth == pytest.approx(exact[2], abs=5e-5)
            assert lifted.has_normal and angle(lifted, normal) < 0.1

    @pytest.mark.parametrize("name", POSES)
    def test_is_on_a_sphere(self, name):
        ball = Sphere((0.02, -0.01, 0.75), 0.1)
        pixels = pixels_of([[0.02, -0.01, 0.65], [0.04, 0.01, 0.66], [0.0, -0.03, 0.66]])
        for lifted in lift(pixels, seen_from(POSES[name], ball, WALL)):
            off = np.linalg.norm(lifted.position - ball.centre) - ball.radius
            assert abs(off) < 1e-3

    @pytest.mark.parametrize("name", POSES)
    def test_is_as_good_as_millimetres_allow(self, name):
        # Not along rows or columns, so that rounding is as good as random.
        normal = np.array([0.31, -0.45, -1.0]) / np.linalg.norm([0.31, -0.45, -1.0])
        plane = Plane(tuple(normal), -0.7)
        metres = seen_from(POSES[name], plane)
        millimetres = np.rint(np.nan_to_num(metres.array) * 1000).astype(np.uint16)
        depth = DepthImage(millimetres, "16UC1", DEPTH, POSES[name])
        for lifted, exact in zip(lift(MIDDLE, depth), truth(MIDDLE, plane), strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=5e-4)
            assert angle(lifted, normal) < 1.5

    @pytest.mark.parametrize("own", [camera(320, 240, 200.0), camera(1280, 720, 640.0)])
    @pytest.mark.parametrize("name", POSES)
    def test_doesnt_depend_on_the_resolution(self, name, own):
        plane, normal = tilted(35)
        for lifted, exact in zip(
            lift(MIDDLE, seen_from(POSES[name], plane, own=own)), truth(MIDDLE, plane), strict=True
        ):
            np.testing.assert_allclose(lifted.position, exact, atol=1e-4)
            assert angle(lifted, normal) < 0.2

    def test_of_a_depth_camera_finer_than_color(self):
        color = camera(320, 240, 230.0)
        plane, _ = tilted(35)
        pixels = [(150, 110), (200, 140)]
        for lifted, exact in zip(
            lift(pixels, seen_from(POSES["75 mm"], plane), color),
            truth(pixels, plane, color=color),
            strict=True,
        ):
            np.testing.assert_allclose(lifted.position, exact, atol=1e-4)

    @pytest.mark.parametrize("model", LENSES)
    @pytest.mark.parametrize("name", ["15 mm", "30 degrees", "on its side"])
    @pytest.mark.parametrize("whose", ["color", "depth", "both"])
    def test_through_lenses(self, name, model, whose):
        plane, normal = tilted(30)
        color = camera() if whose == "depth" else lens(model)
        own = camera() if whose == "color" else lens(model)
        points = np.array([[x, y, 0.0] for x in (-0.15, 0.1) for y in (-0.1, 0.15)])
        points[:, 2] = (plane.offset - points[:, :2] @ plane.normal[:2]) / plane.normal[2]
        pixels = pixels_of(points, color)
        depth = seen_from(POSES[name], plane, own=own)
        for lifted, exact in zip(lift(pixels, depth, color), points, strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=1e-4)
            assert angle(lifted, normal) < 0.3

    @pytest.mark.parametrize("size", [(1280, 720), (640, 360), (320, 240)])
    def test_of_the_same_camera_before_it_moved(self, size):
        """Without own intrinsics those of color hold, at the depth image's size."""
        plane, normal = tilted(35)
        pose = rigid(Rotation.from_euler("xyz", [2, -3, 1], degrees=True), (0.02, -0.01, 0.03))
        depth = seen_from(pose, plane, own=COLOR.scaled(*size), given=False)
        for lifted, exact in zip(lift(MIDDLE, depth), truth(MIDDLE, plane), strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=1e-4)
            assert angle(lifted, normal) < 0.2

    @pytest.mark.parametrize("signs", [(-1, 1), (-1, -1)])
    @pytest.mark.parametrize("whose", ["color", "depth"])
    def test_of_flipped_images(self, whose, signs):
        plane, normal = tilted(30)
        cameras = {"color": COLOR, "depth": DEPTH}
        flipped = cameras[whose].matrix.copy()
        flipped[[0, 1], [0, 1]] *= signs
        size = (cameras[whose].width, cameras[whose].height)
        cameras[whose] = Intrinsics(*size, flipped, np.empty(0))
        color, depth = cameras["color"], seen_from(POSES["75 mm"], plane, own=cameras["depth"])
        for lifted, exact in zip(
            lift(MIDDLE, depth, color), truth(MIDDLE, plane, color=color), strict=True
        ):
            np.testing.assert_allclose(lifted.position, exact, atol=5e-5)
            assert angle(lifted, normal) < 0.1

    def test_of_arrays_as_messages_hold_them(self):
        """Rows with padding, and the byte order of another machine."""
        plane, _ = tilted(30)
        depth = seen_from(POSES["15 mm"], plane)
        padded = np.zeros((480, 860), np.float32)
        padded[:, :848] = depth.array
        swapped = depth.array.astype(">f4")
        for array in (padded[:, :848], swapped):
            same = DepthImage(array, "32FC1", DEPTH, POSES["15 mm"])
            for here, there in zip(lift(MIDDLE, depth), lift(MIDDLE, same), strict=True):
                np.testing.assert_array_equal(here.position, there.position)

    def test_needs_no_least_depth(self):
        plane, _ = tilted(30)
        depth = seen_from(POSES["15 mm"], plane)
        found = lift(MIDDLE[:3], depth, parameters=LiftParameters(min_depth=0.0))
        for lifted, exact in zip(found, truth(MIDDLE[:3], plane), strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=5e-5)

    def test_moves_with_the_target_frame(self):
        plane, _ = tilted(35)
        depth = seen_from(POSES["30 degrees"], plane)
        target = rigid(Rotation.from_rotvec([0.3, -1, 2]), (1, 2, 3))
        for here, there in zip(
            lift(MIDDLE, depth), lift_points(MIDDLE, depth, COLOR, target), strict=True
        ):
            np.testing.assert_allclose(
                there.position, target[:3, :3] @ here.position + target[:3, 3], atol=1e-9
            )
            assert there.depth == here.depth

    def test_of_no_baseline_is_that_of_registered_depth(self):
        metres = seen_from(IDENTITY, tilted(30)[0], own=COLOR.scaled(640, 360), given=False)
        plain = DepthImage(metres.array, "32FC1")
        for here, there in zip(lift(MIDDLE, plain), lift(MIDDLE, metres), strict=True):
            np.testing.assert_allclose(here.position, there.position, atol=2e-5)


class TestNoise:
    @pytest.mark.parametrize("name", ["15 mm", "75 mm", "30 degrees"])
    @pytest.mark.parametrize("distance", [0.6, 2.0])
    def test_doesnt_pull_surfaces_towards_the_camera(self, name, distance):
        plane, _ = tilted(20, distance=distance)
        depth = seen_from(POSES[name], plane, noise=np.random.default_rng(1))
        box = np.array([[540.0, 260, 740, 460]])
        near, _ = register_depth(depth, COLOR, box, PARAMETERS)
        exact = render(near.intrinsics(COLOR), plane)
        # Across the line of sight nothing is random: compare where noise is, in inverse depth.
        errors = 1 / near.array.astype(float) - 1 / exact
        known = np.isfinite(errors)
        assert known.sum() > 5000
        assert abs(errors[known].mean()) < 0.1 * PARAMETERS.depth_noise
        assert errors[known].std() < 1.3 * PARAMETERS.depth_noise

    @pytest.mark.parametrize("name", ["15 mm", "75 mm", "30 degrees"])
    def test_leaves_the_fit_its_best_guess(self, name):
        plane, normal = tilted(30)
        lifted = lift(MIDDLE, seen_from(POSES[name], plane, noise=np.random.default_rng(2)))
        errors = [abs(p.depth - z) for p, z in zip(lifted, truth(MIDDLE, plane)[:, 2])]
        assert np.median(errors) < 6e-4 and max(errors) < 2.5e-3  # one depth pixel: 1.6 mm
        assert np.median([angle(p, normal) for p in lifted]) < 5


BLOCK = Box(rigid(Rotation.identity(), (0.0, 0.0, 0.65)), (0.2, 0.2, 0.1))  # its front at 0.6 m
EDGE = pixels_of([[0.1, 0.0, 0.6]])[0, 0]  # the block's right edge in color


class TestOcclusion:
    """A block before a wall, 1 m away; a depth camera at the right sees what is behind its right
    edge in color, one at the left doesn't.
    """

    LEFT, RIGHT = (rigid(Rotation.identity(), (x, 0, 0)) for x in (-0.075, 0.075))
    BACK = rigid(Rotation.identity(), (0.0, 0.0, -0.2))

    @pytest.mark.parametrize("pose", [LEFT, RIGHT, aside(30), aside(-30)])
    def test_each_pixel_is_of_what_color_sees(self, pose):
        edges = pixels_of([[-0.1, 0.0, 0.6], [0.1, 0.0, 0.6]])[:, 0]
        columns = [x for x in range(400, 900, 3) if np.abs(x - edges).min() > 4]  # two cells
        pixels = np.array([[x, y] for x in columns for y in (300, 357, 420)])
        exact = truth(pixels, BLOCK, WALL)[:, 2]
        answers = 0
        for lifted, z in zip(lift(pixels, seen_from(pose, BLOCK, WALL)), exact, strict=True):
            if lifted.status is LiftStatus.OK:
                assert lifted.depth == pytest.approx(z, abs=1e-3)
                answers += 1
        assert answers > 0.75 * len(pixels)

    def test_the_foreground_hides_a_wall_that_the_depth_camera_sees(self):
        """From the right the depth camera sees the wall where color sees the block's right part:
        the wall's points there must not shine through.
        """
        pixels = [(EDGE - x, 360 + y) for x in (4, 10, 30, 60) for y in (-50, 0, 50)]
        for lifted in lift(pixels, seen_from(self.RIGHT, BLOCK, WALL)):
            assert lifted.depth == pytest.approx(0.6, abs=1e-4)

    @pytest.mark.slow
    def test_a_coarse_foreground_has_no_cracks(self):
        """Color is three times as near to the block as the depth camera is."""
        color, own = camera(640, 480, 600.0), camera(640, 480, 600.0)
        pose = rigid(Rotation.from_euler("y", 12, degrees=True), (-0.25, 0.0, -1.2))
        depth = seen_from(pose, BLOCK, WALL, own=own)
        near, _ = register_depth(depth, color, np.array([[0, 0, 640, 480.0]]), PARAMETERS)
        ray = all_rays(color)[..., :2] * 0.6
        inside = (np.abs(ray) < 0.09).all(axis=-1)
        np.testing.assert_allclose(near.array[inside], 0.6, atol=1e-3)

    def test_what_the_depth_camera_cant_see_is_a_hole(self):
        """From the left the block hides a strip of the wall, 0.05 m wide, that color sees."""
        depth = seen_from(self.LEFT, BLOCK, WALL)
        # Of the wall color sees x > 0.1 / 0.6 m, the depth camera what is right of the line from
        # (-0.075, 0) through the block's edge (0.1, 0.6), that is x > 0.2167 m.
        hidden = pixels_of([[x, y, 1.0] for x in (0.18, 0.19, 0.2) for y in (-0.1, 0.0, 0.1)])
        box = np.array([[*hidden.min(axis=0), *hidden.max(axis=0)]])
        near, _ = register_depth(depth, COLOR, box + [-60, -20, 60, 20], PARAMETERS)
        cells = np.rint(near.intrinsics(COLOR).project(COLOR.rays(hidden))).astype(int)
        assert np.isnan(near.array[cells[:, 1], cells[:, 0]]).all()
        for lifted in lift(hidden, depth):
            assert lifted.status is LiftStatus.DEPTH_HOLE or lifted.depth > 0.98

    def test_a_wall_pixel_isnt_the_blocks_however_near(self):
        """Where a hole begins, the nearest surface in the image is the block; it can't be there."""
        depth = seen_from(self.LEFT, BLOCK, WALL)
        for lifted in lift([(EDGE + x, 360 + y) for x in range(6, 60, 2) for y in (-9, 8)], depth):
            assert lifted.status is LiftStatus.DEPTH_HOLE or lifted.depth > 0.98

    @pytest.mark.parametrize("color", [COLOR, camera(320, 240, 230.0)])
    @pytest.mark.parametrize("pose", [LEFT, RIGHT, IDENTITY, BACK])
    def test_edges_are_where_they_were(self, color, pose):
        """Slanted, so that they pass through cells everywhere. Neither surface grows over the other
        by a cell, nor by half of one on average.
        """
        turn = Rotation.from_euler("z", 7, degrees=True)
        block = Box(rigid(turn, (0.0, 0.0, 0.65)), (0.2, 0.2, 0.1))
        depth = seen_from(pose, block, WALL)
        near, _ = register_depth(depth, color, np.array([[0.0, 0, 1280, 720]]), PARAMETERS)
        grid = near.intrinsics(color)
        front = all_rays(grid)[..., :2] * 0.6 @ turn.as_matrix()[:2, :2]
        outside = (np.abs(front).max(axis=-1) - 0.1) * grid.focal / 0.6  # cells
        grown = (np.abs(near.array - 0.6) < 0.05) & (outside > 0)
        shrunk = (np.abs(near.array - 1.0) < 0.05) & (outside < 0)
        assert (np.abs(outside[grown | shrunk]) < 0.7).all()
        assert (grown | shrunk).sum() < 0.17 * (np.abs(outside) < 1).sum()

    def test_nothing_is_seen_through_the_back_of_a_board(self):
        """The depth camera looks at one side of a board, color at the other."""
        pose = rigid(Rotation.from_euler("y", 180, degrees=True), (0.0, 0.0, 2.0))
        near, seen = register_depth(
            seen_from(pose, WALL), COLOR, np.array([[500, 300, 700, 400.0]]), PARAMETERS
        )
        assert seen.all() and np.isnan(near.array).all()


class TestRegistered:
    DEPTH = seen_from(POSES["75 mm"], WALL)

    def test_is_filled_inside_the_boxes_only(self):
        boxes = np.array([[300.0, 200, 380, 260], [700, 400, 760, 480]])
        near, seen = register_depth(self.DEPTH, COLOR, boxes, PARAMETERS)
        assert near.encoding == "32FC1" and near.array.dtype == np.float32
        assert near.color_from_depth is None
        assert seen.all()
        grid = near.intrinsics(COLOR)
        rays = all_rays(grid)[..., :2]
        pixels = COLOR.project(rays.reshape(-1, 2)).reshape(rays.shape)
        size = cell_size(self.DEPTH, COLOR)
        for margin, filled in ((-0.01, True), (size, False)):
            within = np.zeros(near.array.shape, bool)
            for box in boxes:
                within |= ((pixels >= box[:2] - margin) & (pixels <= box[2:] + margin)).all(axis=-1)
            assert np.isfinite(near.array[within]).all() if filled else True
            assert filled or np.isnan(near.array[~within]).all()

    def test_has_the_depth_cameras_resolution_but_not_more_than_colors(self):
        near, _ = register_depth(self.DEPTH, COLOR, np.empty((0, 4)), PARAMETERS)
        assert near.intrinsics(COLOR).focal == pytest.approx(DEPTH.focal, rel=2e-3)
        assert np.isnan(near.array).all()
        coarse = camera(640, 480, 300.0)
        near, _ = register_depth(self.DEPTH, coarse, np.empty((0, 4)), PARAMETERS)
        assert near.intrinsics(coarse) is coarse and cell_size(self.DEPTH, coarse) == 1

    def test_says_what_the_depth_camera_can_see(self):
        """75 mm to the left and 480 pixels high, it sees less than color at the right and, at
        0.1 m, at the left too; f_color * 75 mm / 0.1 m are 686 pixels.
        """
        narrow = camera(200, 120, 425.0)
        pose = rigid(Rotation.identity(), (-0.075, 0, 0))
        depth = seen_from(pose, WALL, own=narrow)
        boxes = np.array(
            [
                [630, 350, 640, 360],  # straight ahead, when far enough away
                [100, 350, 110, 360],  # only when very near
                [1000, 350, 1010, 360],  # never: it would have to be behind the camera
                [630, 10, 640, 20],  # never: too high
                [-50, -50, -10, -10],  # outside color
                [np.nan, 0, 5, 5],
            ],
            float,
        )
        _, seen = register_depth(depth, COLOR, boxes, PARAMETERS)
        np.testing.assert_array_equal(seen, [True, True, False, False, False, False])
        far_only = LiftParameters(min_depth=2.0)
        _, seen = register_depth(depth, COLOR, boxes, far_only)
        np.testing.assert_array_equal(seen, [True, False, False, False, False, False])

    def test_ignores_where_the_driver_left_holes(self):
        array = self.DEPTH.array.copy()
        array[:, ::3] = [[np.nan, -1.0, np.inf, 0.0][i % 4] for i in range(len(array[0, ::3]))]
        depth = DepthImage(array, "32FC1", DEPTH, POSES["75 mm"])
        near, _ = register_depth(depth, COLOR, np.array([[500.0, 300, 700, 400]]), PARAMETERS)
        np.testing.assert_allclose(near.array[np.isfinite(near.array)], 1.0, atol=1e-4)
        assert np.isfinite(near.array).sum() > 3000

    @pytest.mark.slow
    def test_converts_no_more_than_it_must(self):
        """As an array of metres this image would take 160 GB."""
        vast = np.broadcast_to(np.array(900, np.uint16), (60_000, 60_000))
        own = Intrinsics(
            60_000, 60_000, np.array([[6e4, 0, 3e4], [0, 6e4, 3e4], [0, 0, 1]]), np.empty(0)
        )
        depth = DepthImage(vast, "16UC1", own, rigid(Rotation.identity(), (1e-4, 0, 0)))
        lifted = lift([(640, 360)], depth)[0]
        assert lifted.depth == pytest.approx(0.9, abs=1e-5)

    @pytest.mark.parametrize("wrong", [np.eye(3), np.full((4, 4), np.nan), np.diag([2.0, 1, 1, 1])])
    def test_refuses_a_pose_that_isnt_rigid(self, wrong):
        depth = DepthImage(self.DEPTH.array, "32FC1", DEPTH, wrong)
        with pytest.raises(ValueError, match="rigid"):
            register_depth(depth, COLOR, np.array([[0.0, 0, 9, 9]]), PARAMETERS)


class TestVisibility:
    def test_knows_free_space_from_what_is_hidden(self):
        depth = seen_from(POSES["30 degrees"], BLOCK, WALL)
        points = np.array(
            [
                [0.0, 0.0, 0.6],  # on the block
                [0.0, 0.0, 0.65],  # inside it
                [0.3, 0.0, 0.6],  # in the air before the wall
                [0.3, 0.0, 1.0],  # on the wall
                [9.0, 0.0, 1.0],  # outside the view
                [np.nan, 0, 1],
            ]
        )
        inside, is_free = check_visibility(points, depth, COLOR, PARAMETERS)
        np.testing.assert_array_equal(inside, [True, True, True, True, False, False])
        np.testing.assert_array_equal(is_free, [False, False, True, False, False, False])


class TestStatus:
    def test_outside_the_depth_cameras_view(self):
        narrow = camera(200, 120, 425.0)
        depth = seen_from(POSES["15 mm"], WALL, own=narrow)
        inside, right, high = lift([(640, 360), (1200, 360), (640, 20)], depth)
        assert inside.status is LiftStatus.OK
        assert right.status is high.status is LiftStatus.OUTSIDE_DEPTH_VIEW

    def test_just_outside_it_isnt_guessed(self):
        """The surface could be carried on by some pixels, but the depth camera never saw it. At
        0.1 m it would see those pixels, so that farther out it is a hole.
        """
        narrow = camera(200, 120, 425.0)
        depth = seen_from(POSES["15 mm"], WALL, own=narrow)
        rays = (np.array([[199.5 + x, 60.0] for x in (-3, 0, 3, 6, 9)]) - narrow.matrix[:2, 2]) / [
            narrow.matrix[0, 0],
            narrow.matrix[1, 1],
        ]
        pixels = COLOR.project(rays + [0.015, 0.0])
        ok, outside = LiftStatus.OK, LiftStatus.OUTSIDE_DEPTH_VIEW
        found = [p.status for p in lift(pixels, depth)]
        assert found == [ok, ok, outside, outside, LiftStatus.DEPTH_HOLE]

    @pytest.mark.parametrize(
        "pixel", [(-30, 100), (100, 783), (np.nan, 1), (1, np.inf), (1e300, 1)]
    )
    def test_outside_color(self, pixel):
        lifted = lift([pixel], seen_from(POSES["15 mm"], WALL))[0]
        assert (lifted.status, lifted.position) == (LiftStatus.OUTSIDE_DEPTH_VIEW, None)

    def test_hole(self):
        metres = seen_from(POSES["15 mm"], WALL)
        metres.array[200:280, 300:520] = np.nan
        lifted = lift([(640, 360)], metres)[0]
        assert (lifted.status, lifted.position) == (LiftStatus.DEPTH_HOLE, None)

    def test_a_small_hole_is_bridged_by_a_larger_patch(self):
        plane, _ = tilted(30)
        depth = seen_from(POSES["15 mm"], plane)
        # Where color's (640, 360) is: 15 mm at 0.8 m are 8 depth pixels.
        depth.array[237:250, 408:421] = np.nan
        pixels = np.array([[640.0, 360.0], [640.0, 200.0]])
        for lifted, exact in zip(lift(pixels, depth), truth(pixels, plane), strict=True):
            np.testing.assert_allclose(lifted.position, exact, atol=2e-4)

    @pytest.mark.parametrize("limits", [(1.1, 5.0), (0.1, 0.9)])
    def test_out_of_range(self, limits):
        depth = seen_from(POSES["15 mm"], WALL)
        lifted = lift([(640, 360)], depth, parameters=LiftParameters(*limits))[0]
        assert lifted.status in (LiftStatus.OUT_OF_RANGE, LiftStatus.DEPTH_HOLE)
        assert lifted.position is None

    def test_farther_than_the_range_isnt_a_hole(self):
        far = Plane((0.0, 0.0, 1.0), 14.0)
        lifted = lift([(640, 360)], seen_from(POSES["75 mm"], far))[0]
        assert lifted.status is LiftStatus.OUT_OF_RANGE

    def test_no_transform_keeps_depth(self):
        depth = seen_from(POSES["15 mm"], WALL)
        lifted = lift_points([(640, 360)], depth, COLOR, None)[0]
        assert lifted.status is LiftStatus.NO_TRANSFORM
        assert lifted.depth == pytest.approx(1.0, abs=1e-4)

    def test_nothing_asked_is_nothing_answered(self):
        depth = seen_from(POSES["15 mm"], WALL)
        assert lift(np.empty((0, 2)), depth) == []
        assert lift_boxes(np.empty((0, 4)), depth, COLOR, IDENTITY) == []

    def test_a_failure_leaves_the_others_alone(self):
        pixels = [(-90, 0), (640, 360), (0, 9999), (600, 300)]
        outside, ok = LiftStatus.OUTSIDE_DEPTH_VIEW, LiftStatus.OK
        found = lift(pixels, seen_from(POSES["15 mm"], WALL))
        assert [p.status for p in found] == [outside, ok, outside, ok]


# A camera 0.5 m above a table, 0.7 m from its middle, that looks down at 35 degrees.
WORLD = rigid(
    Rotation.from_matrix([[1, 0, 0], [0, 0, 1], [0, -1, 0]])
    * Rotation.from_euler("x", -35, degrees=True),
    (0.0, -0.7, 0.5),
)
TABLE = table_seen_from(WORLD)


class TestBoxes:
    @pytest.mark.parametrize("name", POSES)
    def test_hold_the_object_without_the_table(self, name):
        size = (0.06, 0.06, 0.12)
        block = Box(np.linalg.inv(WORLD) @ rigid(Rotation.identity(), (0.05, 0.02, 0.06)), size)
        rays = all_rays(COLOR)
        exact = render(COLOR, TABLE, block)
        rows, columns = np.nonzero(block.depth(rays) == exact)
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        points = (rays * exact[..., None])[rows, columns] @ WORLD[:3, :3].T + WORLD[:3, 3]
        region = lift_boxes([box], seen_from(POSES[name], TABLE, block), COLOR, WORLD)[0]
        assert region.status is LiftStatus.OK and region.has_normal
        # From the side a part of what color sees isn't in the depth.
        tolerance = 0.006 if name in ("15 mm", "75 mm", "nearer", "farther") else 0.03
        low, high = points.min(axis=0), points.max(axis=0)
        np.testing.assert_allclose(region.centre, (low + high) / 2, atol=tolerance)
        np.testing.assert_allclose(region.size, high - low, atol=2 * tolerance)
        assert np.linalg.norm(points - region.position, axis=1).min() < 0.003

    def test_have_their_status(self):
        narrow = camera(300, 200, 425.0)
        depth = seen_from(POSES["15 mm"], WALL, own=narrow)
        boxes = [(600, 320, 680, 400), (10, 10, 60, 60), (-90, 10, -20, 60), (np.nan, 1, 5, 5)]
        ok, outside = LiftStatus.OK, LiftStatus.OUTSIDE_DEPTH_VIEW
        found = lift_boxes(boxes, depth, COLOR, IDENTITY)
        assert [r.status for r in found] == [ok, outside, outside, outside]
        np.testing.assert_allclose(found[0].centre[2], 1.0, atol=1e-4)
        np.testing.assert_array_equal(found[1].pixel, [34.5, 34.5])

    @pytest.mark.parametrize(
        "box", [(0, 0, 1280, 720), (640, 360, 640, 360), (720, 400, 600, 300), (0, 300, 1280, 301)]
    )
    def test_of_any_shape_lie_on_what_they_show(self, box):
        region = lift_boxes([box], seen_from(POSES["75 mm"], WALL), COLOR, IDENTITY)[0]
        assert region.status is LiftStatus.OK
        np.testing.assert_allclose(region.position[2], 1.0, atol=1e-4)
        assert region.size[2] < 1e-3


SMALL_COLOR, SMALL_DEPTH = camera(160, 120, 130.0), camera(120, 90, 90.0)
FISHEYE = Intrinsics(
    120,
    90,
    np.array([[50.0, 0, 60], [0, 50.0, 44], [0, 0, 1]]),
    np.array([0.03, 0, 0, 0]),
    "fisheye",
)
BALL = Sphere((0.05, 0.0, 0.7), 0.15)


class TestAnyPose:
    @settings(max_examples=80, deadline=None)
    @given(
        rotation=st.tuples(*[st.floats(-3.2, 3.2)] * 3),
        translation=st.tuples(*[st.floats(-1.5, 1.5)] * 3),
        own=st.sampled_from([SMALL_DEPTH, FISHEYE]),
    )
    def test_never_raises_and_never_makes_surfaces_up(self, rotation, translation, own):
        pose = rigid(Rotation.from_rotvec(rotation), translation)
        depth = seen_from(pose, BALL, WALL, own=own)
        pixels = np.random.default_rng(0).uniform((-2, -2), (162, 122), (12, 2))
        for lifted in [
            *lift(pixels, depth, SMALL_COLOR),
            *lift_boxes([(20, 20, 90, 100)], depth, SMALL_COLOR, IDENTITY),
        ]:
            if lifted.status is LiftStatus.OK:
                x, y, z = lifted.position
                off = abs(np.linalg.norm(np.array([x, y, z]) - BALL.centre) - BALL.radius)
                pixel = np.linalg.norm(lifted.position - pose[:3, 3]) / own.focal
                assert min(off, abs(z - 1.0)) < 0.01 + 3 * pixel
