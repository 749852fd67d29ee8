# SPDX-License-Identifier: Apache-2.0
"""Answers drawn on images of any size."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
from support.sample_results import answer, between, hole, point, region

from robobrain_ros.core.results import Result
from robobrain_ros.core.tasks import TASKS, AnswerType, TaskKind
from robobrain_ros.tf_projection import LiftStatus
from robobrain_ros.visualization import annotate
from robobrain_ros.visualization.annotate import draw
from robobrain_ros.visualization.style import INK, PALETTE, WHITE

GREY = 120
COLOR = PALETTE[1]
LONG = "The cereal box stands in front of the red tray, and behind it is a can. " * 60


def canvas(width: int = 640, height: int = 480) -> np.ndarray:
    return np.full((height, width, 3), GREY, np.uint8)


def drawn(result: Result, words: str = "it", width: int = 640, height: int = 480) -> np.ndarray:
    return draw(canvas(width, height), result, words, COLOR)


def changed(image: np.ndarray) -> np.ndarray:
    return (image != GREY).any(axis=2)


def near(pixel: np.ndarray, color: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.abs(pixel.astype(int) - color).max() <= tolerance)


def share_of(image: np.ndarray, color: tuple[int, int, int]) -> float:
    return float((np.abs(image.astype(int) - color).max(axis=2) <= 45).mean())


EVERY_KIND = {
    "point": answer(TaskKind.POINT, [point((320, 240), 0.82)]),
    "points": answer(TaskKind.POINT, [point((100, 300)), hole((400, 300)), point((600, 470))]),
    "boxes": answer(TaskKind.GROUNDING, None, [region((0, 0, 640, 480)), region((9, 9, 10, 10))]),
    "affordance": answer(TaskKind.AFFORDANCE, None, [region((300, 200, 340, 230))]),
    "path": answer(
        TaskKind.TRAJECTORY, [point((100, 300)), between((300, 200)), point((500, 400))]
    ),
    "still": answer(TaskKind.TRAJECTORY, [point((100, 300))] * 3),
    "back": answer(TaskKind.TRAJECTORY, [point((100, 300)), point((110, 300)), point((100, 300))]),
    "ask": answer(TaskKind.ASK, text=LONG),
}


@pytest.mark.parametrize("size", [(1, 1), (3, 2), (16, 16), (64, 48), (40, 800), (1920, 1080)])
@pytest.mark.parametrize("kind", EVERY_KIND)
def test_any_answer_can_be_drawn_on_an_image_of_any_size(kind, size):
    before = canvas(*size)
    before.flags.writeable = False  # a camera's message
    after = draw(before, EVERY_KIND[kind], "Größe 中" * 20)
    assert after.shape == before.shape and after.dtype == np.uint8
    assert (before == GREY).all()
    if min(size) >= 48:
        assert changed(after).any()


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080)])
def test_a_point_is_a_dot_of_the_color_with_a_light_and_a_dark_rim(size):
    unit = size[1] / 480
    image = drawn(answer(TaskKind.POINT, [point((400, 300))]), "it", *size)
    row = image[300, 400:]
    assert near(row[0], COLOR) and near(row[round(3 * unit)], COLOR)
    assert near(row[round(6 * unit)], WHITE, 40)
    assert row[round(7.6 * unit)].max() < 100 and near(row[round(12 * unit)], (GREY,) * 3)


def test_the_dot_says_whether_there_is_a_position():
    points = [point((100, 300)), hole((300, 300)), between((500, 300))]
    image = drawn(answer(TaskKind.POINT, points))
    assert near(image[300, 100], COLOR)
    assert near(image[300, 300], INK)
    pale = image[300, 500].astype(int)
    assert (pale > np.array(COLOR) + 20).all() and not near(pale, WHITE, 20)


def test_a_predicted_position_is_pale_and_its_label_says_so():
    measured = drawn(answer(TaskKind.POINT, [point((300, 300))]))
    predicted = drawn(
        answer(TaskKind.POINT, [point((300, 300), status=LiftStatus.DEPTH_PREDICTED)])
    )
    assert (predicted[300, 300] > np.array(COLOR) + 20).all()
    assert changed(predicted)[100:].sum() > changed(measured)[100:].sum() + 200


def test_without_a_depth_camera_dots_are_not_hollow():
    flat = hole((300, 300), LiftStatus.NO_DEPTH_CAMERA)
    assert near(drawn(answer(TaskKind.POINT, [flat]))[300, 300], COLOR)


def test_the_distance_is_written_beside_the_point_and_nothing_far_off():
    with_depth = changed(drawn(answer(TaskKind.POINT, [point((320, 300), 0.82)])))
    without = changed(drawn(answer(TaskKind.POINT, [hole((320, 300), LiftStatus.NO_DEPTH_CAMERA)])))
    label = with_depth & ~without
    rows, columns = np.nonzero(label)
    assert 300 < label.sum() < 2500
    assert abs(rows - 300).max() < 60 and abs(columns - 320).max() < 100


@pytest.mark.parametrize(
    "status", sorted(set(LiftStatus) - {LiftStatus.NO_DEPTH_CAMERA, LiftStatus.DEPTH_PREDICTED})
)
def test_why_there_is_no_position_is_written_too(status):
    marks = changed(drawn(answer(TaskKind.POINT, [hole((320, 300), status)])))[200:400]
    dot_alone = np.pi * 8.5**2
    assert marks.sum() > (2 * dot_alone if status else dot_alone / 2)


def test_a_box_has_strong_corners_and_its_object_still_shows():
    image = drawn(answer(TaskKind.GROUNDING, None, [region((200, 150, 400, 350))]))
    corner, side = image[148:180, 196:212], image[230:262, 196:212]
    assert share_of(corner, COLOR) > 2 * share_of(side, COLOR) > 0
    inside = image[200:230, 220:280].reshape(-1, 3)
    assert (inside == inside[0]).all()
    assert 0 < np.abs(inside[0].astype(int) - GREY).max() < 30


def test_a_box_on_the_borders_stays_in_view():
    image = drawn(answer(TaskKind.GROUNDING, None, [region((0, 0, 640, 480))]))
    for strip in (image[-8:, 200:440], image[150:330, :8], image[150:330, -8:]):
        assert share_of(strip, COLOR) > 0.1
    assert image[240, [0, -1]].max() < GREY - 10  # its dark rim as well


def test_a_path_goes_from_pale_to_its_color_and_ends_in_an_arrow_head():
    image = drawn(answer(TaskKind.TRAJECTORY, [point((100, 300)), point((500, 300))]))
    early, late = image[300, 130].astype(int), image[300, 470].astype(int)
    assert (early > late + 10).all()
    assert near(late, COLOR, 25)
    assert near(image[300, 494], COLOR)  # in the head
    assert [changed(image[270:330, x : x + 1]).sum() for x in (470, 483)] == sorted(
        changed(image[270:330, x : x + 1]).sum() for x in (470, 483)
    )
    assert not changed(image[290:311, 504:508]).any()  # the tip is the last waypoint


def test_waypoints_are_numbered_off_their_dots():
    track = [point((100, 400)), between((200, 300)), between((320, 280)), point((500, 400))]
    image = drawn(answer(TaskKind.TRAJECTORY, track))
    for waypoint in track[:-1]:
        u, v = (int(side) for side in waypoint.pixel)
        rim = image[[v + 4, v - 4, v, v], [u, u, u + 4, u - 4]]
        assert rim.min() > 130  # neither a label's ink nor the line's color


@pytest.mark.parametrize("size", [(640, 480), (1920, 1080), (320, 240), (200, 700)])
@pytest.mark.parametrize("text", [LONG, "x" * 3000, "中" * 3000, "two  lines\n here"])
def test_a_caption_never_leaves_the_image_or_fills_it(size, text):
    image = drawn(answer(TaskKind.ASK, text=text), text[:200], *size)
    rows, columns = np.nonzero(changed(image))
    assert rows.min() > 0 and columns.min() > 0
    assert columns.max() < size[0] - 1 and rows.max() < 0.55 * size[1]


def test_the_caption_goes_where_nothing_is():
    corners = [point((20, 20)), point((620, 20)), point((20, 460))]
    image = drawn(answer(TaskKind.POINT, corners))
    for corner in corners:
        u, v = (int(side) for side in corner.pixel)
        assert near(image[v, u], COLOR)
    assert near(image[462, 560], INK, 45)  # in the one that is left


def test_the_caption_tells_what_was_asked_and_answered():
    def caption(result: Result, words: str) -> np.ndarray:
        return drawn(result, words)[:60]

    one = caption(answer(TaskKind.POINT, [point((320, 300))]), "the can")
    other_words = caption(answer(TaskKind.POINT, [point((320, 300))]), "the cap")
    two = caption(answer(TaskKind.POINT, [point((320, 300)), point((200, 400))]), "the can")
    assert (one != other_words).any() and (one != two).any()


def test_many_points_are_drawn_and_some_numbered():
    grid = [point((40 + 20 * column, 120 + 15 * row)) for row in range(20) for column in range(28)]
    image = drawn(answer(TaskKind.POINT, grid))
    assert sum(near(image[int(p.pixel[1]), int(p.pixel[0])], COLOR) for p in grid) > 450


def test_the_answer_of_a_task_in_words_or_data_is_written_below_its_query(monkeypatch):
    """A task that annotate.py had never heard of left the image without an answer."""
    for answer_type in (AnswerType.TEXT, AnswerType.DATA):
        task = replace(TASKS[TaskKind.POINT], answer=answer_type)
        tasks = MappingProxyType({**TASKS, TaskKind.POINT: task})
        monkeypatch.setattr(annotate, "TASKS", tasks)
        assert annotate._reply(answer(TaskKind.POINT, text='{"count": 3}')) == '{"count": 3}'
