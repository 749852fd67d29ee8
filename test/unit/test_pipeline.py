# SPDX-License-Identifier: Apache-2.0
"""From a model's words to lifted results, with a model that says what the test wants."""

from __future__ import annotations

import time

import numpy as np
import pytest

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import FAMILIES
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.parsing import EmptyAnswer, UnparsableAnswer
from robobrain_ros.core.pipeline import Query, infer
from robobrain_ros.core.requests import FinishReason, Generation, GenerationOptions, Stage
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.tf_projection import (
    DepthImage,
    DepthScene,
    Intrinsics,
    LiftOptions,
    LiftStatus,
    PathHeight,
)

WIDTH, HEIGHT = 640, 480
SENT = (336, 252)
INTRINSICS = Intrinsics(WIDTH, HEIGHT, np.array([[500, 0, 320], [0, 500, 240], [0, 0, 1.0]]), ())


class ScriptedEngine:
    """Says `text`."""

    def __init__(
        self,
        text: str,
        family: str = "robobrain2_3b",
        stops: bool = False,
        finish: FinishReason = FinishReason.EOS,
    ) -> None:
        self.family = FAMILIES[family]
        self.requests = []
        self._text = text
        self._stops = stops
        self._finish = finish

    def answer(self, request):
        self.requests.append(request)
        finish = self._finish
        if self._stops:
            while not request.stop():
                time.sleep(0.001)
            finish = FinishReason.STOPPED
        return Generation(self._text, finish, (SENT,), 100, 10, 0, 0.01, 0.02, 0.03)


def inferred(engine, query, observe, stop, report=None):
    """What the worker does with `infer`."""
    work = infer(engine.family, query, observe, stop, report)
    try:
        work.send(engine.answer(next(work)))
    except StopIteration as end:
        return end.value
    raise AssertionError("one question is asked, no more")


def view(metres=None, options=None) -> Observation:
    """What a camera sees before a wall two metres away, or before the depth given."""
    metres = np.full((HEIGHT, WIDTH), 2.0, np.float32) if metres is None else metres
    depth = DepthImage(metres, "32FC1")
    scene = DepthScene(depth, INTRINSICS, np.eye(4), LiftStatus.OK, options or LiftOptions())
    return Observation(np.zeros((HEIGHT, WIDTH, 3), np.uint8), scene)


def view_without_depth(status: LiftStatus) -> Observation:
    return Observation(np.zeros((HEIGHT, WIDTH, 3), np.uint8), DepthScene(depth_status=status))


def run(text, kind=TaskKind.POINT, family="robobrain2_3b", seen=None, **fields):
    engine = ScriptedEngine(text, family)
    query = Query(kind, "the red can", **fields)
    stop = StopSignal(time.monotonic() + 10)
    return inferred(engine, query, lambda: seen or view(), stop)[0]


def test_pixels_are_scaled_back_per_axis_and_lifted():
    result = run("[(168, 126), (0, 0)]")
    np.testing.assert_allclose(result.points[0].pixel, (320, 240))
    np.testing.assert_allclose(result.points[0].position, (0, 0, 2), atol=1e-6)
    assert result.points[0].status is LiftStatus.OK


def test_relative_coordinates_do_not_depend_on_the_size_sent():
    result = run("[(500, 250)]", family="robobrain2_5")
    np.testing.assert_allclose(result.points[0].pixel, (320, 120))


def test_points_outside_the_image_are_dropped_and_none_left_is_an_empty_answer():
    assert len(run("[(168, 126), (900, 900)]").points) == 1
    with pytest.raises(EmptyAnswer, match="outside"):
        run("[(900, 900)]")


def test_max_points_keeps_the_first():
    text = "[(10, 10), (20, 20), (30, 30)]"
    assert len(run(text).points) == 3
    kept = run(text, max_points=2).points
    assert [round(point.pixel[0] * SENT[0] / WIDTH) for point in kept] == [10, 20]


def test_affordance_as_a_point_becomes_a_region_around_it():
    result = run("[(500, 500)]", TaskKind.AFFORDANCE, family="robobrain2_5")
    assert not result.points
    x1, y1, x2, y2 = result.regions[0].box
    assert x1 < 320 < x2 and y1 < 240 < y2 and x2 - x1 < WIDTH / 10


def test_boxes_become_regions():
    result = run("[84, 63, 252, 189]", TaskKind.GROUNDING)
    np.testing.assert_allclose(result.regions[0].box, (160, 120, 480, 360))
    assert result.regions[0].status is LiftStatus.OK


@pytest.mark.parametrize("status", [LiftStatus.NO_DEPTH_CAMERA, LiftStatus.DEPTH_STALE])
@pytest.mark.parametrize(
    ("kind", "text"), [(TaskKind.POINT, "[(1, 2)]"), (TaskKind.GROUNDING, "[1, 2, 30, 40]")]
)
def test_without_depth_the_reason_is_told(kind, text, status):
    result = run(text, kind, seen=view_without_depth(status))
    lifted = (*result.points, *result.regions)
    assert [one.status for one in lifted] == [status]
    assert lifted[0].position is None


def test_thinking_opens_the_assistants_turn_as_the_family_does():
    engine = ScriptedEngine("far left</think><answer>[(1, 2)]</answer>", "robobrain2")
    query = Query(TaskKind.POINT, "the red can", think=Think.ON)
    stop = StopSignal(time.monotonic() + 10)
    result, _ = inferred(engine, query, view, stop)
    assert engine.requests[0].opening == "<think>"
    assert result.answer.thinking == "far left"
    assert len(result.points) == 1


def test_an_answer_cut_off_while_thinking_is_an_error():
    with pytest.raises(UnparsableAnswer):
        run("let me see, the can", family="robobrain2", think=Think.ON)


def test_a_request_that_is_over_before_it_starts_touches_nothing():
    engine = ScriptedEngine("[(1, 2)]")
    stop = StopSignal(time.monotonic() - 1)
    with pytest.raises(BrainError) as error:
        inferred(engine, Query(TaskKind.POINT, "x"), pytest.fail, stop)
    assert error.value.code is ErrorCode.TIMEOUT
    assert not engine.requests


def test_the_deadline_stops_a_generation():
    engine = ScriptedEngine("", stops=True)
    stop = StopSignal(time.monotonic() + 0.05)
    with pytest.raises(BrainError) as error:
        inferred(engine, Query(TaskKind.POINT, "x"), view, stop)
    assert error.value.code is ErrorCode.TIMEOUT


def test_the_first_reason_to_stop_counts():
    stop = StopSignal(time.monotonic() + 10)
    assert not stop()
    stop.set(BrainError(ErrorCode.NOT_ACTIVE, "first"))
    stop.set(BrainError(ErrorCode.CANCELLED, "second"))
    with pytest.raises(BrainError, match="first"):
        stop.check()


def test_a_trajectory_takes_the_path_height_of_the_request():
    depth = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    depth[:, 300:340] = 4.0  # what lies behind the middle waypoint
    engine = ScriptedEngine("[(84, 126), (168, 126), (252, 126)]")
    query = Query(TaskKind.TRAJECTORY, "reach for the red can")

    def middle(options):
        stop = StopSignal(time.monotonic() + 10)
        return inferred(engine, query, lambda: view(depth, options), stop)[0].points[1]

    on_surface = middle(LiftOptions(path_height=PathHeight.SURFACE))
    assert on_surface.position[2] == pytest.approx(4.0) and not on_surface.interpolated
    between = middle(LiftOptions())
    assert between.position[2] == pytest.approx(2.0) and between.interpolated
    lifted = middle(LiftOptions(path_height=PathHeight.LIFT, path_clearance=0.5))
    assert np.linalg.norm(lifted.position) == pytest.approx(3.5, abs=1e-3)
    with pytest.raises(BrainError) as refused:
        middle(LiftOptions(path_height=PathHeight.LIFT, path_clearance=5.0))
    assert refused.value.code is ErrorCode.BAD_REQUEST


def test_the_answers_form_is_that_of_task_family_and_max_points():
    engine = ScriptedEngine("[(1, 2)]")
    stop = StopSignal(time.monotonic() + 10)
    for query in (Query(TaskKind.POINT, "x", max_points=3), Query(TaskKind.ASK, "x")):
        inferred(engine, query, view, stop)
    point, ask = engine.requests
    assert point.answer_format == answer_format(TaskKind.POINT, engine.family, 3)
    assert ask.answer_format is None


def test_lifting_is_reported():
    told = []
    stop = StopSignal(time.monotonic() + 10)
    query = Query(TaskKind.POINT, "x")
    inferred(ScriptedEngine("[(1, 2)]"), query, view, stop, lambda *a: told.append(a))
    assert told == [(Stage.LIFTING, "", 10)]


@pytest.mark.parametrize(
    ("query", "long"),
    [
        (Query(TaskKind.POINT, "x"), False),
        (Query(TaskKind.POINT, "x", Think.ON), True),
        (Query(TaskKind.ASK, "x"), True),
    ],
)
def test_which_queries_expect_long_answers(query, long):
    assert query.expects_long_answer is long


def test_predicted_depth_is_the_fallback_where_the_sensor_has_a_hole():
    metres = np.full((HEIGHT, WIDTH), 2.0, np.float32)
    metres[:, 420:] = np.nan
    # Outside the image, measured, in the hole, in the hole but beyond max_depth.
    text = "[(2000, 500, 3.0), (250, 500, 1.5), (750, 500, 1.5), (800, 500, 20.0)]"
    options = LiftOptions(path_height=PathHeight.SURFACE)
    seen = view(metres, options)
    result = run(text, TaskKind.TRAJECTORY, family="robobrain2_5", seen=seen)
    measured, predicted, beyond = result.points
    assert measured.status is LiftStatus.OK and measured.depth == pytest.approx(2.0)
    assert predicted.status is LiftStatus.DEPTH_PREDICTED and predicted.depth == 1.5
    np.testing.assert_allclose(predicted.position, ((480 - 320) / 500 * 1.5, 0, 1.5), atol=1e-9)
    assert not predicted.has_normal and not predicted.covariance.any()
    assert beyond.status is LiftStatus.DEPTH_HOLE and beyond.position is None


def cut_off(text, kind=TaskKind.POINT, family="robobrain2", think=Think.OFF):
    """The result of an answer that reached the limit of tokens."""
    engine = ScriptedEngine(text, family, finish=FinishReason.LENGTH)
    query = Query(kind, "the red can", think=think)
    return inferred(engine, query, view, StopSignal(time.monotonic() + 10))[0]


@pytest.mark.parametrize(
    ("text", "kind", "family", "think"),
    [
        ("[(10, 10), (20, 20), (3", TaskKind.POINT, "robobrain2", Think.OFF),
        ("[(10, 10), (20, 20)", TaskKind.TRAJECTORY, "robobrain2", Think.OFF),
        ("(10, 10), (20, 20)", TaskKind.TRAJECTORY, "robobrain2", Think.OFF),
        ("The path is (10, 10), (20, 20), ", TaskKind.TRAJECTORY, "robobrain2", Think.OFF),
        ("[10, 10, 200, 20", TaskKind.GROUNDING, "robobrain2", Think.OFF),
        ('[{"bbox_2d": [1, 2, 30, 40]},', TaskKind.GROUNDING, "qwen2_5_vl", Think.OFF),
        ("It is left of", TaskKind.POINT, "robobrain2", Think.OFF),
        ("The can is left of", TaskKind.POINT, "robobrain2", Think.ON),
        ("The can is left of", TaskKind.ASK, "robobrain2", Think.ON),
        ("left</think><answer>", TaskKind.POINT, "robobrain2", Think.ON),
        ("left</think><answer>[(10, 10), (20", TaskKind.POINT, "robobrain2", Think.ON),
    ],
)
def test_an_answer_that_is_cut_off_is_no_success(text, kind, family, think):
    with pytest.raises(UnparsableAnswer, match=r"cut off after 10 tokens: raise max_new_tokens"):
        cut_off(text, kind, family, think)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("[(10, 10), (20, 20)]", TaskKind.POINT),
        ("[(10, 10), (20, 20)] are on the can, and", TaskKind.POINT),
        ("(10, 10), (20, 20) are on the can, and", TaskKind.POINT),
        ("The box is [10, 10, 200, 20].", TaskKind.GROUNDING),
    ],
)
def test_coordinates_that_are_complete_at_the_limit_of_tokens_are_an_answer(text, kind):
    result = cut_off(text, kind)
    assert len(result.points) + len(result.regions) >= 1


def test_text_that_is_cut_off_is_an_answer_and_nothing_is_none():
    result = cut_off("There are two cans and", TaskKind.ASK)
    assert result.answer.text == "There are two cans and"
    assert result.generation.finish is FinishReason.LENGTH
    with pytest.raises(EmptyAnswer):
        cut_off(" ", TaskKind.ASK)


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 0},
        {"max_new_tokens": -1},
        {"seed": -1},
        {"seed": 2**70},
        {"temperature": -1.0},
        {"temperature": float("nan")},
    ],
)
def test_options_that_no_engine_can_follow_are_refused_at_once(options):
    with pytest.raises(ValueError):
        GenerationOptions(**options)
