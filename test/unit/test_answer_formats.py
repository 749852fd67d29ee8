# SPDX-License-Identifier: Apache-2.0
"""An answer format accepts the same answers in each syntax: the ones that can be used."""

import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from llguidance import LLMatcher, LLTokenizer
from llguidance.gbnf_to_lark import gbnf_to_lark

from robobrain_ros.core import answer_formats, families
from robobrain_ros.core.answer_formats import (
    MAX_LABEL_CHARS,
    CoordinateList,
    JsonSchema,
    Notation,
    Shape,
    answer_format,
)
from robobrain_ros.core.families import FAMILIES, CoordinateFrame
from robobrain_ros.core.tasks import TASKS, AnswerType, TaskKind

KINDS = [kind for kind in TaskKind if TASKS[kind].answer.has_places]
POINTS = answer_format(TaskKind.POINT, FAMILIES["robobrain2"])
BOX = answer_format(TaskKind.GROUNDING, FAMILIES["robobrain2"])
PATH = answer_format(TaskKind.TRAJECTORY, FAMILIES["robobrain2_5"])
JSON_POINTS = answer_format(TaskKind.POINT, FAMILIES["qwen2_5_vl"])
JSON_BOXES = answer_format(TaskKind.GROUNDING, FAMILIES["qwen2_5_vl"])
SENT = (644, 476)
BYTES = LLTokenizer("byte")


def accepts(grammar: str, text: str) -> bool:
    """Whether a grammar of Lark matches a whole text."""
    matcher = LLMatcher(BYTES, LLMatcher.grammar_from_lark(grammar))
    assert not matcher.is_error(), matcher.get_error()
    tokens = list(text.encode())
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def verdicts(expected: CoordinateList, text: str, sent=SENT) -> set[bool]:
    """What the three syntaxes say of a text."""
    return {
        re.fullmatch(expected.regex(sent), text) is not None,
        accepts(gbnf_to_lark(expected.gbnf(sent)), text),
        accepts(expected.lark(sent), text),
    }


LABEL = ', "label": "{}"'
JSON_BOX = '{{"bbox_2d": [{}]{}}}'


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (POINTS, "[(0, 0)]"),
        (POINTS, "[(643, 475), (10, 9)]</answer>"),
        (POINTS, "[[643, 475], [10, 9]]\n\n"),
        (POINTS, f"[{', '.join(['(1, 2)'] * 32)}]"),
        (POINTS, "[]"),
        (BOX, "[0, 0, 644, 476]\n```"),
        (BOX, "[644, 476, 0, 0]"),
        (BOX, "[]"),
        (PATH, "[(500, 250, 0.85), (1000, 0, 1), (1, 2, 99.125)]"),
        (JSON_POINTS, '```json\n[\n\t{"point_2d": [5, 6]},\n\t{"point_2d": [5, 6]}\n]\n```'),
        (JSON_POINTS, '[\n  {"point_2d": [5, 6], "label": "Vögel (zwei)"}\n]'),
        (JSON_POINTS, "```json\n[]"),
        (JSON_BOXES, f"[{JSON_BOX.format('1, 2, 3, 4', LABEL.format(''))}]"),
        (JSON_BOXES, f"[{', '.join([JSON_BOX.format('0, 0, 644, 476', '')] * 8)}]"),
        (JSON_BOXES, f"[{JSON_BOX.format('1, 2, 3, 4', LABEL.format('x' * MAX_LABEL_CHARS))}]"),
    ],
)
def test_answers_in_a_format_are_accepted_in_each_syntax(expected, text):
    assert verdicts(expected, text) == {True}


@pytest.mark.parametrize(
    ("expected", "text"),
    [
        (POINTS, "(0, 0)"),
        (POINTS, "[(644, 0)]"),
        (POINTS, "[(0, 476)]"),
        (POINTS, "[(01, 2)]"),
        (POINTS, "[(-1, 2)]"),
        (POINTS, "[(1.5, 2)]"),
        (POINTS, "[(1,2)]"),
        (POINTS, "[(1, 2), [3, 4]]"),
        (POINTS, f"[{', '.join(['(1, 2)'] * 33)}]"),
        (POINTS, "[(1, 2)] is the cup"),
        (POINTS, ""),
        (BOX, "[0, 0, 645, 476]"),
        (BOX, "[0, 0, 644, 477]"),
        (BOX, "[0, 0, 644]"),
        (BOX, "[1, 2, 3, 4, 5, 6, 7, 8]"),
        (PATH, "[(1001, 0, 1)]"),
        (PATH, "[(1, 2)]"),
        (PATH, "[(1, 2, 100)]"),
        (PATH, "[(1, 2, 0.1234)]"),
        (JSON_POINTS, "[(1, 2)]"),
        (JSON_POINTS, '[{"bbox_2d": [1, 2, 3, 4]}]'),
        (JSON_POINTS, '[{"point_2d": [5, 6]},]'),
        (JSON_POINTS, '[{"point_2d": [5, 6], "label": "a\\"b"}]'),
        (JSON_POINTS, '[{"point_2d": [5, 6], "label": "</answer>"}]'),
        (JSON_POINTS, '[{"point_2d": [5, 6], "label": "a\nb"}]'),
        (JSON_BOXES, f"[{', '.join([JSON_BOX.format('0, 0, 644, 476', '')] * 9)}]"),
        (JSON_BOXES, f"[{JSON_BOX.format('1, 2, 3, 4', LABEL.format('x' * 41))}]"),
    ],
)
def test_other_answers_are_refused_in_each_syntax(expected, text):
    assert verdicts(expected, text) == {False}


@pytest.mark.parametrize("numbers", ["5, 2, 5, 4", "1, 20, 3, 20", "7, 7, 7, 7", "0, 0, 0, 476"])
def test_a_box_without_area_is_refused_where_a_grammar_can(numbers):
    """The parser refuses those that come from other engines, see test_tasks.py."""
    for expected, text in (
        (BOX, f"[{numbers}]"),
        (JSON_BOXES, f"[{JSON_BOX.format(numbers, '')}]"),
    ):
        assert not accepts(expected.lark(SENT), text)
        assert re.fullmatch(expected.regex(SENT), text)


def test_a_fraction_without_area_is_refused_however_it_is_written():
    grammar = replace(BOX, frame=CoordinateFrame.RELATIVE_1).lark(SENT)
    for flat in ("0.5, 0.1, 0.50, 0.2", "0.1, 1.0, 0.2, 1.000", "0.0, 0.1, 0.00, 0.2"):
        assert not accepts(grammar, f"[{flat}]")
    assert accepts(grammar, "[0.5, 0.1, 0.501, 0.2]")
    assert accepts(grammar, "[0.0, 0.1, 1.0, 0.010]")


sides = st.integers(1, 20_000)


@given(sides, sides, st.integers(0, 30_000))
def test_points_lie_in_the_image_and_boxes_may_reach_its_edge(width, height, number):
    points = re.compile(POINTS.regex((width, height)))
    boxes = re.compile(BOX.regex((width, height)))
    for n in (number, 0, width - 1, width, width + 1, height - 1, height, height + 1):
        for x, y, last in ((n, 0, width), (0, n, height)):
            assert (points.fullmatch(f"[({x}, {y})]") is not None) == (n < last)
            assert (boxes.fullmatch(f"[{x}, {y}, 0, 0]") is not None) == (n <= last)
        assert not points.fullmatch(f"[(0{n}, 0)]")


def test_every_coordinate_of_small_images():
    for width in range(1, 131):
        expression = re.compile(POINTS.regex((width, 1)))
        matched = [n for n in range(140) if expression.fullmatch(f"[({n}, 0)]")]
        assert matched == list(range(width))


def test_the_order_of_axes_counts():
    swapped = replace(POINTS, axis_order="yx")
    assert verdicts(swapped, "[(475, 643)]") == {True}
    assert verdicts(swapped, "[(643, 475)]") == {False}


@pytest.mark.parametrize(
    ("frame", "inside", "outside"),
    [
        (CoordinateFrame.RELATIVE_1000, ["0", "999", "1000"], ["1001", "0.5", "00"]),
        (CoordinateFrame.RELATIVE_100, ["0", "99", "100"], ["101", "0.5", "00"]),
        (
            CoordinateFrame.RELATIVE_1,
            ["0.0", "0.5", "0.05", "0.461", "0.999", "1.0", "1.000"],
            ["0", "1", "1.001", "0.4611", "1.0000", "2.0", ".5", "00.5"],
        ),
    ],
)
def test_relative_coordinates(frame, inside, outside):
    expected = replace(POINTS, frame=frame)
    assert all(verdicts(expected, f"[({n}, {n})]", (28, 28)) == {True} for n in inside)
    assert all(verdicts(expected, f"[({n}, {n})]", (28, 28)) == {False} for n in outside)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_formats_of_the_families(family):
    formats = {kind: answer_format(kind, family) for kind in TaskKind}
    assert formats[TaskKind.ASK] is None
    assert formats[TaskKind.TRAJECTORY].max_items == 10
    assert formats[TaskKind.POINT].max_items == 32
    assert answer_format(TaskKind.POINT, family, 3).max_items == 3
    assert answer_format(TaskKind.POINT, family, 2**32 - 1).max_items == 100
    is_json = family.name.startswith("qwen")
    assert (formats[TaskKind.GROUNDING].notation is Notation.JSON) == is_json
    is_2_5 = family.name == "robobrain2_5"
    assert (formats[TaskKind.AFFORDANCE].shape is Shape.POINTS) == is_2_5
    assert (formats[TaskKind.TRAJECTORY].shape is Shape.POINTS_WITH_DEPTH) == is_2_5


def test_most_items_stay_small_in_each_syntax():
    for family in FAMILIES.values():
        for kind in KINDS:
            expected = answer_format(kind, family, 2**32 - 1)
            assert len(expected.regex((10**4, 10**4))) < 3000
            assert len(expected.gbnf((10**4, 10**4))) < 3000


def test_formats_that_cannot_be():
    with pytest.raises(ValueError, match="0 items"):
        replace(POINTS, max_items=0)
    for syntax in (POINTS.regex, POINTS.gbnf, POINTS.lark):
        with pytest.raises(ValueError, match="0x0"):
            syntax((0, 0))


COUNT = {
    "type": "object",
    "properties": {"count": {"type": "integer"}, "why": {"type": "string"}},
    "required": ["count", "why"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("text", "accepted"),
    [
        ('{"count": 12, "why": "I \\"see\\" twelve"}', True),
        ('{"count":12,"why":""}', True),
        ('{\n    "count": 12,\n    "why": "so"\n}', True),
        ('{"count": "12", "why": ""}', False),
        ('{"count": 12}', False),
        ('{"count": 12, "why": "", "how": 1}', False),
        ("{" + 30 * " " + '"count": 12, "why": ""}', False),  # spaces without end
    ],
)
def test_json_by_a_schema(text, accepted):
    assert accepts(JsonSchema(COUNT).lark((0, 0)), text) == accepted


def test_a_task_with_a_schema_has_answers_by_it(monkeypatch):
    count = replace(TASKS[TaskKind.ASK], answer=AnswerType.DATA, schema=COUNT)
    for module in (families, answer_formats):
        monkeypatch.setattr(module, "TASKS", {**TASKS, TaskKind.ASK: count})
    for family in FAMILIES.values():
        assert answer_format(TaskKind.ASK, family) == JsonSchema(COUNT)


@pytest.mark.parametrize("schema", [{}, {"type": "integer"}, {"anyOf": [COUNT]}])
def test_schemas_of_which_the_end_cannot_be_told(schema):
    with pytest.raises(ValueError, match='"type": "object" or "array"'):
        JsonSchema(schema)
