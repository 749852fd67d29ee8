# SPDX-License-Identifier: Apache-2.0
"""The simulated stereo depth camera errs as the formulas and the geometry of a stereo pair say."""

from __future__ import annotations

from dataclasses import fields, replace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from robobrain_ros.sim.depth_sensor import StereoDepthSensor

WIDTH, HEIGHT, FOCAL, BASELINE = 640, 480, 600.0, 0.05
SCALE = FOCAL * BASELINE  # disparity times depth: 30 px m
K = np.array([[FOCAL, 0, 319.5], [0, FOCAL, 239.5], [0, 0, 1]])
STRENGTHS = (
    "subpixel_noise",
    "disparity_step",
    "lateral_noise",
    "fattening",
    "flying_pixels",
    "occlusion",
    "left_band",
    "edge_holes",
    "dark_holes",
    "shiny_holes",
    "grazing_holes",
    "speckle",
)
OFF = StereoDepthSensor(baseline=BASELINE, **dict.fromkeys(STRENGTHS, 0))


def rng():
    return np.random.default_rng(5)


def wall(depth, width=WIDTH, height=HEIGHT):
    return np.full((height, width), depth, np.float32)


def tilted_wall(degrees, depth=1.0):
    """A plane that recedes upwards: its normal is so far off the optical axis."""
    y = (np.arange(HEIGHT) - K[1, 2])[:, None] / FOCAL
    return (depth / (1 + y * np.tan(np.radians(degrees))) * np.ones(WIDTH)).astype(np.float32)


def box_before_wall(near=0.6, far=1.5):
    """Columns 300 to 399 and rows 150 to 299 are nearer."""
    depth = wall(far)
    depth[150:300, 300:400] = near
    return depth


@pytest.mark.parametrize("distance", [0.5, 1.0, 2.0])
def test_the_noise_of_a_wall_is_what_its_disparity_says(distance):
    measured = replace(StereoDepthSensor(), speckle=0).measure(wall(distance), K, rng())
    assert np.isfinite(measured).all()
    expected = distance**2 * 0.08 / SCALE
    assert measured.std() == pytest.approx(expected, rel=0.15)


def test_noise_is_alike_over_a_few_pixels():
    error = replace(OFF, subpixel_noise=0.08).measure(wall(1.0), K, rng()) - 1

    def correlation(shift):
        return np.corrcoef(error[:, shift:].ravel(), error[:, : WIDTH - shift].ravel())[0, 1]

    # White noise after a Gaussian of 1.5 px: exp(-shift² / (4 1.5²)).
    assert correlation(1) == pytest.approx(0.895, abs=0.02)
    assert correlation(3) == pytest.approx(0.368, abs=0.05)
    assert abs(correlation(12)) < 0.05


def test_noise_grows_at_grazing_angles():
    sensor = replace(OFF, subpixel_noise=0.08)
    middle = slice(HEIGHT // 2 - 10, HEIGHT // 2 + 10)
    exact = tilted_wall(75)
    noise = (SCALE / sensor.measure(exact, K, rng()) - SCALE / exact)[middle].std()
    # 1 + 0.05 t² / (pi/2 - t)² at t = 75 degrees.
    assert noise == pytest.approx(0.08 * (1 + 0.05 * (75 / 15) ** 2), rel=0.15)
    even = replace(sensor, grazing_noise=0)
    noise = (SCALE / even.measure(exact, K, rng()) - SCALE / exact)[middle].std()
    assert noise == pytest.approx(0.08, rel=0.1)


def test_a_surfaces_mean_depth_is_true():
    sensor = replace(StereoDepthSensor(), grazing_holes=0)
    measured = sensor.measure(wall(1.0), K, rng())
    assert abs(np.nanmean(measured) - 1) < 0.0003
    exact = tilted_wall(50)
    assert abs(np.nanmean(sensor.measure(exact, K, rng()) - exact)) < 0.0003


def test_ragged_edges_leave_smooth_surfaces_alone():
    v, u = np.indices((HEIGHT, WIDTH))
    waves = (1 + 0.03 * np.sin(u / 40) * np.cos(v / 50)).astype(np.float32)
    for exact in (tilted_wall(60), waves):
        measured = replace(OFF, lateral_noise=0.6, fattening=0.5).measure(exact, K, rng())
        np.testing.assert_allclose(measured, exact, atol=1e-5)


def test_steep_surfaces_are_no_jumps():
    exact = tilted_wall(65)
    measured = replace(OFF, flying_pixels=1, edge_holes=1).measure(exact, K, rng())
    np.testing.assert_allclose(measured, exact, rtol=1e-6)


def test_depth_is_quantised_in_disparity():
    measured = replace(OFF, disparity_step=1 / 8).measure(tilted_wall(40), K, rng())
    steps = 8 * SCALE / measured.astype(np.float64)
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    # At 1 m a step of the disparity is 1 m² / 30 px m / 8 of depth: 4.2 mm.
    levels = np.unique(measured)
    gaps = np.diff(levels[np.abs(levels - 1) < 0.02])
    np.testing.assert_allclose(gaps, 1 / 240, rtol=0.05)


def test_without_its_errors_the_sensor_returns_its_input():
    exact = box_before_wall()
    rgb = np.zeros((*exact.shape, 3), np.uint8)
    measured = OFF.measure(exact, K, rng(), rgb=rgb, shiny=np.ones(exact.shape, bool))
    np.testing.assert_allclose(measured, exact, rtol=1e-6)
    rounded = replace(OFF, disparity_step=1 / 32).measure(exact, K, rng())
    assert np.abs(SCALE / rounded - SCALE / exact).max() <= 1 / 64 + 1e-4


def test_each_strength_can_be_switched_off_and_is_on_by_default():
    names = {field.name for field in fields(StereoDepthSensor)}
    assert {name for name in names if name.endswith("_holes")} <= set(STRENGTHS) <= names
    for name in set(STRENGTHS) - {"left_band"}:
        assert getattr(StereoDepthSensor(), name) > 0


def edge_columns(measured):
    """First column of the box in each of its inner rows, where it borders on the wall."""
    return (measured[160:290] < 1).argmax(1)


def test_edges_are_ragged_by_less_than_a_pixel():
    columns = np.concatenate(
        [
            edge_columns(
                replace(OFF, lateral_noise=0.6).measure(
                    box_before_wall(), K, np.random.default_rng(seed)
                )
            )
            for seed in range(20)
        ]
    )
    assert columns.mean() == pytest.approx(300, abs=0.2)
    # 0.6 px and the rounding to whole pixels, 1 / sqrt(12).
    assert columns.std() == pytest.approx(np.hypot(0.6, 0.29), rel=0.25)
    neighbours = np.corrcoef(columns[:-1], columns[1:])[0, 1]
    assert neighbours > 0.4


@pytest.mark.parametrize("fattening", [1.0, 2.0])
def test_nearer_surfaces_grow(fattening):
    measured = replace(OFF, fattening=fattening).measure(box_before_wall(), K, rng())
    near = measured < 1
    assert near[160].sum() == 100 + 2 * fattening
    assert near[:, 310].sum() == 150 + 2 * fattening
    np.testing.assert_allclose(measured[near], 0.6, rtol=1e-5)


def test_a_grown_surface_goes_on_in_its_plane():
    exact = wall(3.0)
    v, u = np.indices(exact.shape)
    plane = 0.8 / (1 + 0.7 * (u - 319.5) / FOCAL - 0.9 * (v - 239.5) / FOCAL)
    exact[150:300, 300:400] = plane[150:300, 300:400]
    sensor = replace(OFF, lateral_noise=0.6, fattening=1.5)
    measured = sensor.measure(exact, K, rng())
    near = measured < 2
    assert near.sum() > (exact < 2).sum() + 400
    np.testing.assert_allclose(measured[near], plane[near], atol=1e-4)


def test_where_nothing_is_nothing_grows():
    exact = wall(1.0)
    exact[5::10, 5::10] = np.inf
    measured = replace(OFF, lateral_noise=0.6, fattening=0.5).measure(exact, K, rng())
    valid = measured[np.isfinite(measured)]
    np.testing.assert_allclose(valid, 1, rtol=1e-5)


def test_flying_pixels_lie_between_the_sides_of_a_jump():
    exact = box_before_wall()
    measured = replace(OFF, flying_pixels=0.5).measure(exact, K, rng())
    flying = np.abs(measured - exact) > 1e-4
    assert ((measured[flying] > 0.6) & (measured[flying] < 1.5)).all()
    beside = cv2.morphologyEx(exact, cv2.MORPH_GRADIENT, np.ones((3, 3))) > 0
    assert not flying[~beside].any()
    assert flying[beside].mean() == pytest.approx(0.5, abs=0.08)
    # Evenly mixed in disparity, so neither side has most of them.
    share = (SCALE / measured[flying] - 20) / (50 - 20)
    assert share.min() > 0.05 and share.max() < 0.95
    assert share.mean() == pytest.approx(0.5, abs=0.06)


def test_what_only_the_left_imager_sees_is_a_hole():
    measured = replace(OFF, occlusion=1).measure(box_before_wall(), K, rng())
    # Disparities 50 and 20: 30 columns of the wall, left of the box.
    holes = np.isnan(measured)
    assert set(np.unique(holes[150:300].sum(1))) <= {30, 31}
    assert holes[150:300, 270:300].all()
    assert not holes[:, :269].any() and not holes[:, 300:].any()
    assert not holes[:150].any() and not holes[300:].any()
    flying = replace(OFF, occlusion=1, flying_pixels=1).measure(box_before_wall(), K, rng())
    np.testing.assert_array_equal(np.isnan(flying), holes)


def test_the_right_imager_sees_past_both_sides_of_a_thin_pole():
    exact = wall(1.5)
    exact[:, 300:310] = 0.6
    holes = np.isnan(replace(OFF, occlusion=1).measure(exact, K, rng()))
    # The pole's 10 columns, 30 to the left; between them the wall is seen by both.
    assert holes[:, 271:279].all()
    assert not holes[:, :268].any() and not holes[:, 282:].any()


def test_a_surface_that_recedes_to_the_right_hides_without_gaps():
    exact = wall(1.5)
    columns = np.arange(300, 400)
    # A slope of -0.4 px/px: each column is 1.4 columns wide for the right imager.
    exact[:, 300:400] = SCALE / (80 - 0.4 * (columns - 300))
    holes = np.isnan(replace(OFF, occlusion=1).measure(exact, K, rng()))
    # Its right edge is at 399 - 40.4 for the right imager, its left edge at 220, with the wall's
    # columns 240 to 378 behind it.
    assert holes[:, 241:300].all()
    assert not holes[:, :239].any() and not holes[:, 300:].any()


def test_a_raw_depth_image_has_a_band_without_depth_at_its_left_border():
    holes = np.isnan(replace(OFF, left_band=1).measure(wall(1.5), K, rng()))
    assert holes[:, :20].all() and not holes[:, 20:].any()


def test_a_tilted_surface_hides_nothing_of_itself():
    for exact in (tilted_wall(60), tilted_wall(-60), tilted_wall(60).T):
        matrix = K if exact.shape == (HEIGHT, WIDTH) else K[[1, 0, 2]][:, [1, 0, 2]]
        assert np.isfinite(replace(OFF, occlusion=1).measure(exact, matrix, rng())).all()


def test_holes_clump_along_jumps():
    exact = box_before_wall()
    holes = np.isnan(replace(OFF, edge_holes=0.35).measure(exact, K, rng()))
    jump = cv2.morphologyEx(exact, cv2.MORPH_GRADIENT, np.ones((3, 3)))
    band = cv2.dilate(jump, np.ones((3, 3))) > 0
    assert holes[band].mean() == pytest.approx(0.35, abs=0.15)
    assert not holes[cv2.dilate(jump, np.ones((5, 5))) == 0].any()
    count, _, stats, _ = cv2.connectedComponentsWithStats(holes.astype(np.uint8))
    assert stats[1:, cv2.CC_STAT_AREA].mean() > 5
    assert count > 10


@pytest.mark.parametrize("color", [(0, 0, 0), (10, 10, 10)])
def test_dark_surfaces_have_holes(color):
    rgb = np.full((HEIGHT, WIDTH, 3), 120, np.uint8)
    rgb[:, :200] = color
    holes = np.isnan(replace(OFF, dark_holes=0.7).measure(wall(1.0), K, rng(), rgb=rgb))
    assert holes[:, :200].mean() == pytest.approx(0.7, abs=0.05)
    assert not holes[:, 200:].any()


def test_darkness_is_luminance():
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    # Of 255, 76 and 29 by BT.601.
    rgb[:240], rgb[240:] = (255, 0, 0), (0, 0, 255)
    sensor = replace(OFF, dark_holes=1, dark_level=60.0)
    holes = np.isnan(sensor.measure(wall(1.0), K, rng(), rgb=rgb))
    assert not holes[:240].any() and holes[240:].all()


def test_highlights_and_shiny_surfaces_have_holes():
    sensor = replace(OFF, shiny_holes=0.8)
    rgb = np.full((HEIGHT, WIDTH, 3), (250, 240, 255), np.uint8)
    rgb[:, :200] = 253
    holes = np.isnan(sensor.measure(wall(1.0), K, rng(), rgb=rgb))
    assert holes[:, :200].mean() == pytest.approx(0.8, abs=0.05)
    assert not holes[:, 200:].any()
    shiny = np.zeros((HEIGHT, WIDTH), bool)
    shiny[:200] = True
    holes = np.isnan(sensor.measure(wall(1.0), K, rng(), shiny=shiny))
    assert holes[:200].mean() == pytest.approx(0.8, abs=0.05)
    assert not holes[200:].any()
    both = np.isnan(sensor.measure(wall(1.0), K, rng(), rgb=rgb, shiny=shiny))
    assert both[:200, 200:].any() and both[200:, :200].any()
    assert not both[200:, 200:].any()


def test_grazing_surfaces_have_holes():
    sensor = replace(OFF, grazing_holes=1)
    # The rays of the middle rows are along the optical axis.
    middle = slice(HEIGHT // 2 - 2, HEIGHT // 2 + 2)
    share = {
        degrees: np.isnan(sensor.measure(tilted_wall(degrees), K, rng()))[middle].mean()
        for degrees in (65, 77.5, 86)
    }
    assert share[65] == 0
    assert 0.2 < share[77.5] < 0.8
    assert share[86] == 1


def test_the_angle_of_incidence_is_between_the_ray_and_the_normal():
    focal = 150.0
    matrix = np.array([[focal, 0, 319.5], [0, 1.1 * focal, 239.5], [0, 0, 1]])
    v, u = np.indices((HEIGHT, WIDTH))
    rays = np.stack([(u - 319.5) / focal, (v - 239.5) / (1.1 * focal), np.ones(u.shape)], -1)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    # Facing the ray of the pixel (480, 340).
    normal = rays[340, 480]
    exact = rays[..., 2] / np.maximum(rays @ normal, 0.1)
    angle = np.degrees(np.arccos(np.minimum(rays @ normal, 1)))
    sensor = replace(OFF, grazing_holes=1, grazing_angle=20.0)
    holes = np.isnan(sensor.measure(exact, matrix, rng()))
    assert not holes[angle < 19.5].any()
    assert holes[(angle > 35.5) & (angle < 80)].all()


def test_speckle_is_rare_and_anywhere():
    holes = np.isnan(replace(OFF, speckle=0.01).measure(wall(1.0), K, rng()))
    assert holes.mean() == pytest.approx(0.01, rel=0.35)
    quarters = holes.reshape(2, HEIGHT // 2, 2, WIDTH // 2).any((1, 3))
    assert quarters.all()


@pytest.mark.parametrize("strength", [1, 20])
def test_what_is_too_near_or_far_is_a_hole(strength):
    sensor = replace(StereoDepthSensor(), subpixel_noise=0.08 * strength)
    # 12 m is the simulator's "nothing there"; 126 px of disparity are 0.238 m.
    for distance in (0.05, 0.2, 10.5, 12.0, np.inf, np.nan, 0.0):
        assert np.isnan(sensor.measure(wall(distance), K, rng())).all()
    assert np.isfinite(OFF.measure(wall(0.25), K, rng())).all()
    assert np.isfinite(OFF.measure(wall(9.5), K, rng())).all()


def test_a_seed_is_one_picture():
    sensor, exact = StereoDepthSensor(), box_before_wall()
    first, again = (sensor.measure(exact, K, rng()) for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other = sensor.measure(exact, K, np.random.default_rng(6))
    assert (first != other)[np.isfinite(first) & np.isfinite(other)].mean() > 0.5


def test_a_strength_changes_its_own_effect_only():
    exact = box_before_wall()
    sensor = replace(StereoDepthSensor(), speckle=0.01)
    noisy = sensor.measure(exact, K, rng())
    for off in ("speckle", "edge_holes", "occlusion"):
        measured = replace(sensor, **{off: 0}).measure(exact, K, rng())
        both = np.isfinite(measured) & np.isfinite(noisy)
        assert np.isfinite(measured).sum() > both.sum() == np.isfinite(noisy).sum()
        np.testing.assert_array_equal(measured[both], noisy[both])


def test_a_whole_frame_of_either_precision_is_measured_as_float32():
    exact = box_before_wall()
    single = StereoDepthSensor().measure(exact, K, rng())
    double = StereoDepthSensor().measure(exact.astype(np.float64), K, rng())
    assert single.dtype == double.dtype == np.float32
    assert single.shape == (480, 640)
    np.testing.assert_array_equal(single, double)
    assert 0.9 < np.isfinite(single).mean() < 1


def test_wrong_input_is_refused_with_a_sentence():
    sensor, exact = StereoDepthSensor(), wall(1.0)
    for depth in (exact[..., None], exact[0], exact[None], exact[:1], np.float32(1)):
        with pytest.raises(ValueError, match="one frame without a channel axis"):
            sensor.measure(depth, K, rng())
    for matrix in (K[:2], K.ravel(), np.zeros((3, 3))):
        with pytest.raises(ValueError, match="matrix K"):
            sensor.measure(exact, matrix, rng())
    rgb = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for picture in (rgb[:-1], rgb[..., 0], rgb.astype(float)):
        with pytest.raises(ValueError, match="rgb must be uint8"):
            sensor.measure(exact, K, rng(), rgb=picture)
    with pytest.raises(ValueError, match="shiny must be bool"):
        sensor.measure(exact, K, rng(), shiny=rgb[..., 0])
    with pytest.raises(ValueError, match="speckle must be a number of at least 0"):
        StereoDepthSensor(speckle=-0.1)
    with pytest.raises(ValueError, match="baseline must be more than 0"):
        StereoDepthSensor(baseline=0)


@settings(max_examples=40, deadline=None)
@given(
    arrays(
        np.float32, st.tuples(st.integers(2, 12), st.integers(2, 12)), elements=st.floats(width=32)
    ),
    st.integers(0, 9),
)
def test_whatever_is_seen_depth_is_in_range_or_a_hole(exact, seed):
    sensor = StereoDepthSensor(edge_holes=0, grazing_holes=0)
    measured = sensor.measure(exact, K, np.random.default_rng(seed))
    assert measured.shape == exact.shape
    valid = measured[~np.isnan(measured)]
    assert ((valid >= SCALE / 126 - 1e-6) & (valid <= 10 + 1e-4)).all()
