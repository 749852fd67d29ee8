# SPDX-License-Identifier: Apache-2.0
"""Put questions to an engine and score its answers as the benchmarks for robots do."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.distance import cdist

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.families import Family
from robobrain_ros.core.parsing import (
    Answer,
    AnswerError,
    EmptyAnswer,
    parse_answer,
)
from robobrain_ros.core.requests import (
    Generation,
    GenerationOptions,
    GenerationRequest,
    user_message,
)
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.stepwise import StepwiseEngine, generate
from robobrain_ros.nano.gripper_paths import GripperPath, collides, lifted_like
from robobrain_ros.nano.questions import Question, QuestionSampler, Topic
from robobrain_ros.nano.views import View
from robobrain_ros.sim.truth import box_iou

MAX_NEW_TOKENS = 160
Scores = Mapping[str, float]
"""Figures of one answer: IN_MASK, IOU, … of this module."""
IN_MASK, IOU, RIGHT, REFUSED = "in mask", "IoU", "right", "refused"
DFD, HD, RMSE, REACHES, COLLIDES = "DFD", "HD", "RMSE", "reaches", "collides"
_FIGURES = {
    TaskKind.POINT: {IN_MASK: 0.0},
    TaskKind.GROUNDING: {IOU: 0.0},
    TaskKind.AFFORDANCE: {IOU: 0.0},
    # A path that isn't one is as far off as an image is wide.
    TaskKind.TRAJECTORY: {DFD: 1.0, HD: 1.0, RMSE: 1.0, REACHES: 0.0, COLLIDES: 1.0},
    TaskKind.ASK: {RIGHT: 0.0},
}


def drawn_questions(view: View, topics: Mapping[Topic, int], seed: int) -> list[Question]:
    """Up to so many different questions of each topic about a view."""
    sampler = QuestionSampler(view, random.Random(seed))
    questions: dict[tuple[Topic, str], Question] = {}
    for topic, count in topics.items():
        for _ in range(count):
            question = sampler.draw(topic)
            if question is not None:
                questions.setdefault((topic, question.text.lower()), question)
    return list(questions.values())


def ask(
    engine: StepwiseEngine, view: View, question: Question, think: Think = Think.DEFAULT
) -> tuple[Scores, Generation]:
    """Put a question through prompt, engine, parser and coordinate mapping; score the answer.

    An answer that the parser refuses has the worst scores, unless nothing is the right answer.
    """
    family = engine.capabilities.family
    opening = family.openings[think]
    prompt = family.build_prompt(question.task, text=question.text)
    request = GenerationRequest(
        messages=(user_message(prompt, view.rgb),),
        opening=opening,
        answer_format=answer_format(question.task, family),
        options=GenerationOptions(max_new_tokens=MAX_NEW_TOKENS),
    )
    generation = generate(engine, request)
    refusing = question.topic is Topic.REFUSAL
    try:
        answer = parse_answer(question.task, generation.text, family, opening)
    except EmptyAnswer:
        return {REFUSED: 1.0} if refusing else _FIGURES[question.task], generation
    except AnswerError:
        return {REFUSED: 0.0} if refusing else _FIGURES[question.task], generation
    if refusing:
        return {REFUSED: 0.0}, generation
    return score(question, view, answer, family, generation.sent_sizes[0]), generation


def score(
    question: Question, view: View, answer: Answer, family: Family, sent: tuple[int, int]
) -> Scores:
    """Figures of an answer; `sent` is the (width, height) of the image that the model saw."""
    frame = (family.frame, family.axis_order, sent, (view.width, view.height))
    if question.task is TaskKind.ASK:
        return {RIGHT: float(answer.text.strip(" .").lower() == question.answer.lower())}
    if question.box is not None:
        boxes, inside = boxes_to_image_pixels(answer.boxes, *frame)
        return {IOU: box_iou(boxes[0], question.box) if len(boxes) and inside[0] else 0.0}
    points, inside = to_image_pixels(answer.points[:, :2], *frame)
    assert question.region is not None
    region = question.region()
    hits = [bool(ok) and bool(region[int(y), int(x)]) for (x, y), ok in zip(points, inside)]
    if question.path is None:
        return {IN_MASK: float(np.mean(hits))}
    spared = frozenset({question.label} if question.label > 0 else ())
    lifted = lifted_like(view, points + 0.5, question.path)
    return {
        **path_errors(points, question.path, (view.width, view.height)),
        REACHES: float(hits[-1]),
        COLLIDES: float(collides(view, lifted, spared)),
    }


def path_errors(points: NDArray[np.float64], path: GripperPath, size: tuple[int, int]) -> Scores:
    """Discrete Fréchet and Hausdorff distance, and RMSE over the first waypoints that both have.

    points (N, 2) and path in pixels of an image of size (width, height), divided by that, as
    ShareRobot's trajectory benchmark does.
    """
    scale = np.array(size, np.float64)
    answered, wanted = points / scale, path.pixels / scale
    distances = cdist(answered, wanted)
    both = min(len(answered), len(wanted))
    squares = ((answered[:both] - wanted[:both]) ** 2).sum(1)
    return {
        DFD: _frechet(distances),
        HD: float(max(distances.min(0).max(), distances.min(1).max())),
        RMSE: float(np.sqrt(squares.mean())),
    }


def _frechet(distances: NDArray[np.float64]) -> float:
    """Discrete Fréchet distance from distances (N, M) between points (Eiter and Mannila, 1994)."""
    reached = np.full(distances.shape, np.inf)
    for i, j in np.ndindex(distances.shape):
        before = [reached[i - 1, j] if i else np.inf, reached[i, j - 1] if j else np.inf]
        before.append(reached[i - 1, j - 1] if i and j else np.inf)
        best = min(before) if i or j else 0.0
        reached[i, j] = max(best, distances[i, j])
    return float(reached[-1, -1])


def scores_of(
    engine: StepwiseEngine, asked: Iterable[tuple[View, Question]], think: Think = Think.DEFAULT
) -> dict[Topic, dict[str, list[float]]]:
    """Figures of every answer, by topic."""
    scores: dict[Topic, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for view, question in asked:
        for figure, value in ask(engine, view, question, think)[0].items():
            scores[question.topic][figure].append(value)
    return scores


def validate(directory: Path, views: Sequence[View]) -> dict[str, float]:
    """Mean figures of a model in training on one or two questions of each topic a view."""
    topics = dict.fromkeys(Topic, 1) | {Topic.POINT: 2}
    asked = [
        (view, question)
        for seed, view in enumerate(views)
        for question in drawn_questions(view, topics, seed)
    ]
    engine = load_local_engine(EngineConfig(str(directory), device="cpu"))
    try:
        scores = scores_of(engine, asked)
    finally:
        engine.close()
    return {
        f"{topic.value} {figure}": round(float(np.mean(values)), 3)
        for topic, figures in scores.items()
        for figure, values in figures.items()
    }
