# SPDX-License-Identifier: Apache-2.0
"""The reference engine answers as the local engine, and serves what that doesn't implement."""

from __future__ import annotations

import itertools
import json

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support import tiny_checkpoints  # noqa: E402
from support.requests import ask  # noqa: E402

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.parsing import EmptyAnswer, parse_answer  # noqa: E402
from robobrain_ros.core.requests import (  # noqa: E402
    FinishReason,
    GenerationRequest,
    Message,
    Role,
    Stage,
    Text,
    user_message,
)
from robobrain_ros.core.tasks import TaskKind, Think  # noqa: E402
from robobrain_ros.engines.base import (  # noqa: E402
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    LoadError,
    UnsupportedArchitecture,
)
from robobrain_ros.engines.config import EngineConfig  # noqa: E402
from robobrain_ros.engines.factory import create_engine, load_engine  # noqa: E402
from robobrain_ros.engines.local.engine import load_local_engine  # noqa: E402
from robobrain_ros.engines.local.stepwise import generate, generate_together  # noqa: E402
from robobrain_ros.engines.reference import load_reference_engine  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

PATIENCE_S = 120
IMAGE = np.random.default_rng(6).integers(0, 255, (120, 160, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def reference(checkpoint):
    engine = load_reference_engine(EngineConfig(str(checkpoint), device="cpu"))
    yield engine
    engine.close()


def requests(family):
    """All tasks, with and without thinking."""
    for number, (kind, think) in enumerate(itertools.product(TaskKind, Think)):
        yield ask(
            "the cup " * (1 + number % 3),
            IMAGE,
            max_new_tokens=20 + 10 * (number % 4),
            opening=family.openings[think],
            answer_format=answer_format(kind, family, 3),
        )


def outcome(generation):
    return (
        generation.text,
        generation.finish,
        generation.sent_sizes,
        generation.tokens_in,
        generation.tokens_out,
    )


def test_answers_are_those_of_the_local_engine(engine, reference):
    assert reference.capabilities.family is engine.capabilities.family
    asked = list(requests(engine.capabilities.family))
    ours, theirs = generate_together(engine, asked), generate_together(reference, asked)
    assert list(map(outcome, ours)) == list(map(outcome, theirs))
    assert {one.finish for one in ours} == {FinishReason.EOS, FinishReason.LENGTH}


def test_an_answer_is_complete_or_at_the_limit_of_tokens(engine, reference):
    """Forced tokens that the limit cut off once made an answer without its bracket complete."""
    form = answer_format(TaskKind.POINT, engine.capabilities.family, 2)

    def answer(one, max_new_tokens):
        asked = ask("the cup", IMAGE, max_new_tokens=max_new_tokens, answer_format=form)
        return generate(one, asked)

    whole = answer(engine, 100)
    assert whole.finish is FinishReason.EOS
    for one, limits in (
        (engine, range(1, whole.tokens_out)),
        (reference, (1, whole.tokens_out - 1)),
    ):
        for limit in limits:
            cut = answer(one, limit)
            assert (cut.finish, cut.tokens_out) == (FinishReason.LENGTH, limit)
            assert whole.text.startswith(cut.text) and cut.text != whole.text
        assert answer(one, whole.tokens_out).finish is FinishReason.EOS


def test_conversations_and_samples_are_those_of_the_local_engine(engine, reference):
    messages = (
        Message(Role.SYSTEM, (Text("Be brief."),)),
        user_message("the cup", IMAGE),
        Message(Role.ASSISTANT, (Text("[(1, 2)]"),)),
        user_message("and the mug?"),
    )
    options = ask("", max_new_tokens=20).options
    conversation = GenerationRequest(messages=messages, options=options)
    sampled = ask("the cup", IMAGE, max_new_tokens=20, temperature=1.0, seed=7)
    for request in (conversation, sampled):
        assert outcome(generate(engine, request)) == outcome(generate(reference, request))


def test_text_is_reported_and_a_stop_ends_the_answer(reference):
    told = []
    answer = generate(
        reference, ask("why?", IMAGE, max_new_tokens=12, report=lambda *a: told.append(a))
    )
    assert [stage for stage, _, _ in told[:2]] == [Stage.PREPROCESSING, Stage.PREFILL]
    assert answer.text.startswith("".join(text for _, text, _ in told))
    assert told[-1][2] == answer.tokens_out == 12
    assert min(answer.preprocess_s, answer.prefill_s, answer.decode_s) > 0
    stops = iter([False, False, False, True])
    stopped = generate(reference, ask("why?", IMAGE, stop=stops.__next__))
    assert (stopped.finish, stopped.tokens_out) == (FinishReason.STOPPED, 3)
    assert answer.text.startswith(stopped.text.rstrip("\ufffd"))
    nothing = generate(reference, ask("why?", IMAGE, stop=lambda: True))
    assert (nothing.finish, nothing.tokens_out, nothing.text) == (FinishReason.STOPPED, 0, "")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), EngineOutOfMemory),
        (RuntimeError("shapes differ"), EngineUnavailable),
    ],
)
def test_failures_are_typed_and_the_engine_stays_usable(reference, monkeypatch, error, expected):
    request = ask("why?", IMAGE, max_new_tokens=4)
    before = generate(reference, request)

    def fail(*_, **__):
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(torch.nn.Linear, "forward", fail)
        with pytest.raises(EngineError) as caught:
            generate(reference, request)
    assert type(caught.value) is expected
    assert outcome(generate(reference, request)) == outcome(before)


def test_requests_that_do_not_fit_are_refused(reference):
    with pytest.raises(EngineError, match="can hold 4096"):
        reference.start(ask("why?", IMAGE, max_new_tokens=4096))
    with pytest.raises(EngineError, match="has 2 images"):
        two = (user_message("a", IMAGE), user_message("b", IMAGE))
        reference.start(GenerationRequest(messages=two))


@pytest.fixture(scope="module")
def sliding(tmp_path_factory):
    """A Qwen2.5-VL with sliding window attention in its second layer."""
    directory = tiny_checkpoints.save_qwen2_5_vl(tmp_path_factory.mktemp("m") / "RoboBrain2.0-3B")
    config = json.loads((directory / "config.json").read_text())
    layers = ["full_attention", "sliding_attention"]
    config["text_config"] |= {"use_sliding_window": True, "sliding_window": 8}
    config["text_config"] |= {"max_window_layers": 1, "layer_types": layers}
    (directory / "config.json").write_text(json.dumps(config))
    return directory


def test_a_model_with_sliding_windows_falls_back_on_the_reference(sliding):
    config = EngineConfig(str(sliding), device="cpu")
    with pytest.raises(UnsupportedArchitecture, match="sliding window"):
        load_local_engine(config)
    lines = []
    engine = load_engine(config, lines.append)
    assert any("falling back" in line and "sliding window" in line for line in lines)
    assert generate(engine, ask("the cup", IMAGE, max_new_tokens=5)).tokens_out == 5
    engine.close()
    with pytest.raises(EngineUnavailable, match="configure"):
        engine.start(ask("the cup"))


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    return tiny_checkpoints.save_llava(tmp_path_factory.mktemp("models") / "llava")


def test_another_architecture_is_served_when_its_family_is_named(llava):
    with pytest.raises(LoadError, match="set the family"):
        load_engine(EngineConfig(str(llava), device="cpu"))
    config = EngineConfig(str(llava), device="cpu", family="robobrain2_5")
    with pytest.raises(UnsupportedArchitecture, match='"llava"'):
        load_local_engine(config)
    engine = create_engine(config)
    family = engine.ready.result(PATIENCE_S).family
    assert family.name == "robobrain2_5" and "llava" in engine.description
    told, answers = [], []
    for kind, words in itertools.product(TaskKind, ("the cup", "a <image> mug</s>")):
        request = ask(
            words,
            IMAGE,
            max_new_tokens=200,
            answer_format=answer_format(kind, family, 2),
            report=lambda stage, text, tokens: told.append(text),
        )
        answers.append((kind, engine.generate(request).result(PATIENCE_S)))
    for kind, answer in answers:
        assert answer.sent_sizes == ((160, 120),)
        if kind is not TaskKind.ASK:
            assert answer.finish is FinishReason.EOS
            try:
                parsed = parse_answer(kind, answer.text, family)
                assert len(parsed.points) + len(parsed.boxes) > 0
            except EmptyAnswer:
                assert "[]" in answer.text
    assert len({answer.text for _, answer in answers}) > 4
    assert engine.close(PATIENCE_S)
