# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding and prompts with the vocabulary of the real models."""

import importlib.metadata
import json

import numpy as np
import pytest
import torch
from support import qwen_vocabulary
from support.constrained_answers import Vocabulary, allowed_tokens, check_answer, write
from support.qwen_vocabulary import LOGITS

from robobrain_ros.core.answer_formats import JsonSchema, Notation, Shape, answer_format
from robobrain_ros.core.families import FAMILIES, CoordinateFrame
from robobrain_ros.core.parsing import parse_answer
from robobrain_ros.core.tasks import TASKS, TaskKind, Think
from robobrain_ros.engines.local.constrained_decoding import Grammar, restrict

pytestmark = pytest.mark.slow  # runs models

KINDS = [kind for kind in TaskKind if TASKS[kind].answer.has_places]


@pytest.fixture(scope="module")
def vocabulary(qwen_tokenizer) -> Vocabulary:
    return Vocabulary(qwen_tokenizer, Grammar(qwen_tokenizer, LOGITS, {151643, 151645}))


def test_the_tokenizer_is_qwens(vocabulary):
    tokenizer = vocabulary.tokenizer
    assert len(tokenizer) == 151_665
    assert vocabulary.ids("Hello world") == [9707, 1879]
    assert vocabulary.ids("0123456789") == list(range(15, 25))
    assert vocabulary.ids("<|im_start|><|im_end|><|image_pad|>") == [151644, 151645, 151655]
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (151645, 151643)
    assert len(vocabulary.ids("<think>")) > 1 and len(vocabulary.ids("<answer>")) > 1
    text = "Pick up the cafe\u0301's cup, 机器人 [(12, 3)]</answer>\n\n"
    assert vocabulary.text(vocabulary.ids(text)) == text.replace("e\u0301", "é")


def test_a_missing_vocabulary_is_named(monkeypatch):
    def missing(name: str):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", missing)
    with pytest.raises(qwen_vocabulary.VocabularyMissing, match="pip install --no-deps dashscope"):
        qwen_vocabulary.qwen_tokenizer.__wrapped__()


def follow(vocabulary: Vocabulary, constraint, text: str) -> tuple[int, int]:
    """Answer with a text in the tokens of the tokenizer. Each must be allowed and each forced token
    must be that of the text, but for the last bracket: what can only end, ends with a bracket
    alone, where the text may go on with "</answer>" in the same token.

    Returns how many tokens were chosen and forced.
    """
    ids, chosen, forced = vocabulary.ids(text), 0, 0
    while not constraint.finished:
        tokens = constraint.forced()
        if tokens != ids[: len(tokens)]:
            last = len(tokens) - 1
            assert tokens[:last] == ids[:last]
            bracket = vocabulary.text(tokens[last:])
            assert bracket.endswith(("]", "}"))
            assert vocabulary.text(ids[last : last + 1]).startswith(bracket)
            constraint.accept(tokens)
            assert constraint.finished
            return chosen, forced + len(tokens)
        forced += len(tokens)
        if not tokens:
            tokens = ids[:1]
            chosen += 1
            allowed = constraint.allowed()
            assert allowed is None or tokens[0] in allowed_tokens(constraint)
        constraint.accept(tokens)
        ids = ids[len(tokens) :]
    assert vocabulary.text(ids) in ("", "</answer>", "answer>", "```", "\n```")
    return chosen, forced


PUBLISHED = [
    (TaskKind.GROUNDING, (426, 640), "[0, 193, 226, 640]"),
    (TaskKind.AFFORDANCE, (640, 426), "[577, 224, 638, 310]"),
    (TaskKind.TRAJECTORY, (424, 240), "[(137, 116), (169, 94), (208, 84), (228, 80)]"),
    (
        TaskKind.POINT,
        (640, 480),
        "[(376, 309), (332, 357), (384, 335), (343, 296), (348, 327), (328, 346), (371, 322), "
        "(392, 303), (380, 324), (337, 295)]",
    ),
    (
        TaskKind.POINT,
        (732, 1220),
        "[(318, 445), (293, 466), (307, 478), (277, 459), (320, 456), (304, 450)]",
    ),
]
OPENINGS = {
    "": "{}",
    "<think></think><answer>": "{}</answer>",
    "<think>": "The cup [1, 2] is red.</think>\n<answer>{}</answer>",
    "<think>\n": "It is\n\nred.</think><answer>{}</answer>",
}


@pytest.mark.parametrize("opening", OPENINGS)
@pytest.mark.parametrize(("kind", "sent", "text"), PUBLISHED)
def test_published_answers_are_allowed_token_by_token(vocabulary, kind, sent, text, opening):
    family = FAMILIES["robobrain2"]
    expected = answer_format(kind, family)
    constraint = vocabulary.grammar.constrain(expected, sent, opening)
    chosen, forced = follow(vocabulary, constraint, OPENINGS[opening].format(text))
    assert constraint.finished
    assert forced > chosen / 5 - 5
    assert check_answer(text, kind, family, expected, sent)


def styles(expected) -> list[str]:
    """Answers in a format as models write them."""
    number = "0.{}" if expected.frame is CoordinateFrame.RELATIVE_1 else "{}"
    places = [("17", "94"), ("100", "0"), ("5", "62")]
    if expected.shape is Shape.BOXES:
        places = [(*one, *other) for one, other in zip(places, places[1:])]
    rows = [", ".join(number.format(n) for n in place) for place in places]
    if expected.shape is Shape.POINTS_WITH_DEPTH:
        rows = [f"{row}, {depth}" for row, depth in zip(rows, ("0.85", "1.2", "3"))]
    rows = rows[: expected.max_items]
    if expected.notation is Notation.TUPLES:
        if expected.shape is Shape.BOXES:
            return [f"[{rows[0]}]", f"[{rows[0]}]\n"]
        round_ = f"[{', '.join(f'({row})' for row in rows)}]"
        return [round_, round_ + "\n\n", f"[{', '.join(f'[{row}]' for row in rows)}]"]
    key = "bbox_2d" if expected.shape is Shape.BOXES else "point_2d"
    items = [f'{{"{key}": [{row}], "label": "the red cup"}}' for row in rows]
    bare = [f'{{"{key}": [{row}]}}' for row in rows]
    return [
        f"[{', '.join(items)}]",
        "[\n\t" + ",\n\t".join(items) + "\n]",
        "```json\n[\n\t" + ",\n\t".join(items) + "\n]\n```",
        "```json\n[\n  " + ",\n  ".join(bare) + "\n]\n```",
        "```json\n[\n    " + ",\n    ".join(bare) + "\n]\n```",
    ]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES.values(), ids=list(FAMILIES))
def test_every_familys_styles_are_allowed_token_by_token(vocabulary, family, kind):
    sent = (family.patch_factor * 20, family.patch_factor * 15)
    expected = answer_format(kind, family)
    for opening in set(family.openings.values()):
        for text in [*styles(expected), "[]"]:
            constraint = vocabulary.grammar.constrain(expected, sent, opening)
            follow(vocabulary, constraint, OPENINGS[opening].format(text))
            assert constraint.finished
            assert bool(check_answer(text, kind, family, expected, sent)) == (text != "[]")


@pytest.mark.parametrize("kind", KINDS)
def test_random_answers_parse_and_lie_in_the_image(vocabulary, kind):
    for seed, family in enumerate((FAMILIES["robobrain2"], FAMILIES["qwen3_vl"])):
        expected = answer_format(kind, family, 3)
        constraint = vocabulary.grammar.constrain(expected, (644, 476), "")
        ids = write(vocabulary.grammar, constraint, seed)
        check_answer(vocabulary.text(ids), kind, family, expected, (644, 476))


def test_json_by_a_schema_is_allowed_token_by_token(vocabulary):
    steps = {"type": "array", "items": {"enum": ["pick", "place"]}, "maxItems": 5}
    properties = {"reason": {"type": "string"}, "steps": steps}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    value = {"reason": 'Take the "cup" first.', "steps": ["pick", "place"]}
    for style in ({}, {"indent": 2}, {"indent": 4}, {"separators": (",", ":")}):
        constraint = vocabulary.grammar.constrain(JsonSchema(schema), (0, 0), "")
        follow(vocabulary, constraint, json.dumps(value, **style))
        assert constraint.finished


def test_masks_cover_all_logits(vocabulary):
    constraint = vocabulary.grammar.constrain(
        answer_format(TaskKind.POINT, FAMILIES["robobrain2"]), (644, 476), ""
    )
    constraint.accept(vocabulary.ids("[(33"))
    assert constraint.allowed().shape == (LOGITS // 32,)
    logits = torch.zeros(LOGITS)
    restrict(logits, constraint)
    kept = np.flatnonzero(torch.isfinite(logits).numpy()).tolist()
    assert kept == allowed_tokens(constraint) == sorted(vocabulary.ids("0123456789,"))


def test_padding_and_control_tokens_are_never_allowed_within_an_answer(vocabulary):
    """Labels take all sorts of text."""
    expected = answer_format(TaskKind.GROUNDING, FAMILIES["qwen2_5_vl"])
    constraint = vocabulary.grammar.constrain(expected, (644, 476), "")
    for token in vocabulary.ids('[{"bbox_2d": [1, 2, 3, 4], "label": "a cup'):
        assert max(allowed_tokens(constraint)) < 151_643
        constraint.accept([token])
    assert len(allowed_tokens(constraint)) > 100_000
    constraint.accept(vocabulary.ids('"}]'))
    assert allowed_tokens(constraint) == [151_643, 151_645]


def test_thinking_ends_in_whatever_tokens(vocabulary):
    expected = answer_format(TaskKind.GROUNDING, FAMILIES["robobrain2"])
    for end in ("</think>", "</think>\n", "</think>\n\n", ".</think>", "</think><"):
        constraint = vocabulary.grammar.constrain(expected, (644, 476), "<think>")
        written = vocabulary.ids("Hm" + end)
        constraint.accept(written)
        # The tag's last character may come in one token with the bracket after it.
        tag = "answer" if end.endswith("<") else "<answer"
        assert vocabulary.text(constraint.forced()) == tag
        rest = vocabulary.ids(f"{tag}>[1, 2, 30, 40]")
        constraint.accept(rest)
        assert constraint.finished
        text = vocabulary.text(written + rest)
        parsed = parse_answer(TaskKind.GROUNDING, text, FAMILIES["robobrain2"], "<think>")
        assert parsed.boxes.tolist() == [[1, 2, 30, 40]] and parsed.thinking.startswith("Hm")


# Tokens of a prompt about "the red cup" in the chat template, with one token for the image, and of
# the opening after it.
PROMPT_TOKENS = {
    "robobrain2": {"point": 95, "affordance": 59, "trajectory": 104, "grounding": 46, "ask": 32},
    "robobrain2_3b": {"point": 88, "affordance": 52, "trajectory": 97, "grounding": 39, "ask": 25},
    "robobrain2_5": {"point": 68, "affordance": 73, "trajectory": 98, "grounding": 39, "ask": 25},
    "qwen3_vl": {"point": 57, "affordance": 73, "trajectory": 74, "grounding": 63, "ask": 25},
    "qwen2_5_vl": {"point": 57, "affordance": 73, "trajectory": 74, "grounding": 63, "ask": 25},
}


@pytest.mark.parametrize("name", FAMILIES)
def test_token_counts_of_prompts(vocabulary, name):
    family = FAMILIES[name]
    counts = {}
    for kind in TaskKind:
        prompt = family.build_prompt(kind, text="the red cup")
        content = [{"type": "image"}, {"type": "text", "text": prompt}]
        chat = vocabulary.tokenizer.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        counts[kind.value] = len(vocabulary.ids(chat + family.openings[Think.DEFAULT]))
    assert counts == PROMPT_TOKENS[name]
