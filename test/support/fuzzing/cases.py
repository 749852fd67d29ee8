# SPDX-License-Identifier: Apache-2.0
"""One case each of what the node does with hostile input, by the functions that the node itself
calls. A case returns what became of it, and raises AssertionError for a result that can't be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from random import Random
from types import SimpleNamespace

import numpy as np
import torch
from numpy.typing import NDArray
from rclpy.logging import LoggingSeverity, set_logger_level
from rclpy.time import Time
from tf2_ros import BufferCore, TransformException

from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.families import FAMILIES, Family
from robobrain_ros.core.input_text import checked_text, sanitize_error
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.pipeline import Query, infer
from robobrain_ros.core.requests import FinishReason, Generation, GenerationRequest, user_message
from robobrain_ros.core.results import Result
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.local.checkpoint import NANO_DIRECTORY
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.ros import conversions
from robobrain_ros.ros.acquisition import Poses
from robobrain_ros.ros.camera import Snapshot
from robobrain_ros.ros.services import as_brain_error
from robobrain_ros.tf_projection import (
    DepthImage,
    DepthScene,
    Intrinsics,
    LiftStatus,
    TransformLookup,
    lift_boxes,
    lift_points,
    matrix_from_transform,
)
from robobrain_ros.visualization.annotate import draw
from support.fuzzing import hostile
from support.small_camera import SIZE, K

_IMAGE_TOKENS = 4
_DRAWN = 0.02  # share of the answers


@dataclass
class Tools:
    """What is made once."""

    family: tuple[Family, ...] = tuple(FAMILIES.values())
    _expected: dict[tuple, list[int]] = field(default_factory=dict)
    allowance_s: float = 0.0
    """CPU time that the case which runs may take because of its size."""

    @cached_property
    def views(self) -> tuple[Observation, ...]:
        """Images without depth of ordinary and odd sizes, and one with depth and holes in it."""
        rng = np.random.default_rng(0)
        sizes = ((640, 480), SIZE, (1, 1), (7, 1000))
        flat = [Observation(np.zeros((h, w, 3), np.uint8), DepthScene()) for w, h in sizes]
        depth = rng.uniform(0.2, 3.0, SIZE[::-1]).astype(np.float32)
        depth[rng.random(depth.shape) < 0.3] = np.nan
        rgb = rng.integers(0, 256, (*SIZE[::-1], 3), np.uint8)
        calibrated = DepthImage(depth, "32FC1"), Intrinsics(*SIZE, K, ())
        whole = DepthScene(*calibrated, np.eye(4), LiftStatus.OK)
        return (*flat, Observation(rgb, whole))

    @cached_property
    def processor(self) -> Processor:
        """The shipped model's own."""
        return Processor(NANO_DIRECTORY, 0)

    @cached_property
    def tags(self) -> frozenset[int]:
        """Ids of the tokens that have a meaning of their own, which no user's word may be."""
        added = self.processor.tokenizer.added_tokens_decoder.items()
        return frozenset(number for number, token in added if token.content.startswith("<"))

    def tags_in(self, request: GenerationRequest) -> list[int]:
        """Those of a request's prompt, in order."""
        ids = self.processor.token_ids(request, [_IMAGE_TOKENS])[0].tolist()
        return [number for number in ids if number in self.tags]

    def expected_tags(self, prompt: str, key: tuple, opening: str) -> list[int]:
        """Those of a harmless prompt."""
        if key not in self._expected:
            self._expected[key] = self.tags_in(_request(prompt, opening))
        return self._expected[key]


def _request(prompt: str, opening: str) -> GenerationRequest:
    image = np.zeros((*SIZE[::-1], 3), np.uint8)
    return GenerationRequest(messages=(user_message(prompt, image),), opening=opening)


def prepare() -> Tools:
    """One thread, so that CPU time is a case's own; and no log of what is refused."""
    torch.set_num_threads(1)
    set_logger_level("tf2", LoggingSeverity.FATAL)
    return Tools()


def answer_case(rng: Random, tools: Tools) -> str:
    """An answer through parser, mapping, lifting and, now and then, drawing."""
    family, kind = rng.choice(tools.family), rng.choice(list(TaskKind))
    raw = hostile.answer(rng)
    tools.allowance_s = len(raw) / 1e6
    query = Query(kind, "cup", rng.choice(list(Think)), rng.choice((0, 0, 0, 1, 7, 2**32 - 1)))
    view = rng.choice(tools.views)
    sent = rng.choice(((644, 476), (28, 28), (448, 336), (28, 5600)))
    work = infer(family, query, lambda: view, StopSignal(math.inf))
    asked = next(work)
    if asked.answer_format is not None:
        regex = asked.answer_format.regex(sent)
        assert len(regex) < 10_000, "a regular expression grows without end"
    try:
        work.send(Generation(raw, FinishReason.EOS, (sent,), 9, 9, 0, 0.0, 0.0, 0.0))
    except StopIteration as end:
        result, seen = end.value
        _check(result, kind, seen)
        if rng.random() < _DRAWN:
            draw(seen.rgb, result, hostile.request_text(rng)[:4000])
        return "answered"
    raise AssertionError("one question is asked, no more")


def _check(result: Result, kind: TaskKind, seen: Observation) -> None:
    height, width = seen.rgb.shape[:2]
    assert result.answer.text, "no answer"
    assert kind is TaskKind.ASK or result.points or result.regions, "success with nothing in it"
    for point in result.points:
        assert (point.pixel >= 0).all() and (point.pixel < (width, height)).all(), "outside"
    for lifted in (*result.points, *result.regions):
        # A waypoint between others has a position as well.
        if lifted.position is not None:
            assert np.isfinite([*lifted.position, *lifted.orientation]).all(), "not a number"
        else:
            assert lifted.status is not LiftStatus.OK, "no position"


def request_case(rng: Random, tools: Tools) -> str:
    """A text through its check, the prompt, the chat template and the tokenizer."""
    raw = hostile.request_text(rng)
    family, kind = rng.choice(tools.family), rng.choice(list(TaskKind))
    opening = family.openings[rng.choice(list(Think))]
    text = checked_text(raw)
    request = _request(family.build_prompt(kind, text=text), opening)
    harmless = family.build_prompt(kind, text="cup")
    expected = tools.expected_tags(harmless, (kind, family.name, opening), opening)
    assert tools.tags_in(request) == expected, "a user's words became a control token"
    return "taken"


def image_case(rng: Random, tools: Tools) -> str:
    """Camera messages through decoding, the model's image processor and lifting."""
    color = hostile.compressed(rng, False) if rng.random() < 0.1 else hostile.image(rng)
    tools.allowance_s = len(color.data) / 100e6
    snapshot, poses = Snapshot(color), Poses("table", np.eye(4))
    if rng.random() < 0.7:
        depth = hostile.compressed(rng, True) if rng.random() < 0.1 else hostile.depth_image(rng)
        own = hostile.camera_info(rng, *SIZE) if rng.random() < 0.3 else None
        info = hostile.camera_info(rng, *SIZE) if rng.random() < 0.95 else None
        rectified = rng.random() < 0.2
        snapshot = Snapshot(color, info, depth, own, LiftStatus.OK, "", rectified)
        elsewhere = _matrix(rng) if rng.random() < 0.3 else None
        poses = Poses("table", None if rng.random() < 0.1 else _matrix(rng), elsewhere)
    view = conversions.observation(snapshot, poses)
    scene = view.scene
    assert view.rgb.dtype == np.uint8 and view.rgb.ndim == 3 and view.rgb.shape[2] == 3
    encoded = tools.processor.image(view.rgb)
    assert bool(torch.isfinite(encoded.pixel_values).all()), "not a number"
    if scene.depth is None:
        return "encoded"
    scene = (scene.depth, scene.intrinsics, scene.target_from_camera)
    points = lift_points(hostile.pixels(rng, 5, 2), *scene, None, view.rgb)
    regions = lift_boxes(hostile.pixels(rng, 2, 4), *scene)
    for lifted in (*points, *regions):
        if lifted.position is not None:
            assert np.isfinite(lifted.position).all(), "not a number"
    return "lifted"


def _matrix(rng: Random) -> NDArray[np.float64]:
    """A pose as TF gives it: what can't be one is refused when it is looked up."""
    try:
        return matrix_from_transform(hostile.transform(rng))
    except ValueError:
        return np.eye(4)


def frame_case(rng: Random, tools: Tools) -> str:
    """A look-up in a tree of transforms with loops, gaps and numbers that are none."""
    buffer = BufferCore()
    for _ in range(rng.choice((1, 3, 10))):
        message = hostile.transform(rng, frames="abcd/ ")
        put = buffer.set_transform_static if rng.random() < 0.3 else buffer.set_transform
        put(message, "fuzz")
    core = SimpleNamespace(
        lookup_transform=buffer.lookup_transform_core,
        lookup_transform_full=buffer.lookup_transform_full_core,
    )
    lookup = TransformLookup(core, (TransformException,))
    first, second, fixed = (rng.choice(("a", "b", "c", "d", "", "/a", "x" * 999)) for _ in "123")
    stamp, other = (Time(seconds=rng.choice((0, 5, 6, 2**31 - 1))) for _ in "12")
    if rng.random() < 0.7:
        found = lookup.try_lookup(first, second, stamp)
    else:
        found = lookup.try_lookup_between(first, stamp, second, other, fixed)
    assert np.isfinite(found).all(), "not a number"
    return "found"


CASES: dict[str, Callable[[Random, Tools], str]] = {
    "answers": answer_case,
    "requests": request_case,
    "images": image_case,
    "frames": frame_case,
}


def outcome(kind: str, seed: str, tools: Tools) -> str:
    """Run one case; returns what became of it, by the code where it was refused. Raises what the
    node would not know how to report.
    """
    try:
        return CASES[kind](Random(f"{kind} {seed}"), tools)
    except Exception as error:
        failure = as_brain_error(error)
        if failure is None:
            raise
        assert len(str(failure)) > 10 and sanitize_error(str(failure)).isprintable()
        return failure.code.name
