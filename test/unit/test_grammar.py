# SPDX-License-Identifier: Apache-2.0
"""Whatever a model wants to say, an answer under a constraint parses and lies in the image."""

import itertools
import json
import re
import tempfile
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.tiny_checkpoints import TAGS, save_tokenizer
from transformers import AutoTokenizer

from robobrain_ros.core.answer_formats import (
    AnswerForm,
    Notation,
    Shape,
    answer_form,
    decimal_range,
    integer_range,
    next_part,
)
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.families import FAMILIES, CoordinateFrame, Family
from robobrain_ros.core.parsing import EmptyAnswer, parse_answer
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.engines.local.constrained_decoding import Constraint, Grammar, restrict

PADDING = 70  # logits beyond the tokenizer's tokens
SIZES = ((336, 252), (28, 28), (1288, 728))
KINDS = [kind for kind in TaskKind if kind is not TaskKind.ASK]
# Frames and an axis order that no family has yet.
UNUSUAL = (
    replace(FAMILIES["robobrain2"], frame=CoordinateFrame.RELATIVE_1, axis_order="yx"),
    replace(FAMILIES["qwen3_vl"], frame=CoordinateFrame.RELATIVE_1),
    replace(FAMILIES["qwen3_vl"], frame=CoordinateFrame.RELATIVE_100, has_depth=True),
    replace(FAMILIES["qwen2_5_vl"], axis_order="yx", affordance_is_point=True),
    replace(FAMILIES["robobrain2"], axis_order="yx", has_depth=True),
)
POINTS = answer_form(TaskKind.POINT, FAMILIES["robobrain2"])
BOX = answer_form(TaskKind.GROUNDING, FAMILIES["robobrain2"])
JSON_BOXES = answer_form(TaskKind.GROUNDING, FAMILIES["qwen2_5_vl"])


@dataclass(frozen=True)
class Spelling:
    """A tokenizer and its grammar."""

    tokenizer: Any
    grammar: Grammar

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def spelling_of(directory: Path) -> Spelling:
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return Spelling(tokenizer, Grammar(tokenizer, len(tokenizer) + PADDING, ends))


def nano() -> Spelling:
    return spelling_of(Path(__file__).parents[2] / "robobrain_ros" / "nano" / "model")


def tiny() -> Spelling:
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(Path(directory))
        return spelling_of(Path(directory))


@pytest.fixture(scope="module", params=[nano, tiny], ids=["nano", "tiny"])
def spelling(request) -> Spelling:
    return request.param()


@pytest.fixture(scope="module")
def straddling(tmp_path_factory) -> Spelling:
    """Like Qwen2.5's: no tokens for tags, but some that spell an end and what comes after it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    file = directory / "tokenizer.json"
    saved = json.loads(file.read_text())
    kept = [token for token in saved["added_tokens"] if token["content"] not in TAGS]
    for content in ("><", ">\n", "]</", "]\n"):
        kept.append(saved["added_tokens"][-1] | {"id": kept[-1]["id"] + 1, "content": content})
    file.write_text(json.dumps(saved | {"added_tokens": kept}))
    return spelling_of(directory)


def write(
    grammar: Grammar,
    constraint: Constraint,
    seed: int,
    follow_forced: bool = True,
) -> list[int]:
    """Answer as a model would whose logits are random, but the same after the same text."""
    ids: list[int] = []
    generator = torch.Generator()
    while not constraint.finished:
        tokens = constraint.forced() if follow_forced else []
        if not tokens:
            generator.manual_seed(zlib.crc32(grammar.spelling(ids), seed))
            logits = torch.randn(grammar.vocabulary_size, generator=generator)
            restrict(logits, constraint)
            tokens = [int(logits.argmax())]
            assert (logits > -torch.inf).sum() > follow_forced, "a choice of one is none"
        constraint.accept(tokens)
        ids += tokens
    return ids


def check_answer(text: str, kind: TaskKind, family: Family, form: AnswerForm, sent) -> int:
    """Parse an answer and check its places; returns their number."""
    try:
        answer = parse_answer(kind, text, family)
    except EmptyAnswer:
        assert re.fullmatch(r"(```json\n)?\[\](</answer>|\s*)", text)
        return 0
    assert len(answer.points) + len(answer.boxes) <= form.max_items
    assert (answer.points.shape[1] == 3) == (form.shape is Shape.POINTS_WITH_DEPTH)
    image = (640, 480)
    mapping = (form.frame, form.axis_order, sent, image)
    points, in_image = to_image_pixels(answer.points[:, :2], *mapping)
    boxes, boxes_in_image = boxes_to_image_pixels(answer.boxes, *mapping)
    assert in_image.all() and boxes_in_image.all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(boxes) == text.count("bbox_2d") or form.notation is Notation.TUPLES
    if form.shape is not Shape.BOXES:
        assert re.fullmatch(next_part(form, sent, ""), text)
    if form.frame is CoordinateFrame.SENT_PIXELS:
        width_height = sent if form.axis_order == "xy" else sent[::-1]
        assert (answer.points[:, :2] < width_height).all()
    return len(points) + len(boxes)


def check_random_answers(spelling: Spelling, answers: int) -> int:
    """Check answers of all families, tasks and sizes in turn; returns how many had places."""
    with_places = 0
    cases = itertools.product((*FAMILIES.values(), *UNUSUAL), KINDS, SIZES, (0, 1, 3))
    for seed, (family, kind, sent, most) in zip(range(answers), itertools.cycle(cases)):
        form = answer_form(kind, family, most)
        ids = write(spelling.grammar, spelling.grammar.constrain(form, sent, ""), seed)
        places = check_answer(spelling.text(ids), kind, family, form, sent)
        assert places <= (most or 32) or form.shape is Shape.BOXES
        with_places += places > 0
    return with_places


def test_random_answers_parse_and_lie_in_the_image(spelling):
    assert check_random_answers(spelling, answers=360) > 150


def up_to_the_bracket(text: str) -> str:
    return re.sub(r"\](?:</answer>|\s*)$", "]", text)


def test_following_forced_tokens_changes_no_answer(spelling):
    grammar = spelling.grammar
    for seed, (name, kind) in enumerate(itertools.product(FAMILIES, KINDS)):
        form = answer_form(kind, FAMILIES[name], 3)
        texts = [
            spelling.text(write(grammar, grammar.constrain(form, (336, 252), ""), seed, follow))
            for follow in (True, False)
        ]
        assert up_to_the_bracket(texts[0]) == up_to_the_bracket(texts[1])


def follow(constraint: Constraint, ids: list[int]) -> tuple[int, int]:
    """Give it tokens, each of which must be allowed; returns how many were chosen and forced."""
    chosen, forced = 0, 0
    while ids:
        assert not constraint.finished
        tokens = constraint.forced()
        assert tokens == ids[: len(tokens)]
        forced += len(tokens)
        if not tokens:
            tokens = ids[:1]
            chosen += 1
            assert len(places(constraint)) > 1, "this was no choice"
        assert tokens[0] in places(constraint)
        constraint.accept(tokens)
        ids = ids[len(tokens) :]
    return chosen, forced


def places(constraint: Constraint) -> list[int]:
    """The allowed tokens."""
    return np.flatnonzero(
        np.unpackbits(constraint.allowed().numpy().view(np.uint8), bitorder="little")
    ).tolist()


BOXES_TEXT = (
    '[\n\t{"bbox_2d": [341, 258, 397, 360], "label": "red bird"},\n'
    '\t{"bbox_2d": [1, 2, 3, 4], "label": "Vögel (zwei)"},\n\t{"bbox_2d": [0, 0, 640, 480]}\n]'
)


@pytest.mark.parametrize(
    ("kind", "family", "sent", "text"),
    [
        (TaskKind.GROUNDING, "robobrain2", (426, 640), "[0, 193, 226, 640]"),
        (TaskKind.AFFORDANCE, "robobrain2", (640, 426), "[577, 224, 638, 310]"),
        (
            TaskKind.TRAJECTORY,
            "robobrain2",
            (424, 240),
            "[(137, 116), (169, 94), (208, 84), (228, 80)]",
        ),
        (
            TaskKind.POINT,
            "robobrain2_3b",
            (640, 480),
            "[(376, 309), (332, 357), (384, 335), (343, 296), (348, 327), (328, 346), (371, 322), "
            "(392, 303), (380, 324), (337, 295)]",
        ),
        (
            TaskKind.POINT,
            "robobrain2",
            (732, 1220),
            "[(318, 445), (293, 466), (307, 478), (277, 459), (320, 456), (304, 450)]",
        ),
        (TaskKind.TRAJECTORY, "robobrain2", (424, 240), "[[137, 116], [169, 94]]"),
        (TaskKind.TRAJECTORY, "robobrain2_5", (424, 240), "[(500, 250, 0.85), (1000, 0, 1)]"),
        (TaskKind.AFFORDANCE, "robobrain2_5", (424, 240), "[(500, 250)]"),
        (TaskKind.GROUNDING, "qwen2_5_vl", (640, 480), "```json\n" + BOXES_TEXT),
        (TaskKind.GROUNDING, "qwen3_vl", (64, 64), BOXES_TEXT),
        (
            TaskKind.POINT,
            "qwen3_vl",
            (64, 64),
            '[{"point_2d": [5, 1000], "label": "a cup"}, {"point_2d": [5, 6]}]',
        ),
    ],
)
def test_real_answers_are_allowed(spelling, kind, family, sent, text):
    form = answer_form(kind, FAMILIES[family])
    constraint = spelling.grammar.constrain(form, sent, "")
    chosen, forced = follow(constraint, spelling.ids(text))
    assert constraint.finished
    assert check_answer(text, kind, FAMILIES[family], form, sent)
    assert forced > chosen / 5


def test_the_last_corner_of_an_image_leaves_no_choice(spelling):
    constraint = spelling.grammar.constrain(BOX, (28, 28), "")
    constraint.accept(spelling.ids("[27, 27,"))
    forced = constraint.forced()
    assert spelling.text(forced) == " 28, 28]"
    constraint.accept(forced)
    assert constraint.finished and constraint.forced() == []


def test_a_model_may_say_that_there_is_nothing(spelling):
    for form in (POINTS, BOX, JSON_BOXES):
        constraint = spelling.grammar.constrain(form, (336, 252), "<think></think><answer>")
        constraint.accept(spelling.ids("[]"))
        assert constraint.finished


def test_answers_begin_with_their_bracket(spelling):
    for form, firsts in ((POINTS, "["), (BOX, "["), (JSON_BOXES, "[`")):
        allowed = places(spelling.grammar.constrain(form, (336, 252), ""))
        assert {spelling.text([token])[0] for token in allowed} == set(firsts)


def test_only_the_end_may_come_after_the_end(spelling):
    grammar, tokenizer = spelling.grammar, spelling.tokenizer
    constraint = grammar.constrain(JSON_BOXES, (336, 252), "")
    others = {*range(len(tokenizer), grammar.vocabulary_size), *tokenizer.added_tokens_decoder}
    for token in spelling.ids('[{"bbox_2d": [1, 2, 3, 4], "label": "a cup"}]'):
        assert others.isdisjoint(places(constraint))
        constraint.accept([token])
    assert set(places(constraint)) == grammar.end_ids
    with pytest.raises(ValueError, match="can't come"):
        constraint.accept(spelling.ids("]"))
    constraint.accept([tokenizer.eos_token_id])
    assert constraint.finished


@pytest.mark.parametrize("wrong", ["(", "]", "9", " ", "<|im_end|>"])
def test_a_token_that_is_not_allowed_is_named_and_changes_nothing(spelling, wrong):
    constraint = spelling.grammar.constrain(POINTS, (336, 252), "")
    with pytest.raises(ValueError, match=re.escape(f"{wrong!r}) can't come after '[(33'")):
        constraint.accept(spelling.ids("[(33" + wrong))
    constraint.accept(spelling.ids("5, 251)]"))
    assert constraint.finished


@pytest.mark.parametrize("token", [-1, 10**6])
def test_numbers_that_are_no_tokens_are_refused(spelling, token):
    with pytest.raises(ValueError, match=f"token {token}"):
        spelling.grammar.constrain(POINTS, (336, 252), "").accept([token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_other_tokens_become_minus_infinity(spelling, dtype):
    constraint = spelling.grammar.constrain(POINTS, (336, 252), "")
    constraint.accept(spelling.ids("[(33"))
    logits = torch.randn(spelling.grammar.vocabulary_size).to(dtype)
    before = logits.clone()
    restrict(logits, constraint)
    allowed = sorted(spelling.ids("0") + spelling.ids("5") + spelling.ids(","))
    assert torch.isfinite(logits).nonzero().flatten().tolist() == places(constraint)
    assert set(allowed) <= set(places(constraint))
    assert torch.equal(logits[allowed], before[allowed])
    assert (logits[~torch.isfinite(logits)] == -torch.inf).all()


def test_thinking_is_free_and_then_the_answer_is_not(spelling):
    constraint = spelling.grammar.constrain(POINTS, (336, 252), "<think>")
    logits = torch.randn(spelling.grammar.vocabulary_size)
    before = logits.clone()
    for token in spelling.ids("The cup [(1, 2)] </thin or <think>"):
        assert constraint.allowed() is None and constraint.forced() == []
        restrict(logits, constraint)
        constraint.accept([token])
    assert torch.equal(logits, before)
    constraint.accept(spelling.ids("</think>"))
    tag = constraint.forced()[:1]
    assert tag == spelling.ids("<answer>") and places(constraint) == tag
    with pytest.raises(ValueError, match="can't come"):
        constraint.accept(spelling.ids("["))
    constraint.accept(tag + spelling.ids("[(1, 2)]"))
    assert constraint.finished


@pytest.mark.parametrize(
    ("pieces", "rest"),
    [
        (["</thi", "nk>"], "<answer>"),
        (["<", "/", "think", "><"], "answer>"),
        (["</think", ">\n"], "<answer>"),
    ],
)
def test_the_end_of_thinking_may_be_spelt_in_any_way(straddling, pieces, rest):
    constraint = straddling.grammar.constrain(BOX, (336, 252), "<think>")
    written = straddling.ids("Hm.")
    for piece in pieces:
        written += straddling.ids(piece)
    for token in written:
        assert constraint.allowed() is None
        constraint.accept([token])
    assert straddling.text(constraint.forced()).startswith(rest)
    written += write(straddling.grammar, constraint, 3)
    answer = parse_answer(
        TaskKind.GROUNDING, straddling.text(written), FAMILIES["robobrain2"], "<think>"
    )
    assert len(answer.boxes) == 1 and answer.thinking == "Hm."


@pytest.mark.parametrize(("token", "rest"), [("]</", "answer>"), ("]\n", "")])
def test_a_token_may_spell_more_than_the_last_bracket(straddling, token, rest):
    """RoboBrain 2.0 writes ]</answer>, of which "]</" is one token."""
    constraint = straddling.grammar.constrain(BOX, (336, 252), "<think></think><answer>")
    constraint.accept(straddling.ids("[1, 2, 30, 40"))
    end = straddling.ids(token)
    assert len(end) == 1 and end[0] in places(constraint)
    constraint.accept(end)
    forced = constraint.forced()
    assert straddling.text(forced) == rest
    constraint.accept(forced)
    assert constraint.finished


def test_fewer_logits_than_tokens_are_refused(spelling):
    with pytest.raises(ValueError, match="vocab"):
        Grammar(spelling.tokenizer, 100, {1})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_forms_of_the_families(family):
    forms = {kind: answer_form(kind, family) for kind in TaskKind}
    assert forms[TaskKind.ASK] is None
    assert forms[TaskKind.TRAJECTORY].max_items == 10
    assert forms[TaskKind.POINT].max_items == 32
    assert answer_form(TaskKind.POINT, family, 3).max_items == 3
    assert answer_form(TaskKind.POINT, family, 2**32 - 1).max_items == 100
    is_json = family.name.startswith("qwen")
    assert (forms[TaskKind.GROUNDING].notation is Notation.JSON) == is_json
    is_2_5 = family.name == "robobrain2_5"
    assert (forms[TaskKind.AFFORDANCE].shape is Shape.POINTS) == is_2_5
    assert (forms[TaskKind.TRAJECTORY].shape is Shape.POINTS_WITH_DEPTH) == is_2_5


def test_forms_that_cannot_be(spelling):
    with pytest.raises(ValueError, match="0 items"):
        replace(POINTS, max_items=0)
    with pytest.raises(ValueError, match="0x0"):
        spelling.grammar.constrain(POINTS, (0, 0), "<think>")


ranges = st.tuples(st.integers(0, 20_000), st.integers(0, 20_000)).map(sorted)


@settings(deadline=None)
@given(ranges, st.integers(0, 30_000))
def test_integer_ranges(limits, number):
    low, high = limits
    expression = re.compile(integer_range(low, high))
    for n in (number, low, high, max(low - 1, 0), high + 1):
        assert (expression.fullmatch(str(n)) is not None) == (low <= n <= high)
        assert not expression.fullmatch(f"0{n}")


def test_every_small_integer_range():
    for low, high in itertools.combinations_with_replacement(range(0, 131, 3), 2):
        expression = re.compile(integer_range(low, high))
        matched = [n for n in range(140) if expression.fullmatch(str(n))]
        assert matched == list(range(low, high + 1))


@settings(deadline=None)
@given(st.tuples(st.integers(0, 1000), st.integers(0, 1000)).map(sorted), st.integers(0, 1100))
def test_decimal_ranges(limits, thousandths):
    low, high = limits
    expression = re.compile(decimal_range(low, high))
    for n in (thousandths, low, high, max(low - 1, 0), high + 1):
        text = f"{n // 1000}.{n % 1000:03}"
        while not text.endswith("."):
            assert (expression.fullmatch(text) is not None) == (low <= n <= high)
            if not text.endswith("0"):
                break
            text = text[:-1]


@pytest.mark.parametrize("make", [integer_range, decimal_range])
def test_empty_ranges_are_refused(make):
    with pytest.raises(ValueError, match="no number"):
        make(5, 4)
