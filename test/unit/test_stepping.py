# SPDX-License-Identifier: Apache-2.0
"""Decode steps in fixed shapes, as CUDA graphs need them, equal eager steps.

There is no CUDA here: what is captured is run again instead, on the same tensors. Whether a device
can capture it is for bench/gpu.py; whether a wrong graph would be noticed is tested here.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from support.requests import answered_in_stagger, ask  # noqa: E402

from robobrain_ros.core.answer_formats import answer_format  # noqa: E402
from robobrain_ros.core.tasks import TaskKind  # noqa: E402
from robobrain_ros.engines.local import decode  # noqa: E402
from robobrain_ros.engines.local.decode import CudaGraphStep, StepInput, eager_step  # noqa: E402

pytestmark = pytest.mark.slow  # runs models

RNG = np.random.default_rng(3)
FRAMES = RNG.integers(0, 255, (2, 120, 160, 3), dtype=np.uint8)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def graphs(engine, warnings, monkeypatch):
    """CUDA graphs in place of the engine's eager decode step."""
    monkeypatch.setattr(decode, "capture", lambda work, device: work)
    graphs = CudaGraphStep(engine.runner.language, engine.runner.cache, warnings.append)
    monkeypatch.setattr(engine.runner, "decode", graphs)
    return graphs


def answers(engine):
    """Texts of sequences that come and go, with one token and with several per step."""
    engine.clear_cache()
    kinds = itertools.cycle((TaskKind.POINT, TaskKind.ASK, TaskKind.GROUNDING))
    forms = (answer_format(kind, engine.capabilities.family) for kind in kinds)
    asked = [
        ask("the cup" * n, FRAMES[n % 2], max_new_tokens=5 + 7 * n, answer_format=form)
        for n, form in zip(range(1, 10), forms, strict=False)
    ]
    return [answer.text for answer in answered_in_stagger(engine, asked)]


def test_answers_in_fixed_shapes_are_those_of_eager_steps(engine, graphs, warnings, monkeypatch):
    fixed = answers(engine)
    assert not warnings
    assert {shape[1] for shape in graphs.graphs} > {1}
    runner = engine.runner
    eager = lambda step: eager_step(runner.language, runner.cache, step)  # noqa: E731
    with monkeypatch.context() as patch:
        patch.setattr(runner, "decode", eager)
        assert answers(engine) == fixed


def test_a_graph_is_not_used_after_the_cache_has_moved(engine, graphs):
    answers(engine)
    assert len(graphs.graphs) > 1
    engine.clear_cache()
    engine.runner.cache.add(None, 8)
    graphs(StepInput.of([[1]], [0], [0]))
    engine.runner.cache.remove(0)
    assert len(graphs.graphs) == 1


def test_at_the_end_of_the_cache_steps_are_eager(engine, graphs):
    cache = engine.runner.cache
    engine.clear_cache()
    cache.add(None, 8)
    graphs(StepInput.of([[1, 2, 3]], [cache.slots - 3], [0]))  # padded to 4 it would not fit
    assert not graphs.graphs
    cache.remove(0)


@pytest.mark.parametrize(
    ("capture", "line"),
    [
        (lambda work, device: lambda: work() + 7.0, "other logits"),
        (lambda work, device: lambda: work() * float("nan"), "other logits"),
    ],
)
def test_a_wrong_graph_is_not_used_and_leaves_nothing_wrong_behind(
    engine, monkeypatch, graphs, warnings, capture, line
):
    good = answers(engine)
    engine.clear_cache()
    monkeypatch.setattr(decode, "capture", capture)
    assert answers(engine) == good
    assert len(warnings) == 1 and line in warnings[0]


def test_what_cannot_be_captured_is_run_eagerly(engine, monkeypatch, graphs, warnings):
    good = answers(engine)

    def fail(work, device):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    engine.clear_cache()
    monkeypatch.setattr(decode, "capture", fail)
    assert answers(engine) == good
    assert len(warnings) == 1 and "not permitted" in warnings[0]
    assert "more" not in warnings[0]
