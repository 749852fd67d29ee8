# SPDX-License-Identifier: Apache-2.0
"""Policies for waypoints in 3D, against the geometry of lines in an image."""

from __future__ import annotations

import copy
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support.analytic_scene import Plane, Sphere, as_metres, camera, render, rigid

from robobrain_ros.lifting.trajectories import apply_path_height
from robobrain_ros.tf_projection import LiftedPoint, LiftStatus, PathHeight, lift_points

CAMERA = camera()
IDENTITY = np.eye(4)
MOVED = rigid(Rotation.from_euler("xyz", [2.1, -0.3, 0.7]), (0.4, -1.2, 0.9))
STRAIGHT = np.array([[100.0, 80.0], [130.0, 101.0], [250.0, 185.0], [260.0, 192.0], [500.0, 360.0]])
CURVED = np.array([[100.0, 300.0], [180.0, 150.0], [320.0, 100.0], [450.0, 170.0], [520.0, 310.0]])


def measured(ray, depth, target=IDENTITY, **changes):
    """A waypoint with a position, as lift_points would give it."""
    point = np.append(ray, 1.0) * depth
    fields = {
        "pixel": CAMERA.project(np.array([ray]))[0],
        "status": LiftStatus.OK,
        "position": target[:3, :3] @ point + target[:3, 3],
        "orientation": np.array([0.6, 0.0, 0.0, 0.8]),
        "has_normal": True,
        "depth": depth,
        "valid_fraction": 0.75,
        "spread": 0.004,
        "covariance": np.diag([1.0, 2.0, 3.0]) * 1e-6 * depth,
    }
    return LiftedPoint(**{**fields, **changes})


def hole(ray, status=LiftStatus.DEPTH_HOLE):
    nothing = {"valid_fraction": 0.0, "spread": 0.0, "covariance": np.zeros((3, 3))}
    return measured(
        ray, 0.0, status=status, position=None, orientation=np.array([0.0, 0, 0, 1]), **nothing
    )


def line(pixels, depths, target=IDENTITY):
    """Waypoints at pixels (N, 2) with depths, None for a hole, and their rays."""
    rays = CAMERA.rays(np.asarray(pixels, dtype=np.float64))
    points = [
        hole(ray) if depth is None else measured(ray, depth, target)
        for ray, depth in zip(rays, depths)
    ]
    return points, rays


def through(points, rays, policy, target=IDENTITY, clearance=0.1):
    return apply_path_height(points, rays, target, policy, clearance)


def positions(points):
    return np.array([point.position for point in points])


def assert_same(a, b):
    for field in fields(LiftedPoint):
        np.testing.assert_array_equal(getattr(a, field.name), getattr(b, field.name))


class TestInterpolate:
    @pytest.mark.parametrize("target", [IDENTITY, MOVED], ids=["camera", "moved"])
    @pytest.mark.parametrize("depths", [(0.5, 1.7), (1.7, 0.5), (0.9, 0.9)])
    def test_a_line_that_is_straight_in_the_image_is_straight_in_space(self, depths, target):
        points, rays = line(STRAIGHT, (depths[0], 2.0, None, 2.0, depths[1]), target)
        path = positions(through(points, rays, "interpolate", target))
        ends = path[-1] - path[0]
        off = np.linalg.norm(np.cross(path - path[0], ends), axis=1) / np.linalg.norm(ends)
        assert off.max() < 1e-9
        along = (path - path[0]) @ ends / (ends @ ends)
        assert (np.diff(along) > 0).all() and along[0] == 0 and along[-1] == pytest.approx(1)

    def test_depths_are_linear_in_their_inverse_along_the_drawn_line(self):
        points, rays = line(CURVED, (0.5, 2.0, 2.0, 2.0, 1.0))
        rays = np.array([[0.0, 0.0], [0.3, 0.4], [0.3, 0.9], [0.3, 0.9], [0.3, 1.4]])
        path = through(points, rays, "interpolate")
        # Lengths 0.5, 0.5, 0, 0.5 of 1.5: 1/z goes from 2 to 1 in thirds.
        expected = [0.5, 1 / (2 - 1 / 3), 1 / (2 - 2 / 3), 1 / (2 - 2 / 3), 1.0]
        np.testing.assert_allclose([point.depth for point in path], expected, rtol=1e-12)
        np.testing.assert_allclose(path[1].position, np.array([0.3, 0.4, 1]) * 0.6, rtol=1e-12)

    @pytest.mark.parametrize("target", [IDENTITY, MOVED], ids=["camera", "moved"])
    def test_a_curved_line_projects_onto_what_was_drawn(self, target):
        points, rays = line(CURVED, (0.5, 2.0, None, 2.0, 1.0), target)
        path = positions(through(points, rays, "interpolate", target))
        seen = (path - target[:3, 3]) @ target[:3, :3]  # back to the camera
        np.testing.assert_allclose(CAMERA.project(seen[:, :2] / seen[:, 2:]), CURVED, atol=1e-9)
        assert (seen[1:-1, 2] > 0.5).all() and (seen[1:-1, 2] < 1.0).all()

    def test_the_ends_stay_as_measured(self):
        points, rays = line(CURVED, (0.5, 2.0, 2.0, 2.0, 1.0))
        path = through(points, rays, "interpolate")
        assert path[0] is points[0] and path[-1] is points[-1]
        assert [point.interpolated for point in path] == [False, True, True, True, False]

    def test_what_lies_between_has_no_normal_and_says_what_was_at_its_pixel(self):
        points, rays = line(CURVED[:4], (0.5, 2.0, None, 1.0))
        points[2] = replace(points[2], status=LiftStatus.OUT_OF_RANGE, valid_fraction=0.4)
        path = through(points, rays, "interpolate")
        for point in path[1:3]:
            assert not point.has_normal and point.orientation.tolist() == [0, 0, 0, 1]
        assert [point.status.name for point in path] == ["OK", "OK", "OUT_OF_RANGE", "OK"]
        assert [point.valid_fraction for point in path] == [0.75, 0.75, 0.4, 0.75]
        assert [point.spread for point in path] == [0.004, 0.004, 0.0, 0.004]
        np.testing.assert_array_equal([point.pixel for point in path], [p.pixel for p in points])

    def test_covariances_are_those_of_a_weighted_mean_of_the_ends(self):
        points, _ = line(CURVED[:3], (0.5, 2.0, 1.0))
        rays = np.array([[0.0, 0.0], [0.1, 0.0], [0.4, 0.0]])  # a quarter of the way
        middle = through(points, rays, "interpolate")[1]
        expected = 0.75**2 * points[0].covariance + 0.25**2 * points[2].covariance
        np.testing.assert_allclose(middle.covariance, expected, rtol=1e-12)

    def test_nothing_is_put_beyond_the_measured_ends(self):
        points, rays = line(STRAIGHT, (None, 0.8, None, 1.2, None))
        path = through(points, rays, "interpolate")
        assert path[0] is points[0] and path[4] is points[4]
        assert path[1] is points[1] and path[3] is points[3]
        assert path[2].interpolated and path[2].status is LiftStatus.DEPTH_HOLE
        # Its depth is of the way between the measured ends: 120 / 130 of it in the image.
        assert 1 / path[2].depth == pytest.approx((10 / 0.8 + 120 / 1.2) / 130)

    @pytest.mark.parametrize(
        "depths", [(None, None, None), (None, 0.7, None), (0.7, None, None), (0.7, 0.8, None), ()]
    )
    def test_without_something_between_two_measured_ends_nothing_changes(self, depths):
        points, rays = line(CURVED[: len(depths)], depths)
        path = through(points, rays, "interpolate")
        assert all(after is before for after, before in zip(path, points, strict=True))

    def test_a_line_without_length_goes_by_order(self):
        points, rays = line(CURVED[[0] * 5], (0.5, None, 2.0, None, 1.0))
        path = through(points, rays, "interpolate")
        np.testing.assert_allclose([1 / point.depth for point in path], [2, 1.75, 1.5, 1.25, 1])

    def test_a_pixel_without_a_ray_stays_without_a_position(self):
        points, rays = line(CURVED[:4], (0.5, None, None, 1.0))
        rays[1] = np.nan
        points[1] = replace(points[1], status=LiftStatus.OUTSIDE_DEPTH_VIEW)
        path = through(points, rays, "interpolate")
        assert path[1] is points[1]
        assert path[2].interpolated and np.isfinite(path[2].position).all()

    def test_a_measured_one_without_a_ray_is_no_end(self):
        points, rays = line(CURVED[:4], (0.5, 2.0, 0.6, 1.0))
        rays[3] = np.nan
        path = through(points, rays, "interpolate")
        assert path[3] is points[3] and path[2] is points[2]
        assert path[1].interpolated and 0.5 < path[1].depth < 0.6

    def test_a_hand_passes_before_the_table_that_the_line_is_drawn_over(self):
        # Two balls before a wall 1.5 m away, and a line from one to the other.
        balls = Sphere((-0.3, 0.0, 0.8), 0.05), Sphere((0.3, 0.1, 1.0), 0.05)
        depth = as_metres(render(CAMERA, *balls, Plane((0.0, 0.0, 1.0), 1.5)))
        ends = np.array([ball.centre[:2] for ball in balls]) / [[0.8], [1.0]]
        rays = ends[0] + np.linspace(0, 1, 5)[:, None] * (ends[1] - ends[0])
        points = lift_points(CAMERA.project(rays), depth, CAMERA, MOVED)
        assert points[2].depth == pytest.approx(1.5, abs=1e-3)
        path = through(points, rays, "interpolate", MOVED)
        assert all(0.74 < point.depth < 1.0 for point in path)
        middle = positions(path)[[0, -1]].mean(axis=0)
        assert np.linalg.norm(path[2].position - middle) < 0.1


class TestLift:
    def test_goes_up_along_z_of_the_target_frame(self):
        points, rays = line(CURVED[:3], (0.5, None, 1.0), MOVED)
        path = through(points, rays, "lift", MOVED, clearance=0.25)
        for before, after in ((points[0], path[0]), (points[2], path[2])):
            np.testing.assert_allclose(after.position, before.position + [0, 0, 0.25])
            assert_same(replace(after, position=before.position), before)
        assert path[1] is points[1]

    def test_goes_towards_the_camera_in_the_cameras_own_frame(self):
        point = measured(np.array([0.75, 0.0]), 0.8)  # 0.6, 0, 0.8: 1 m away
        lifted = through([point], [[0.75, 0.0]], "lift", clearance=0.25)[0]
        np.testing.assert_allclose(lifted.position, [0.45, 0, 0.6])
        assert_same(replace(lifted, position=point.position), point)

    def test_a_frame_that_is_only_turned_or_only_moved_has_an_up(self):
        turned = rigid(Rotation.from_euler("z", 1e-3), (0, 0, 0))
        for target in (turned, rigid(Rotation.identity(), (0, 0, 1e-3))):
            points, rays = line(CURVED[:1], (0.5,), target)
            lifted = through(points, rays, "lift", target, clearance=0.25)[0]
            np.testing.assert_allclose(lifted.position - points[0].position, [0, 0, 0.25])

    def test_never_leads_beyond_the_camera(self):
        points, rays = line(CURVED[:1], (0.05,))
        with pytest.raises(ValueError, match="0.1 m leads beyond the camera, 0.05"):
            through(points, rays, "lift", clearance=0.1)

    def test_no_clearance_changes_nothing(self):
        points, rays = line(CURVED, (0.5, 0.6, 0.7, 0.8, 0.9))
        for point, lifted in zip(points, through(points, rays, "lift", clearance=0.0)):
            assert_same(point, lifted)


class TestArguments:
    @pytest.mark.parametrize("policy", [*PathHeight, "surface", "interpolate", "lift"])
    def test_without_a_transform_nothing_changes(self, policy):
        points, rays = line(CURVED[:3], (None, None, None))
        path = apply_path_height(points, rays, None, policy, 0.1)
        assert path is not points
        assert all(after is before for after, before in zip(path, points, strict=True))

    def test_an_unknown_policy_is_refused_with_the_choices(self):
        with pytest.raises(ValueError, match="'hover'.*'surface', 'interpolate', 'lift'"):
            through(*line(CURVED[:2], (0.5, 1.0)), "hover")

    @pytest.mark.parametrize("clearance", [-0.01, np.nan, np.inf])
    @pytest.mark.parametrize("policy", list(PathHeight))
    def test_a_clearance_that_is_no_length_is_refused(self, policy, clearance):
        with pytest.raises(ValueError, match="clearance"):
            through(*line(CURVED[:2], (0.5, 1.0)), policy, clearance=clearance)

    @pytest.mark.parametrize("shape", [(2, 2), (3, 3), (6,), (0, 2)])
    def test_there_is_one_ray_for_each_waypoint(self, shape):
        points, _ = line(CURVED[:3], (0.5, None, 1.0))
        with pytest.raises(ValueError, match=r"\(3, 2\)"):
            through(points, np.zeros(shape), "interpolate")

    @pytest.mark.parametrize("policy", list(PathHeight))
    def test_no_waypoints_are_no_path(self, policy):
        assert through([], [], policy) == [] and through([], np.empty((0, 2)), policy) == []

    def test_a_transform_that_isnt_rigid_is_refused(self):
        with pytest.raises(ValueError, match="rigid"):
            through(*line(CURVED[:2], (0.5, 1.0)), "lift", 2 * np.eye(4))


RAYS = st.tuples(st.floats(-2, 2), st.floats(-2, 2))
DEPTHS = st.none() | st.floats(0.2, 10)


@given(
    drawn=st.lists(st.tuples(RAYS, DEPTHS), max_size=8),
    policy=st.sampled_from(PathHeight),
    target=st.sampled_from([IDENTITY, MOVED]),
)
def test_order_and_inputs_are_kept_and_positions_stay_on_the_line(drawn, policy, target):
    rays = np.array([ray for ray, _ in drawn]).reshape(-1, 2)
    points = [
        hole(ray) if depth is None else measured(ray, depth, target)
        for ray, (_, depth) in zip(rays, drawn)
    ]
    before, rays_before = copy.deepcopy(points), rays.copy()
    path = apply_path_height(points, rays, target, policy, 0.1)
    for point, copied in zip(points, before, strict=True):
        assert_same(point, copied)
    np.testing.assert_array_equal(rays, rays_before)
    np.testing.assert_array_equal([p.pixel for p in path], [p.pixel for p in points])
    assert [p.status for p in path] == [p.status for p in points]
    if policy is not PathHeight.INTERPOLATE:
        assert not any(point.interpolated for point in path)
        assert [p.position is None for p in path] == [p.position is None for p in points]
    if policy is PathHeight.SURFACE:
        assert all(after is same for after, same in zip(path, points, strict=True))
    known = [i for i, point in enumerate(points) if point.position is not None]
    if policy is PathHeight.INTERPOLATE and len(known) > 1:
        first, last = known[0], known[-1]
        assert [p.position is not None for p in path] == [
            first <= i <= last for i in range(len(path))
        ]
        depths = sorted((points[first].depth, points[last].depth))
        for ray, point in zip(rays[first : last + 1], path[first : last + 1]):
            camera_point = target[:3, :3].T @ (point.position - target[:3, 3])
            np.testing.assert_allclose(camera_point, np.append(ray, 1) * point.depth, atol=1e-9)
            assert not point.interpolated or (
                depths[0] * (1 - 1e-12) <= point.depth <= depths[1] * (1 + 1e-12)
            )


@pytest.mark.parametrize("policy", PathHeight)
def test_a_predicted_depth_stays_and_holds_no_line(policy):
    """It was overwritten, or stood in for a measured end, with the status left as it was."""
    points, rays = line(CURVED, [1.0, 0.4, None, 0.5, 1.2])
    for index in (1, 3):
        points[index] = replace(points[index], status=LiftStatus.DEPTH_PREDICTED)
    placed = through(points, rays, policy)
    for index in (1, 3):
        assert not placed[index].interpolated
        np.testing.assert_array_equal(placed[index].position, points[index].position)
    ends, _ = line(CURVED, [1.0, None, None, None, 1.2])
    expected = through(ends, rays, policy)
    for index in (0, 2, 4):
        assert placed[index].depth == expected[index].depth
        assert placed[index].interpolated == expected[index].interpolated


def test_predictions_at_the_ends_leave_what_is_measured_between_them():
    points, rays = line(CURVED[:3], [0.6, 2.0, 0.6])
    for index in (0, 2):
        points[index] = replace(points[index], status=LiftStatus.DEPTH_PREDICTED)
    placed = through(points, rays, PathHeight.INTERPOLATE)
    assert [point.depth for point in placed] == [0.6, 2.0, 0.6]
    assert not any(point.interpolated for point in placed)
