# SPDX-License-Identifier: Apache-2.0
"""Appearance of answers in RViz and on images: color, opacity, texts."""

from __future__ import annotations

import unicodedata

from robobrain_ros.core.results import LiftedPoint, LiftedRegion, LiftStatus

Color = tuple[int, int, int]

PALETTE: tuple[Color, ...] = (
    (86, 180, 233),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 158, 115),
    (230, 159, 0),
    (0, 114, 178),
)
"""Okabe and Ito's colors without black, RGB: distinguishable with every kind of color vision. In
this order each one, and the first after the last, differs strongly from the one before."""

WHITE: Color = (255, 255, 255)
INK: Color = (22, 24, 30)
"""Near black, for outlines and plates, so that shapes stand out on light backgrounds too."""

_EVEN_CONTRAST = 0.2  # luminance on which white and INK are equally legible
# Never 1: RViz blends a line only where its last point is not quite solid.
FAINTEST, SOLIDEST = 0.35, 0.95
_HALF_QUALITY_SPREAD = 0.01  # of the depth: a stereo camera's noise at 4 m, a rough surface nearer


class Slots:
    """Assigns each question one of a few slots, and so its color.

    A question that is repeated keeps its slot, unless as many others as there are slots came since.
    A new question takes the least recently used slot: never that of the question before.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # least recently used first

    def take(self, question: str) -> int:
        """Return the slot of `question`, an index of PALETTE. Call it from one thread only."""
        slot = self._taken.pop(question, len(self._taken))
        if slot == len(PALETTE):
            slot = self._taken.pop(next(iter(self._taken)))
        self._taken[question] = slot
        return slot


def opacity(lifted: LiftedPoint | LiftedRegion) -> float:
    """Return the opacity of a result by the quality q of its depth: 0.35 + 0.6 q, at most 0.95.

    q = valid_fraction / (1 + (spread / (0.01 depth))^2): 1 where all depth pixels are valid and lie
    on a plane, 0.5 where half of them are holes or their spread is one per cent of the depth, and 0
    for what was not measured (interpolated, predicted, or without depth).
    """
    quality = 0.0
    interpolated = isinstance(lifted, LiftedPoint) and lifted.interpolated
    measured = not interpolated and lifted.status is not LiftStatus.DEPTH_PREDICTED
    if measured and lifted.depth > 0:
        spread = lifted.spread / (_HALF_QUALITY_SPREAD * lifted.depth)
        quality = min(max(lifted.valid_fraction, 0.0), 1.0) / (1 + spread**2)
    return FAINTEST + (SOLIDEST - FAINTEST) * quality


def mixed(color: Color, other: Color, share: float) -> Color:
    """Return `color` with a share (0 to 1) of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(color, other))
    return red, green, blue


def text_color_on(color: Color) -> Color:
    """Return INK or WHITE, whichever is more legible on `color`."""
    red, green, blue = ((part / 255) ** 2.2 for part in color)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _EVEN_CONTRAST else WHITE


def one_line(words: str) -> str:
    """Return the text on one line, without characters that can't be printed."""
    return "".join(c for c in " ".join(words.split()) if c.isprintable())


def shortened(words: str, length: int) -> str:
    """Return the text on one line of at most `length` characters, cut between words if possible."""
    words = one_line(words)
    if len(words) <= length:
        return words
    head = words[: length - 1]
    cut = head.rfind(" ")
    return (head[:cut] if cut > length // 2 else head).rstrip() + "…"


def without_accents(words: str) -> str:
    """Return the text in ASCII as far as it has an ASCII form: é is e, … is three dots."""
    split = unicodedata.normalize("NFKD", words)
    return unicodedata.normalize("NFC", "".join(c for c in split if not unicodedata.combining(c)))
