# SPDX-License-Identifier: Apache-2.0
"""Speculative decoding spares steps and changes no answer, whatever the drafts are."""

from __future__ import annotations

import itertools
import random
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.requests import ask  # noqa: E402

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.families import FAMILIES  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.local import decode  # noqa: E402
from robobrain_ros.engines.local.decode import CudaGraphStep  # noqa: E402
from robobrain_ros.engines.local.speculative import TrajectoryDrafter  # noqa: E402
from robobrain_ros.engines.local.stepwise import generate, generate_together  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

IMAGE = np.random.default_rng(4).integers(0, 255, (120, 160, 3), dtype=np.uint8)
# Digits are their own tokens; other characters, alone or in pairs, have larger ones.
OTHERS = ["[(", "), (", ", ", ")]", "[", "]", "(", ")", ",", " "]
DRAFTER = TrajectoryDrafter(range(10))


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
def test_a_draft_extrapolates_and_leaves_last_digits_open(answer, draft):
    assert DRAFTER.draft(spelt(answer)) == spelt(draft)


@given(st.lists(st.integers(0, 9 + len(OTHERS)), max_size=40))
def test_any_tokens_can_be_drafted_after(answer):
    assert all(token in range(10 + len(OTHERS)) for token in DRAFTER.draft(answer))


def test_only_flat_lists_of_whole_numbers_are_drafted():
    known = {
        (name, kind): DRAFTER.supports(form)
        for name, family in FAMILIES.items()
        for kind in TaskKind
        if (form := answer_format(kind, family)) is not None
    }
    assert known["robobrain2", TaskKind.TRAJECTORY] and known["robobrain2", TaskKind.GROUNDING]
    assert not all(known.values())


@pytest.fixture
def asked(engine):
    """Requests for answers of forty tokens and more, which random weights give to some prompts."""
    form = answer_format(TaskKind.POINT, engine.capabilities.family, 12)
    requests = (
        ask("the cup " * n, IMAGE, max_new_tokens=90 - n, answer_format=form) for n in range(1, 50)
    )
    long = (request for request in requests if generate(engine, request).tokens_out >= 40)
    return list(itertools.islice(long, 4))


class Recorder:
    """Drafts nothing, and keeps the tokens of all answers as far as it has seen them."""

    def __init__(self):
        self.answers = []

    def supports(self, answer_format):
        return True

    def draft(self, answer):
        answer = list(answer)
        self.answers = [one for one in self.answers if one != answer[: len(one)]] + [answer]
        return []


class Oracle:
    """Drafts the answers that a Recorder has seen, one token in four wrongly."""

    def __init__(self, answers):
        self.wrong = self.drafted = 0
        self._answers = answers
        self._rng = random.Random(1)

    def supports(self, answer_format):
        return True

    def draft(self, answer):
        answer = list(answer)
        rest = next(
            (one[len(answer) :] for one in self._answers if one[: len(answer)] == answer), []
        )
        right = rest[: self._rng.randrange(8)]
        draft = [token if self._rng.random() < 0.75 else 5 for token in right]
        self.drafted += len(draft)
        self.wrong += draft != right
        return draft


@pytest.fixture
def oracle(engine, monkeypatch):
    """Has the engine draft its own answers from now on, without ever giving up; returns the answers
    to requests without any draft.
    """
    speculation = engine.speculation

    def answers(requests):
        recorder = Recorder()
        monkeypatch.setattr(speculation, "drafter", recorder)
        alone = [generate(engine, request) for request in requests]
        monkeypatch.setattr(speculation, "drafter", Oracle(recorder.answers))
        return alone

    monkeypatch.setattr(speculation, "max_misses", 10**9)
    monkeypatch.setattr(speculation, "step_tokens", 64)
    return answers


def test_drafts_of_all_sorts_change_no_answer_and_spare_steps(engine, asked, oracle):
    request = asked[0]
    engine.clear_cache()
    (alone,) = oracle([request])
    engine.clear_cache()
    before = engine.steps
    drafted = generate(engine, request)
    assert (drafted.text, drafted.finish, drafted.tokens_out) == (
        alone.text,
        alone.finish,
        alone.tokens_out,
    )
    assert engine.steps - before < 0.7 * alone.tokens_out
    assert engine.speculation.drafter.drafted > 20 and engine.speculation.drafter.wrong > 2


def test_answers_in_a_batch_are_drafted_too(engine, asked, oracle):
    engine.clear_cache()
    alone = oracle(asked)
    engine.clear_cache()
    for one, other in zip(generate_together(engine, asked), alone, strict=True):
        assert (one.text, one.tokens_out) == (other.text, other.tokens_out)
    assert engine.speculation.drafter.drafted > 80


def test_sampled_answers_are_the_same_with_drafts(engine, asked, oracle):
    """A draft is accepted where the token that is drawn equals it."""
    sampled = [
        replace(one, options=replace(one.options, temperature=1.5, seed=n))
        for n, one in enumerate(asked)
    ]
    alone = oracle(sampled)
    for one, other in zip(generate_together(engine, sampled), alone, strict=True):
        assert (one.text, one.tokens_out) == (other.text, other.tokens_out)
    assert [one.text for one in alone] != [generate(engine, one).text for one in asked]


def test_drafts_in_fixed_shapes_change_no_answer(engine, asked, oracle, monkeypatch):
    """As CUDA graphs have them; see test_stepping.py."""
    request = asked[0]
    engine.clear_cache()
    (alone,) = oracle([request])
    monkeypatch.setattr(decode, "capture", lambda work, device: work)
    warnings: list[str] = []
    graphs = CudaGraphStep(engine.runner.language, engine.runner.cache, warnings.append)
    monkeypatch.setattr(engine.runner, "decode", graphs)
    engine.clear_cache()
    assert generate(engine, request).text == alone.text
    assert not warnings
    assert {shape[2] for shape in graphs.graphs} > {1}


def test_drafting_in_vain_ends(engine, asked, monkeypatch):
    """Random weights write no straight lines: an answer is drafted a few times, not all along."""
    drafts = []

    class Wrong(TrajectoryDrafter):
        def draft(self, answer):
            drafts.append(bool(found := super().draft(answer)))
            return found and [0] * len(found)

    drafter = Wrong.of(engine.processor.tokenizer)
    monkeypatch.setattr(engine.speculation, "drafter", drafter)
    engine.clear_cache()
    answer = generate(engine, asked[0])
    assert answer.tokens_out >= 40
    assert sum(drafts) < 12


def test_a_step_has_no_more_tokens_than_take_no_longer(engine, asked, monkeypatch):
    class Long(TrajectoryDrafter):
        def draft(self, answer):
            return [1] * 9

    shapes, decode_step = [], engine.runner.decode

    def record(step):
        # Logits are wanted after a sequence's last known token, and after its drafts.
        known = int(step.logit_indices[:, 0].max()) + 1
        shapes.append((*step.ids.shape, known))
        return decode_step(step)

    monkeypatch.setattr(engine.speculation, "step_tokens", 3)
    monkeypatch.setattr(engine.speculation, "drafter", Long(range(10)))
    monkeypatch.setattr(engine.runner, "decode", record)
    engine.clear_cache()
    generate(engine, asked[0])
    assert max(width for _, width, known in shapes if known <= 3) == 3
    shapes.clear()
    monkeypatch.setattr(engine.speculation, "step_tokens", 4)
    generate_together(engine, asked)
    # A draft that fits beside another sequence's known tokens costs nothing.
    assert {width - known for rows, width, known in shapes if rows == 4} == {0}
