# SPDX-License-Identifier: Apache-2.0
"""The annotated image: a request's answer drawn on the camera image, scaled to its size.

A point with a measured 3D position is a filled dot, one with an interpolated or predicted position
is pale, and one that could not be lifted is hollow; its label says why. Labels give the distance in
meters.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.arrays import arc_lengths
from robobrain_ros.core.results import Lifted, LiftedPoint, LiftedRegion, LiftStatus, Result
from robobrain_ros.core.tasks import TASKS, AnswerType
from robobrain_ros.visualization.canvas import Canvas, samples
from robobrain_ros.visualization.fonts import Font
from robobrain_ros.visualization.placing import Box, LabelPlacer
from robobrain_ros.visualization.style import (
    INK,
    PALETTE,
    WHITE,
    Color,
    mixed,
    one_line,
    text_color_on,
)

_FAILURES = {
    LiftStatus.DEPTH_HOLE: "no depth",
    LiftStatus.OUT_OF_RANGE: "out of range",
    LiftStatus.OUTSIDE_DEPTH_VIEW: "no depth there",
    LiftStatus.DEPTH_STALE: "depth too old",
    LiftStatus.NO_TRANSFORM: "no transform",
}
_NOUNS = {
    AnswerType.POINTS: ("point", "points"),
    AnswerType.WAYPOINTS: ("waypoint", "waypoints"),
    AnswerType.REGIONS: ("region", "regions"),
}
_MAX_DISTANCES = 8  # with more results, labels are only numbers
_MAX_NUMBERS = 24  # with more results, every second, third, … one is numbered
_MIN_TEXT_SIZE = 11  # pixels
_MAX_CAPTION = 2000  # characters; no image holds more
_PLATE_OPACITY = 0.78


def draw(
    rgb: NDArray[np.uint8], result: Result, query: str, color: Color = PALETTE[0]
) -> NDArray[np.uint8]:
    """Return a copy of `rgb` (H, W, 3) with the answer to `query` on it.

    color: RGB, of the shapes. An empty query leaves the caption out.
    """
    annotation = _Annotation(rgb, color)
    lifted: list[Lifted] = [*result.points, *result.regions]
    track = np.array([point.pixel for point in result.points], np.float64).reshape(-1, 2)
    answer_type = TASKS[result.answer.kind].answer
    is_path = answer_type is AnswerType.WAYPOINTS and bool((track != track[:1]).any())
    # Shapes come first, so that the caption and the labels can keep off all of them.
    if is_path:
        annotation.path(track)
    for region in result.regions:
        annotation.box(region)
    for index, one in enumerate(lifted):
        annotation.dot(one, is_path, is_path and index == len(lifted) - 1)
    annotation.caption(one_line(query), _reply(result))
    annotation.labels(lifted, is_path)
    return annotation.canvas.array()


class _Annotation:
    """One answer in progress."""

    def __init__(self, rgb: NDArray[np.uint8], color: Color) -> None:
        self.canvas = Canvas(rgb)
        self._unit = self.canvas.unit
        self._color = color
        self._pale = mixed(color, WHITE, 0.6)
        self._placer = LabelPlacer(self.canvas.size)

    def path(self, track: NDArray[np.float64]) -> None:
        """Draw an arrow through waypoints (N, 2) that goes from pale to the color."""
        unit, tip = self._unit, track[-1]
        head = min(20 * unit, 0.8 * arc_lengths(track)[-1])
        shaft = _without_end(track, 0.7 * head)
        aim = tip - shaft[-1]
        length = float(np.linalg.norm(aim))
        # The path may come back to the point where its end began.
        aim = aim / length if length else np.array([1.0, 0.0])
        across = np.array([-aim[1], aim[0]]) * 0.45
        outline = np.array([tip, tip - head * (aim + across), tip - head * (aim - across)])
        self.canvas.line(shaft, 7.4 * unit, INK)
        self.canvas.line([*outline, tip], 3.4 * unit, INK)
        self.canvas.gradient_line(shaft, 5 * unit, self._pale, self._color)
        self.canvas.polygon(outline, self._color)
        for point in samples(track, 8 * unit):
            self._placer.reserve([*(point - 4 * unit), *(point + 4 * unit)])

    def box(self, region: LiftedRegion) -> None:
        """Draw a box as a thin frame with strong corners, its inside tinted."""
        unit = self._unit
        # Boxes count pixel edges, the canvas pixel centers; at the borders the lines stay in view.
        low, high = 2 * unit, np.array(self.canvas.size) - 1 - 2 * unit
        start = np.round(np.maximum(region.box[:2] - 0.5, low))
        end = np.round(np.maximum(np.minimum(region.box[2:] - 0.5, high), start))
        x1, y1, x2, y2 = frame = (*start.tolist(), *end.tolist())
        arm = max(10 * unit, 0.18 * min(x2 - x1, y2 - y1))
        right, down = min(arm, (x2 - x1) / 2), min(arm, (y2 - y1) / 2)
        brackets = [
            np.array([(x + dx, y), (x, y), (x, y + dy)])
            for x, dx in ((x1, right), (x2, -right))
            for y, dy in ((y1, down), (y2, -down))
        ]
        self.canvas.pill(frame, self._color, opacity=0.12)
        for bracket in brackets:
            self.canvas.line(bracket, 7.2 * unit, INK)
        outline = [(x1, y1), (x2, y1), (x2, y2), (x1, y2), (x1, y1)]
        self.canvas.line(outline, 3.4 * unit, INK)
        self.canvas.line(outline, 1.4 * unit, self._color)
        for bracket in brackets:
            self.canvas.line(bracket, 5 * unit, self._color)
            corner = bracket[1]
            self._placer.reserve([*(corner - 6 * unit), *(corner + 6 * unit)])

    def dot(self, lifted: Lifted, small: bool, is_tip: bool) -> None:
        """Draw a point, or the point of a box on its object.

        is_tip: of an arrow, whose head takes the place of the dot.
        """
        if isinstance(lifted, LiftedRegion) and lifted.position is None:
            return
        radius = (5.0 if small or isinstance(lifted, LiftedRegion) else 7.0) * self._unit
        self._placer.reserve([*(lifted.pixel - radius), *(lifted.pixel + radius)])
        if is_tip:
            return
        interpolated = isinstance(lifted, LiftedPoint) and lifted.interpolated
        pale = interpolated or lifted.status is LiftStatus.DEPTH_PREDICTED
        rings = [
            (radius + 1.2 * self._unit, INK),
            (radius, WHITE),
            (radius - 1.8 * self._unit, self._pale if pale else self._color),
        ]
        if lifted.position is None and lifted.status in _FAILURES:
            rings.append((radius - 3.8 * self._unit, INK))
        for size, color in rings:
            self.canvas.disc(lifted.pixel, max(size, 0.5), color)

    def labels(self, results: list[Lifted], is_path: bool) -> None:
        """Number several results and give their distances; of a path only those of its ends."""
        step = -(-len(results) // _MAX_NUMBERS)
        for index, lifted in enumerate(results):
            at_end = index in (0, len(results) - 1)
            if index % step and not at_end:
                continue
            with_distance = at_end if is_path else len(results) <= _MAX_DISTANCES
            text = _distance(lifted) if with_distance else ""
            number = str(index + 1) if len(results) > 1 else ""
            if text or number:
                self._label(lifted, number, text)

    def _label(self, lifted: Lifted, number: str, text: str) -> None:
        """Write a number on the answer's color, and after it a text on a dark plate."""
        unit = self._unit
        font = Font(f"{number} {text}", self._text_size(13))
        pad, height = 5 * unit, font.height + 2 * unit
        badge = max(font.width(number) + 2 * pad, height) if number else 0.0
        plate = font.width(text) + (1.8 if number else 2) * pad if text else 0.0
        size = (badge + plate, height)
        if size[0] > self.canvas.size[0] or size[1] > self.canvas.size[1]:
            return
        if isinstance(lifted, LiftedRegion):
            gap, (left, top, right, bottom) = 8 * unit, lifted.box
            above, below, inside = top - gap - height, bottom + gap, top + gap
            tops = (above, below, inside, bottom - gap - height)
            box = self._placer.best(_boxes(size, (left, right - size[0]), tops))
        else:
            box = self._placer.around(lifted.pixel, size, 12 * unit)
        x1, y1, x2, y2 = box
        self.canvas.pill(box, INK, height / 2, _PLATE_OPACITY)
        top = (y1 + y2 - font.height) / 2
        if number:
            rim = 1.5 * unit  # of the dark plate: some objects have the answer's color
            inner = (x1 + rim, y1 + rim, x1 + badge - rim, y2 - rim)
            self.canvas.pill(inner, self._color, height / 2)
            left = x1 + (badge - font.width(number)) / 2
            self.canvas.text((left, top), [number], font, text_color_on(self._color))
        left = x1 + badge + (0.8 if number else 1) * pad
        self.canvas.text((left, top), [text], font)

    def caption(self, query: str, reply: str) -> None:
        """Write the query and, on the same line if it fits, the reply."""
        unit, size = self._unit, self._text_size(16)
        margin, pad, key = 8 * unit, 9 * unit, 18 * unit  # key: the dot in the answer's color
        query_text = Font(query[:_MAX_CAPTION], size)
        reply_text = Font(reply[:_MAX_CAPTION], size)
        line = max(query_text.height, reply_text.height)
        most = max(1, int(0.4 * self.canvas.size[1] / line))
        room = int(self.canvas.size[0] - 2 * (margin + pad) - key)
        asked = query_text.wrapped(room, min(most, 3))
        answered = reply_text.wrapped(room, max(most - len(asked), 1))
        if not asked:
            return
        after = query_text.width(asked[-1]) + 10 * unit
        widths = [*map(query_text.width, asked), *map(reply_text.width, answered)]
        reply_at, rows = np.array([0, len(asked) * line]), len(asked) + len(answered)
        if len(answered) == 1 and after + reply_text.width(answered[0]) <= room:
            widths.append(after + reply_text.width(answered[0]))
            reply_at, rows = np.array([after, (len(asked) - 1) * line]), len(asked)
        plate = (max(widths) + key + 2 * pad, rows * line + 1.2 * pad)
        lefts, tops = ((margin, whole - margin - of) for whole, of in zip(self.canvas.size, plate))
        box = self._placer.best(_boxes(plate, lefts, tops))
        self.canvas.pill(box, INK, (line + 1.2 * pad) / 2, _PLATE_OPACITY)
        top_left = np.array(box[:2]) + [pad, 0.6 * pad]
        dot = top_left + [5 * unit, line / 2]
        self.canvas.disc(dot, 5 * unit, WHITE)
        self.canvas.disc(dot, 4 * unit, self._color)
        top_left += [key, 0]
        self.canvas.text(top_left, asked, query_text)
        self.canvas.text(top_left + reply_at, answered, reply_text, self._pale)

    def _text_size(self, pixels: float) -> int:
        return max(round(pixels * self._unit), _MIN_TEXT_SIZE)


def _reply(result: Result) -> str:
    """Return the text of an answer, or the number of its results and of those in 3D."""
    answer_type = TASKS[result.answer.kind].answer
    if not answer_type.has_places:
        return one_line(result.answer.text)
    results: list[Lifted] = [*result.points, *result.regions]
    count = f"{len(results)} {_NOUNS[answer_type][len(results) != 1]}"
    in_3d = sum(one.position is not None for one in results)
    if in_3d == len(results) or not any(one.status in _FAILURES for one in results):
        return count
    return f"{count}, {in_3d} in 3D"


def _distance(lifted: Lifted) -> str:
    """Return the distance along the optical axis, and why there is none or no measured one."""
    parts = []
    if lifted.depth > 0:
        parts.append(f"{lifted.depth:.2f} m" if lifted.depth < 10 else f"{lifted.depth:.1f} m")
    if lifted.position is None and lifted.status in _FAILURES:
        parts.append(_FAILURES[lifted.status])
    elif lifted.status is LiftStatus.DEPTH_PREDICTED:
        parts.append("predicted")
    return ", ".join(parts)


def _without_end(track: NDArray[np.float64], end: float) -> NDArray[np.float64]:
    """Return a line through points (N, 2) without its last `end` pixels."""
    along = arc_lengths(track)
    stop = along[-1] - end
    last = [np.interp(stop, along, coordinate) for coordinate in track.T]
    return np.vstack([track[along < stop], last])


def _boxes(size: tuple[float, float], lefts: Sequence[float], tops: Sequence[float]) -> list[Box]:
    """Return boxes of a size (width, height) at all the places, row by row."""
    return [(left, top, left + size[0], top + size[1]) for top in tops for left in lefts]
