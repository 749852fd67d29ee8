# SPDX-License-Identifier: Apache-2.0
"""What an answer looks like, in RViz as on the image: its colour, how solid it is, its words."""

from __future__ import annotations

import unicodedata

from robobrain_ros.tf_projection import LiftedPoint, LiftedRegion, LiftStatus

Colour = tuple[int, int, int]

PALETTE: tuple[Colour, ...] = (
    (86, 180, 233),
    (213, 94, 0),
    (204, 121, 167),
    (240, 228, 66),
    (0, 158, 115),
    (230, 159, 0),
    (0, 114, 178),
)
"""Okabe and Ito's colours but for black, RGB. They are told apart with every kind of colour vision;
in this order each one, and the first after the last, is far from the one before."""

WHITE: Colour = (255, 255, 255)
INK: Colour = (22, 24, 30)
"""Dark, around what is drawn, so that it stands out from light things too."""

_EVEN_CONTRAST = 0.2  # luminance of what white and INK are equally well read on
# Never 1: RViz blends a line only where its last point is not quite solid.
FAINTEST, SOLIDEST = 0.35, 0.95
_SPREAD_THAT_HALVES = 0.01  # of the depth: a stereo camera's noise at 4 m, rough matter nearer


class Slots:
    """Gives each request one of a few slots, and so its colour.

    The same question keeps its slot for as long as fewer others than there are slots came since, so
    that asked again it has its colour again. A new question takes the slot that was used least
    recently: never the one of the question before.
    """

    def __init__(self) -> None:
        self._taken: dict[str, int] = {}  # in the order of use

    def take(self, question: str) -> int:
        """Return the slot of `question`, an index of PALETTE. Call it from one thread only."""
        slot = self._taken.pop(question, len(self._taken))
        if slot == len(PALETTE):
            slot = self._taken.pop(next(iter(self._taken)))
        self._taken[question] = slot
        return slot


def opacity(lifted: LiftedPoint | LiftedRegion) -> float:
    """How solid a result is drawn, by the quality q of its depth: 0.35 + 0.6 q, at most 0.95.

    q = valid_fraction / (1 + (spread / (0.01 depth))^2): 1 where every depth pixel holds depth and
    lies on a plane, half of that where half of them are holes or where they spread by one per cent
    of the depth, and 0 for what was not measured (interpolated, predicted, or without depth).
    """
    quality = 0.0
    interpolated = isinstance(lifted, LiftedPoint) and lifted.interpolated
    measured = not interpolated and lifted.status is not LiftStatus.DEPTH_PREDICTED
    if measured and lifted.depth > 0:
        spread = lifted.spread / (_SPREAD_THAT_HALVES * lifted.depth)
        quality = min(max(lifted.valid_fraction, 0.0), 1.0) / (1 + spread**2)
    return FAINTEST + (SOLIDEST - FAINTEST) * quality


def mixed(colour: Colour, other: Colour, share: float) -> Colour:
    """Return `colour` with a share (0 to 1) of `other` in it."""
    red, green, blue = (round(a + (b - a) * share) for a, b in zip(colour, other))
    return red, green, blue


def on_top_of(colour: Colour) -> Colour:
    """Return the colour, dark or white, in which text on `colour` is read best."""
    red, green, blue = ((part / 255) ** 2.2 for part in colour)
    return INK if 0.2126 * red + 0.7152 * green + 0.0722 * blue > _EVEN_CONTRAST else WHITE


def one_line(words: str) -> str:
    """Return the text on one line, without what can't be printed."""
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
