# SPDX-License-Identifier: Apache-2.0
"""Surface selection where depth is wrong or missing but the color image shows the edge."""

from __future__ import annotations

import numpy as np
import pytest
from support.analytic_scene import as_metres, camera

from robobrain_ros.lifting.parameters import LiftParameters
from robobrain_ros.lifting.surface_selection import label_surfaces, unambiguous_surfaces
from robobrain_ros.tf_projection import LiftStatus, lift_points

CAMERA = camera()
NEAR, FAR = 0.7, 1.0
RED, GREY = (180, 40, 30), (120, 120, 125)
EDGE = 400  # the first column that shows what is behind


def scene(depth_edge=EDGE, front=RED, behind=GREY):
    """A box before a wall: its depth ends at `depth_edge`, what the color camera sees at EDGE."""
    columns = np.arange(640)
    depth = np.where(columns < depth_edge, NEAR, FAR) * np.ones((480, 1))
    rgb = np.where((columns < EDGE)[:, None], front, behind) * np.ones((480, 1, 1))
    return depth, rgb.astype(np.uint8)


def lift(pixel, depth, rgb, intrinsics=CAMERA):
    return lift_points([pixel], as_metres(depth), intrinsics, np.eye(4), rgb=rgb)[0]


class TestAtAnEdge:
    @pytest.mark.parametrize("fattened", [-2, -1, 0, 1, 2])
    @pytest.mark.parametrize("beside", [-3, -2, -1, 0, 1, 2])
    def test_color_tells_what_a_ragged_depth_edge_has_wrong(self, fattened, beside):
        lifted = lift((EDGE + beside, 240), *scene(depth_edge=EDGE + fattened))
        exact = NEAR if beside < 0 else FAR
        depth_is_right = (beside < fattened) == (beside < 0)
        assert lifted.status is LiftStatus.OK or not depth_is_right
        assert lifted.status is LiftStatus.DEPTH_HOLE or lifted.depth == pytest.approx(
            exact, abs=1e-3
        )

    @pytest.mark.parametrize("fattened", [-1, 1])
    def test_an_edge_that_is_a_pixel_off_is_put_right(self, fattened):
        beside = EDGE + min(fattened, 0)
        lifted = lift((beside, 240), *scene(depth_edge=EDGE + fattened))
        assert lifted.depth == pytest.approx(NEAR if beside < EDGE else FAR, abs=1e-3)

    def test_nothing_is_claimed_where_color_contradicts_both(self):
        depth, rgb = scene()
        rgb[236:245, 397:404] = (20, 200, 60)  # a sticker across the edge, it seems
        assert lift((EDGE, 240), depth, rgb).status is LiftStatus.DEPTH_HOLE

    def test_away_from_edges_color_does_not_matter(self):
        depth, rgb = scene()
        rgb[238:243, 348:353] = (0, 255, 0)
        lifted = lift((350, 240), depth, rgb)
        assert lifted.depth == pytest.approx(NEAR, abs=1e-3)

    def test_the_color_image_may_be_larger_than_the_depth(self):
        depth, rgb = scene(depth_edge=EDGE + 1)
        large = np.repeat(np.repeat(rgb, 2, axis=0), 2, axis=1)
        lifted = lift((2 * EDGE + 1, 480), depth, large, CAMERA.scaled(1280, 960))
        assert lifted.depth == pytest.approx(FAR, abs=1e-3)


class TestInAHole:
    @pytest.mark.parametrize(("column", "z"), [(EDGE - 1, NEAR), (EDGE, FAR)])
    def test_between_two_surfaces_color_decides(self, column, z):
        depth, rgb = scene()
        depth[:, EDGE - 2 : EDGE + 2] = np.nan
        lifted = lift((column, 240), depth, rgb)
        assert lifted.depth == pytest.approx(z, abs=1e-3)

    def test_between_two_surfaces_of_one_color_nothing_is_claimed(self):
        depth, rgb = scene(front=GREY)
        depth[:, EDGE - 3 : EDGE + 3] = np.nan
        assert lift((EDGE, 240), depth, rgb).status is LiftStatus.DEPTH_HOLE

    def test_of_a_black_thing_is_not_filled_with_what_is_around_it(self):
        # A black mug on a grey table: the camera sees nothing of it, but all around the table.
        depth, rgb = scene(front=GREY)
        depth[:] = FAR
        depth[232:249, 192:209] = np.nan
        rgb[232:249, 192:209] = 8
        assert lift((195, 240), depth, rgb).status is LiftStatus.DEPTH_HOLE

    def test_of_a_few_pixels_is_filled(self):
        depth, rgb = scene()
        depth[238:242, 198:202] = np.nan
        assert lift((200, 240), depth, rgb).depth == pytest.approx(NEAR, abs=1e-3)


class TestSurfaces:
    PARAMETERS = LiftParameters()

    def labels(self, *patches):
        return label_surfaces(np.array(patches, np.float32), 525.0, self.PARAMETERS)

    def test_end_at_a_jump(self):
        patch = np.where(np.arange(11) < 6, 0.7, 1.0) * np.ones((11, 1))
        (labels,) = self.labels(patch)
        assert len(np.unique(labels[:, :6])) == len(np.unique(labels[:, 6:])) == 1
        assert labels[0, 0] != labels[0, 10]

    def test_hold_together_diagonally_across_holes(self):
        patch = np.where(np.indices((11, 11)).sum(axis=0) % 2, np.nan, 0.7)
        (labels,) = self.labels(patch)
        assert set(np.unique(labels)) == {0, labels[0, 0]}

    def test_of_two_patches_are_two(self):
        patch = np.full((11, 11), 0.7)
        first, second = self.labels(patch, patch)
        assert first[0, 0] != second[0, 0]

    def test_a_slope_is_one_and_noise_does_not_break_it(self):
        slope = 1 + np.linspace(-0.05, 0.05, 11) * np.ones((11, 1))
        noisy = slope + np.random.default_rng(0).normal(0, 0.0025, (11, 11))
        (labels,) = self.labels(noisy)
        assert len(np.unique(labels)) == 1

    def test_are_unambiguous_only_away_from_others(self):
        def patch(edge):
            return np.where(np.arange(11) < edge, 0.7, 1.0) * np.ones((11, 1))

        labels = self.labels(patch(11), patch(9), patch(8), patch(7), np.full((11, 11), np.nan))
        selected, _, unambiguous = unambiguous_surfaces(labels, self.PARAMETERS)
        assert unambiguous.tolist() == [True, True, True, False, False]
        assert selected[1].sum() == 9 * 11 and not selected[4].any()
