# SPDX-License-Identifier: Apache-2.0
"""One request, from an observation and text to typed results in pixels and in 3D.

`infer` runs on the engine's thread and does everything that takes time; the node only awaits it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field

import numpy as np

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import Family
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.parsing import (
    Answer,
    AnswerError,
    EmptyAnswer,
    TruncatedAnswer,
    UnparsableAnswer,
    is_complete,
    parse_answer,
)
from robobrain_ros.core.requests import (
    GREEDY,
    FinishReason,
    Generation,
    GenerationOptions,
    GenerationRequest,
    Report,
    Stage,
    user_message,
)
from robobrain_ros.core.results import LiftedPoint, LiftedRegion, Result
from robobrain_ros.core.tasks import TASKS, AnswerType, Task, TaskKind, Think

MAX_POINTS, MAX_BOXES = 1000, 100
"""Of one answer, which are lifted and sent: each costs the engine's and the executor's time."""

MAX_SHOWN = 4000
"""Characters of an answer that can't be used, which the response has all the same."""

POINT_BOX_SHARE = 0.03
"""Side of the box put around an affordance that a model gives as a point, per image width."""


@dataclass(frozen=True)
class Query:
    """A request's task, text and options.

    `max_points` 0 = as many as the model gives. `values` fill the other placeholders of the task's
    prompt.
    """

    kind: TaskKind
    text: str
    think: Think = Think.DEFAULT
    max_points: int = 0
    max_new_tokens: int = GREEDY.max_new_tokens
    values: Mapping[str, str] = field(default_factory=dict)

    @property
    def task(self) -> Task:
        """The task's entry in the registry."""
        return TASKS[self.kind]

    @property
    def expects_long_answer(self) -> bool:
        """Whether hundreds of tokens are to be expected, which may wait for short answers."""
        return self.task.long_answer or self.think is Think.ON


def infer(
    family: Family,
    query: Query,
    observe: Callable[[], Observation],
    stop: StopSignal,
    report: Report | None = None,
) -> Generator[GenerationRequest, Generation, tuple[Result, Observation | None]]:
    """Answer one query about one observation by a model of `family`; return both.

    A generator, for `Engine.run`: it yields the request to the model and is sent the generation,
    so that other requests have their turn meanwhile. observe: called once, here, so that decoding
    the camera's messages costs no executor thread; never for a task that needs no image. Raises
    BrainError when stopped, AnswerError when the answer can't be used, EngineError and ValueError
    (an image that can't be decoded) as they come.
    """
    stop.check()
    seen = observe() if query.task.needs_image else None
    opening = family.openings[query.think]
    prompt = family.build_prompt(query.kind, text=query.text, **query.values)
    generation = yield GenerationRequest(
        messages=(user_message(prompt, None if seen is None else seen.rgb),),
        opening=opening,
        answer_format=answer_format(query.kind, family, query.max_points),
        options=GenerationOptions(max_new_tokens=query.max_new_tokens),
        stop=stop,
        report=report,
    )
    if generation.finish is FinishReason.STOPPED:
        stop.check()
    started = time.monotonic()
    if report is not None:
        report(Stage.LIFTING, "", generation.tokens_out)
    points: list[LiftedPoint] = []
    regions: list[LiftedRegion] = []
    try:
        truncated = generation.finish is FinishReason.LENGTH
        if truncated and not is_complete(query.task.answer, generation.text, opening):
            raise TruncatedAnswer(generation.tokens_out)
        answer = parse_answer(query.kind, generation.text, family, opening)
        if seen is not None and query.task.answer.has_places:
            pixels, boxes = _in_camera_pixels(answer, query, family, generation, seen)
            points, regions = _lift(pixels, boxes, query.task, seen)
    except AnswerError as error:
        error.answer, error.generation = generation.text[:MAX_SHOWN], generation
        raise
    return Result(answer, generation, points, regions, time.monotonic() - started), seen


def _in_camera_pixels(
    answer: Answer, query: Query, family: Family, generation: Generation, seen: Observation
) -> tuple[FloatArray, FloatArray]:
    """Map the answer's points and boxes to camera pixels, and drop what lies outside the image.

    Returns points (N, 2 or 3), of which a third column is passed through, and boxes (M, 4).
    """
    height, width = seen.rgb.shape[:2]
    frames = (family.frame, family.axis_order, generation.sent_sizes[0], (width, height))
    pixels, inside = to_image_pixels(answer.points[:, :2], *frames)
    points = np.hstack([pixels, answer.points[:, 2:]])[inside]
    boxes, overlapping = boxes_to_image_pixels(answer.boxes, *frames)
    boxes = boxes[overlapping]
    if query.task.answer is AnswerType.REGIONS and len(points):
        half = POINT_BOX_SHARE * width / 2
        boxes = np.vstack([boxes, np.hstack([points[:, :2] - half, points[:, :2] + half])])
        points = points[:0]
    if not len(points) and not len(boxes):
        raise EmptyAnswer(
            "Every point of the answer lies outside the image: ask again with other words, and "
            "check that the parameter `family` is the model's."
        )
    points = points[: query.max_points or None]
    if len(points) > MAX_POINTS or len(boxes) > MAX_BOXES:
        raise UnparsableAnswer(
            f"The model names {len(points) + len(boxes)} places, more than {MAX_POINTS} points or "
            f"{MAX_BOXES} boxes: it repeats itself. Set max_points, lower max_new_tokens, or ask "
            "with other words."
        )
    return points, boxes


def _lift(
    points: FloatArray, boxes: FloatArray, task: Task, seen: Observation
) -> tuple[list[LiftedPoint], list[LiftedRegion]]:
    """Lift points (N, 2 or 3) and boxes (M, 4) of the image in its scene."""
    predicted = points[:, 2] if points.shape[1] > 2 else None
    lifted = seen.scene.points(points[:, :2], seen.rgb, predicted)
    if task.answer is AnswerType.WAYPOINTS:
        try:
            lifted = seen.scene.path(lifted)
        except ValueError as error:  # a clearance that this scene has no room for
            raise BrainError(ErrorCode.BAD_REQUEST, str(error)) from error
    return lifted, seen.scene.boxes(boxes)
