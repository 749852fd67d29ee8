# SPDX-License-Identifier: Apache-2.0
"""Points of analytic scenes: what is lifted must be where geometry says that it is."""

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
    as_metres,
    as_millimetres,
    camera,
    lens,
    render,
    rigid,
)

from robobrain_ros.tf_projection import Intrinsics, LiftParameters, LiftStatus, lift_points

CAMERA = camera()
WALL = Plane((0.0, 0.0, 1.0), 1.0)
IDENTITY = np.eye(4)


def lift_one(pixel, depth, intrinsics=CAMERA, target=IDENTITY, parameters=None):
    return lift_points([pixel], depth, intrinsics, target, parameters)[0]


def axes(quaternion):
    """x, y and z axis of an orientation, as rows."""
    return Rotation.from_quat(quaternion).as_matrix().T


def angle(a, b):
    return np.degrees(np.arccos(np.clip(np.dot(a, b), -1, 1)))


def tilted(degrees, about="x", distance=0.8):
    """A plane through the optical axis at `distance`, and its normal towards the camera."""
    normal = Rotation.from_euler(about, degrees, degrees=True).apply([0.0, 0.0, -1.0])
    return Plane(tuple(normal), float(normal[2] * distance)), normal


class TestPosition:
    @pytest.mark.parametrize("about", ["x", "y"])
    @pytest.mark.parametrize("degrees", [0, 25, -50, 70])
    def test_is_on_a_tilted_plane_and_so_is_the_normal(self, degrees, about):
        plane, normal = tilted(degrees, about)
        pixels = np.random.default_rng(1).uniform((250, 180), (390, 300), (20, 2))
        for lifted in lift_points(pixels, as_metres(render(CAMERA, plane)), CAMERA, IDENTITY):
            ray = np.append(CAMERA.rays(lifted.pixel[None])[0], 1)
            exact = ray * plane.depth(ray)
            np.testing.assert_allclose(lifted.position, exact, atol=5e-5)
            assert angle(axes(lifted.orientation)[2], normal) < 0.1
            assert lifted.depth == pytest.approx(exact[2], abs=5e-5)
            assert lifted.has_normal and lifted.valid_fraction == 1 and lifted.spread < 1e-5

    def test_is_on_a_sphere(self):
        ball = Sphere((0.05, -0.02, 0.7), 0.04)
        depth = as_metres(render(CAMERA, ball, WALL))
        pixels = CAMERA.project(np.array([[0.05, -0.02], [0.07, -0.02], [0.05, 0.01]]) / 0.7)
        for lifted in lift_points(pixels, depth, CAMERA, IDENTITY):
            outward = lifted.position - ball.centre
            assert np.linalg.norm(outward) == pytest.approx(ball.radius, abs=1e-3)
            assert angle(axes(lifted.orientation)[2], outward / np.linalg.norm(outward)) < 12
        front = lift_one(pixels[0], depth)
        assert (
            angle(axes(front.orientation)[2], -front.position / np.linalg.norm(front.position)) < 2
        )

    def test_is_the_sensors_best_guess_under_noise(self):
        plane, normal = tilted(40)
        noise = np.random.default_rng(2).normal(0, 0.0025, (480, 640))
        depth = as_metres(1 / (1 / render(CAMERA, plane) + noise))
        pixels = np.random.default_rng(3).uniform((200, 150), (440, 330), (100, 2))
        lifted = lift_points(pixels, depth, CAMERA, IDENTITY)
        rays = np.column_stack([CAMERA.rays(pixels), np.ones(100)])
        errors = [abs(p.depth - z) for p, z in zip(lifted, plane.depth(rays), strict=True)]
        assert np.median(errors) < 5e-4 and max(errors) < 3e-3  # one pixel: sigma 1.6 mm
        assert np.median([angle(axes(p.orientation)[2], normal) for p in lifted]) < 3
        assert 0.8e-3 < np.median([p.spread for p in lifted]) < 3e-3

    @settings(max_examples=30, deadline=None)
    @given(
        rotation=st.tuples(*[st.floats(-3, 3)] * 3),
        translation=st.tuples(*[st.floats(-5, 5)] * 3),
    )
    def test_moves_with_the_target_frame(self, rotation, translation):
        target = rigid(Rotation.from_rotvec(rotation), translation)
        depth = as_metres(CORNER)
        here, there = lift_one((330, 200), depth), lift_one((330, 200), depth, target=target)
        turn = target[:3, :3]
        np.testing.assert_allclose(there.position, turn @ here.position + translation, atol=1e-9)
        np.testing.assert_allclose(
            axes(there.orientation), axes(here.orientation) @ turn.T, atol=1e-7
        )
        np.testing.assert_allclose(
            there.covariance, turn @ here.covariance @ turn.T, rtol=1e-6, atol=1e-15
        )

    @pytest.mark.parametrize("model", LENSES)
    def test_of_known_points_seen_through_a_lens(self, model):
        intrinsics = lens(model)
        plane, normal = tilted(30)
        depth = as_metres(render(intrinsics, plane))
        points = np.array([[x, y, 1.0] for x in (-0.35, 0.1, 0.4) for y in (-0.3, 0.0, 0.25)])
        points *= plane.depth(points)[:, None]
        pixels = intrinsics.project(points[:, :2] / points[:, 2:])
        for lifted, exact in zip(
            lift_points(pixels, depth, intrinsics, IDENTITY), points, strict=True
        ):
            np.testing.assert_allclose(lifted.position, exact, atol=5e-5)
            assert angle(axes(lifted.orientation)[2], normal) < 0.1

    def test_is_the_same_in_both_encodings(self):
        pixels = [(300.4, 200.7), (250, 300), (500, 400)]
        depth = render(CAMERA, tilted(35)[0])
        for metres, millimetres in zip(
            lift_points(pixels, as_metres(depth), CAMERA, IDENTITY),
            lift_points(pixels, as_millimetres(depth), CAMERA, IDENTITY),
            strict=True,
        ):
            np.testing.assert_allclose(metres.position, millimetres.position, atol=3e-4)
            assert angle(axes(metres.orientation)[2], axes(millimetres.orientation)[2]) < 1.5

    def test_keeps_the_order_of_many_points(self):
        pixels = np.random.default_rng(4).uniform((20, 20), (620, 460), (1100, 2))
        lifted = lift_points(pixels, as_metres(render(CAMERA, WALL)), CAMERA, IDENTITY)
        np.testing.assert_array_equal([p.pixel for p in lifted], pixels)
        np.testing.assert_allclose([p.position[:2] for p in lifted], CAMERA.rays(pixels), atol=1e-5)


class TestDepthOfAnotherSize:
    @pytest.mark.parametrize("size", [(320, 240), (640, 240), (1280, 960), (848, 480)])
    @pytest.mark.parametrize("given_own", [False, True])
    def test_is_scaled_per_axis(self, size, given_own):
        own = CAMERA.scaled(*size)
        plane, _ = tilted(40)
        depth = as_metres(render(own, plane), own if given_own else None)
        for lifted in lift_points([(300.3, 180.8), (20, 30)], depth, CAMERA, IDENTITY):
            ray = np.append(CAMERA.rays(lifted.pixel[None])[0], 1)
            np.testing.assert_allclose(lifted.position, ray * plane.depth(ray), atol=1e-4)

    def test_own_intrinsics_hold_where_the_depth_sees_less(self):
        own = Intrinsics(
            320, 240, np.array([[500.0, 0, 160], [0, 500, 120], [0, 0, 1]]), np.empty(0)
        )
        depth = as_metres(render(own, tilted(40)[0]), own)
        inside, outside = lift_points([(330, 250), (20, 250)], depth, CAMERA, IDENTITY)
        ray = np.append(CAMERA.rays(np.array([[330.0, 250.0]]))[0], 1)
        np.testing.assert_allclose(inside.position, ray * tilted(40)[0].depth(ray), atol=1e-4)
        assert outside.status is LiftStatus.OUTSIDE_DEPTH_VIEW

    def test_own_intrinsics_of_another_size_are_scaled(self):
        own = CAMERA.scaled(1280, 960)
        depth = as_metres(render(CAMERA.scaled(320, 240), WALL), own)
        lifted = lift_one((100, 100), depth)
        np.testing.assert_allclose(
            lifted.position, [*CAMERA.rays(np.array([[100.0, 100.0]]))[0], 1], atol=1e-5
        )


# A cube's edge towards the camera, 0.5 m away, before a wall.
CORNER = render(
    CAMERA, WALL, Box(rigid(Rotation.from_euler("y", 45, degrees=True), (0, 0, 0.6)), (0.2,) * 3)
)


class TestSurface:
    @pytest.mark.parametrize("inwards", [0, 1, 2, 4, -1, -2, -4])
    def test_at_an_edge_is_the_pixels_own(self, inwards):
        # The box's right edge lies between columns 399 and 400.
        front = Box(rigid(Rotation.identity(), (0, 0, 0.75)), (1.0, 1.0, 0.1))
        depth = np.where(np.arange(640) < 400, render(CAMERA, front), 1.0)
        lifted = lift_one((399 - inwards, 240), as_metres(depth))
        assert lifted.depth == pytest.approx(0.7 if inwards >= 0 else 1.0, abs=1e-4)
        assert lifted.has_normal and angle(axes(lifted.orientation)[2], (0, 0, -1)) < 0.1

    def test_isnt_a_flying_pixel(self):
        depth = np.where(np.arange(640) < 400, 0.7, 1.0) * np.ones((480, 1))
        depth[:, 400] = np.random.default_rng(5).uniform(0.75, 0.95, 480)
        for lifted in lift_points([(400, 100), (400, 200)], as_metres(depth), CAMERA, IDENTITY):
            assert lifted.depth == pytest.approx(0.7, abs=1e-3)

    def test_may_be_thin(self):
        depth = np.full((480, 640), 1.0)
        depth[:, 300:302] = 0.6
        lifted = lift_one((300, 240), as_metres(depth))
        assert lifted.depth == pytest.approx(0.6, abs=1e-4)

    def test_of_a_line_has_no_normal(self):
        depth = np.full((480, 640), np.nan)
        depth[240] = 0.6
        lifted = lift_one((300, 240), as_metres(depth), parameters=LiftParameters())
        assert lifted.status is LiftStatus.OK and not lifted.has_normal
        np.testing.assert_array_equal(lifted.orientation, [0, 0, 0, 1])
        assert lifted.depth == pytest.approx(0.6, abs=1e-4)

    @pytest.mark.parametrize("column", [-4, -2, 2, 4])
    def test_at_a_crease_is_the_centres_side(self, column):
        centre = CAMERA.matrix[0, 2]
        lifted = lift_one((round(centre) + column, 240), as_metres(CORNER))
        normal = np.array([np.sign(column), 0, -1]) / np.sqrt(2)
        assert lifted.depth == pytest.approx(CORNER[240, round(centre) + column], abs=1e-3)
        assert angle(axes(lifted.orientation)[2], normal) < 12

    def test_at_the_images_corner_uses_what_is_there(self):
        depth = as_metres(render(CAMERA, WALL))
        for pixel in [(0, 0), (639, 479), (640, 480), (-0.4, 479.9)]:
            lifted = lift_one(pixel, depth)
            assert lifted.depth == pytest.approx(1.0, abs=1e-5) and lifted.valid_fraction == 1

    def test_beside_a_hole_is_what_remains(self):
        depth = render(CAMERA, WALL)
        depth[200:280, 300:303] = np.nan
        lifted = lift_one((301, 240), as_metres(depth))
        assert lifted.depth == pytest.approx(1.0, abs=1e-4)
        assert lifted.valid_fraction == pytest.approx(8 / 11)

    def test_is_looked_for_farther_away_when_holes_are_large(self):
        depth = render(CAMERA, tilted(30)[0])
        exact = depth[240, 320]
        depth[234:247, 314:327] = np.nan
        lifted = lift_one((320, 240), as_metres(depth))
        assert lifted.depth == pytest.approx(exact, abs=1e-4)
        assert lifted.valid_fraction == pytest.approx(1 - 169 / 441)

    def test_among_scattered_holes(self):
        plane, normal = tilted(30)
        depth = render(CAMERA, plane)
        depth[np.random.default_rng(6).uniform(size=depth.shape) < 0.5] = np.nan
        pixels = np.random.default_rng(7).integers((250, 180), (390, 300), (20, 2))
        for lifted in lift_points(pixels, as_metres(depth), CAMERA, IDENTITY):
            ray = np.append(CAMERA.rays(lifted.pixel[None])[0], 1)
            assert lifted.depth == pytest.approx(plane.depth(ray), abs=1e-4)
            assert angle(axes(lifted.orientation)[2], normal) < 0.5
            assert 0.3 < lifted.valid_fraction < 0.7


class TestStatus:
    DEPTH = as_metres(render(CAMERA, WALL))

    def test_no_depth_camera(self):
        lifted = lift_points([(1, 2), (3, 4)], None, None, None)
        assert [p.status for p in lifted] == [LiftStatus.NO_DEPTH_CAMERA] * 2
        np.testing.assert_array_equal(lifted[1].pixel, [3, 4])

    def test_depth_hole(self):
        depth = render(CAMERA, WALL)
        depth[200:280, 280:360] = np.nan
        lifted = lift_one((320, 240), as_metres(depth))
        assert lifted.status is LiftStatus.DEPTH_HOLE
        assert (lifted.position, lifted.depth, lifted.valid_fraction) == (None, 0, 0)

    @pytest.mark.parametrize("limits", [(1.1, 5.0), (0.1, 0.9)])
    def test_out_of_range(self, limits):
        lifted = lift_one((320, 240), self.DEPTH, parameters=LiftParameters(*limits))
        assert (lifted.status, lifted.position) == (LiftStatus.OUT_OF_RANGE, None)

    def test_out_of_range_beside_something_in_range(self):
        depth = np.where(np.arange(640) < 320, 0.7, 12.0) * np.ones((480, 1))
        depth = as_metres(depth)
        assert lift_one((321, 240), depth).status is LiftStatus.OUT_OF_RANGE
        assert lift_one((318, 240), depth).status is LiftStatus.OK

    @pytest.mark.parametrize("pixel", [(-3, 100), (100, 483), (np.nan, 1), (1, np.inf), (1e300, 1)])
    def test_outside_depth_view(self, pixel):
        lifted = lift_one(pixel, self.DEPTH)
        assert (lifted.status, lifted.position) == (LiftStatus.OUTSIDE_DEPTH_VIEW, None)

    def test_no_transform_keeps_depth_and_quality(self):
        lifted = lift_one((320, 240), self.DEPTH, target=None)
        assert (lifted.status, lifted.position) == (LiftStatus.NO_TRANSFORM, None)
        assert lifted.depth == pytest.approx(1.0, abs=1e-5) and lifted.valid_fraction == 1
        np.testing.assert_array_equal(lifted.covariance, np.zeros((3, 3)))

    def test_a_failure_leaves_the_others_alone(self):
        lifted = lift_points([(-9, 0), (320, 240), (0, 999)], self.DEPTH, CAMERA, IDENTITY)
        outside = LiftStatus.OUTSIDE_DEPTH_VIEW
        assert [p.status for p in lifted] == [outside, LiftStatus.OK, outside]

    def test_nothing_asked_is_nothing_answered(self):
        assert lift_points(np.empty((0, 2)), self.DEPTH, CAMERA, IDENTITY) == []

    def test_wrong_arguments_are_refused(self):
        with pytest.raises(ValueError, match="shape"):
            lift_points([(1, 2, 3)], self.DEPTH, CAMERA, IDENTITY)
        with pytest.raises(ValueError, match="intrinsics"):
            lift_points([(1, 2)], self.DEPTH, None, IDENTITY)
        for matrix in (np.eye(3), np.full((4, 4), np.nan), np.diag([2.0, 1, 1, 1])):
            with pytest.raises(ValueError, match="rigid"):
                lift_points([(1, 2)], self.DEPTH, CAMERA, matrix)

    @pytest.mark.parametrize(
        "wrong",
        [
            {"min_depth": 3.0, "max_depth": 2.0},
            {"patch_radius": 0},
            {"patch_radius": 9, "max_patch_radius": 8},
            {"min_valid_fraction": 1.5},
            {"depth_noise": -1.0},
            {"depth_noise_floor": 0.0},
        ],
    )
    def test_impossible_parameters_are_refused(self, wrong):
        with pytest.raises(ValueError):
            LiftParameters(**wrong)


class TestCovariance:
    def at(self, distance, pixel=(320, 240), target=IDENTITY):
        depth = as_metres(np.full((480, 640), float(distance)))
        return lift_one(pixel, depth, target=target).covariance

    @settings(max_examples=30, deadline=None)
    @given(
        distance=st.floats(0.2, 9),
        u=st.floats(0, 639),
        rotation=st.tuples(*[st.floats(-3, 3)] * 3),
    )
    def test_is_symmetric_and_positive(self, distance, u, rotation):
        turned = rigid(Rotation.from_rotvec(rotation), (1, 2, 3))
        covariance = self.at(distance, (u, 100), turned)
        np.testing.assert_allclose(covariance, covariance.T, atol=1e-15)
        assert np.linalg.eigvalsh(covariance).min() > 0

    def test_follows_the_sensor(self):
        near, far = self.at(1), self.at(2)
        sensor = LiftParameters()
        assert near[2, 2] == pytest.approx(sensor.depth_noise**2 + sensor.depth_noise_floor**2)
        assert far[2, 2] / near[2, 2] == pytest.approx(16, rel=0.1)  # sigma ~ z^2
        assert near[0, 0] == pytest.approx((sensor.pixel_noise / 525) ** 2, rel=0.01)

    def test_is_long_along_the_ray(self):
        pixel = (600, 400)
        longest = np.linalg.eigh(self.at(3, pixel))[1][:, 2]
        ray = np.append(CAMERA.rays(np.array([pixel], float))[0], 1)
        assert abs(longest @ ray) / np.linalg.norm(ray) > 0.999

    def test_grows_with_the_spread(self):
        rough = 1 + np.random.default_rng(8).normal(0, 0.01, (480, 640))
        covariance = lift_one((320, 240), as_metres(rough)).covariance
        assert np.sqrt(covariance[2, 2]) == pytest.approx(0.01, rel=0.4)


class TestOrientation:
    @settings(max_examples=60, deadline=None)
    @given(tilt=st.floats(0, 70), azimuth=st.floats(0, 360))
    def test_z_is_the_normal_and_x_the_cameras_right(self, tilt, azimuth):
        leaning = Rotation.from_euler("x", tilt, degrees=True).apply([0, 0, -1.0])
        normal = Rotation.from_euler("z", azimuth, degrees=True).apply(leaning)
        plane = Plane(tuple(normal), float(normal[2] * 0.8))
        small = camera(64, 48, 52.5)
        lifted = lift_one((30, 25), as_metres(render(small, plane)), small)
        x, y, z = axes(lifted.orientation)
        assert angle(z, normal) < 0.1 and z @ lifted.position < 0
        np.testing.assert_allclose(np.cross(x, y), z, atol=1e-9)
        nearest = np.array([1.0, 0, 0]) - normal[0] * normal
        assert angle(x, nearest / np.linalg.norm(nearest)) < 0.5

    def test_of_a_surface_that_faces_right_has_y_up(self):
        # A wall on the left of a very wide image.
        wide = camera(640, 480, 120.0)
        depth = as_metres(render(wide, Plane((1.0, 0.0, 0.0), -0.5)))
        x, y, z = axes(lift_one((60, 240), depth, wide).orientation)
        np.testing.assert_allclose(z, (1, 0, 0), atol=1e-3)
        np.testing.assert_allclose(y, (0, -1, 0), atol=1e-3)
        np.testing.assert_allclose(np.cross(x, y), z, atol=1e-9)
