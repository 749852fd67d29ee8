# SPDX-License-Identifier: Apache-2.0
"""Steps in fixed shapes, as CUDA graphs need them, give what plain steps give.

There is no CUDA here: what is captured is run again instead, on the same tensors. Whether a device
can capture it is for bench/gpu.py; whether a graph that went wrong would be noticed is tested here.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.requests import GenerationRequest  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.local import decode  # noqa: E402
from robobrain_ros.engines.local.decode import GraphStepper, Step, plain_step  # noqa: E402

RNG = np.random.default_rng(3)
FRAMES = RNG.integers(0, 255, (2, 120, 160, 3), dtype=np.uint8)


@pytest.fixture
def stepper(engine, monkeypatch):
    """A graph stepper in the engine's place, and the lines that it reports."""
    monkeypatch.setattr(decode, "capture", lambda work, device: work)
    lines = []
    stepper = GraphStepper(engine._parts.language, engine._parts.rows, lines.append)
    stepper.lines = lines
    monkeypatch.setitem(engine._parts.__dict__, "step", stepper)
    return stepper


def answers(engine):
    """Of many rows that come and go, with one token and with several at a step."""
    engine.forget()
    kinds = itertools.cycle((TaskKind.POINT, TaskKind.ASK, TaskKind.GROUNDING))
    forms = (answer_format(kind, engine.family) for kind in kinds)
    asked = [
        GenerationRequest(FRAMES[n % 2], "the cup" * n, "", 5 + 7 * n, form)
        for n, form in zip(range(1, 10), forms, strict=False)
    ]
    names, outcomes = [], {}
    for request in asked:
        names.append(engine.start(request))
        outcomes |= dict(engine.step())
    while len(outcomes) < len(names):
        outcomes |= dict(engine.step())
    return [outcomes[name].text for name in names]


def test_answers_in_fixed_shapes_are_those_of_plain_steps(engine, stepper, monkeypatch):
    fixed = answers(engine)
    assert not stepper.lines
    assert {shape[1] for shape in stepper._graphs} > {1}
    with monkeypatch.context() as patch:
        parts = engine._parts
        plain = lambda step: plain_step(parts.language, parts.rows, step)  # noqa: E731
        patch.setitem(parts.__dict__, "step", plain)
        assert answers(engine) == fixed


def test_a_graph_is_not_used_after_the_cache_has_moved(engine, stepper):
    answers(engine)
    before = stepper._graphs
    engine.forget()
    stepped = Step.of([[1]], [0], [0])
    engine._parts.rows.add(None, 8)
    stepper(stepped)
    engine._parts.rows.remove(0)
    assert len(before) == 1


def test_at_the_end_of_the_cache_steps_are_plain(engine, stepper):
    rows = engine._parts.rows
    engine.forget()
    rows.add(None, 8)
    last = rows.cache.shape[4] - 3
    stepper(Step.of([[1, 2, 3]], [last], [0]))  # padded to 4 it would not fit
    assert not stepper._graphs
    rows.remove(0)


@pytest.mark.parametrize(
    ("capture", "line"),
    [
        (lambda work, device: lambda: work() + 7.0, "other scores"),
        (lambda work, device: lambda: work() * float("nan"), "other scores"),
    ],
)
def test_a_wrong_graph_is_not_used_and_leaves_nothing_wrong_behind(
    engine, monkeypatch, stepper, capture, line
):
    good = answers(engine)
    engine.forget()
    monkeypatch.setattr(decode, "capture", capture)
    assert answers(engine) == good
    assert len(stepper.lines) == 1 and line in stepper.lines[0]


def test_what_cannot_be_captured_is_run_plainly(engine, monkeypatch, stepper):
    good = answers(engine)

    def fail(work, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine.forget()
    monkeypatch.setattr(decode, "capture", fail)
    assert answers(engine) == good
    assert len(stepper.lines) == 1 and "not permitted" in stepper.lines[0]
    assert "more" not in stepper.lines[0]
