# SPDX-License-Identifier: Apache-2.0
"""One request, from an image and words to typed results in pixels and in 3D. Knows no ROS.

`infer` runs on the engine's thread and does everything that takes time; the node only awaits it.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.answer_formats import answer_form
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import TaskKind, Think
from robobrain_ros.core.parsing import (
    Answer,
    AnswerError,
    EmptyAnswer,
    UnparsableAnswer,
    build_prompt,
    parse_answer,
)
from robobrain_ros.engines.base import (
    Engine,
    FinishReason,
    Generation,
    GenerationRequest,
    Report,
    Stage,
)
from robobrain_ros.lifting.trajectories import PathHeight, path_through
from robobrain_ros.tf_projection import (
    DepthImage,
    Intrinsics,
    LiftedPoint,
    LiftedRegion,
    LiftParameters,
    LiftStatus,
    lift_boxes,
    lift_points,
)

MAX_POINTS, MAX_BOXES = 1000, 100
"""Of one answer, which are lifted and sent: each costs the engine's and the executor's time."""

MAX_SHOWN = 4000
"""Characters of an answer that can't be used, which the response has all the same."""

POINT_BOX_SHARE = 0.03
"""Side of the box put around an affordance that a model gives as a point, per image width."""


@dataclass(frozen=True)
class Query:
    """What is asked. `max_points` 0 = as many as the model gives."""

    kind: TaskKind
    text: str
    think: Think = Think.DEFAULT
    max_points: int = 0
    max_new_tokens: int = 768

    @property
    def is_talk(self) -> bool:
        """Whether a long answer is to be expected, which may wait for short ones."""
        return self.kind is TaskKind.ASK or self.think is Think.ON


@dataclass(frozen=True)
class View:
    """What the robot sees at one moment.

    rgb: (H, W, 3) uint8. depth, intrinsics: None without a depth camera, `depth_status` says why.
    target_from_camera: (4, 4), optical frame to target frame in metres, None without a transform.
    """

    rgb: NDArray[np.uint8]
    depth: DepthImage | None = None
    intrinsics: Intrinsics | None = None
    target_from_camera: NDArray[np.float64] | None = None
    depth_status: LiftStatus = LiftStatus.NO_DEPTH_CAMERA


@dataclass(frozen=True)
class Result:
    """A typed answer, its pixels lifted; `boxes` and `points` are in camera image pixels."""

    answer: Answer
    generation: Generation
    points: list[LiftedPoint] = field(default_factory=list)
    regions: list[LiftedRegion] = field(default_factory=list)
    lift_s: float = 0.0


@dataclass(frozen=True)
class Lifting:
    """How pixels become 3D. path_clearance: metres, for PathHeight.LIFT."""

    parameters: LiftParameters = field(default_factory=LiftParameters)
    path_height: PathHeight = PathHeight.INTERPOLATE
    path_clearance: float = 0.05


class StopSignal:
    """Ends one request early: at its deadline, or when `set` is called from any thread.

    deadline: on the clock of time.monotonic(), seconds.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._lock = threading.Lock()
        self._reason: BrainError | None = None

    def set(self, reason: BrainError) -> None:
        """Stop the request; the first reason counts."""
        with self._lock:
            self._reason = self._reason or reason

    def __call__(self) -> bool:
        return self.reason() is not None

    def reason(self) -> BrainError | None:
        """Return why the request must stop, or None while it may go on."""
        if self._reason is None and time.monotonic() >= self.deadline:
            self.set(
                BrainError(
                    ErrorCode.TIMEOUT,
                    "The request's time was over before the answer was complete: raise its "
                    "timeout, turn thinking off, or lower max_new_tokens or max_pixels.",
                )
            )
        return self._reason

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if (reason := self.reason()) is not None:
            raise reason


def infer(
    engine: Engine,
    query: Query,
    view: Callable[[], View],
    lifting: Lifting,
    stop: StopSignal,
    report: Report | None = None,
) -> Generator[GenerationRequest, Generation, tuple[Result, View]]:
    """Answer one query about one view; return both.

    A generator, for the engine's worker: it yields what to ask the model and is sent the answer,
    so that other requests have their turn meanwhile. view: called once, here, so that decoding the
    camera's messages costs no executor thread. Raises BrainError when stopped, AnswerError when the
    answer can't be used, EngineError and ValueError (an image that can't be decoded) as they come.
    """
    stop.check()
    seen = view()
    opening = engine.family.openings[query.think]
    generation = yield GenerationRequest(
        image=seen.rgb,
        prompt=build_prompt(query.kind, query.text, engine.family),
        opening=opening,
        max_new_tokens=query.max_new_tokens,
        form=answer_form(query.kind, engine.family, query.max_points),
        stop=stop,
        report=report,
    )
    if generation.finish is FinishReason.STOPPED:
        stop.check()
    started = time.monotonic()
    if report is not None:
        report(Stage.LIFTING, "", generation.tokens_out)
    try:
        answer = parse_answer(query.kind, generation.text, engine.family, opening)
        places = _in_camera_pixels(answer, query, engine, generation, seen)
    except AnswerError as error:
        error.answer, error.generation = generation.text[:MAX_SHOWN], generation
        raise
    points, regions = _lift(places, seen, lifting.parameters)
    if query.kind is TaskKind.TRAJECTORY and seen.intrinsics is not None:
        points = _path(points, seen.intrinsics, seen.target_from_camera, lifting)
    return Result(answer, generation, points, regions, time.monotonic() - started), seen


def _in_camera_pixels(
    answer: Answer, query: Query, engine: Engine, generation: Generation, seen: View
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Map the answer's points and boxes to camera pixels, and drop what lies outside the image."""
    height, width = seen.rgb.shape[:2]
    family = engine.family
    frames = (family.frame, family.axis_order, generation.sent_size, (width, height))
    points, inside = to_image_pixels(answer.points, *frames)
    points = points[inside]
    boxes, overlapping = boxes_to_image_pixels(answer.boxes, *frames)
    boxes = boxes[overlapping]
    if query.kind is TaskKind.AFFORDANCE and len(points):
        half = POINT_BOX_SHARE * width / 2
        boxes = np.vstack([boxes, np.hstack([points - half, points + half])])
        points = points[:0]
    if query.kind is not TaskKind.ASK and not len(points) and not len(boxes):
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
    pixels: tuple[NDArray[np.float64], NDArray[np.float64]], seen: View, lifting: LiftParameters
) -> tuple[list[LiftedPoint], list[LiftedRegion]]:
    points, boxes = pixels
    scene = (seen.depth, seen.intrinsics, seen.target_from_camera, lifting)
    lifted, regions = lift_points(points, *scene, seen.rgb), lift_boxes(boxes, *scene)
    if seen.depth is None:
        lifted = [replace(point, status=seen.depth_status) for point in lifted]
        regions = [replace(region, status=seen.depth_status) for region in regions]
    return lifted, regions


def _path(
    points: list[LiftedPoint],
    intrinsics: Intrinsics,
    target_from_camera: NDArray[np.float64] | None,
    lifting: Lifting,
) -> list[LiftedPoint]:
    rays = intrinsics.rays(np.array([point.pixel for point in points]).reshape(-1, 2))
    height, clearance = lifting.path_height, lifting.path_clearance
    try:
        return path_through(points, rays, target_from_camera, height, clearance)
    except ValueError as error:  # a clearance that this scene has no room for
        raise BrainError(ErrorCode.BAD_REQUEST, str(error)) from error
