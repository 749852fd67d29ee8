# SPDX-License-Identifier: Apache-2.0
"""Intrinsics as drivers publish them, against OpenCV, CameraInfo.msg and numpy's own resampling."""

from __future__ import annotations

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.analytic_scene import LENSES, Plane, all_rays, as_metres, camera, info, lens, render

from robobrain_ros.tf_projection import Intrinsics, LiftStatus, lift_boxes, lift_points

CAMERA = camera()
P = [500.0, 0.0, 310.0, -25.0, 0.0, 505.0, 235.0, 0.0, 0.0, 0.0, 1.0, 0.0]
BENT = [0.1, -0.05, 0.001, -0.002, 0.01]


def roi(x=0, y=0, width=0, height=0):
    return SimpleNamespace(x_offset=x, y_offset=y, width=width, height=height, do_rectify=False)


def of(**changes) -> Intrinsics:
    return Intrinsics.from_camera_info(info(**changes))


class TestCameraInfo:
    def test_gives_k_and_d(self):
        intrinsics = of(d=[0.1, 0.0, 0.0, 0.0, 0.0])
        assert (intrinsics.width, intrinsics.height, intrinsics.focal) == (640, 480, 525.0)
        np.testing.assert_array_equal(intrinsics.distortion, [0.1, 0, 0, 0, 0])

    @pytest.mark.parametrize("d", [[], [0.0] * 5])
    @pytest.mark.parametrize("model", ["", "none", "plumb_bob", "inverse_brown_conrady"])
    def test_without_distortion_needs_no_model(self, d, model):
        assert of(d=d, distortion_model=model).distortion.size == 0

    def test_calls_the_equidistant_lens_fisheye_as_well(self):
        fisheye = of(d=LENSES["equidistant"], distortion_model="fisheye")
        equidistant = of(d=LENSES["equidistant"], distortion_model="equidistant")
        pixels = np.array([[100.0, 50.0]])
        np.testing.assert_array_equal(fisheye.rays(pixels), equidistant.rays(pixels))
        assert fisheye.model == "equidistant"

    @pytest.mark.parametrize(
        ("changes", "sentence"),
        [
            ({"k": [0.0] * 9}, "not calibrated"),
            ({"k": [np.nan] * 9}, "finite"),
            ({"k": [525.0, 0.0, 319.5]}, "nine"),
            ({"k": [525.0, 0, 319.5, 0, 0.0, 239.5, 0, 0, 1]}, "not calibrated"),
            ({"k": [525.0, 9.0, 319.5, 0, 525.0, 239.5, 0, 0, 1]}, "fx 0 cx"),
            ({"width": 0}, "size"),
            ({"binning_x": 1000}, "size"),
            ({"roi": roi(700, 0)}, "size"),
            ({"d": [0.1, np.inf, 0, 0, 0]}, "finite"),
            ({"d": [0.1, 0.2]}, "2 coefficients"),
            ({"d": [0.1] * 5, "distortion_model": "fisheye"}, "5 coefficients"),
            ({"d": [0.1] * 5, "distortion_model": "thin_prism"}, "thin_prism"),
        ],
    )
    def test_that_describes_no_camera_is_refused(self, changes, sentence):
        with pytest.raises(ValueError, match=sentence):
            of(**changes)


class TestRegionAndBinning:
    def test_zeros_are_the_whole_image(self):
        plain = of()
        zeros = of(binning_x=0, binning_y=0, roi=roi())
        np.testing.assert_array_equal(plain.matrix, zeros.matrix)
        assert (zeros.width, zeros.height) == (640, 480)

    def test_numbers_by_hand(self):
        """A window at (100, 40), pixels joined in twos across: sensor columns 100 and 101 become
        column 0, whose centre is at 100.5.
        """
        cut = of(binning_x=2, binning_y=1, roi=roi(100, 40, 400, 300))
        assert (cut.width, cut.height) == (200, 300)
        expected = [[262.5, 0, (319.5 - 100.5) / 2], [0, 525, 199.5], [0, 0, 1]]
        np.testing.assert_allclose(cut.matrix, expected)

    @pytest.mark.parametrize("bins", [(2, 2), (4, 2), (3, 1)])
    @pytest.mark.parametrize("d", [[], BENT])
    def test_a_cut_and_averaged_image_shows_the_same_rays(self, bins, d):
        """Coordinates are averaged as a sensor averages light, and must be those of the rays."""
        window = (36, 24, 480, 360)
        full, cut = of(d=d), of(d=d, binning_x=bins[0], binning_y=bins[1], roi=roi(*window))
        u, v = np.meshgrid(np.arange(640.0), np.arange(480.0))
        x, y, width, height = window
        averaged = [
            image[y : y + height, x : x + width]
            .reshape(height // bins[1], bins[1], width // bins[0], bins[0])
            .mean(axis=(1, 3))
            for image in (u, v)
        ]
        assert averaged[0].shape == (cut.height, cut.width)
        rows, columns = np.array([0, 5, cut.height - 1]), np.array([0, 17, cut.width - 1])
        there = np.column_stack([averaged[0][rows, columns], averaged[1][rows, columns]])
        here = np.column_stack([columns, rows]).astype(float)
        np.testing.assert_allclose(cut.rays(here), full.rays(there), atol=1e-9)

    def test_binning_that_doesnt_divide_drops_the_rest(self):
        cut = of(binning_x=3, binning_y=7)
        assert (cut.width, cut.height) == (213, 68)
        np.testing.assert_allclose(np.diag(cut.matrix), [175, 75, 1])

    def test_an_offset_without_a_size_goes_to_the_end(self):
        assert (of(roi=roi(100, 80)).width, of(roi=roi(100, 80)).height) == (540, 400)


class TestRectified:
    def test_p_holds_without_distortion(self):
        message = info(p=P, d=BENT)
        intrinsics = Intrinsics.from_camera_info(message, rectified=True)
        np.testing.assert_array_equal(intrinsics.matrix, [[500, 0, 310], [0, 505, 235], [0, 0, 1]])
        assert intrinsics.distortion.size == 0
        assert Intrinsics.from_camera_info(message).distortion.size == 5

    def test_p_is_cut_and_binned_like_k(self):
        message = info(p=P, binning_x=2, binning_y=2, roi=roi(10, 20, 600, 400))
        intrinsics = Intrinsics.from_camera_info(message, rectified=True)
        assert (intrinsics.width, intrinsics.height) == (300, 200)
        np.testing.assert_allclose(
            intrinsics.matrix, [[250, 0, 149.75], [0, 252.5, 107.25], [0, 0, 1]]
        )

    @pytest.mark.parametrize(("p", "sentence"), [([0.0] * 12, "empty"), ([1.0] * 9, "twelve")])
    def test_without_p_is_refused(self, p, sentence):
        with pytest.raises(ValueError, match=sentence):
            Intrinsics.from_camera_info(info(p=p), rectified=True)


class TestFitted:
    def test_to_its_own_size_is_itself(self):
        assert CAMERA.fitted(640, 480) is CAMERA

    @pytest.mark.parametrize("size", [(320, 240), (1280, 960), (643, 480), (213, 160)])
    def test_to_the_same_shape_is_scaled(self, size):
        np.testing.assert_allclose(CAMERA.fitted(*size).matrix, CAMERA.scaled(*size).matrix)

    @pytest.mark.parametrize("size", [(640, 400), (480, 640), (650, 480), (640, 0)])
    def test_to_another_shape_is_refused(self, size):
        with pytest.raises(ValueError, match="don't belong together"):
            CAMERA.fitted(*size)

    def test_undoes_a_binning_that_k_already_had(self):
        """Some drivers publish K and the size of the binned image, and its binning too."""
        image = of(binning_x=2, binning_y=2).fitted(640, 480)
        np.testing.assert_allclose(image.matrix, of().matrix)


class TestFlipped:
    """Drivers that turn or mirror an image in its old frame publish negative focal lengths."""

    K = (-525.0, 0, 319.5, 0, 530.0, 239.5, 0, 0, 1)
    WALL = Plane((0.3, -0.2, 1.0), 0.9)

    @pytest.mark.parametrize("signs", [(-1, 1), (1, -1), (-1, -1)])
    @pytest.mark.parametrize("model", [None, *LENSES])
    def test_images_show_the_mirrored_rays(self, signs, model):
        upright = lens(model) if model else CAMERA
        matrix = upright.matrix.copy()
        matrix[[0, 1], [0, 1]] *= signs
        flipped = Intrinsics(640, 480, matrix, upright.distortion, upright.model)
        assert flipped.focal == upright.focal > 0
        pixels = np.array([[200.0, 130.0], [400.0, 300.0]])
        mirrored = (pixels - matrix[:2, 2]) * signs + matrix[:2, 2]
        # A lens' tangential part isn't symmetric, so its pixels are those of other rays.
        if not (model and upright.distortion[2:4].any() and model != "equidistant"):
            np.testing.assert_allclose(flipped.rays(mirrored), upright.rays(pixels), atol=1e-9)
        np.testing.assert_allclose(flipped.project(flipped.rays(pixels)), pixels, atol=1e-6)

    @pytest.mark.parametrize("signs", [(-1, 1), (-1, -1)])
    def test_points_and_boxes_are_lifted_all_the_same(self, signs):
        matrix = CAMERA.matrix.copy()
        matrix[[0, 1], [0, 1]] *= signs
        flipped = Intrinsics(640, 480, matrix, np.empty(0))
        depth = as_metres(render(flipped, self.WALL))
        pixels = np.array([[100.0, 90.0], [500.0, 333.0]])
        normal = -np.array(self.WALL.normal) / np.linalg.norm(self.WALL.normal)
        for lifted in lift_points(pixels, depth, flipped, np.eye(4)):
            ray = np.append(flipped.rays(lifted.pixel[None])[0], 1)
            np.testing.assert_allclose(lifted.position, ray * self.WALL.depth(ray), atol=1e-4)
            assert lifted.has_normal
            x, y, z, w = lifted.orientation
            towards = [2 * (x * z + w * y), 2 * (y * z - w * x), 1 - 2 * (x * x + y * y)]
            np.testing.assert_allclose(towards, normal, atol=2e-3)
            assert (np.linalg.eigvalsh(lifted.covariance) > 0).all()
        region = lift_boxes([[100, 90, 160, 150]], depth, flipped, np.eye(4))[0]
        assert region.status is LiftStatus.OK
        ray = np.append(flipped.rays(np.array([[129.5, 119.5]]))[0], 1)
        np.testing.assert_allclose(region.centre, ray * self.WALL.depth(ray), atol=5e-3)


def test_scaling_keeps_the_borders():
    small = CAMERA.scaled(320, 120)
    corners = np.array([[-0.5, -0.5], [639.5, 479.5]])
    scaled = np.array([[-0.5, -0.5], [319.5, 119.5]])
    np.testing.assert_allclose(small.project(CAMERA.rays(corners)), scaled)


MORE_LENSES = {
    **{name: (name, d) for name, d in LENSES.items()},
    "four": ("plumb_bob", [0.1, -0.2, 0.001, -0.0008]),
    "thin prism": (
        "rational_polynomial",
        [*LENSES["rational_polynomial"], 0.002, -0.001, 0.0015, 0.003],
    ),
    "tilted": (
        "rational_polynomial",
        [*LENSES["rational_polynomial"], 0.002, -0.001, 0.0015, 0.003, 0.01, -0.02],
    ),
}


class TestLenses:
    @pytest.mark.parametrize("name", MORE_LENSES)
    def test_project_and_rays_agree_with_opencv(self, name):
        model, d = MORE_LENSES[name]
        intrinsics = Intrinsics(640, 480, CAMERA.matrix, np.array(d), model)
        rays = np.random.default_rng(0).uniform(-0.5, 0.5, (50, 2))
        points = np.column_stack([rays, np.ones(50)]) * 1.7
        project = cv2.fisheye.projectPoints if model == "equidistant" else cv2.projectPoints
        pixels = project(
            points[:, None], np.zeros(3), np.zeros(3), intrinsics.matrix, intrinsics.distortion
        )[0].reshape(-1, 2)
        np.testing.assert_allclose(intrinsics.project(rays), pixels, atol=1e-6)
        np.testing.assert_allclose(intrinsics.rays(pixels), rays, atol=1e-6)

    @given(u=st.floats(0, 639), v=st.floats(0, 479), name=st.sampled_from(["none", *LENSES]))
    def test_a_pixel_comes_back_from_its_ray(self, u, v, name):
        intrinsics = CAMERA if name == "none" else lens(name)
        pixel = np.array([[u, v]])
        np.testing.assert_allclose(intrinsics.project(intrinsics.rays(pixel)), pixel, atol=1e-3)

    @pytest.mark.parametrize("model", LENSES)
    def test_what_isnt_finite_stays_so(self, model):
        pixels = np.array([[np.nan, 1.0], [320.0, 240.0]])
        rays = lens(model).rays(pixels)
        assert np.isnan(rays[0]).all() and np.isfinite(rays[1]).all()
        assert np.isnan(lens(model).project(rays)[0]).all()
        assert np.isnan(lens(model).rays(pixels[:1])).all()
        assert np.isnan(lens(model).project(np.array([[np.inf, 0.0], [1e200, 0.0]]))).all()

    def test_a_pixel_beyond_a_fisheye_has_no_ray(self):
        matrix = np.array([[200.0, 0, 319.5], [0, 200.0, 239.5], [0, 0, 1]])
        fisheye = Intrinsics(640, 480, matrix, np.array([0.01, 0, 0, 0]), "equidistant")
        rays = fisheye.rays(np.array([[0.0, 239.5], [100.0, 239.5]]))  # 91 and 63 degrees
        assert np.isnan(rays[0]).all() and np.isfinite(rays[1]).all()

    def test_a_ray_far_outside_doesnt_fold_back_into_the_image(self):
        """With k1 = -0.3 the radius r - 0.3 r^3 turns at 1 / sqrt(0.9) and is 0 again at 1.83."""
        barrel = Intrinsics(640, 480, CAMERA.matrix, np.array([-0.3, 0, 0, 0, 0]))
        assert barrel.max_radius == pytest.approx(1 / np.sqrt(0.9), abs=2e-3)
        rays = np.array([[1.8, 0.0], [1.0, 0.0]])
        pixels = barrel.project(rays)
        assert np.isnan(pixels[0]).all()
        assert pixels[1, 0] == pytest.approx(CAMERA.matrix[0, 2] + 525 * 0.7)

    def test_a_pixel_outside_the_lens_has_no_ray(self):
        """The radius r - 0.9 r^3 never exceeds 0.406, which is 213 pixels here."""
        barrel = Intrinsics(640, 480, CAMERA.matrix, np.array([-0.9, 0, 0, 0, 0]))
        centre = CAMERA.matrix[:2, 2]
        rays = barrel.rays(centre + np.array([[190.0, 0], [216.0, 0], [280.0, 100]]))
        assert np.isfinite(rays[0]).all() and np.isnan(rays[1:]).all()

    def test_a_camera_without_lens_reaches_everywhere(self):
        assert CAMERA.max_radius == np.inf


def test_rays_of_the_scene_are_the_cameras():
    """The scenes' own geometry: a ray's pixel is where it was drawn."""
    np.testing.assert_allclose(
        CAMERA.project(all_rays(CAMERA)[[7, 400], [30, 600], :2]), [[30, 7], [600, 400]]
    )
