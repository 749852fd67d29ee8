# SPDX-License-Identifier: Apache-2.0
"""Answers as markers, put through what RViz does with them."""

from __future__ import annotations

import numpy as np
import pytest
from builtin_interfaces.msg import Time
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from support.sample_results import answer, between, hole, point, region
from visualization_msgs.msg import Marker, MarkerArray

from robobrain_ros.core.results import Result
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros.markers import LIFETIME, LONGEST_WORDS, MarkerBoard
from robobrain_ros.tf_projection import LiftedPoint, LiftedRegion
from robobrain_ros.visualization.style import FAINTEST, PALETTE, SOLIDEST, Slots

HEADER = Header(stamp=Time(sec=12, nanosec=34), frame_id="table")
CAMERA = "camera_color_optical_frame"

POINTS = answer(TaskKind.POINT, [point((300, 240)), hole((10, 10)), point((500, 100), 2.0)])
BOX = answer(TaskKind.GROUNDING, None, [region((300, 200, 340, 230))])
PATH = answer(
    TaskKind.TRAJECTORY,
    [point((100, 300)), between((200, 280)), hole((300, 300)), point((500, 300), 1.2)],
)


class Rviz:
    """Keeps markers by name and id as RViz does, and refuses what RViz would complain about."""

    def __init__(self) -> None:
        self.shown: dict[tuple[str, int], Marker] = {}

    def take(self, message: MarkerArray) -> Rviz:
        names = [(marker.ns, marker.id) for marker in message.markers]
        assert len(set(names)) == len(names), "one name and id twice in a message"
        for name, marker in zip(names, message.markers):
            if marker.action == Marker.DELETE:
                assert self.shown.pop(name, None), "nothing like that is shown"
            else:
                assert marker.action == Marker.ADD
                check(marker)
                self.shown[name] = marker
        return self

    def of(self, space: str) -> list[Marker]:
        return [marker for (ns, _), marker in sorted(self.shown.items()) if ns == space]


def check(marker: Marker) -> None:
    assert marker.header == HEADER or marker.header.frame_id == CAMERA
    assert marker.lifetime == LIFETIME and LIFETIME.sec > 0
    numbers = [
        *xyz(marker.pose.position),
        *(getattr(marker.pose.orientation, axis) for axis in "xyzw"),
        *(part for at in marker.points for part in xyz(at)),
    ]
    assert np.isfinite(numbers).all()
    assert 0.05 < marker.color.a <= 1
    sizes = [marker.scale.x, marker.scale.y, marker.scale.z]
    used = {Marker.SPHERE: 3, Marker.CUBE: 3, Marker.ARROW: 3, Marker.LINE_STRIP: 1}
    used |= {Marker.LINE_LIST: 1}
    if marker.type == Marker.TEXT_VIEW_FACING:
        assert sizes[2] > 0 and marker.text
    else:
        assert min(sizes[: used[marker.type]]) > 0
    least = {Marker.ARROW: 2, Marker.LINE_STRIP: 2, Marker.LINE_LIST: 2}.get(marker.type, 0)
    assert len(marker.points) >= least
    assert len(marker.colors) in (0, len(marker.points))


def xyz(vector) -> np.ndarray:
    return np.array([vector.x, vector.y, vector.z])


def rgb(marker: Marker) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in (marker.color.r, marker.color.g, marker.color.b))


def shown(result: Result, words: str = "the can", slot: int = 0, header: Header = HEADER) -> Rviz:
    return Rviz().take(MarkerBoard().show(result, words, header, CAMERA, slot))


def test_points_are_spheres_with_their_normals_as_arrows():
    rviz = shown(POINTS, slot=3)
    spheres, arrows = rviz.of("points"), rviz.of("normals")
    assert [s.type for s in spheres] == [Marker.SPHERE] * 2
    np.testing.assert_allclose(
        [xyz(s.pose.position) for s in spheres], [POINTS.points[i].position for i in (0, 2)]
    )
    for sphere, arrow in zip(spheres, arrows, strict=True):
        start, end = map(xyz, arrow.points)
        np.testing.assert_allclose(start, xyz(sphere.pose.position))
        np.testing.assert_allclose((end - start)[:2], 0, atol=1e-9)
        assert end[2] < start[2] - 0.05  # their normals are -z here
        assert rgb(sphere) == rgb(arrow) == PALETTE[3]


def test_results_are_numbered_as_in_the_answer_and_named_by_the_query_once():
    rviz = shown(POINTS)
    assert [number.text for number in rviz.of("numbers")] == ["1", "3"]
    assert [words.text for words in rviz.of("words")] == ["the can"]
    one = shown(BOX)
    assert not one.of("numbers") and len(one.of("words")) == 1


def test_a_box_is_a_clear_cube_with_edges_on_its_sides():
    rviz = shown(BOX)
    (cube,), (edges,) = rviz.of("boxes"), rviz.of("edges")
    lifted = BOX.regions[0]
    np.testing.assert_allclose(xyz(cube.pose.position), lifted.centre)
    np.testing.assert_allclose(xyz(cube.scale), lifted.size)
    assert cube.pose == edges.pose and cube.color.a < edges.color.a / 2
    pairs = np.array([xyz(at) for at in edges.points]).reshape(12, 2, 3)
    np.testing.assert_allclose(np.abs(pairs), np.tile(lifted.size / 2, (12, 2, 1)))
    lengths = np.linalg.norm(pairs[:, 0] - pairs[:, 1], axis=1)
    np.testing.assert_allclose(np.sort(lengths), np.repeat(np.sort(lifted.size), 4))
    assert len({tuple(map(tuple, np.sort(pair, axis=0))) for pair in pairs.tolist()}) == 12


def test_a_trajectory_is_a_line_through_the_waypoints_that_have_a_position():
    rviz = shown(PATH)
    (line,) = rviz.of("path")
    assert line.type == Marker.LINE_STRIP
    placed = [waypoint for waypoint in PATH.points if waypoint.position is not None]
    np.testing.assert_allclose([xyz(at) for at in line.points], [w.position for w in placed])
    assert [number.text for number in rviz.of("numbers")] == ["1", "2", "4"]
    # RViz blends the line only where its last point isn't solid.
    assert line.colors[-1].a < 0.9998
    alphas = [color.a for color in line.colors]
    assert alphas == [s.color.a for s in rviz.of("points")]
    assert alphas == pytest.approx([SOLIDEST, FAINTEST, SOLIDEST])


def test_points_that_are_no_trajectory_have_no_line_nor_has_one_waypoint():
    assert not shown(POINTS).of("path")
    assert not shown(answer(TaskKind.TRAJECTORY, [point(), hole((3, 3))])).of("path")


def test_a_poor_measurement_is_less_solid():
    alphas = [
        shown(answer(TaskKind.POINT, [point(valid_fraction=share)])).of("points")[0].color.a
        for share in (1.0, 0.5, 0.0)
    ]
    assert alphas == sorted(alphas, reverse=True) and alphas[-1] == pytest.approx(FAINTEST)


def test_the_next_answer_to_a_question_replaces_the_last_one():
    board, rviz = MarkerBoard(), Rviz()
    rviz.take(board.show(POINTS, "the can", HEADER, CAMERA, 2))
    rviz.take(board.show(BOX, "the can", HEADER, CAMERA, 2))
    assert rviz.shown == shown(BOX, slot=2).shown
    rviz.take(board.show(PATH, "the can", HEADER, CAMERA, 2))
    assert rviz.shown == shown(PATH, slot=2).shown


def test_answers_to_other_questions_stay_in_their_own_colours():
    board, rviz, slots = MarkerBoard(), Rviz(), Slots()
    for number in range(30):
        question = f"question {number}"
        rviz.take(board.show(POINTS, question, HEADER, CAMERA, slots.take(question)))
        texts = [marker.text for marker in rviz.of("words")]
        fresh = [f"question {n}" for n in range(max(0, number - len(PALETTE) + 1), number + 1)]
        assert sorted(texts) == sorted(fresh)
        colours = {rgb(sphere) for sphere in rviz.of("points")}
        assert len(colours) == len(fresh)


def test_an_answer_without_a_position_only_takes_the_last_one_away():
    board, rviz = MarkerBoard(), Rviz()
    rviz.take(board.show(POINTS, "the can", HEADER, CAMERA, 0))
    rviz.take(board.show(PATH, "elsewhere", HEADER, CAMERA, 1))
    flat = answer(TaskKind.POINT, [hole((3, 4))])
    rviz.take(board.show(flat, "the can", HEADER, CAMERA, 0))
    assert rviz.shown == shown(PATH, "elsewhere", 1).shown
    assert board.show(flat, "the can", HEADER, CAMERA, 0).markers == []


@pytest.mark.parametrize("result", [POINTS, BOX, PATH])
@pytest.mark.parametrize(
    ("frame", "up"), [("table", np.array([0, 0, 1.0])), (CAMERA, np.array([0, -1.0, 0]))]
)
def test_words_and_numbers_are_above_what_they_name(result, frame, up):
    header = Header(stamp=HEADER.stamp, frame_id=frame)
    rviz = shown(result, header=header)
    (words,), numbers = rviz.of("words"), rviz.of("numbers")
    placed = [one for one in (*result.points, *result.regions) if one.position is not None]
    for lifted, number in zip(placed, numbers):
        assert bottom(number, up) > top(lifted, up)
        across = xyz(number.pose.position) - lifted.position
        np.testing.assert_allclose(across - across @ up * up, 0, atol=1e-9)
    assert bottom(words, up) > top(placed[0], up)
    for number in numbers[:1]:
        assert bottom(words, up) > xyz(number.pose.position) @ up + number.scale.z / 2


def bottom(text: Marker, up: np.ndarray) -> float:
    return xyz(text.pose.position) @ up - text.scale.z / 2


def top(lifted: LiftedPoint | LiftedRegion, up: np.ndarray) -> float:
    """How far up the result itself, its normal and its box reach."""
    spots = [lifted.position]
    if lifted.has_normal:
        spots.append(lifted.position + Rotation.from_quat(lifted.orientation).apply([0, 0, 0.05]))
    if isinstance(lifted, LiftedRegion):
        spots += [lifted.centre + lifted.size / 2, lifted.centre - lifted.size / 2]
    return max(spot @ up for spot in spots)


def test_words_of_questions_about_one_place_are_below_each_other():
    heights = [shown(BOX, slot=slot).of("words")[0].pose.position.z for slot in range(3)]
    letter = shown(BOX).of("words")[0].scale.z
    assert min(np.diff(heights)) > letter


def test_sizes_follow_the_distance():
    near, far = (
        shown(answer(TaskKind.POINT, [point(depth=depth)])).of("points")[0].scale.x
        for depth in (0.8, 3.2)
    )
    assert far == pytest.approx(4 * near)
    assert 0.01 < near < 0.03
    very_near = shown(answer(TaskKind.POINT, [point(depth=0.05)])).of("points")[0].scale.x
    assert very_near > 0.004


def test_words_are_short_and_in_ascii_where_they_can_be():
    (words,) = shown(BOX, "Zeig auf die größte Dose, nämlich die rote ganz hinten rechts").of(
        "words"
    )
    assert len(words.text) <= LONGEST_WORDS + 2  # … is three letters in ASCII
    assert words.text.startswith("Zeig auf die großte Dose, namlich")
    assert words.text.endswith("...")
