# SPDX-License-Identifier: Apache-2.0
"""Training data of the shipped model: views, free places, descriptions, paths, scores."""

import random
import re
from dataclasses import replace

import numpy as np
import pytest

pytest.importorskip("mujoco")
pytest.importorskip("scipy")

from robobrain_ros.core.parsing import EmptyAnswer, parse_answer, split_thinking
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.nano import gripper_paths, places, referents, scoring, views
from robobrain_ros.nano.dataset import ObjectInfo, Scene, SceneInfo, render_scene
from robobrain_ros.nano.questions import SHARES, QuestionSampler, Topic, format_points
from robobrain_ros.nano.tokenizer import FAMILY
from robobrain_ros.sim.tabletop import PART_BIT, TABLE_CODE, Tabletop
from robobrain_ros.sim.truth import box_iou, inner_point, mask_box

SIZE = (364, 280)
# From 1 m above the table, looking straight down, x to the right and y down in image and world.
DOWN = ((1, 0, 0, 0), (0, -1, 0, 0), (0, 0, -1, 1.0), (0, 0, 0, 1))
FOCAL, CENTRE = 400.0, (200.0, 150.0)


def drawn(objects, gripper=None):
    """A scene (300, 400) seen from above, each object a square of twice its radius."""
    codes = np.full((300, 400), TABLE_CODE, np.uint8)
    for label, item in enumerate(objects, start=1):
        u, v = CENTRE[0] + FOCAL * item.foot[0], CENTRE[1] - FOCAL * item.foot[1]
        r = FOCAL * item.radius
        codes[round(v - r) : round(v + r), round(u - r) : round(u + r)] = label
    intrinsics = (FOCAL, 0, CENTRE[0], 0, FOCAL, CENTRE[1], 0, 0, 1)
    pose = tuple(float(value) for row in DOWN for value in row)
    rgb = np.zeros((300, 400, 3), np.uint8)
    return Scene(rgb, codes, SceneInfo(0, tuple(objects), gripper, intrinsics, pose))


def thing(name, x, y, radius=0.03, height=0.1):
    color, kind = name.split()
    return ObjectInfo(name, kind, color, (x, y, 0.0), radius, height)


@pytest.fixture(scope="module")
def scenes():
    tabletop = Tabletop(400, 300)
    yield [render_scene(tabletop, seed) for seed in range(2_000_100, 2_000_116)]
    tabletop.close()


class TestViews:
    def test_whole_view_scales_boxes_exactly(self):
        scene = drawn([thing("red mug", -0.2, 0.1), thing("red cube", 0.1, 0.0)])
        view = views.resized_view(scene, (200, 150))
        assert view.seen[0].box == (54, 49, 66, 61)
        assert view.seen[1].box == (114, 69, 126, 81)
        assert not view.partly

    def test_a_speck_is_not_asked_about(self):
        scene = drawn([thing("red mug", -0.2, 0.1), thing("red cube", 0.1, 0.0, radius=0.004)])
        view = views.whole_view(scene)
        assert [one.info.kind for one in view.seen] == ["mug"]
        assert view.partly

    def test_point_is_well_inside_a_ring(self):
        rows, columns = np.mgrid[:100, :100]
        radius = np.hypot(rows - 50, columns - 50)
        x, y = inner_point((radius > 25) & (radius < 45))
        assert 29 < np.hypot(x - 50, y - 50) < 41

    def test_the_part_to_grasp_has_a_box_of_its_own(self):
        scene = drawn([thing("red mug", 0.0, 0.0)])
        scene.codes[145:155, 205:212] |= PART_BIT
        assert views.whole_view(scene).seen[0].grasp == (205, 145, 212, 155)

    def test_where_the_part_is_hidden_the_object_is_grasped(self):
        view = views.whole_view(drawn([thing("red mug", 0.0, 0.0)]))
        assert view.seen[0].grasp == view.seen[0].box

    def test_a_part_that_is_hardly_seen_is_not_asked_about(self):
        scene = drawn([thing("red mug", 0.0, 0.0)])
        scene.codes[150:153, 205:209] |= PART_BIT
        assert views.whole_view(scene).seen[0].grasp is None

    @pytest.mark.parametrize("seed", range(16))
    def test_random_views_keep_pixels_and_world_together(self, scenes, seed):
        view = views.training_view(scenes[seed], SIZE, random.Random(seed))
        assert view.rgb.shape == (280, 364, 3)
        for one in view.seen:
            x, y = one.point
            mask = view.mask(one.label)
            assert mask[y, x]
            assert one.box == mask_box(mask)
            middle = np.array(one.info.foot) + (0, 0, one.info.height / 2)
            u, v = view.project(middle[None])[0]
            assert one.box[0] - 12 <= u <= one.box[2] + 12
            assert one.box[1] - 12 <= v <= one.box[3] + 12
        spots = np.array([[0.1, 0.05, 0.0], [-0.1, -0.2, 0.0]])
        np.testing.assert_allclose(view.on_table(view.project(spots)), spots[:, :2], atol=1e-9)

    @pytest.mark.parametrize("seed", range(8))
    def test_right_and_away_are_the_images(self, scenes, seed):
        view = views.training_view(scenes[seed], SIZE, random.Random(seed))
        start = np.array([0.0, 0.0, 0.0])
        right = start + (*(0.05 * view.rightwards), 0)
        away = start + (*(0.05 * view.away), 0)
        pixels = view.project(np.array([start, right, away]))
        assert pixels[1, 0] > pixels[0, 0] + 5
        assert abs(pixels[1, 1] - pixels[0, 1]) < 0.4 * (pixels[1, 0] - pixels[0, 0])
        assert pixels[2, 1] < pixels[0, 1] - 3


class TestPlaces:
    def test_a_free_spot_is_where_its_words_say(self):
        mug, can = thing("red mug", -0.1, 0.0), thing("blue can", 0.1, 0.0)
        found = {p.words: p for p in places.places(views.whole_view(drawn([mug, can])))}
        assert found["left of the red mug"].spot[0] < 148
        assert found["right of the blue can"].spot[0] > 252
        assert found["in front of the red mug"].spot[1] > 162
        assert found["behind the red mug"].spot[1] < 138
        between = found["between the red mug and the blue can"].spot
        assert abs(between[0] - 200) <= 1 and abs(between[1] - 150) <= 1

    def test_two_of_a_kind_are_called_the_two(self):
        mugs = [thing("red mug", -0.1, 0.0), thing("blue mug", 0.1, 0.0)]
        words = [p.words for p in places.places(views.whole_view(drawn(mugs)))]
        assert "between the two mugs" in words

    def test_what_is_taken_is_not_free(self):
        row = [
            thing("red mug", -0.09, 0.0),
            thing("blue can", 0.0, 0.0),
            thing("red cube", 0.09, 0),
        ]
        words = {p.words for p in places.places(views.whole_view(drawn(row)))}
        assert "right of the red mug" not in words
        assert "between the red mug and the red cube" not in words
        assert "left of the red mug" in words

    def test_every_spot_is_in_its_region_and_the_region_on_free_table(self, scenes):
        count = 0
        for scene in scenes:
            view = views.whole_view(scene)
            for place in places.places(view):
                region = place.region()
                x, y = place.spot
                assert region[y, x], (scene.info.seed, place.words)
                free = {TABLE_CODE} | {one.label | PART_BIT for one in place.about}
                assert set(np.unique(view.codes[region])) <= free
                count += 1
        assert count > 100

    def test_left_regions_are_left(self, scenes):
        for scene in scenes:
            view = views.whole_view(scene)
            for place in places.places(view):
                if place.words.startswith("left of"):
                    columns = np.nonzero(place.region())[1]
                    assert columns.mean() < place.about[0].point[0]


class TestReferents:
    def row(self):
        return views.whole_view(
            drawn(
                [
                    thing("red mug", -0.2, 0.0),
                    thing("blue can", -0.05, 0.1, height=0.15),
                    thing("blue mug", 0.1, 0.0),
                    thing("red cube", 0.2, -0.1, radius=0.05),
                ],
                gripper=(0.12, 0.04, 0.1),
            )
        )

    def test_descriptions_mean_what_they_say(self):
        meant = {r.words: r.target.info.name for r in referents.referents(self.row())}
        assert meant["leftmost object"] == "red mug"
        assert meant["rightmost object"] == "red cube"
        assert meant["rightmost mug"] == "blue mug"
        assert meant["closest object"] == "red cube"
        assert meant["tallest object"] == "blue can"
        assert meant["mug left of the blue can"] == "red mug"
        assert meant["mug to the right of the blue can"] == "blue mug"
        assert meant["object nearest the gripper"] == "blue mug"
        assert meant["can behind the red mug"] == "blue can"

    def test_what_is_not_clear_is_not_described(self):
        meant = {r.words for r in referents.referents(self.row())}
        assert "farthest mug" not in meant  # both are as far
        assert "object right of the red mug" not in meant  # all others are
        assert "mug in front of the red cube" not in meant  # none is

    def test_a_kind_or_color_alone_when_that_is_enough(self):
        names = {r.words: r.target.info.name for r in referents.unique_names(self.row())}
        assert names == {"can": "blue can", "cube": "red cube"}

    def test_a_description_fits_one_object(self, scenes):
        """Left of something, by the pixels themselves."""
        count = 0
        for scene in scenes:
            view = views.whole_view(scene)
            for found in referents.referents(view):
                if " left of the " not in found.words or found.anchor is None:
                    continue
                noun = found.words.split(" left of")[0].removesuffix(" to the").split()
                left = [
                    one
                    for one in view.seen
                    if all(w in (*one.info.name.split(), "object") for w in noun)
                    and one.label != found.anchor.label
                    and (one.info.kind != "tray" or noun != ["object"])
                    and one.point[0] < found.anchor.point[0]
                ]
                assert [one.label for one in left] == [found.target.label], found.words
                count += 1
        assert count > 20


class TestGripperPaths:
    def view(self, *objects):
        return views.whole_view(drawn(objects, gripper=(-0.25, 0.0, 0.12)))

    def test_a_path_goes_from_the_gripper_to_the_goal(self):
        goal = np.array([0.2, 0.0, 0.05])
        path = gripper_paths.plan_path(self.view(thing("red mug", 0.2, 0.0)), goal, frozenset({1}))
        np.testing.assert_allclose(path.points[0], (-0.25, 0.0, 0.12))
        np.testing.assert_allclose(path.points[-1], goal)
        assert len(path.points) == len(path.pixels) == gripper_paths.WAYPOINTS

    def test_it_clears_what_stands_between(self):
        view = self.view(thing("red mug", 0.2, 0.0), thing("blue can", 0.0, 0.0, height=0.2))
        goal, spared = np.array([0.2, 0.0, 0.05]), frozenset({1})
        path = gripper_paths.plan_path(view, goal, spared)
        straight = np.linspace(path.points[0], path.points[-1], 6)
        assert gripper_paths.collides(view, straight, spared)
        assert not gripper_paths.collides(view, path.points, spared)

    def test_an_object_beside_the_way_changes_nothing(self):
        goal, spared = np.array([0.2, 0.0, 0.05]), frozenset({1})
        mug = thing("red mug", 0.2, 0.0)
        alone = gripper_paths.plan_path(self.view(mug), goal, spared)
        beside = gripper_paths.plan_path(
            self.view(mug, thing("blue can", 0, 0.12, height=0.3)), goal, spared
        )
        np.testing.assert_array_equal(alone.points, beside.points)

    def test_no_path_through_a_tower(self):
        view = self.view(thing("red mug", 0.2, 0.0), thing("blue can", 0.16, 0.0, height=0.4))
        assert gripper_paths.plan_path(view, np.array([0.2, 0.0, 0.05]), frozenset({1})) is None

    def test_lifting_a_path_like_itself_gives_it_back(self):
        view = self.view(thing("red mug", 0.2, 0.0), thing("blue can", 0.0, 0.0, height=0.2))
        path = gripper_paths.plan_path(view, np.array([0.2, 0.0, 0.05]), frozenset({1}))
        lifted = gripper_paths.lifted_like(view, view.project(path.points), path)
        np.testing.assert_allclose(lifted, path.points, atol=0.01)


class TestQuestions:
    def all_questions(self, scenes):
        for scene in scenes:
            view = views.resized_view(scene, SIZE)
            for question in scoring.drawn_questions(view, dict.fromkeys(Topic, 3), 1):
                yield view, question

    def test_every_topic_comes_up(self, scenes):
        assert {q.topic for _, q in self.all_questions(scenes)} == set(Topic) == set(SHARES)
        assert sum(SHARES.values()) == pytest.approx(1.0, abs=0.02)

    def test_right_answers_score_as_such(self, scenes):
        for view, question in self.all_questions(scenes):
            if question.topic is Topic.REFUSAL:
                with pytest.raises(EmptyAnswer):
                    parse_answer(question.task, question.answer, FAMILY)
                continue
            raw = f"{question.answer}</answer>"
            answer = parse_answer(question.task, raw, FAMILY, FAMILY.openings[Think.OFF])
            scores = scoring.score(question, view, answer, FAMILY, SIZE)
            for figure, value in scores.items():
                best = 0 if figure in (scoring.DFD, scoring.HD, scoring.RMSE) else 1
                if figure != scoring.COLLIDES:
                    assert value == pytest.approx(best, abs=0.03), (question.text, figure)

    def test_wrong_answers_do_not(self, scenes):
        wrong = {TaskKind.POINT: "[(0, 0)]", TaskKind.ASK: "Perhaps"}
        for view, question in self.all_questions(scenes[:4]):
            if question.task in wrong and question.topic is not Topic.REFUSAL:
                answer = parse_answer(question.task, wrong[question.task], FAMILY)
                assert max(scoring.score(question, view, answer, FAMILY, SIZE).values()) == 0

    def test_thoughts_are_split_from_answers(self, scenes):
        for _, question in self.all_questions(scenes[:4]):
            raw = f"{question.thought}</think><answer>{question.answer}</answer>"
            assert split_thinking(raw, "<think>") == (question.thought, question.answer)

    def test_thoughts_tell_where_things_are(self, scenes):
        for view, question in self.all_questions(scenes):
            for name, x, y in re.findall(r"The ([a-z ]+) is at \((\d+), (\d+)\)", question.thought):
                if name == "gripper":
                    assert np.hypot(view.gripper[0] - int(x), view.gripper[1] - int(y)) < 2
                    continue
                labels = [o.label for o in view.seen if name in (o.info.name, o.info.kind)]
                assert int(view.codes[int(y), int(x)]) & ~PART_BIT in labels

    def test_what_is_refused_is_not_there(self, scenes):
        count = 0
        for view, question in self.all_questions(scenes):
            if question.topic is Topic.REFUSAL:
                for one in view.seen:
                    assert not re.search(rf"\b{one.info.name}\b", question.text.lower())
                count += 1
        assert count > 15

    def test_counts_are_right(self):
        scene = drawn([thing("red mug", x, 0.0) for x in (-0.2, 0.0, 0.2)])
        objects = tuple(replace(o, name=n) for o, n in zip(scene.info.objects, ("a", "b", "c")))
        view = views.whole_view(replace(scene, info=replace(scene.info, objects=objects)))
        sampler = QuestionSampler(view, random.Random(0))
        answers = {
            q.text.lower(): q.answer for q in (sampler.draw(Topic.COUNT) for _ in range(400))
        }
        assert answers["how many mugs are there?"] == "3"
        assert answers["how many red objects are there?"] == "3"
        assert answers["how many objects are on the table?"] == "3"
        assert answers["how many cans are there?"] == "0"


class TestScores:
    def path(self, pixels):
        return gripper_paths.GripperPath(np.zeros((len(pixels), 3)), np.array(pixels))

    def test_a_path_is_as_far_from_itself_as_nothing(self):
        path = self.path([(0, 0), (50, 20), (100, 100)])
        errors = scoring.path_errors(path.pixels.astype(float), path, (200, 100))
        assert errors == {scoring.DFD: 0, scoring.HD: 0, scoring.RMSE: 0}

    def test_distances_are_shares_of_the_image(self):
        path = self.path([(0, 0), (100, 0)])
        errors = scoring.path_errors(np.array([[0.0, 10.0], [100.0, 10.0]]), path, (200, 100))
        assert errors[scoring.DFD] == pytest.approx(0.1)
        assert errors[scoring.HD] == pytest.approx(0.1)
        assert errors[scoring.RMSE] == pytest.approx(0.1)

    def test_frechet_minds_the_order_and_hausdorff_does_not(self):
        path = self.path([(0, 0), (100, 0)])
        errors = scoring.path_errors(np.array([[100.0, 0.0], [0.0, 0.0]]), path, (100, 100))
        assert errors[scoring.HD] == 0
        assert errors[scoring.DFD] == pytest.approx(1.0)


def test_points_are_written_as_robobrain_writes_them():
    assert format_points([(1, 2), (30, 4)]) == "[(1, 2), (30, 4)]"


def test_box_iou():
    assert box_iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert box_iou((0, 0, 10, 10), (10, 0, 20, 10)) == 0
