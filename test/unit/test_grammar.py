# SPDX-License-Identifier: Apache-2.0
"""Whatever a model wants to say, an answer under a constraint parses and lies in the image."""

import itertools
import json
import random
import re
from dataclasses import replace

import pytest
import torch
from llguidance import LLMatcher, LLParserLimits
from support.constrained_answers import (
    allowed_tokens,
    check_answer,
    follow,
    nano,
    read_vocabulary,
    tiny,
    write,
)
from support.tiny_checkpoints import TAGS, save_tokenizer

from robobrain_ros.core.answer_formats import JsonSchema, Shape, answer_format
from robobrain_ros.core.families import FAMILIES, CoordinateFrame
from robobrain_ros.core.parsing import parse_answer
from robobrain_ros.core.tasks import TASKS, TaskKind
from robobrain_ros.engines.local import constrained_decoding
from robobrain_ros.engines.local.constrained_decoding import Grammar, restrict

SIZES = ((336, 252), (28, 28), (1288, 728))
KINDS = [kind for kind in TaskKind if TASKS[kind].answer.has_places]
# Frames and an axis order that no family has yet.
UNUSUAL = (
    replace(FAMILIES["robobrain2"], frame=CoordinateFrame.RELATIVE_1, axis_order="yx"),
    replace(FAMILIES["qwen3_vl"], frame=CoordinateFrame.RELATIVE_1),
    replace(FAMILIES["qwen3_vl"], frame=CoordinateFrame.RELATIVE_100, has_depth=True),
    replace(FAMILIES["qwen2_5_vl"], axis_order="yx", affordance_is_point=True),
    replace(FAMILIES["robobrain2"], axis_order="yx", has_depth=True),
)
POINTS = answer_format(TaskKind.POINT, FAMILIES["robobrain2"])
BOX = answer_format(TaskKind.GROUNDING, FAMILIES["robobrain2"])
JSON_BOXES = answer_format(TaskKind.GROUNDING, FAMILIES["qwen2_5_vl"])


@pytest.fixture(scope="module", params=[nano, tiny], ids=["nano", "tiny"])
def vocabulary(request):
    return request.param()


@pytest.fixture(scope="module")
def straddling(tmp_path_factory):
    """Like Qwen2.5's: no tokens for tags, but some that spell an end and what comes after it."""
    directory = tmp_path_factory.mktemp("tokenizer")
    save_tokenizer(directory)
    file = directory / "tokenizer.json"
    saved = json.loads(file.read_text())
    kept = [token for token in saved["added_tokens"] if token["content"] not in TAGS]
    for content in ("><", ">\n", "]</", "]\n"):
        kept.append(saved["added_tokens"][-1] | {"id": kept[-1]["id"] + 1, "content": content})
    file.write_text(json.dumps(saved | {"added_tokens": kept}))
    return read_vocabulary(directory)


def check_random_answers(vocabulary, answers: int) -> int:
    """Check answers of all families, tasks and sizes in turn; returns how many had places."""
    with_places = 0
    cases = itertools.product((*FAMILIES.values(), *UNUSUAL), KINDS, SIZES, (0, 1, 3))
    for seed, (family, kind, sent, most) in zip(range(answers), itertools.cycle(cases)):
        expected = answer_format(kind, family, most)
        ids = write(vocabulary.grammar, vocabulary.grammar.constrain(expected, sent, ""), seed)
        places = check_answer(vocabulary.text(ids), kind, family, expected, sent)
        assert places <= (most or 32) or expected.shape is Shape.BOXES
        with_places += places > 0
    return with_places


def test_random_answers_parse_and_lie_in_the_image(vocabulary):
    assert check_random_answers(vocabulary, answers=360) > 150


def up_to_the_bracket(text: str) -> str:
    return re.sub(r"\](?:</answer>|\s*)$", "]", text)


def test_following_forced_tokens_changes_no_answer(vocabulary):
    grammar = vocabulary.grammar
    for seed, (name, kind) in enumerate(itertools.product(FAMILIES, KINDS)):
        expected = answer_format(kind, FAMILIES[name], 3)
        texts = [
            vocabulary.text(
                write(grammar, grammar.constrain(expected, (336, 252), ""), seed, follow)
            )
            for follow in (True, False)
        ]
        assert up_to_the_bracket(texts[0]) == up_to_the_bracket(texts[1])


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
def test_real_answers_are_allowed(vocabulary, kind, family, sent, text):
    expected = answer_format(kind, FAMILIES[family])
    constraint = vocabulary.grammar.constrain(expected, sent, "")
    chosen, forced = follow(constraint, vocabulary.ids(text))
    assert constraint.finished
    assert check_answer(text, kind, FAMILIES[family], expected, sent)
    assert forced > chosen / 5


@pytest.mark.parametrize("corners", ["[27, 5, 3, 28]", "[0, 0, 28, 28]", "[3, 28, 28, 27]"])
def test_corners_may_come_in_any_order(vocabulary, corners):
    constraint = vocabulary.grammar.constrain(BOX, (28, 28), "")
    follow(constraint, vocabulary.ids(corners))
    assert constraint.finished
    assert check_answer(corners, TaskKind.GROUNDING, FAMILIES["robobrain2"], BOX, (28, 28)) == 1


@pytest.mark.parametrize(("start", "flat"), [("[27, 5, 2", "7"), ("[0, 5, 27, ", "5")])
def test_a_box_has_an_area(vocabulary, start, flat):
    constraint = vocabulary.grammar.constrain(BOX, (28, 28), "")
    constraint.accept(vocabulary.ids(start))
    assert vocabulary.ids("0")[0] in allowed_tokens(constraint)
    assert vocabulary.ids(flat)[0] not in allowed_tokens(constraint)


def test_answers_do_not_exhaust_a_matcher(monkeypatch):
    """Each new box adds states to an automaton, and llguidance has a limit of them: here one that
    200 boxes reach.
    """

    def compile_limited(tokens, answer_format, sent_size, prefix):
        limits = LLParserLimits(max_lexer_states=3000)
        lark = answer_format.lark(sent_size, prefix)
        return LLMatcher(tokens, LLMatcher.grammar_from_lark(lark), limits=limits)

    def answer_with_boxes() -> None:
        rng = random.Random(0)
        for _ in range(200):
            x, y = rng.sample(range(301), 2), rng.sample(range(201), 2)
            constraint = vocabulary.grammar.constrain(BOX, (300, 200), "")
            follow(constraint, vocabulary.ids(f"[{x[0]}, {y[0]}, {x[1]}, {y[1]}]"))
            assert constraint.finished

    monkeypatch.setattr(constrained_decoding, "_compile", compile_limited)
    vocabulary = nano()
    monkeypatch.setattr(constrained_decoding, "_ANSWERS_PER_MATCHER", 25)
    answer_with_boxes()
    monkeypatch.setattr(constrained_decoding, "_ANSWERS_PER_MATCHER", 10**9)
    with pytest.raises(AssertionError):
        answer_with_boxes()


PLAN = JsonSchema(
    {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "maxLength": 20},
            "steps": {
                "type": "array",
                "maxItems": 3,
                "items": {
                    "type": "object",
                    "properties": {
                        "robot": {"enum": ["left arm", "right arm"]},
                        "order": {"type": "integer", "minimum": 0, "maximum": 20},
                    },
                    "required": ["robot", "order"],
                    "additionalProperties": False,
                },
            },
        },
        "required": ["reason", "steps"],
        "additionalProperties": False,
    }
)
STEPS = {"reason": 'The "cup"', "steps": [{"robot": "left arm", "order": 12}]}


@pytest.mark.parametrize("opening", ["", "<think>"])
@pytest.mark.parametrize("style", [{}, {"indent": 4}, {"separators": (",", ":")}])
def test_json_by_a_schema_may_be_written_in_any_style(vocabulary, opening, style):
    constraint = vocabulary.grammar.constrain(PLAN, (0, 0), opening)
    if opening:
        constraint.accept(vocabulary.ids("Hm.</think><answer>"))
    chosen, forced = follow(constraint, vocabulary.ids(json.dumps(STEPS, **style)))
    assert constraint.finished and forced > chosen / 4


def test_random_json_follows_its_schema(vocabulary):
    for seed in range(20):
        constraint = vocabulary.grammar.constrain(PLAN, (0, 0), "")
        plan = json.loads(vocabulary.text(write(vocabulary.grammar, constraint, seed)))
        assert set(plan) == {"reason", "steps"} and len(plan["reason"]) <= 20
        for step in plan["steps"]:
            assert step["robot"] in ("left arm", "right arm") and 0 <= step["order"] <= 20


def test_a_model_may_say_that_there_is_nothing(vocabulary):
    for expected in (POINTS, BOX, JSON_BOXES):
        constraint = vocabulary.grammar.constrain(expected, (336, 252), "<think></think><answer>")
        constraint.accept(vocabulary.ids("[]"))
        assert constraint.finished


def test_an_image_without_pixels_is_refused_before_the_thinking(vocabulary):
    with pytest.raises(ValueError, match="0x0"):
        vocabulary.grammar.constrain(POINTS, (0, 0), "<think>")


def test_answers_begin_with_their_bracket(vocabulary):
    for expected, firsts in ((POINTS, "["), (BOX, "["), (JSON_BOXES, "[`")):
        allowed = allowed_tokens(vocabulary.grammar.constrain(expected, (336, 252), ""))
        assert {vocabulary.text([token])[0] for token in allowed} == set(firsts)


def test_only_the_end_may_come_after_the_end(vocabulary):
    grammar, tokenizer = vocabulary.grammar, vocabulary.tokenizer
    constraint = grammar.constrain(JSON_BOXES, (336, 252), "")
    others = {*range(len(tokenizer), grammar.vocabulary_size), *tokenizer.added_tokens_decoder}
    for token in vocabulary.ids('[{"bbox_2d": [1, 2, 3, 4], "label": "a cup"}]'):
        assert others.isdisjoint(allowed_tokens(constraint))
        constraint.accept([token])
    assert set(allowed_tokens(constraint)) == grammar.end_ids
    with pytest.raises(ValueError, match="can't come"):
        constraint.accept(vocabulary.ids("]"))
    constraint.accept([tokenizer.eos_token_id])
    assert constraint.finished


@pytest.mark.parametrize("wrong", ["(", "]", "9", " ", "<|im_end|>"])
def test_a_token_that_is_not_allowed_is_named_and_changes_nothing(vocabulary, wrong):
    constraint = vocabulary.grammar.constrain(POINTS, (336, 252), "")
    with pytest.raises(ValueError, match=re.escape(f"{wrong!r}) can't come after '[(33'")):
        constraint.accept(vocabulary.ids("[(33" + wrong))
    constraint.accept(vocabulary.ids("5, 251)]"))
    assert constraint.finished


@pytest.mark.parametrize("token", [-1, 10**6])
def test_numbers_that_are_no_tokens_are_refused(vocabulary, token):
    with pytest.raises(ValueError, match=f"token {token}"):
        vocabulary.grammar.constrain(POINTS, (336, 252), "").accept([token])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_logits_of_other_tokens_become_minus_infinity(vocabulary, dtype):
    constraint = vocabulary.grammar.constrain(POINTS, (336, 252), "")
    constraint.accept(vocabulary.ids("[(33"))
    logits = torch.randn(vocabulary.grammar.vocabulary_size).to(dtype)
    before = logits.clone()
    restrict(logits, constraint)
    allowed = sorted(vocabulary.ids("0") + vocabulary.ids("5") + vocabulary.ids(","))
    assert torch.isfinite(logits).nonzero().flatten().tolist() == allowed_tokens(constraint)
    assert set(allowed) <= set(allowed_tokens(constraint))
    assert torch.equal(logits[allowed], before[allowed])
    assert (logits[~torch.isfinite(logits)] == -torch.inf).all()


def test_thinking_is_free_and_then_the_answer_is_not(vocabulary):
    constraint = vocabulary.grammar.constrain(POINTS, (336, 252), "<think>")
    logits = torch.randn(vocabulary.grammar.vocabulary_size)
    before = logits.clone()
    for token in vocabulary.ids("The cup [(1, 2)] </thin or <think>"):
        assert constraint.allowed() is None and constraint.forced() == []
        restrict(logits, constraint)
        constraint.accept([token])
    assert torch.equal(logits, before)
    constraint.accept(vocabulary.ids("</think>"))
    tag = constraint.forced()[:1]
    assert tag == vocabulary.ids("<answer>") and allowed_tokens(constraint) == tag
    with pytest.raises(ValueError, match="can't come"):
        constraint.accept(vocabulary.ids("["))
    constraint.accept(tag + vocabulary.ids("[(1, 2)]"))
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
    assert len(end) == 1 and end[0] in allowed_tokens(constraint)
    constraint.accept(end)
    forced = constraint.forced()
    assert straddling.text(forced) == rest
    constraint.accept(forced)
    assert constraint.finished


def test_fewer_logits_than_tokens_are_refused(vocabulary):
    with pytest.raises(ValueError, match="vocab"):
        Grammar(vocabulary.tokenizer, 100, {1})
