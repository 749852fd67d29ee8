# SPDX-License-Identifier: Apache-2.0
"""Colors, opacity and words of what is shown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from support.sample_results import between, hole, point, region

from robobrain_ros.visualization.style import (
    FAINTEST,
    PALETTE,
    SOLIDEST,
    Slots,
    one_line,
    opacity,
    shortened,
    text_color_on,
    without_accents,
)

# Machado, Oliveira and Fernandes 2009: linear RGB as it is seen without one kind of cones.
VISION = {
    "normal": np.eye(3),
    "protanopia": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deuteranopia": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritanopia": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}
XYZ_FROM_RGB = np.array(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)


def linear(color) -> np.ndarray:
    part = np.array(color) / 255
    return np.where(part <= 0.04045, part / 12.92, ((part + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* of linear RGB."""
    t = (XYZ_FROM_RGB @ np.clip(rgb, 0, 1)) / XYZ_FROM_RGB.sum(axis=1)
    x, y, z = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("vision", VISION)
def test_every_kind_of_vision_tells_colors_apart(vision):
    seen = [lab(np.array(VISION[vision]) @ linear(color)) for color in PALETTE]
    distances = np.array([[np.linalg.norm(a - b) for b in seen] for a in seen])
    assert distances[~np.eye(len(seen), dtype=bool)].min() > 12
    assert min(distances[i - 1, i] for i in range(len(seen))) > 24  # one after the other


def test_questions_after_each_other_differ():
    slots = Slots()
    taken = [slots.take(f"question {number}") for number in range(20)]
    assert taken[: len(PALETTE)] == list(range(len(PALETTE)))
    assert all(a != b for a, b in zip(taken, taken[1:]))


def test_a_question_asked_again_has_its_slot_again():
    slots = Slots()
    first = slots.take("can")
    others = [slots.take(f"other {number}") for number in range(len(PALETTE) - 1)]
    assert slots.take("can") == first not in others
    # "can" was used last now, so it is not what a new question takes the place of.
    assert slots.take("new") == others[0]


def test_a_well_measured_plane_is_solid_and_what_was_not_measured_faint():
    assert opacity(point()) == pytest.approx(SOLIDEST)
    assert opacity(region((0, 0, 9, 9))) == pytest.approx(SOLIDEST)
    assert opacity(between((3, 4))) == opacity(hole((3, 4))) == FAINTEST > 0.2
    assert SOLIDEST < 0.9998  # beyond that, RViz draws lines without transparency


def test_opacity_is_by_the_documented_formula():
    half = FAINTEST + (SOLIDEST - FAINTEST) / 2
    assert opacity(point(valid_fraction=0.5)) == pytest.approx(half)
    assert opacity(point(depth=2.0, spread=0.02)) == pytest.approx(half)
    assert opacity(point(depth=0.5, spread=0.02)) < half
    steps = [opacity(point(spread=spread)) for spread in (0, 0.003, 0.01, 0.1, 10)]
    assert steps == sorted(steps, reverse=True) and steps[-1] >= FAINTEST


def test_a_value_beyond_its_range_stays_visible():
    assert opacity(replace(point(), valid_fraction=-3.0)) == FAINTEST
    assert opacity(replace(point(), valid_fraction=7.0)) == pytest.approx(SOLIDEST)


def test_text_on_each_color_has_contrast():
    for color in PALETTE:
        light, dark = sorted(
            (np.dot([0.2126, 0.7152, 0.0722], linear(c)) for c in (color, text_color_on(color))),
            reverse=True,
        )
        assert (light + 0.05) / (dark + 0.05) > 4.5  # WCAG 2 for small text


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("the can", "the can"),
        ("the can", "the can"),
        ("  the\n\tcan  ", "the can"),
        ("Point to the red can", "Point to…"),
        ("Donaudampfschiff", "Donaudamp…"),
        ("a Donaudampfschiff", "a Donauda…"),
        ("bell\a", "bell"),
    ],
)
def test_words_are_shortened_between_words_if_possible(words, expected):
    assert shortened(words, 10) == expected
    assert len(shortened(words, 10)) <= 10


def test_accents_are_dropped_but_other_scripts_stay():
    assert without_accents("Größe, près… ½") == "Große, pres... 1⁄2"
    assert without_accents("指向 캔") == "指向 캔"
    assert one_line("a\u200bb\nc") == "ab c"
