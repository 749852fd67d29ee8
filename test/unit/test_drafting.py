# SPDX-License-Identifier: Apache-2.0
"""Guessing ahead spares steps and changes no answer, however good or bad the guesses are."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.families import FAMILIES  # noqa: E402
from robobrain_ros.core.requests import GenerationRequest  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.base import generate, generate_together  # noqa: E402
from robobrain_ros.engines.local import decode  # noqa: E402
from robobrain_ros.engines.local.decode import GraphStepper  # noqa: E402
from robobrain_ros.engines.local.sequence import Writing  # noqa: E402
from robobrain_ros.engines.local.speculative import Drafter  # noqa: E402

IMAGE = np.random.default_rng(4).integers(0, 255, (120, 160, 3), dtype=np.uint8)
# Digits are their own tokens; other characters, alone or in pairs, have larger ones.
OTHERS = ["[(", "), (", ", ", ")]", "[", "]", "(", ")", ",", " "]
DRAFTER = Drafter(range(10))


def spelt(text):
    """Token ids of an answer."""
    ids = []
    while text:
        other = next((o for o in OTHERS if text.startswith(o)), None)
        ids.append(10 + OTHERS.index(other) if other else int(text[0]))
        text = text[len(other or text[0]) :]
    return ids


@pytest.mark.parametrize(
    ("answer", "draft"),
    [
        ("", ""),
        ("[(", ""),
        ("[(120, ", ""),
        ("[(120, 45", ""),  # may go on: 450
        ("[(120, 45), (", "12"),  # as the first point begins
        ("[(120, 45), (131", ", 4"),
        ("[(120, 45), (13", ""),  # it may be 130 to 139
        ("[(120, 45), (131, ", "4"),
        ("[(120, 45), (131, 52", "), (14"),  # straight on: 142
        ("[(120, 45), (131, 52), (142", ", 5"),
        ("[(20, 45), (9, 52), (", ""),  # straight on is left of the image: one digit, 0
        ("[(5, 5), (5, 5", "), ("),  # nothing is said of a number's last digit
        ("[12, 40, ", "1"),  # a box
    ],
)
def test_a_draft_goes_straight_on_and_leaves_last_digits_open(answer, draft):
    assert DRAFTER.draft(spelt(answer)) == spelt(draft)


@given(st.lists(st.integers(0, 9 + len(OTHERS)), max_size=40))
def test_any_tokens_can_be_gone_on_from(answer):
    assert all(token in range(10 + len(OTHERS)) for token in DRAFTER.draft(answer))


def test_only_flat_lists_of_whole_numbers_are_guessed_at():
    known = {
        (name, kind): Drafter.knows(form)
        for name, family in FAMILIES.items()
        for kind in TaskKind
        if (form := answer_format(kind, family)) is not None
    }
    assert known["robobrain2", TaskKind.TRAJECTORY] and known["robobrain2", TaskKind.GROUNDING]
    assert not all(known.values())


@pytest.fixture
def asked(engine):
    """Requests for answers of forty tokens and more, which random weights give to some words."""
    form = answer_format(TaskKind.POINT, engine.family, 12)
    requests = (GenerationRequest(IMAGE, "the cup " * n, "", 90 - n, form) for n in range(1, 50))
    long = (request for request in requests if generate(engine, request).tokens_out >= 40)
    return list(itertools.islice(long, 4))


def steps_of(engine, monkeypatch):
    """A list that will hold each step's rows, tokens a row, and those that aren't guesses."""
    steps, step = [], engine._parts.step

    def seen(new):
        known = max(len(writing.pending) for writing in engine._writings)
        steps.append((len(new.ids), new.ids.shape[1], known))
        return step(new)

    monkeypatch.setitem(engine._parts.__dict__, "step", seen)
    return steps


@pytest.fixture
def oracle(engine, monkeypatch):
    """Makes the engine guess what it will write, one token in four wrongly, and never give up;
    returns the answers to `requests` without any guess.
    """
    rng = random.Random(1)
    told: list[list[int]] = []

    def answers(requests):
        monkeypatch.setattr(Drafter, "draft", lambda self, answer: [])
        ended = Writing.generation

        def generation(writing):
            told.append(list(writing._constraint.answer))
            return ended(writing)

        with monkeypatch.context() as patch:
            patch.setattr(Writing, "generation", generation)
            alone = [generate(engine, request) for request in requests]
        monkeypatch.setattr(Drafter, "draft", guess)
        return alone

    def guess(_, answer):
        rest = next(one[len(answer) :] for one in told if one[: len(answer)] == list(answer))
        return [token if rng.random() < 0.75 else 5 for token in rest[: rng.randrange(8)]]

    monkeypatch.setattr("robobrain_ros.engines.local.sequence._MOST_MISSED", 10**9)
    monkeypatch.setattr(engine, "_few_tokens", 64)
    return answers


def test_guesses_of_all_sorts_change_no_answer_and_spare_steps(engine, asked, oracle, monkeypatch):
    request = asked[0]
    engine.forget()
    (alone,) = oracle([request])
    steps = steps_of(engine, monkeypatch)
    engine.forget()
    guessed = generate(engine, request)
    assert (guessed.text, guessed.finish, guessed.tokens_out) == (
        alone.text,
        alone.finish,
        alone.tokens_out,
    )
    assert len(steps) < 0.7 * alone.tokens_out


def test_answers_side_by_side_are_guessed_at_too(engine, asked, oracle):
    engine.forget()
    alone = oracle(asked)
    engine.forget()
    for one, other in zip(generate_together(engine, asked), alone, strict=True):
        assert (one.text, one.tokens_out) == (other.text, other.tokens_out)


def test_guesses_in_fixed_shapes_change_no_answer(engine, asked, oracle, monkeypatch):
    """As CUDA graphs have them; see test_stepping.py."""
    request = asked[0]
    engine.forget()
    (alone,) = oracle([request])
    monkeypatch.setattr(decode, "capture", lambda work, device: work)
    lines: list[str] = []
    parts = engine._parts
    monkeypatch.setitem(
        parts.__dict__, "step", GraphStepper(parts.language, parts.rows, lines.append)
    )
    engine.forget()
    assert generate(engine, request).text == alone.text
    assert not lines
    assert {shape[2] for shape in parts.step._graphs} > {1}


def test_guessing_in_vain_ends(engine, asked, monkeypatch):
    """Random weights don't go straight on: an answer is guessed at a few times, not all along."""
    guesses = []
    draft = Drafter.draft

    def counted(self, answer):
        guesses.append(bool(found := draft(self, answer)))
        return found and [0] * len(found)

    monkeypatch.setattr(Drafter, "draft", counted)
    engine.forget()
    answer = generate(engine, asked[0])
    assert answer.tokens_out >= 40
    assert sum(guesses) < 12


def test_a_step_has_no_more_tokens_than_take_no_longer(engine, asked, monkeypatch):
    monkeypatch.setattr(engine, "_few_tokens", 3)
    monkeypatch.setattr(Drafter, "draft", lambda self, answer: [1] * 9)
    steps = steps_of(engine, monkeypatch)
    engine.forget()
    generate(engine, asked[0])
    assert max(width for _, width, known in steps if known <= 3) == 3
    steps.clear()
    monkeypatch.setattr(engine, "_few_tokens", 4)
    generate_together(engine, asked)
    # A guess that fits beside another's words is free.
    assert {width - known for rows, width, known in steps if rows == 4} == {0}
