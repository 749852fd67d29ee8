# SPDX-License-Identifier: Apache-2.0
"""Several answers at a time are those that each would have got alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.parsing import EmptyAnswer, parse_answer  # noqa: E402
from robobrain_ros.core.requests import FinishReason, GenerationRequest, Stage  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.base import EngineError, EngineOutOfMemory, EngineUnavailable, generate  # noqa: E402
from robobrain_ros.engines.local.engine import _FEW_WORDS  # noqa: E402
from robobrain_ros.engines.local.kv_cache import COLUMNS_STEP  # noqa: E402

RNG = np.random.default_rng(2)
FRAMES = RNG.integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
PROMPTS = ("point to the {red} cup", "the mug", "box of the mug, please", "why?", "reach it")


def requests(engine):
    """Of all sorts: with and without image and form, short and long."""
    kinds = (TaskKind.POINT, TaskKind.ASK, TaskKind.GROUNDING, TaskKind.TRAJECTORY)
    combinations = itertools.product(PROMPTS, kinds, (0, 1))
    for number, (prompt, kind, frame) in enumerate(combinations):
        form = answer_format(kind, engine.family, 2)
        image = None if kind is TaskKind.ASK and frame else FRAMES[frame]
        yield GenerationRequest(image, prompt, "", 6 + number % 40, form)


def finish(engine, names):
    """Step until all of `names` have ended; returns outcomes by name."""
    outcomes = {}
    while len(outcomes) < len(names):
        outcomes |= dict(engine.step())
    return [outcomes[name] for name in names]


def same(answer, alone):
    return (answer.text, answer.finish, answer.tokens_out) == (
        alone.text,
        alone.finish,
        alone.tokens_out,
    )


def test_answers_together_are_the_answers_alone(engine):
    asked = list(requests(engine))
    engine.forget()
    alone = [generate(engine, request) for request in asked]
    assert len({answer.text for answer in alone}) > len(asked) // 2
    engine.forget()
    together = finish(engine, [engine.start(request) for request in asked])
    assert all(map(same, together, alone))


def test_answers_that_begin_while_others_are_in_progress(engine):
    asked = list(requests(engine))
    alone = [generate(engine, request) for request in asked]
    engine.forget()
    names, outcomes = [], {}
    for request in asked:
        names.append(engine.start(request))
        outcomes |= dict(engine.step())
    while len(outcomes) < len(names):
        outcomes |= dict(engine.step())
    assert all(same(outcomes[name], one) for name, one in zip(names, alone, strict=True))


def test_few_words_about_a_known_image_are_read_with_the_others(engine):
    """One step for four prompts, and for the next token of an answer in progress."""
    asked = [GenerationRequest(FRAMES[0], prompt, "", 20) for prompt in PROMPTS]
    alone = [generate(engine, request) for request in asked]
    steps = []
    step = engine._parts.step
    engine._parts.__dict__["step"] = lambda new: steps.append(new.ids.shape) or step(new)
    try:
        together = finish(engine, [engine.start(request) for request in asked])
    finally:
        engine._parts.__dict__["step"] = step
    assert all(map(same, together, alone))
    assert all(answer.cached_tokens > 0 and answer.prefill_s > 0 for answer in together)
    longest = max(answer.tokens_in - answer.cached_tokens for answer in together)
    short = sum(a.tokens_in - a.cached_tokens <= _FEW_WORDS for a in together)
    assert short >= 3
    assert steps[0][0] == len(PROMPTS) and steps[0][1] <= min(longest, _FEW_WORDS)


def test_a_form_spares_steps_and_ends_the_answer(engine):
    form = answer_format(TaskKind.GROUNDING, engine.family)
    steps = []
    step = engine._parts.step
    engine._parts.__dict__["step"] = lambda new: steps.append(new) or step(new)
    try:
        answer = generate(engine, GenerationRequest(FRAMES[0], PROMPTS[0], "", 200, form))
    finally:
        engine._parts.__dict__["step"] = step
    assert answer.finish is FinishReason.EOS
    try:
        assert len(parse_answer(TaskKind.GROUNDING, answer.text, engine.family).boxes) >= 1
        assert len(steps) < answer.tokens_out - 1
    except EmptyAnswer:
        assert answer.text.startswith("[]")


def test_rows_grow_under_answers_in_progress(engine, monkeypatch):
    monkeypatch.setattr(engine, "_end_ids", frozenset())
    engine.forget()
    longest = GenerationRequest(FRAMES[0], PROMPTS[0], "", COLUMNS_STEP + 200)
    alone = generate(engine, longest)
    engine.forget()
    first = engine.start(longest)
    columns = engine._parts.rows.cache.shape[4]
    others = [engine.start(replace(longest, prompt=prompt)) for prompt in PROMPTS[1:]]
    outcomes = finish(engine, [first, *others])
    assert outcomes[0].tokens_out == alone.tokens_out == COLUMNS_STEP + 200
    # Beyond that random weights meet scores that are equal but for rounding.
    assert outcomes[0].text[:100] == alone.text[:100]
    assert engine._parts.rows.cache.shape[4] > columns
    assert engine._parts.rows.cache.shape[2] == 8


def test_one_that_is_stopped_leaves_the_others_alone(engine):
    asked = [GenerationRequest(FRAMES[0], prompt, "", 20) for prompt in (*PROMPTS, "and now?")]
    alone = [generate(engine, request) for request in asked]
    assert all(one.tokens_out == 20 for one in alone)
    stops = [False] * len(asked)
    names = [
        engine.start(replace(request, stop=lambda index=index: stops[index]))
        for index, request in enumerate(asked)
    ]
    outcomes = dict(engine.step())
    stops[0] = stops[3] = True
    while len(outcomes) < len(names):
        outcomes |= dict(engine.step())
    for index in (0, 3):
        assert outcomes[names[index]].finish is FinishReason.STOPPED
        assert alone[index].text.startswith(outcomes[names[index]].text)
    for index in (1, 2, 4, 5):
        assert same(outcomes[names[index]], alone[index])


def test_text_is_reported_as_it_comes(engine):
    told = []
    request = GenerationRequest(FRAMES[0], PROMPTS[3], "", 30, report=lambda *a: told.append(a))
    answer = generate(engine, request)
    stages = [stage for stage, _, _ in told]
    assert stages[:2] == [Stage.PREPROCESSING, Stage.PREFILL]
    assert set(stages[2:]) == {Stage.DECODING}
    text = "".join(text for _, text, _ in told)
    # What may still become a character is held back.
    assert answer.text.startswith(text) and len(answer.text) - len(text) < 4
    counts = [tokens for _, _, tokens in told]
    assert counts == sorted(counts) and counts[-1] == answer.tokens_out


def test_a_request_that_does_not_fit_is_refused_before_it_runs(engine, monkeypatch):
    going_on = engine.start(GenerationRequest(FRAMES[0], PROMPTS[0], "", 20))
    with monkeypatch.context() as patch:
        patch.setattr(engine._parts.reader, "_vision", pytest.fail)
        free = "robobrain_ros.engines.local.engine.free_bytes"
        patch.setattr(free, lambda device: 100_000)
        with pytest.raises(EngineOutOfMemory, match="MB are free"):
            engine.start(GenerationRequest(FRAMES[2], PROMPTS[0], "", 2000))
    (outcome,) = finish(engine, [going_on])
    assert outcome.tokens_out == 20


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), EngineOutOfMemory),
        (RuntimeError("shapes differ"), EngineUnavailable),
        (ValueError("a token that can't be"), EngineUnavailable),
    ],
)
def test_a_step_that_fails_ends_those_in_progress_and_the_engine_lives(
    engine, monkeypatch, error, expected
):
    request = GenerationRequest(FRAMES[0], PROMPTS[0], "", 20)
    before = generate(engine, request)
    names = [engine.start(request), engine.start(request)]

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine._parts.language, "hidden", fail)
        outcomes = dict(engine.step())
    assert set(outcomes) == set(names)
    assert all(type(outcome) is expected for outcome in outcomes.values())
    assert all(isinstance(outcome, EngineError) for outcome in outcomes.values())
    assert engine.memory().answers == 0 and engine.memory().images == 0
    assert same(generate(engine, request), before)
