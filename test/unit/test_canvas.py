# SPDX-License-Identifier: Apache-2.0
"""Shapes and text on images: fonts, line breaking, label placement."""

from __future__ import annotations

import numpy as np
import pytest

from robobrain_ros.visualization import fonts
from robobrain_ros.visualization.canvas import Canvas, samples
from robobrain_ros.visualization.fonts import Font, renderable
from robobrain_ros.visualization.placing import LabelPlacer

TEXT = "The cereal box stands in front of the red tray, and Donaudampfschiff behind it."


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "_SYSTEM_FONTS", ("NoSuchFont.ttf",))


@pytest.mark.parametrize("size", [11, 16, 36])
@pytest.mark.parametrize("width", [60, 150, 700])
def test_lines_fit_and_together_are_the_text(size, width):
    font = Font(TEXT, size)
    lines = font.wrapped(width, 1000)
    assert max(map(font.width, lines)) <= width
    assert "".join(lines).replace(" ", "") == TEXT.replace(" ", "")
    if width == 700 and size == 11:
        assert lines == [TEXT]


def test_lines_break_at_spaces_and_long_words_anywhere():
    font = Font(TEXT, 16)
    assert font.wrapped(150, 100)[0] in TEXT.split(" in ")[0] + " in"
    assert any("Donau" in line for line in font.wrapped(60, 100))
    assert font.wrapped(2, 5) == []


def test_what_is_left_out_is_told():
    font = Font(TEXT, 16)
    lines = font.wrapped(150, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert max(map(font.width, lines)) <= 150
    assert not font.wrapped(150, 1000)[-1].endswith("…")


def written(text: str, size: int = 16) -> np.ndarray:
    """Return how white each pixel of a text is, (H, W) uint8, in a box of its size."""
    font = Font(text, size)
    canvas = Canvas(np.zeros((font.height, font.width(text), 3), np.uint8))
    canvas.text((0, 0), [text], font)
    return canvas.array()[..., 0]


def test_glyphs_are_smooth_and_fill_their_box():
    image = written("Point")
    assert image.max() > 200 and len(np.unique(image)) > 20
    assert image[0].max() == 0  # nothing is cut off at the top
    columns = np.flatnonzero(image.any(axis=0))
    assert columns[0] <= 2 and columns[-1] >= image.shape[1] - 3


def test_a_descender_is_not_cut_off():
    assert written("gjpqy")[-1].max() == 0


def test_lines_are_written_below_each_other():
    font = Font("Point", 16)
    canvas = Canvas(np.zeros((3 * font.height, 80, 3), np.uint8))
    canvas.text((0, 0), ["Point"] * 2, font)
    first, second, third = canvas.array().reshape(3, font.height, 80, 3)
    assert first.any() and not third.any()
    np.testing.assert_array_equal(first, second)


def test_without_a_font_for_them_accents_are_dropped(no_system_fonts):
    assert renderable("près de la boîte") == ("pres de la boite", "")
    assert renderable("the can · 0.82 m…") == ("the can · 0.82 m…", "")


def test_without_a_font_for_them_glyphs_are_boxes(no_system_fonts):
    assert renderable("中") == ("中", "")
    box = written("中")
    np.testing.assert_array_equal(box, written("犬"))
    assert box.max() > 100


def test_a_font_of_the_system_is_taken_where_it_has_the_letters(monkeypatch):
    # The first font of the list that Pillow finds here; a machine may have none.
    names = [name for name in fonts._SYSTEM_FONTS if fonts.load_font(name, 16)]
    if not names:
        pytest.skip("no font is installed")
    assert renderable("près") == ("près", names[0])


def test_labels_are_inside_and_off_each_other_where_there_is_room():
    placer = LabelPlacer((640, 480))
    rng = np.random.default_rng(1)
    points = np.stack(np.meshgrid(np.arange(5, 640, 90), np.arange(5, 480, 60)), -1).reshape(-1, 2)
    for point in points:
        placer.reserve([*(point - 8), *(point + 8)])
    boxes = np.array([placer.around(point, (40, 18), 12) for point in rng.permutation(points)])
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480
    everything = np.vstack([boxes, np.hstack([points - 8, points + 8])])
    low = np.maximum(everything[:, None, :2], everything[None, :, :2])
    high = np.minimum(everything[:, None, 2:], everything[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() == 0


def test_a_label_stays_inside_even_where_it_covers_something():
    placer = LabelPlacer((100, 50))
    placer.reserve([0, 0, 100, 50])
    x1, y1, x2, y2 = placer.around((99, 49), (40, 20), 5)
    assert x1 >= 0 and y1 >= 0 and x2 <= 100 and y2 <= 50


def test_a_pill_is_cut_off_at_the_border_and_has_round_corners():
    canvas = Canvas(np.zeros((40, 100, 3), np.uint8))
    canvas.pill((10, 5, 200, 35), (200, 100, 50), 15)
    image = canvas.array()
    assert (image[20, 12:] == (200, 100, 50)).all()
    assert (image[5, 10] == 0).all() and (image[5, 40] == (200, 100, 50)).all()
    assert (image[:5] == 0).all() and (image[35:] == 0).all()


@pytest.mark.parametrize("size", [(48, 64), (480, 640), (1080, 1920), (2160, 3840)])
def test_pixels_that_nothing_is_drawn_on_keep_their_values(size):
    before = np.random.default_rng(3).integers(0, 255, (*size, 3)).astype(np.uint8)
    canvas = Canvas(before)
    canvas.disc((10, 20), 5, (255, 255, 255))
    after = canvas.array()
    changed = (after != before).any(axis=2)
    rows, columns = np.nonzero(changed)
    assert 70 < changed.sum() < 110
    assert abs(columns.mean() - 10) < 0.3 and abs(rows.mean() - 20) < 0.3


@pytest.mark.parametrize(("size", "most"), [((640, 480), 9), ((16, 16), 16), ((60, 200_000), 1)])
def test_images_are_enlarged_only_within_bounded_memory(size, most):
    canvas = Canvas(np.zeros((*size, 3), np.uint8))
    assert np.prod(canvas._image.size) == most * np.prod(size)
    canvas.line([(0, 0), size[::-1]], 3, (9, 9, 9))
    assert canvas.array().shape == (*size, 3)


def test_samples_of_a_line_are_even_and_few():
    square = np.array([[0, 0], [100, 0], [100, 100.0]])
    dense = samples(square, 8)
    assert np.linalg.norm(np.diff(dense, axis=0), axis=1).max() <= 8
    assert (dense[[0, -1]] == square[[0, -1]]).all()
    x, y = dense.T
    assert ((y == 0) | (x == 100)).all()
    assert len(samples(square * 1e6, 8)) == 1000
    np.testing.assert_array_equal(samples(square[:1], 8), square[:1])
