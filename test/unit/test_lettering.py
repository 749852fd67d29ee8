# SPDX-License-Identifier: Apache-2.0
"""Text as pixels, and where it is put."""

from __future__ import annotations

import numpy as np
import pytest

from robobrain_ros.visualization import lettering, painting
from robobrain_ros.visualization.lettering import Lettering, readable
from robobrain_ros.visualization.placing import Places

TEXT = "The cereal box stands in front of the red tray, and Donaudampfschiff behind it."


@pytest.fixture
def no_system_fonts(monkeypatch):
    monkeypatch.setattr(lettering, "_SYSTEM_FONTS", ("NoSuchFont.ttf",))


@pytest.mark.parametrize("size", [11, 16, 36])
@pytest.mark.parametrize("width", [60, 150, 700])
def test_lines_fit_and_together_are_the_text(size, width):
    letters = Lettering(TEXT, size)
    lines = letters.lines(width, 1000)
    assert max(map(letters.width, lines)) <= width
    assert "".join(lines).replace(" ", "") == TEXT.replace(" ", "")
    if width == 700 and size == 11:
        assert lines == [TEXT]


def test_lines_break_at_spaces_and_long_words_anywhere():
    letters = Lettering(TEXT, 16)
    assert letters.lines(150, 100)[0] in TEXT.split(" in ")[0] + " in"
    assert any("Donau" in line for line in letters.lines(60, 100))
    assert letters.lines(2, 5) == []


def test_what_is_left_out_is_told():
    letters = Lettering(TEXT, 16)
    lines = letters.lines(150, 2)
    assert len(lines) == 2 and lines[1].endswith("…")
    assert max(map(letters.width, lines)) <= 150
    assert not letters.lines(150, 1000)[-1].endswith("…")


def test_letters_cover_their_box_smoothly():
    mask = Lettering("Point", 16).mask("Point")
    assert mask.shape == (Lettering("Point", 16).height, Lettering("Point", 16).width("Point"))
    assert mask.max() > 200 and len(np.unique(mask)) > 20
    assert mask[0].max() == 0  # nothing is cut at the top


def test_a_descender_is_not_cut():
    letters = Lettering("gjpqy", 16)
    assert letters.mask("gjpqy")[-1].max() == 0


def test_without_a_font_for_them_accents_are_dropped(no_system_fonts):
    assert readable("près de la boîte") == ("pres de la boite", "")
    assert readable("the can · 0.82 m…") == ("the can · 0.82 m…", "")


def test_without_a_font_for_them_letters_are_boxes(no_system_fonts):
    mask = Lettering("中", 16).mask("中")
    assert readable("中") == ("中", "")
    np.testing.assert_array_equal(mask, Lettering("中", 16).mask("犬"))
    assert mask.max() > 100


def test_a_font_of_the_system_is_taken_where_it_has_the_letters(monkeypatch):
    # The first font of the list that Pillow finds here; a machine may have none.
    names = [name for name in lettering._SYSTEM_FONTS if lettering.font(name, 16)]
    if not names:
        pytest.skip("no font is installed")
    assert readable("près") == ("près", names[0])


def test_labels_are_inside_and_off_each_other_where_there_is_room():
    places = Places((640, 480))
    rng = np.random.default_rng(1)
    points = np.stack(np.meshgrid(np.arange(5, 640, 90), np.arange(5, 480, 60)), -1).reshape(-1, 2)
    for point in points:
        places.take([*(point - 8), *(point + 8)])
    boxes = np.array([places.around(point, (40, 18), 12) for point in rng.permutation(points)])
    assert boxes.min() >= 0
    assert boxes[:, 2].max() <= 640 and boxes[:, 3].max() <= 480
    everything = np.vstack([boxes, np.hstack([points - 8, points + 8])])
    low = np.maximum(everything[:, None, :2], everything[None, :, :2])
    high = np.minimum(everything[:, None, 2:], everything[None, :, 2:])
    overlap = np.maximum(high - low, 0).prod(axis=2)
    np.fill_diagonal(overlap, 0)
    assert overlap.max() == 0


def test_a_label_stays_inside_even_where_it_covers_something():
    places = Places((100, 50))
    places.take([0, 0, 100, 50])
    x1, y1, x2, y2 = places.around((99, 49), (40, 20), 5)
    assert x1 >= 0 and y1 >= 0 and x2 <= 100 and y2 <= 50


def test_a_pill_is_cut_at_the_border_and_has_round_corners():
    image = np.zeros((40, 100, 3), np.uint8)
    painting.pill(image, (10, 5, 200, 35), (200, 100, 50), 15, 1.0)
    assert (image[20, 12:] == (200, 100, 50)).all()
    assert (image[5, 10] == 0).all() and (image[5, 40] == (200, 100, 50)).all()
    assert (image[:5] == 0).all() and (image[35:] == 0).all()


def test_pieces_of_a_line_are_short_and_few():
    square = np.array([[0, 0], [100, 0], [100, 100.0]])
    fine = painting.pieces(square, 8)
    assert np.linalg.norm(np.diff(fine, axis=0), axis=1).max() <= 8
    assert (fine == square[1]).all(axis=1).any()
    assert len(painting.pieces(square * 1e6, 8)) <= 1000
    np.testing.assert_array_equal(painting.pieces(square[:1], 8), square[:1])
