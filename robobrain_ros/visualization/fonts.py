# SPDX-License-Identifier: Apache-2.0
"""Fonts: selection by glyph coverage, measuring, line breaking.

Pillow's built-in font is available on every machine but covers little more than ASCII. Other texts
use the first system font that has all of their glyphs. If none has, accents are dropped, and a
glyph that is still missing is drawn as a crossed box.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from PIL import ImageFont

from robobrain_ros.visualization.style import without_accents

ELLIPSIS = "…"

_BUILT_IN = ""
# File names, which Pillow looks up in the system's font folders: Latin scripts first, then CJK.
_SYSTEM_FONTS = (
    "NotoSans-Regular.ttf",
    "DejaVuSans.ttf",
    "LiberationSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
)
_NO_CHARACTER = "\U0010ffff"  # a font draws its glyph for missing characters here
_PROBE_SIZE = 16


def renderable(text: str) -> tuple[str, str]:
    """Return the text as it can be drawn, and the name of the font for it."""
    for name in (_BUILT_IN, *_SYSTEM_FONTS):
        if load_font(name, _PROBE_SIZE) and all(_has_glyph(name, c) for c in set(text) - {" "}):
            return text, name
    return without_accents(text), _BUILT_IN


@lru_cache(maxsize=32)
def load_font(name: str, size: int) -> ImageFont.FreeTypeFont | None:
    """Return a font of `renderable` at a height in pixels; None where it is not installed."""
    try:
        font = ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None
    assert isinstance(font, ImageFont.FreeTypeFont)  # Pillow without FreeType has only a bitmap
    return font


@lru_cache(maxsize=4096)
def _has_glyph(name: str, character: str) -> bool:
    font = load_font(name, _PROBE_SIZE)
    assert font is not None
    return bytes(font.getmask(character)) != bytes(font.getmask(_NO_CHARACTER))


class Font:
    """The font for one text, or for parts of it, at one size in pixels.

    height: pixels from one line to the next.
    """

    def __init__(self, text: str, size: int) -> None:
        self._text, self._name = renderable(text)
        self._size = max(size, 1)
        # Measured large: at small sizes, glyphs are as wide as whole pixels.
        self._measure = self.at(4)
        self.height = -(-sum(self._measure.getmetrics()) // 4) + 1

    def at(self, scale: int) -> ImageFont.FreeTypeFont:
        """Return Pillow's font for an image at a multiple of the resolution."""
        font = load_font(self._name, self._size * scale)
        assert font is not None  # `renderable` returns only installed fonts
        return font

    def width(self, line: str) -> int:
        """Return the width of a line in pixels."""
        return int(np.ceil(self._measure.getlength(line) / 4))

    def wrapped(self, width: int, max_lines: int) -> list[str]:
        """Break the text into at most `max_lines` lines of at most `width` pixels.

        Lines break at spaces, and inside a word that is longer than a line. The last line ends in …
        where text was left out. Empty where not even one character fits.
        """
        lines: list[str] = []
        rest = self._text
        while rest and len(lines) < max_lines:
            end = self._line_end(rest, width)
            if not end:
                return []
            if end < len(rest) and len(lines) == max_lines - 1:
                end = self._line_end(rest, width - self.width(ELLIPSIS))
                return [*lines, rest[:end].rstrip() + ELLIPSIS]
            lines.append(rest[:end].rstrip())
            rest = rest[end:].lstrip()
        return lines

    def _line_end(self, text: str, width: int) -> int:
        """Return how many characters of `text` fit on a line, including a space at its end."""
        # No glyph is narrower than a fifth of the size, which bounds the search in long texts.
        longest = int(max(width, 0) / (0.2 * self._size)) + 1
        low, high = 0, min(len(text), longest)
        while low < high:
            middle = (low + high + 1) // 2
            if self.width(text[:middle]) <= width:
                low = middle
            else:
                high = middle - 1
        space = text.rfind(" ", 0, low + 1)
        return space + 1 if low < len(text) and space > 0 else low
