# SPDX-License-Identifier: Apache-2.0
"""The demo's map of the table."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("mujoco")

from robobrain_ros.sim.top_view import draw_top_view
from robobrain_ros.sim.truth import Truth
from robobrain_ros.visualization.style import INK, PALETTE

SIZE = (640, 480)


def centroid(image: np.ndarray, color: tuple[int, int, int]) -> np.ndarray:
    rows, columns = np.nonzero((image == color).all(axis=2))
    assert len(rows) > 40
    return np.array([columns.mean(), rows.mean()])


@pytest.mark.parametrize("seed", [2_000_023, 2_000_002, 7])
def test_left_in_the_image_is_left_on_the_map_and_far_is_up(seed):
    truth = Truth.of_scene(seed)
    names = truth.largest_first()[: len(PALETTE)]
    positions = [truth.surface(name).mean(axis=0) for name in names]
    answers = [("", position, color) for position, color in zip(positions, PALETTE)]
    image = draw_top_view(truth, answers, SIZE)
    assert image.shape == (480, 640, 3)
    on_map = np.array([centroid(image, color) for _, _, color in answers])
    pose = truth.table_from_optical
    in_camera = (np.array(positions) - pose[:3, 3]) @ pose[:3, :3]
    right, away = pose[:2, 0], pose[:2, 2]
    across = np.array(positions)[:, :2] @ right
    np.testing.assert_array_equal(np.argsort(on_map[:, 0]), np.argsort(across))
    np.testing.assert_array_equal(
        np.argsort(-on_map[:, 1]), np.argsort(np.array(positions)[:, :2] @ away)
    )
    leftmost, rightmost = np.argmin(in_camera[:, 0]), np.argmax(in_camera[:, 0])
    assert on_map[leftmost, 0] < on_map[rightmost, 0]
    rows, _ = np.nonzero((image == INK).all(axis=2))
    assert rows.max() > on_map[:, 1].max()  # the camera, nearer than everything


def test_distances_on_the_map_are_to_scale():
    truth = Truth.of_scene(2_000_023)
    corners = [(0.0, 0.0), (0.3, 0.0), (0.3, -0.2)]
    answers = [("", np.array([x, y, 0.0]), color) for (x, y), color in zip(corners, PALETTE)]
    a, b, c = (centroid(draw_top_view(truth, answers, SIZE), color) for color in PALETTE[:3])
    assert np.linalg.norm(b - a) / np.linalg.norm(c - b) == pytest.approx(1.5, abs=0.03)
