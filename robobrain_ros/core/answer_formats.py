# SPDX-License-Identifier: Apache-2.0
"""What an answer may look like, as data and as regular expressions that engines can enforce.

An AnswerForm says it for a task and a family; `next_part` turns it into regular expressions in the
syntax that Python's `re` and Rust's `regex` share. An answer that matches them can be read by
`tasks.parse_answer`, and every place in it lies in the image; `[]` says that there is none.
"""

import re
from dataclasses import dataclass
from enum import Enum

from robobrain_ros.core.families import AxisOrder, CoordinateFrame, Family, TaskKind

MAX_LABEL_CHARS = 40
LABEL_CHARACTER = r'[^"\\<>\x00-\x1f\x7f]'  # nothing that JSON escapes, and no tags

_MOST_POINTS = 32  # as tuples, half of the 768 tokens that an answer may have
_MOST_WAYPOINTS = 10  # the number that the prompts name
_MOST_BOXES = 8  # models that answer in JSON name every instance
_MOST_ITEMS = 100  # whatever is asked for: expressions grow with it
_DECIMALS = 3  # of coordinates from 0 to 1


class Shape(Enum):
    """What an answer is a list of."""

    POINTS = "points"
    POINTS_WITH_DEPTH = "points_with_depth"
    BOXES = "boxes"


class Notation(Enum):
    """How lists are written."""

    TUPLES = "tuples"  # RoboBrain: [(x, y), (x, y)] or [[x, y], [x, y]], and [x1, y1, x2, y2]
    JSON = "json"  # Qwen: [{"point_2d": [x, y], "label": "cup"}], perhaps after ```json


@dataclass(frozen=True)
class AnswerForm:
    """The form of an answer: at most `max_items` (1 or more) points or boxes.

    In TUPLES a box stands alone, so `max_items` counts only in other answers. `frame` and
    `axis_order` say what the numbers mean, as in `families.Family`.
    """

    shape: Shape
    notation: Notation
    frame: CoordinateFrame
    axis_order: AxisOrder
    max_items: int

    def __post_init__(self) -> None:
        if self.max_items < 1:
            raise ValueError(f"an answer of at most {self.max_items} items can hold nothing")


def answer_form(kind: TaskKind, family: Family, max_points: int = 0) -> AnswerForm | None:
    """The form of the answers of `family`, or None where any text is an answer (ASK).

    `max_points` bounds lists of points; with 0, the task does: 10 for TRAJECTORY, 32 for POINT. An
    affordance is one point for families that point at affordances, and boxes for the others.
    """
    if kind is TaskKind.ASK:
        return None
    # Models write what their prompts show.
    notation = Notation.JSON if "JSON" in family.template(kind) else Notation.TUPLES
    if kind is TaskKind.GROUNDING or (
        kind is TaskKind.AFFORDANCE and not family.affordance_is_point
    ):
        shape, items = Shape.BOXES, _MOST_BOXES if notation is Notation.JSON else 1
    elif kind is TaskKind.AFFORDANCE:
        shape, items = Shape.POINTS, 1
    elif kind is TaskKind.TRAJECTORY:
        shape = Shape.POINTS_WITH_DEPTH if family.has_depth else Shape.POINTS
        items = max_points or _MOST_WAYPOINTS
    else:
        shape, items = Shape.POINTS, max_points or _MOST_POINTS
    return AnswerForm(shape, notation, family.frame, family.axis_order, min(items, _MOST_ITEMS))


# What models write between the parts of JSON, and after a list in one token with its bracket.
_SPACE = r"(?: |\n(?:\t| {2,4})?)?"
_FENCE = r"(?:```json\n)?"
_LABEL = rf'(?:, "label": "{LABEL_CHARACTER}{{0,{MAX_LABEL_CHARS}}}")?'
_DEPTH = r"(?:0|[1-9][0-9]?)(?:\.[0-9]{1,3})?"
_END = r"\](?:</answer>|\n{1,2}(?:```)?)?"


def next_part(form: AnswerForm, sent: tuple[int, int], text: str) -> str | None:
    """A regular expression of the part of an answer after `text`, None when it is complete.

    `text` is "" or all parts so far. A part has ended as soon as it matches. An answer with points
    is one part; a box has two, since its second corner lies right of and below the first one: an
    expression of all boxes would be as large as the image. `sent` is (width, height) in pixels of
    the image as sent. Raises ValueError for pixels of an image that has none.
    """
    if form.frame is CoordinateFrame.SENT_PIXELS and min(sent) < 1:
        raise ValueError(f"an image of {sent[0]}x{sent[1]} pixels has no place to answer with")
    if form.shape is not Shape.BOXES:
        return None if text else _points(form, sent)
    if not text:
        return _FENCE * (form.notation is Notation.JSON) + _first_corner(form, sent)
    return _second_corner(form, sent, text) if text.endswith(",") else None


def _points(form: AnswerForm, sent: tuple[int, int]) -> str:
    first, second = (_number(form, 0, last) for last in _last_places(form, sent))
    numbers = f"{first}, {second}"
    if form.shape is Shape.POINTS_WITH_DEPTH:
        numbers += f", {_DEPTH}"
    more = form.max_items - 1
    if form.notation is Notation.JSON:
        point = rf'{_SPACE}\{{"point_2d": \[{numbers}\]{_LABEL}\}}'
        return rf"{_FENCE}\[(?:{point}(?:,{point}){{0,{more}}}\n?)?{_END}"
    styles = (
        rf"{opening}{numbers}{closing}(?:, {opening}{numbers}{closing}){{0,{more}}}"
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]"))
    )
    return rf"\[(?:{'|'.join(styles)})?{_END}"


def _first_corner(form: AnswerForm, sent: tuple[int, int]) -> str:
    """An answer up to the comma after its first corner, or one without boxes."""
    return rf"\[(?:{_box_start(form, sent)}|{_END})"


def _second_corner(form: AnswerForm, sent: tuple[int, int], text: str) -> str:
    """What follows the comma after the first corner of a box, up to that of the next box."""
    corner = re.search(r"([0-9.]+), ([0-9.]+),$", text)
    if corner is None:
        raise ValueError(f"this is not the start of a box: {text!r}")
    first, second = (
        _number(form, _units(form, low) + 1, high)
        for low, high in zip(corner.groups(), _spans(form, sent))
    )
    if form.notation is Notation.TUPLES:
        return f" {first}, {second}{_END}"
    box = rf" {first}, {second}\]{_LABEL}\}}"
    if text.count('"bbox_2d"') < form.max_items:
        return rf"{box}(?:,{_box_start(form, sent)}|\n?{_END})"
    return rf"{box}\n?{_END}"


def _box_start(form: AnswerForm, sent: tuple[int, int]) -> str:
    first, second = (_number(form, 0, high - 1) for high in _spans(form, sent))
    if form.notation is Notation.TUPLES:
        return f"{first}, {second},"
    return rf'{_SPACE}\{{"bbox_2d": \[{first}, {second},'


def _spans(form: AnswerForm, sent: tuple[int, int]) -> tuple[int, int]:
    """Units across the image in the order of the numbers: whole ones, or the finest decimals."""
    if form.frame is CoordinateFrame.SENT_PIXELS:
        return sent if form.axis_order == "xy" else (sent[1], sent[0])
    span = 100 if form.frame is CoordinateFrame.RELATIVE_100 else 1000
    return span, span


def _last_places(form: AnswerForm, sent: tuple[int, int]) -> tuple[int, int]:
    """The largest coordinates of a point: a pixel, or the border itself."""
    first, second = _spans(form, sent)
    is_pixel = form.frame is CoordinateFrame.SENT_PIXELS
    return first - is_pixel, second - is_pixel


def _units(form: AnswerForm, number: str) -> int:
    is_decimal = form.frame is CoordinateFrame.RELATIVE_1
    return round(float(number) * 10**_DECIMALS) if is_decimal else int(number)


def _number(form: AnswerForm, low: int, high: int) -> str:
    """The numbers from `low` to `high` units."""
    if form.frame is CoordinateFrame.RELATIVE_1:
        return decimal_range(low, high)
    return integer_range(low, high)


def integer_range(low: int, high: int) -> str:
    """A regular expression of the integers from `low` (0 or more) to `high`, without other zeros.

    Raises ValueError when there are none.
    """
    if not 0 <= low <= high:
        raise ValueError(f"there is no number to answer with from {low} to {high}")
    alternatives = []
    for digits in range(len(str(low)), len(str(high)) + 1):
        first = max(low, 10 ** (digits - 1) if digits > 1 else 0)
        last = min(high, 10**digits - 1)
        alternatives += _same_width(str(first), str(last))
    return f"(?:{'|'.join(alternatives)})"


def decimal_range(low: int, high: int) -> str:
    """A regular expression of the numbers from `low` to `high` thousandths, with 1 to 3 decimals.

    Both are from 0 to 1000. Raises ValueError when there is no such number.
    """
    if not 0 <= low <= high <= 10**_DECIMALS:
        raise ValueError(f"there is no number to answer with from {low} to {high} thousandths")
    alternatives = []
    for decimals in range(1, _DECIMALS + 1):
        step = 10 ** (_DECIMALS - decimals)
        first, last = -(-low // step), high // step
        if last == 10**decimals:
            alternatives.append(rf"1\.0{{{decimals}}}")
            last -= 1
        if first <= last:
            widths = (f"{number:0{decimals}}" for number in (first, last))
            alternatives.append(rf"0\.(?:{'|'.join(_same_width(*widths))})")
    return f"(?:{'|'.join(alternatives)})"


def _same_width(low: str, high: str) -> list[str]:
    """Expressions that together match the digit strings from `low` to `high`, all of one width."""
    if not low:
        return [""]
    width = len(low) - 1
    if low[0] == high[0]:
        return [low[0] + rest for rest in _same_width(low[1:], high[1:])]
    if low[1:] == "0" * width and high[1:] == "9" * width:
        return [f"[{low[0]}-{high[0]}]" + "[0-9]" * width]
    parts = [low[0] + rest for rest in _same_width(low[1:], "9" * width)]
    if int(low[0]) + 1 < int(high[0]):
        parts.append(f"[{int(low[0]) + 1}-{int(high[0]) - 1}]" + "[0-9]" * width)
    return parts + [high[0] + rest for rest in _same_width("0" * width, high[1:])]
