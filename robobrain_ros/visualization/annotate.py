# SPDX-License-Identifier: Apache-2.0
"""Answers drawn on the camera image, readable on a small picture as on a large one.

A dot is filled where the point has a position, a ring where it could not be lifted (its label says
why), and pale where the position was put between its neighbours. Beside it is the depth in metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import arc_lengths
from robobrain_ros.core.results import Lifted, Result
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.tf_projection import LiftedPoint, LiftedRegion, LiftStatus
from robobrain_ros.visualization import painting
from robobrain_ros.visualization.lettering import Lettering
from robobrain_ros.visualization.painting import Picture
from robobrain_ros.visualization.placing import Box, Places
from robobrain_ros.visualization.style import (
    INK,
    PALETTE,
    WHITE,
    Colour,
    mixed,
    on_top_of,
    one_line,
)

_WHY_NOT = {
    LiftStatus.DEPTH_HOLE: "no depth",
    LiftStatus.OUT_OF_RANGE: "out of range",
    LiftStatus.OUTSIDE_DEPTH_VIEW: "no depth there",
    LiftStatus.DEPTH_STALE: "depth too old",
    LiftStatus.NO_TRANSFORM: "no transform",
}
_NAMES = {
    TaskKind.POINT: ("point", "points"),
    TaskKind.TRAJECTORY: ("waypoint", "waypoints"),
    TaskKind.GROUNDING: ("box", "boxes"),
    TaskKind.AFFORDANCE: ("place", "places"),
}
_MEASURES_SHOWN = 8  # results; the labels of more than these are only numbers
_NUMBERS_SHOWN = 24  # results; of more, every second, third, … is numbered
_SMALLEST_TEXT = 11  # pixels
_LONGEST_CAPTION = 2000  # characters; more is on no image


def draw(
    rgb: NDArray[np.uint8], result: Result, words: str, colour: Colour = PALETTE[0]
) -> NDArray[np.uint8]:
    """Return a copy of `rgb` (H, W, 3) with the answer to `words` on it, in a colour (RGB)."""
    return _Drawing(rgb.copy(), colour).complete(result, words)


class _Drawing:
    def __init__(self, image: Picture, colour: Colour) -> None:
        self._image = image
        self._colour = colour
        self._pale = mixed(colour, WHITE, 0.6)
        height, width = image.shape[:2]
        self._size = (width, height)
        self._unit = max(min(width, height) / 480, 0.5)
        """What is one pixel wide on an image of 640x480."""
        self._places = Places(self._size)

    def complete(self, result: Result, words: str) -> Picture:
        """Shapes first, so that labels keep off all of them, and the caption where least is."""
        is_path = result.answer.kind is TaskKind.TRAJECTORY and _length(result.points) > 0
        if is_path:
            self._path(result.points)
        for region in result.regions:
            self._box(region)
        shown: list[Lifted] = [*result.points, *result.regions]
        for index, lifted in enumerate(shown):
            self._dot(lifted, is_path, is_path and index == len(shown) - 1)
        self._caption(result, one_line(words))
        self._labels(shown, is_path)
        return self._image

    # Shapes

    def _path(self, points: Sequence[LiftedPoint]) -> None:
        unit = self._unit
        track = np.array([point.pixel for point in points], np.float64)
        head = min(20 * unit, 0.8 * _length(points))
        shaft, aim = _cut(track, 0.7 * head)
        across = np.array([-aim[1], aim[0]]) * 0.45
        tip = track[-1]
        outline = np.array([tip, tip - head * (aim + across), tip - head * (aim - across)])
        painting.line(self._image, shaft, INK, 7.4 * unit)
        painting.line(self._image, [*outline, tip], INK, 3.4 * unit)
        painting.gradient(self._image, shaft, (self._pale, self._colour), 5 * unit)
        painting.area(self._image, outline, self._colour)
        for at in painting.pieces(track, 8 * unit):
            self._places.take([*(at - 4 * unit), *(at + 4 * unit)])

    def _box(self, region: LiftedRegion) -> None:
        unit = self._unit
        width, height = self._size
        # A box counts pixel edges, the drawing pixel centres; at the border it stays in view.
        low, high = 2 * unit, np.array([width, height]) - 1 - 2 * unit
        start = np.round(np.maximum(region.box[:2] - 0.5, low))
        end = np.round(np.maximum(np.minimum(region.box[2:] - 0.5, high), start))
        x1, y1, x2, y2 = box = (*start.tolist(), *end.tolist())
        painting.tint(self._image, box, self._colour, 0.12)
        corners = painting.brackets(box, max(10 * unit, 0.18 * min(x2 - x1, y2 - y1)))
        frame = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
        for corner in corners:
            painting.line(self._image, corner, INK, 7.2 * unit)
        painting.line(self._image, frame, INK, 3.4 * unit)
        painting.line(self._image, frame, self._colour, 1.4 * unit)
        for corner in corners:
            painting.line(self._image, corner, self._colour, 5 * unit)
            middle = corner[1]
            self._places.take([*(middle - 6 * unit), *(middle + 6 * unit)])

    def _dot(self, lifted: Lifted, small: bool, tip: bool) -> None:
        """Draw a point, or a box's point on its object. tip: of an arrow, which is dot enough."""
        if isinstance(lifted, LiftedRegion) and lifted.position is None:
            return
        radius = (5.0 if small or isinstance(lifted, LiftedRegion) else 7.0) * self._unit
        pixel = np.asarray(lifted.pixel)
        self._places.take([*(pixel - radius), *(pixel + radius)])
        if tip:
            return
        failed = lifted.position is None and lifted.status in _WHY_NOT
        pale = isinstance(lifted, LiftedPoint) and lifted.interpolated
        rings = [
            (radius + 1.2 * self._unit, INK),
            (radius, WHITE),
            (radius - 1.8 * self._unit, self._pale if pale else self._colour),
        ]
        if failed:
            rings.append((radius - 3.8 * self._unit, INK))
        for size, colour in rings:
            painting.disc(self._image, pixel, max(size, 0.5), colour)

    # Words

    def _labels(self, shown: list[Lifted], is_path: bool) -> None:
        """Number what there is more than one of; of a path only the ends are measured."""
        step = -(-len(shown) // _NUMBERS_SHOWN)
        for index, lifted in enumerate(shown):
            at_end = index in (0, len(shown) - 1)
            if index % step and not at_end:
                continue
            with_measure = len(shown) <= _MEASURES_SHOWN if not is_path else at_end
            words = _measure(lifted) if with_measure else ""
            number = str(index + 1) if len(shown) > 1 else ""
            if words or number:
                self._label(lifted, number, words)

    def _label(self, lifted: Lifted, number: str, words: str) -> None:
        """Write a number on the answer's colour, and after it a measure on dark."""
        unit = self._unit
        letters = Lettering(f"{number} {words}", self._text_size(13))
        pad, height = 5 * unit, letters.height + 2 * unit
        badge = max(letters.width(number) + 2 * pad, height) if number else 0.0
        plate = letters.width(words) + (1.8 if number else 2) * pad if words else 0.0
        size = (badge + plate, height)
        if size[0] > self._size[0] or size[1] > self._size[1]:
            return
        if isinstance(lifted, LiftedRegion):
            x1, y1, x2, y2 = self._places.best(_beside(lifted.box, size, 8 * unit))
        else:
            x1, y1, x2, y2 = self._places.around(lifted.pixel, size, 12 * unit)
        painting.pill(self._image, (x1, y1, x2, y2), INK, height / 2, 0.78)
        top = (y1 + y2 - letters.height) / 2
        if number:
            rim = 1.5 * unit  # of the dark plate: some things have the answer's colour
            inner = (x1 + rim, y1 + rim, x1 + badge - rim, y2 - rim)
            painting.pill(self._image, inner, self._colour, height / 2, 1.0)
            left = x1 + (badge - letters.width(number)) / 2
            painting.text(self._image, (left, top), [number], letters, on_top_of(self._colour))
        left = x1 + badge + (0.8 if number else 1) * pad
        painting.text(self._image, (left, top), [words], letters)

    def _caption(self, result: Result, words: str) -> None:
        """Write what was asked and, on the same line if it fits, what was answered."""
        unit, size = self._unit, self._text_size(16)
        margin, pad, key = 8 * unit, 9 * unit, 18 * unit  # key: the dot in the answer's colour
        query = Lettering(words[:_LONGEST_CAPTION], size)
        reply = Lettering(_answered(result)[:_LONGEST_CAPTION], size)
        most = max(1, int(0.4 * self._size[1] / max(query.height, reply.height)))
        room = int(self._size[0] - 2 * (margin + pad) - key)
        asked = query.lines(room, min(most, 3))
        told = reply.lines(room, max(most - len(asked), 1))
        if not asked:
            return
        after = query.width(asked[-1]) + 10 * unit
        widths = [*map(query.width, asked), *map(reply.width, told)]
        height = len(asked) * query.height
        if len(told) == 1 and after + reply.width(told[0]) <= room:
            widths.append(after + reply.width(told[0]))
            reply_at = np.array([after, height - query.height])
        else:
            reply_at = np.array([0, height])
            height += len(told) * reply.height
        size_of_all = (max(widths) + key + 2 * pad, height + 1.2 * pad)
        box = self._places.best(_corners(self._size, size_of_all, margin))
        painting.pill(self._image, box, INK, (query.height + 1.2 * pad) / 2, 0.78)
        top_left = np.array(box[:2]) + [pad, 0.6 * pad]
        dot = top_left + [5 * unit, query.height / 2]
        painting.disc(self._image, dot, 5 * unit, WHITE)
        painting.disc(self._image, dot, 4 * unit, self._colour)
        painting.text(self._image, top_left + [key, 0], asked, query)
        painting.text(self._image, top_left + [key, 0] + reply_at, told, reply, self._pale)

    def _text_size(self, pixels: float) -> int:
        return max(round(pixels * self._unit), _SMALLEST_TEXT)


def _answered(result: Result) -> str:
    """Say what came: the text, or how many, and how many of them have a position."""
    kind = result.answer.kind
    if kind is TaskKind.ASK:
        return one_line(result.answer.text)
    all_of_them: list[Lifted] = [*result.points, *result.regions]
    count = len(all_of_them)
    lifted = sum(one.position is not None for one in all_of_them)
    name = _NAMES[kind][count != 1]
    if lifted == count or not any(one.status in _WHY_NOT for one in all_of_them):
        return f"{count} {name}"
    return f"{count} {name}, {lifted} in 3D"


def _measure(lifted: Lifted) -> str:
    """Say how far away it is, and why it has no position, as far as that is known."""
    parts = []
    if lifted.depth > 0:
        parts.append(f"{lifted.depth:.2f} m" if lifted.depth < 10 else f"{lifted.depth:.1f} m")
    if lifted.position is None and lifted.status in _WHY_NOT:
        parts.append(_WHY_NOT[lifted.status])
    return ", ".join(parts)


def _length(points: Sequence[LiftedPoint]) -> float:
    """Length of the line through points, pixels."""
    track = np.array([point.pixel for point in points], np.float64).reshape(-1, 2)
    return float(arc_lengths(track)[-1])


def _cut(track: NDArray[np.float64], end: float) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return a track (N, 2) without its last `end` pixels, and the direction (2,) to its tip."""
    along = arc_lengths(track)
    stop = along[-1] - end
    at = np.array([np.interp(stop, along, track[:, axis]) for axis in (0, 1)])
    aim = track[-1] - at
    length = float(np.linalg.norm(aim))
    if length == 0:  # the track comes back to where its end began
        aim, length = np.array([1.0, 0.0]), 1.0
    return np.vstack([track[along < stop], at]), aim / length


def _beside(box: NDArray[np.float64], size: tuple[float, float], gap: float) -> list[Box]:
    """Return where the label of a box may be: at its top, at its bottom, inside."""
    x1, y1, x2, y2 = (float(side) for side in box)
    width, height = size
    lefts = (x1, x2 - width)
    tops = (y1 - gap - height, y2 + gap, y1 + gap, y2 - gap - height)
    return [(left, top, left + width, top + height) for top in tops for left in lefts]


def _corners(image: tuple[int, int], size: tuple[float, float], margin: float) -> list[Box]:
    """Return where the caption may be: in a corner of the image, the upper left one first."""
    width, height = size
    lefts, tops = (margin, image[0] - margin - width), (margin, image[1] - margin - height)
    return [(left, top, left + width, top + height) for top in tops for left in lefts]
