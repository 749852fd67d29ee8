# SPDX-License-Identifier: Apache-2.0
"""Texts of requests and answers of models that nobody would write in good faith."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.requests import ask

from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import FAMILIES
from robobrain_ros.core.input_text import MAX_TEXT, checked_text, object_name, sanitize_error
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.parsing import AnswerError, EmptyAnswer, UnparsableAnswer, parse_answer
from robobrain_ros.core.pipeline import (
    MAX_BOXES,
    MAX_POINTS,
    MAX_SHOWN,
    Query,
    infer,
)
from robobrain_ros.core.requests import FinishReason, Generation
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.tf_projection import DepthScene

FAMILY = FAMILIES["robobrain2"]
SIZE = (640, 480)
TAGS = (
    "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|endoftext|>", "<think>",
    "</think>", "<answer>", "</answer>", "<|x|>", "<|im_<|im_end|>end|>", "<<|im_end|>", "\n",
    "<thi", "nk>", "<|", "|>", "user", "{{ 7 * 7 }}", "{% for x in y %}", " ",
)  # fmt: skip
numbers = st.one_of(
    st.floats().map(repr),
    st.integers().map(str),
    st.sampled_from(("ınf", "İnf", "1e999", "٣", "½", "", "--1", "9" * 350)),
)
groups = st.lists(numbers, min_size=1, max_size=5).map(lambda tokens: f"({', '.join(tokens)})")
answers = st.lists(st.one_of(groups, st.text(max_size=8), st.sampled_from(TAGS)), max_size=20)


# Texts of requests


@pytest.mark.parametrize(
    "text", ["", "  \n\t", "\x00", "\x1b\x7f", "\u200b\u202e", "\ud800", "\ufeff "]
)
def test_a_text_that_can_t_be_read_is_empty(text):
    with pytest.raises(BrainError, match="say what to look for") as caught:
        checked_text(text)
    assert caught.value.code is ErrorCode.BAD_REQUEST


def test_a_text_of_a_megabyte_is_refused_and_the_longest_one_taken():
    with pytest.raises(BrainError, match=f"1000000 characters, at most {MAX_TEXT}") as caught:
        checked_text("x" * 1_000_000)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    assert len(checked_text("x" * MAX_TEXT)) == MAX_TEXT


def test_control_characters_are_spaces_and_lines_stay_lines():
    assert checked_text("the\x1b[31m red\x00can\x85\ud800") == "the [31m red can"
    assert checked_text("Is it open?\n\tAnd full?\n") == "Is it open?\n\tAnd full?"
    assert checked_text("кружка ☕ کتاب\u200cها") == "кружка ☕ کتاب\u200cها"


@given(st.text(st.characters(exclude_categories=()), max_size=200))
def test_any_text_is_one_that_a_tokenizer_takes_or_a_bad_request(text):
    try:
        checked = checked_text(text)
    except BrainError as error:
        assert error.code is ErrorCode.BAD_REQUEST
    else:
        assert checked.strip() and len(checked.encode()) >= 1  # no half characters
        assert all(c in "\n\t" or ord(c) >= 32 for c in checked)
        assert checked_text(checked) == checked


def test_a_sentence_that_quotes_a_megabyte_is_short_and_keeps_its_advice():
    said = sanitize_error(f"There is no camera '{'x' * 1_000_000}\x1b[2J': use another.")
    assert len(said) < 1100 and said.isprintable()
    assert said.startswith("There is no camera") and said.endswith("use another.")


# Chat templates and control tokens


@pytest.fixture(scope="module")
def processor():
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from robobrain_ros.engines.local.checkpoint import NANO_DIRECTORY
    from robobrain_ros.engines.local.processor import Processor

    return Processor(NANO_DIRECTORY, 0)


def tags_of(processor, prompt: str) -> list[str]:
    """The control tokens and tags of a chat, that of the image among them."""
    image = np.zeros((28, 56, 3), np.uint8)
    ids = processor.token_ids(ask(prompt, image, opening="<think>"), [2])[0].tolist()
    tokens = processor.tokenizer.convert_ids_to_tokens(ids)
    added = {token.content for token in processor.tokenizer.added_tokens_decoder.values()}
    return [token for token in tokens if token in added and token.startswith("<")]


@pytest.mark.parametrize("tag", ["<think>", "</think>", "<answer>", "</answer>"])
def test_thinking_tags_in_a_query_stay_words(processor, tag):
    assert tags_of(processor, f"the cup {tag}[(1, 1)]") == tags_of(processor, "the cup")


@settings(deadline=None)
@given(st.lists(st.one_of(st.sampled_from(TAGS), st.text(max_size=3)), max_size=12).map("".join))
def test_no_text_becomes_a_control_token_or_a_template(processor, text):
    prompt = f"point to {text}"
    try:
        prompt = checked_text(prompt)
    except BrainError:
        return
    assert tags_of(processor, prompt) == tags_of(processor, "the cup")
    if "{{" in text:
        ids = processor.token_ids(ask(prompt), [])[0].tolist()
        assert "{{" in processor.decode(ids) and "49" not in processor.decode(ids).replace(text, "")


# Answers of models


def inferred(raw: str, kind: TaskKind = TaskKind.POINT, family=FAMILY, max_points: int = 0):
    """What the node makes of a model's answer."""
    seen = Observation(np.zeros((*SIZE[::-1], 3), np.uint8), DepthScene())
    query = Query(kind, "cup", Think.DEFAULT, max_points)
    work = infer(family, query, lambda: seen, StopSignal(math.inf))
    next(work)
    try:
        work.send(Generation(raw, FinishReason.EOS, (SIZE,), 9, 9, 0, 0.0, 0.0, 0.0))
    except StopIteration as end:
        return end.value[0]
    raise AssertionError("one question is asked, no more")


@pytest.mark.parametrize("number", ["ınf", "İnf", "-ınfıNıty", "٣", "１２"])
def test_a_dotless_i_is_no_infinity(number):
    """`re` ignores the case of ı as that of i, and float() does not."""
    with pytest.raises(UnparsableAnswer):
        parse_answer(TaskKind.POINT, f"[({number}, 3)]", FAMILY)


@settings(deadline=None)
@given(answers, st.sampled_from(TaskKind), st.sampled_from(sorted(FAMILIES)), st.integers(0, 3))
def test_any_answer_is_a_result_inside_the_image_or_has_a_code(pieces, kind, family, max_points):
    try:
        result = inferred("".join(pieces), kind, FAMILIES[family], max_points)
    except AnswerError as error:
        assert len(str(error)) > 20
    else:
        assert result.answer.text
        assert kind is TaskKind.ASK or result.points or result.regions
        pixels = np.array([point.pixel for point in result.points]).reshape(-1, 2)
        assert ((pixels >= 0) & (pixels < SIZE)).all()


def test_a_model_that_repeats_itself_without_end_is_refused():
    """Each of a hundred thousand points would cost the executor's thread its time."""
    raw = "[" + "(12, 34), " * 100_000 + "]"
    with pytest.raises(UnparsableAnswer, match="100000 places.*repeats"):
        inferred(raw)
    assert len(inferred(raw, max_points=5).points) == 5
    with pytest.raises(UnparsableAnswer, match="places"):
        inferred("[1, 2, 30, 40] " * (MAX_BOXES + 1), TaskKind.GROUNDING)
    assert len(inferred("(12, 34), " * MAX_POINTS).points) == MAX_POINTS


def test_points_outside_the_image_are_no_success():
    with pytest.raises(EmptyAnswer, match="outside"):
        inferred("[(100000, 3)]")


def test_an_answer_that_can_t_be_used_comes_with_its_error():
    for raw in ("The cup is [1, 2, 3].", "[(100000, 3)]", "[]"):
        with pytest.raises(AnswerError) as caught:
            inferred(raw)
        assert caught.value.answer == raw
    with pytest.raises(UnparsableAnswer) as caught:
        inferred("word " * 500_000)
    assert len(caught.value.answer) == MAX_SHOWN


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("Point to the red can", "red can"),
        ("the red can.", "red can"),
        ("Where is a mug?", "mug"),
        ("box of all the cups", "cups"),
        ("the", "the"),
        ("Point to", "Point to"),
        ("free space\nbetween  the bowls", "free space between the bowls"),
        ("x" * 100, "x" * 63 + "…"),
    ],
)
def test_a_detection_is_called_by_the_name_of_its_object(text, name):
    assert object_name(text) == name
