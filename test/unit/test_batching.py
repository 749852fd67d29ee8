# SPDX-License-Identifier: Apache-2.0
"""Answers in a batch equal the answers to the same requests alone."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.requests import answered_in_stagger, ask  # noqa: E402

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.parsing import EmptyAnswer, parse_answer  # noqa: E402
from robobrain_ros.core.requests import FinishReason, Stage  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.base import EngineError, EngineOutOfMemory, EngineUnavailable  # noqa: E402
from robobrain_ros.engines.local.engine import FEW_NEW_TOKENS  # noqa: E402
from robobrain_ros.engines.local.stepwise import generate, generate_together  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

RNG = np.random.default_rng(2)
FRAMES = RNG.integers(0, 255, (3, 120, 160, 3), dtype=np.uint8)
PROMPTS = ("point to the {red} cup", "the mug", "box of the mug, please", "why?", "reach it")


def requests(engine):
    """Requests with and without image and format, for short and long answers."""
    kinds = (TaskKind.POINT, TaskKind.ASK, TaskKind.GROUNDING, TaskKind.TRAJECTORY)
    combinations = itertools.product(PROMPTS, kinds, (0, 1))
    for number, (prompt, kind, frame) in enumerate(combinations):
        form = answer_format(kind, engine.capabilities.family, 2)
        image = None if kind is TaskKind.ASK and frame else FRAMES[frame]
        yield ask(prompt, image, max_new_tokens=6 + number % 40, answer_format=form)


def finish(engine, handles):
    """Step until all requests have ended; returns their outcomes."""
    outcomes = {}
    while len(outcomes) < len(handles):
        outcomes |= dict(engine.step())
    return [outcomes[handle] for handle in handles]


def same(answer, alone):
    return (answer.text, answer.finish, answer.tokens_out) == (
        alone.text,
        alone.finish,
        alone.tokens_out,
    )


def test_answers_together_are_the_answers_alone(engine):
    asked = list(requests(engine))
    engine.clear_cache()
    alone = [generate(engine, request) for request in asked]
    assert len({answer.text for answer in alone}) > len(asked) // 2
    engine.clear_cache()
    assert all(map(same, generate_together(engine, asked), alone))


def test_answers_that_begin_while_others_are_in_progress(engine):
    asked = list(requests(engine))
    alone = [generate(engine, request) for request in asked]
    engine.clear_cache()
    assert all(map(same, answered_in_stagger(engine, asked), alone))


def test_short_prompts_about_a_cached_image_are_prefilled_in_a_decode_step(engine, monkeypatch):
    """One step for four prompts, and for the next token of a running sequence."""
    asked = [ask(prompt, FRAMES[0], max_new_tokens=20) for prompt in PROMPTS]
    alone = [generate(engine, request) for request in asked]
    shapes, decode = [], engine.runner.decode
    with monkeypatch.context() as patch:
        record = lambda step: shapes.append(step.ids.shape) or decode(step)  # noqa: E731
        patch.setattr(engine.runner, "decode", record)
        together = generate_together(engine, asked)
    assert all(map(same, together, alone))
    assert all(answer.cached_tokens > 0 and answer.prefill_s > 0 for answer in together)
    longest = max(answer.tokens_in - answer.cached_tokens for answer in together)
    short = sum(a.tokens_in - a.cached_tokens <= FEW_NEW_TOKENS for a in together)
    assert short >= 3
    assert shapes[0][0] == len(PROMPTS) and shapes[0][1] <= min(longest, FEW_NEW_TOKENS)


def test_a_format_spares_steps_and_ends_the_answer(engine):
    form = answer_format(TaskKind.GROUNDING, engine.capabilities.family)
    before = engine.steps
    answer = generate(engine, ask(PROMPTS[0], FRAMES[0], max_new_tokens=200, answer_format=form))
    assert answer.finish is FinishReason.EOS
    try:
        assert (
            len(parse_answer(TaskKind.GROUNDING, answer.text, engine.capabilities.family).boxes)
            >= 1
        )
        assert engine.steps - before < answer.tokens_out - 1
    except EmptyAnswer:
        assert answer.text.startswith("[]")


def test_the_cache_grows_under_running_sequences(engine, monkeypatch):
    monkeypatch.setattr(engine.runner.cache, "slot_block", 16)
    engine.clear_cache()
    requests = (ask("the cup " * n, FRAMES[0], max_new_tokens=60) for n in range(1, 50))
    pairs = ((request, generate(engine, request)) for request in requests)
    long = itertools.islice((pair for pair in pairs if pair[1].tokens_out > 40), 5)
    asked, alone = zip(*long, strict=True)
    assert len(asked) == 5
    engine.clear_cache()
    first = engine.start(asked[0])
    slots = engine.runner.cache.slots
    outcomes = finish(engine, [first, *(engine.start(request) for request in asked[1:])])
    assert all(map(same, outcomes, alone))
    assert engine.runner.cache.slots >= slots + 32
    assert engine.runner.cache.rows == 8


def test_one_that_is_stopped_leaves_the_others_alone(engine):
    asked = [ask(prompt, FRAMES[0], max_new_tokens=20) for prompt in (*PROMPTS, "and now?")]
    alone = [generate(engine, request) for request in asked]
    assert all(one.tokens_out == 20 for one in alone)
    stops = [False] * len(asked)
    handles = [
        engine.start(replace(request, stop=lambda index=index: stops[index]))
        for index, request in enumerate(asked)
    ]
    outcomes = dict(engine.step())
    stops[0] = stops[3] = True
    while len(outcomes) < len(handles):
        outcomes |= dict(engine.step())
    for index in (0, 3):
        assert outcomes[handles[index]].finish is FinishReason.STOPPED
        assert alone[index].text.startswith(outcomes[handles[index]].text)
    for index in (1, 2, 4, 5):
        assert same(outcomes[handles[index]], alone[index])


def test_text_is_reported_as_it_comes(engine):
    told = []
    request = ask(PROMPTS[3], FRAMES[0], max_new_tokens=30, report=lambda *a: told.append(a))
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
    going_on = engine.start(ask(PROMPTS[0], FRAMES[0], max_new_tokens=20))
    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.prefiller, "vision", pytest.fail)
        free = "robobrain_ros.engines.local.engine.free_bytes"
        patch.setattr(free, lambda device: 100_000)
        with pytest.raises(EngineOutOfMemory, match="MB are free"):
            engine.start(ask(PROMPTS[0], FRAMES[2], max_new_tokens=2000))
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
    request = ask(PROMPTS[0], FRAMES[0], max_new_tokens=20)
    before = generate(engine, request)
    handles = [engine.start(request), engine.start(request)]

    def fail(*_):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(engine.runner.language, "hidden", fail)
        outcomes = dict(engine.step())
    assert set(outcomes) == set(handles)
    assert all(type(outcome) is expected for outcome in outcomes.values())
    assert all(isinstance(outcome, EngineError) for outcome in outcomes.values())
    assert engine.memory().answers == 0 and engine.memory().images == 0
    assert same(generate(engine, request), before)


@pytest.mark.parametrize("cached", [False, True])
def test_a_sequence_that_fails_leaves_the_others_running(engine, cached):
    """One whose first token failed stayed in the batch, and its end ended the engine's thread."""

    def report(stage, text, tokens):
        if stage is Stage.DECODING:
            raise ValueError("the client's own mistake")

    engine.clear_cache()
    if cached:
        generate(engine, ask(PROMPTS[0], FRAMES[1], max_new_tokens=2))
    good = ask(PROMPTS[0], FRAMES[0], max_new_tokens=12)
    alone = generate(engine, good)
    handles = [engine.start(good)]
    handles.append(engine.start(ask(PROMPTS[1], FRAMES[1], max_new_tokens=12, report=report)))
    answer, failure = finish(engine, handles)
    assert same(answer, alone)
    assert isinstance(failure, EngineUnavailable)
    assert same(generate(engine, good), alone)


def test_the_smallest_temperature_is_as_good_as_greedy(engine):
    greedy = generate(engine, ask(PROMPTS[0], FRAMES[0], max_new_tokens=8))
    coldest = ask(PROMPTS[0], FRAMES[0], max_new_tokens=8, temperature=5e-324, seed=1)
    assert generate(engine, coldest).text == greedy.text
