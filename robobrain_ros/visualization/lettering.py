# SPDX-License-Identifier: Apache-2.0
"""Text as pixels: a font that has the letters, its measure, lines that fit.

Pillow brings a font that is there on every machine, but it has only ASCII and little more. Texts
with other letters take a font of the system, the first one that has them all. Where none has,
accents are dropped, and a letter that is still missing is a crossed box.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from robobrain_ros.visualization.style import without_accents

Font = ImageFont.FreeTypeFont
ELLIPSIS = "…"

_BUILT_IN = ""
# Names, which Pillow looks for in the system's font folders: Latin and its neighbours, then all.
_SYSTEM_FONTS = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
)
_NOWHERE = "\U0010ffff"  # no letter: what a font draws for it is its sign for missing ones
_TEST_SIZE = 16
_FINE_ENOUGH = 24  # pixels of a font: drawn twice as large then, below four times
_NARROWEST = 0.2  # of a font's size: i, l, and dots


def readable(text: str) -> tuple[str, str]:
    """Return the text as it can be written, and the name of the font for it."""
    for name in (_BUILT_IN, *_SYSTEM_FONTS):
        if _has_all(name, text):
            return text, name
    return without_accents(text), _BUILT_IN


@lru_cache(maxsize=32)
def font(name: str, size: int) -> Font | None:
    """Return a font of `readable` at a height in pixels; None where it is not installed."""
    try:
        found = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None
    assert isinstance(found, Font)  # Pillow without FreeType has only a bitmap
    return found


def _has_all(name: str, text: str) -> bool:
    return font(name, _TEST_SIZE) is not None and all(_has(name, c) for c in set(text) - {" "})


@lru_cache(maxsize=4096)
def _has(name: str, letter: str) -> bool:
    chosen = font(name, _TEST_SIZE)
    return chosen is not None and bytes(chosen.getmask(letter)) != bytes(chosen.getmask(_NOWHERE))


class Lettering:
    """Writes one text, and others with letters that it has, at one size.

    It is written larger and scaled down: a small font's own pixels are too few for even spaces.
    height: pixels from one line to the next; no letter is higher.
    """

    def __init__(self, text: str, size: int) -> None:
        self.text, name = readable(text)
        self._finer = 4 if size < _FINE_ENOUGH else 2
        chosen = font(name, self._finer * max(size, 1))
        assert chosen is not None  # `readable` returns only what is there
        self._font = chosen
        self._ascent, descent = chosen.getmetrics()
        self.height = -(-(self._ascent + descent) // self._finer) + 1

    def width(self, line: str) -> int:
        """Return the pixels that a line takes."""
        return int(np.ceil(self._font.getlength(line) / self._finer))

    def mask(self, line: str) -> NDArray[np.uint8]:
        """Return a line's coverage (height, width), 0 to 255."""
        size = (max(self.width(line), 1), self.height)
        image = Image.new("L", (size[0] * self._finer, size[1] * self._finer))
        ImageDraw.Draw(image).text((0, self._ascent), line, 255, self._font, anchor="ls")
        return np.asarray(image.reduce(self._finer))

    def lines(self, width: int, most: int) -> list[str]:
        """Break the text into at most `most` lines of at most `width` pixels.

        It breaks at spaces, and in a word that is longer than a line anywhere. The last line ends
        in … where something was left out. Empty where not even one letter fits.
        """
        lines: list[str] = []
        rest = self.text
        while rest and len(lines) < most:
            end = self._fitting(rest, width)
            if not end:
                return []
            if end < len(rest) and len(lines) == most - 1:
                end = self._fitting(rest, width - self.width(ELLIPSIS))
                return [*lines, rest[:end].rstrip() + ELLIPSIS]
            lines.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        return lines

    def _fitting(self, text: str, width: int) -> int:
        """Return how many characters of `text` make a line, its space at the end included."""
        low, high = (
            0,
            min(len(text), int(max(width, 0) * self._finer / (_NARROWEST * self._font.size)) + 1),
        )
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle]) <= width:
                low = middle
            else:
                high = middle - 1
        if low == len(text):
            return low
        space = text.rfind(" ", 0, low + 1)
        return space + 1 if space > 0 else low
