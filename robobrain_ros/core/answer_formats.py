# SPDX-License-Identifier: Apache-2.0
"""Answer formats: what an answer must look like, for engines that constrain their decoding.

A format is data, and renders itself in the syntax of each engine: `regex` for vLLM's structured
outputs (and Python's `re` and Rust's `regex`), `gbnf` for llama.cpp, `lark` for llguidance. Answers
in a format can be read by `parsing.parse_answer`, and every coordinate in them lies in the image;
`[]` says that there is nothing to report.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, NamedTuple, TypeAlias

from robobrain_ros.core.families import AxisOrder, CoordinateFrame, Family
from robobrain_ros.core.tasks import TASKS, AnswerType, TaskKind

MAX_LABEL_CHARS = 40
LABEL_CHARACTER = r'[^"\\<>\x00-\x1f\x7f]'  # nothing that JSON escapes, and no tags

_MOST_POINTS = 32  # as tuples, half of the 768 tokens that an answer may have
_MOST_BOXES = 8  # models that answer in JSON name every instance
_MOST_ITEMS = 100  # whatever is asked for: grammars grow with it
# White space in JSON, as llama.cpp's server has it: without a bound a model may write nothing else.
_JSON_SPACE = r"(?: |\n{1,2}[ \t]{0,20})?"


class Shape(Enum):
    """Items of the list that an answer is."""

    POINTS = "points"
    POINTS_WITH_DEPTH = "points_with_depth"
    BOXES = "boxes"


class Notation(Enum):
    """Notation of lists."""

    TUPLES = "tuples"  # RoboBrain: [(x, y), (x, y)] or [[x, y], [x, y]], and [x1, y1, x2, y2]
    JSON = "json"  # Qwen: [{"point_2d": [x, y], "label": "cup"}], perhaps after ```json


@dataclass(frozen=True)
class CoordinateList:
    """A list of at most `max_items` (1 or more) points or boxes in the image.

    In TUPLES a box stands alone, so `max_items` counts only in other answers. `frame` and
    `axis_order` say what the numbers mean, as in `families.Family`. A box may have its corners in
    any order, since the parser sorts them. Only `lark` excludes boxes without area: the other
    syntaxes would need an expression as large as the image, so there the parser refuses them.
    """

    shape: Shape
    notation: Notation
    frame: CoordinateFrame
    axis_order: AxisOrder
    max_items: int

    def __post_init__(self) -> None:
        if self.max_items < 1:
            raise ValueError(f"an answer of at most {self.max_items} items can hold nothing")

    def regex(self, sent: tuple[int, int]) -> str:
        """A regular expression in the syntax that Python's `re` and Rust's `regex` share.

        `sent` is (width, height) in pixels of the image as sent. Raises ValueError, as the other
        two do, for answers in pixels of an image that has none.
        """
        return self._answer(self._largest(sent)).regex

    def gbnf(self, sent: tuple[int, int]) -> str:
        """A grammar for llama.cpp."""
        return f"root ::= {self._answer(self._largest(sent)).gbnf}"

    def lark(self, sent: tuple[int, int], prefix: str = "") -> str:
        """A grammar for llguidance, of the answer after `prefix` (an expression of Lark)."""
        largest = self._largest(sent)
        grammar = f"start: {prefix} ANSWER\nANSWER: {self._answer(largest).lark}"
        if self.shape is Shape.BOXES:
            box = _box(self.frame, largest)
            grammar += f"\nBOX: {box.lark} & ~/{_box_without_area(self.frame, largest)}/"
        return grammar

    def _largest(self, sent: tuple[int, int]) -> tuple[int, int]:
        """The largest coordinates, in the order of the numbers; of RELATIVE_1 in thousandths.

        In pixels, points go to W - 1 and the edges of boxes to W; other coordinates to the border.
        """
        if self.frame is not CoordinateFrame.SENT_PIXELS:
            largest = 100 if self.frame is CoordinateFrame.RELATIVE_100 else 1000
            return largest, largest
        if min(sent) < 1:
            raise ValueError(f"an image of {sent[0]}x{sent[1]} pixels has no place to answer with")
        x, y = sent if self.shape is Shape.BOXES else (sent[0] - 1, sent[1] - 1)
        return (x, y) if self.axis_order == "xy" else (y, x)

    def _answer(self, largest: tuple[int, int]) -> _Expression:
        if self.shape is Shape.BOXES:
            numbers = _box(self.frame, largest)._replace(lark="BOX")
        else:
            numbers = _point(self.frame, largest)
        if self.shape is Shape.POINTS_WITH_DEPTH:
            numbers = _sequence(numbers, _literal(", "), _DEPTH)
        if self.notation is Notation.JSON:
            key = "bbox_2d" if self.shape is Shape.BOXES else "point_2d"
            start = _sequence(_SPACE, _literal(f'{{"{key}": ['))
            item = _sequence(start, numbers, _literal("]"), _LABEL, _literal("}"))
            items = _sequence(_listed(item, ",", self.max_items), _optional(_literal("\n")))
            return _sequence(_FENCE, _literal("["), _optional(items), _END)
        if self.shape is Shape.BOXES:
            return _sequence(_literal("["), _optional(numbers), _END)
        styles = (
            _listed(_sequence(_literal(left), numbers, _literal(right)), ", ", self.max_items)
            for left, right in ("()", "[]")
        )
        return _sequence(_literal("["), _optional(_choice(*styles)), _END)


@dataclass(frozen=True)
class JsonSchema:
    """A JSON object or array that a JSON schema describes.

    vLLM's structured outputs and llama.cpp's server take `schema` as it is. Raises ValueError for a
    schema of anything else at the top, of which the end could not be told from a part of it.
    """

    schema: Mapping[str, Any] = field(hash=False)

    def __post_init__(self) -> None:
        if self.schema.get("type") not in ("object", "array"):
            raise ValueError(
                'the schema of an answer must have "type": "object" or "array" at the top, not '
                f"{self.schema.get('type')!r}: put the value into an object"
            )

    def lark(self, sent: tuple[int, int], prefix: str = "") -> str:
        """A grammar for llguidance, as that of CoordinateList; `sent` makes no difference."""
        space = {"whitespace_flexible": True, "whitespace_pattern": _JSON_SPACE}
        schema = json.dumps({**self.schema, "x-guidance": space})
        return f"start: {prefix} answer\nanswer: %json {schema}"


AnswerFormat: TypeAlias = CoordinateList | JsonSchema


def answer_format(kind: TaskKind, family: Family, max_points: int = 0) -> AnswerFormat | None:
    """The format of the answers of `family` to a task, or None where any text is an answer.

    `max_points` bounds lists of points; with 0 the task does, or what an answer has room for. An
    affordance is one point for families that point at affordances, and boxes for the others.
    """
    task, answer_type = TASKS[kind], family.answer_type(kind)
    if answer_type is AnswerType.TEXT:
        return None
    if answer_type is AnswerType.DATA:
        return JsonSchema(task.schema or {})
    # Models write what their prompts show.
    notation = Notation.JSON if "JSON" in family.template(kind) else Notation.TUPLES
    shape, items = Shape.POINTS, max_points or task.max_items or _MOST_POINTS
    if answer_type is AnswerType.REGIONS:
        shape, items = Shape.BOXES, _MOST_BOXES if notation is Notation.JSON else 1
    elif task.answer is AnswerType.REGIONS:  # a point of the region
        items = 1
    elif answer_type is AnswerType.WAYPOINTS and family.has_depth:
        shape = Shape.POINTS_WITH_DEPTH
    return CoordinateList(shape, notation, family.frame, family.axis_order, min(items, _MOST_ITEMS))


class _Expression(NamedTuple):
    """One expression in three syntaxes."""

    regex: str
    gbnf: str
    lark: str


def _literal(text: str) -> _Expression:
    # re.escape() also escapes spaces, which not every engine's syntax has.
    escaped = re.sub(r"[\[\](){}.]", r"\\\g<0>", text).replace("\n", r"\n")
    return _Expression(escaped, json.dumps(text), json.dumps(text))


def _character(of: str) -> _Expression:
    return _Expression(of, of, f"/{of}/")


def _sequence(*parts: _Expression) -> _Expression:
    return _Expression(
        "".join(part.regex for part in parts),
        " ".join(part.gbnf for part in parts),
        " ".join(part.lark for part in parts),
    )


def _choice(*parts: _Expression) -> _Expression:
    return _Expression(
        f"(?:{'|'.join(part.regex for part in parts)})",
        f"({' | '.join(part.gbnf for part in parts)})",
        f"({' | '.join(part.lark for part in parts)})",
    )


def _repeated(part: _Expression, least: int, most: int) -> _Expression:
    count = f"{{{least},{most}}}"
    return _Expression(f"(?:{part.regex}){count}", f"({part.gbnf}){count}", f"({part.lark}){count}")


def _optional(part: _Expression) -> _Expression:
    return _repeated(part, 0, 1)


def _listed(item: _Expression, separator: str, most: int) -> _Expression:
    if most == 1:
        return item  # no syntax has a repetition of 0 to 0
    return _sequence(item, _repeated(_sequence(_literal(separator), item), 0, most - 1))


def _up_to(last: int) -> _Expression:
    """The integers from 0 to `last`, without leading zeros."""
    digits = str(last)
    numbers = [["[0]"]]
    numbers += [["[1-9]"] + ["[0-9]"] * (width - 1) for width in range(1, len(digits))]
    # Those of the same width that have the digits of `last` up to a place, and a smaller one there.
    for place, digit in enumerate(digits):
        least = 0 if place else 1
        if int(digit) > least:
            same = [f"[{before}]" for before in digits[:place]]
            rest = ["[0-9]"] * (len(digits) - place - 1)
            numbers.append([*same, f"[{least}-{int(digit) - 1}]", *rest])
    if last:
        numbers.append([f"[{digit}]" for digit in digits])
    return _choice(*(_sequence(*map(_character, number)) for number in numbers))


def _point(frame: CoordinateFrame, largest: tuple[int, int]) -> _Expression:
    is_fraction = frame is CoordinateFrame.RELATIVE_1
    first, second = (_FRACTION if is_fraction else _up_to(last) for last in largest)
    return _sequence(first, _literal(", "), second)


def _box(frame: CoordinateFrame, largest: tuple[int, int]) -> _Expression:
    corner = _point(frame, largest)
    return _sequence(corner, _literal(", "), corner)


def _box_without_area(frame: CoordinateFrame, largest: tuple[int, int]) -> str:
    """A regular expression of the boxes with x1 = x2 or y1 = y2.

    It lists every coordinate, and llguidance excludes it at little cost because it builds only the
    states that an answer visits. An expression of all other boxes would list pairs of coordinates.
    """
    twice = []
    for last in largest:
        numbers = [str(number) for number in range(last + 1)]
        if frame is CoordinateFrame.RELATIVE_1:  # 0.5 is 0.50
            numbers = [f"{number / 1000:.3f}".rstrip("0") + "0*" for number in range(last + 1)]
        twice.append("|".join(f"{number}, [0-9.]+, {number}" for number in numbers))
    return f"(?:{twice[0]}), [0-9.]+|[0-9.]+, (?:{twice[1]})"


_DIGIT = _character("[0-9]")
_DECIMALS = _repeated(_DIGIT, 1, 3)
_FRACTION = _choice(
    _sequence(_literal("0."), _DECIMALS),
    _sequence(_literal("1."), _repeated(_literal("0"), 1, 3)),
)
_DEPTH = _sequence(
    _choice(_literal("0"), _sequence(_character("[1-9]"), _optional(_DIGIT))),
    _optional(_sequence(_literal("."), _DECIMALS)),
)
# What models write between the parts of JSON, and after a list in one token with its bracket.
_INDENT = _choice(_literal("\t"), _repeated(_literal(" "), 2, 4))
_SPACE = _optional(_choice(_literal(" "), _sequence(_literal("\n"), _optional(_INDENT))))
_FENCE = _optional(_literal("```json\n"))
_LABEL = _optional(
    _sequence(
        _literal(', "label": "'),
        _repeated(_character(LABEL_CHARACTER), 0, MAX_LABEL_CHARS),
        _literal('"'),
    )
)
_END = _sequence(
    _literal("]"),
    _optional(
        _choice(
            _literal("</answer>"),
            _sequence(_repeated(_literal("\n"), 1, 2), _optional(_literal("```"))),
        )
    ),
)
