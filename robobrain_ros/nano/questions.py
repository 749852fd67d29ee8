# SPDX-License-Identifier: Apache-2.0
"""Questions with answers about a view, in RoboBrain's prompts and answer formats.

Training and evaluation draw from here alike: training says `answer`, evaluation scores against what
else a Question holds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum

import numpy as np

from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.nano import talk, wordings
from robobrain_ros.nano.dataset import NAMES
from robobrain_ros.nano.gripper_paths import GripperPath, plan_path
from robobrain_ros.nano.places import Place, Region, places
from robobrain_ros.nano.referents import Referent, referents, unique_names
from robobrain_ros.nano.views import Box, Seen, View
from robobrain_ros.sim.pool import TRAY


class Topic(str, Enum):
    """Subject of a question; finer than its task."""

    POINT = "point"
    SPOTS = "several spots"
    FREE_SPACE = "free space"
    RELATION = "relation"
    BOX = "box"
    AFFORDANCE = "affordance"
    TRAJECTORY = "trajectory"
    PRESENCE = "is there"
    SIDE = "is it left or right"
    COUNT = "how many"
    COLOR = "which colour"
    WHAT = "what"
    REFUSAL = "not there"


SHARES: Mapping[Topic, float] = {
    Topic.POINT: 0.13,
    Topic.SPOTS: 0.03,
    Topic.FREE_SPACE: 0.12,
    Topic.RELATION: 0.14,
    Topic.BOX: 0.07,
    Topic.AFFORDANCE: 0.06,
    Topic.TRAJECTORY: 0.22,
    Topic.PRESENCE: 0.03,
    Topic.SIDE: 0.04,
    Topic.COUNT: 0.05,
    Topic.COLOR: 0.02,
    Topic.WHAT: 0.04,
    Topic.REFUSAL: 0.05,
}
"""Share of each topic among the training questions."""

NOTHING = "[]"
_SPREAD = 0.5  # of the way from an object's middle to its edge, for several spots
_DESCRIBED_SHARE = 0.15  # of boxes, affordances and trajectories: not by name
_SHORT_NAME_SHARE = 0.12


@dataclass(frozen=True)
class Question:
    """A question (`task`, `text`), and the right answer in the view's pixels.

    thought: a short, true reasoning that leads to it. region: makes the mask (H, W) that points
    have to lie in, a trajectory's last one. box, path: what else the answer is compared with.
    label: the object meant, 0 for none in particular, `talk.ABSENT` for one that isn't there.
    spot: the pixel meant where there is no object.
    """

    topic: Topic
    task: TaskKind
    text: str
    answer: str
    thought: str
    region: Region | None = None
    box: Box | None = None
    path: GripperPath | None = field(default=None, repr=False)
    label: int = 0
    spot: tuple[int, int] | None = None


def format_points(points: Iterable[Sequence[int]]) -> str:
    """`[(x, y), …]`, RoboBrain's list of points."""
    return "[" + ", ".join(f"({x}, {y})" for x, y in points) + "]"


def format_box(box: Box) -> str:
    """`[x1, y1, x2, y2]`, RoboBrain's box."""
    return "[" + ", ".join(map(str, box)) + "]"


class QuestionSampler:
    """Draws random questions about one view."""

    def __init__(self, view: View, rng: random.Random) -> None:
        self._view, self._rng = view, rng
        self._places: list[Place] | None = None
        self._referents: list[Referent] | None = None
        self._short = list(unique_names(view))

    def draw(self, topic: Topic) -> Question | None:
        """A question of the topic, None where the view has none."""
        question = _MAKERS[topic](self)
        if question is not None and self._rng.random() < 0.5:
            question = replace(question, text=wordings.capitalised(question.text))
        return question

    def any(self) -> Question | None:
        """A question of a topic drawn by `SHARES`, None where the view has none."""
        return self.draw(self._rng.choices(list(SHARES), list(SHARES.values()))[0])

    def _named(self) -> tuple[str, Seen] | None:
        """An object by its name, now and then by as little of it as tells it apart."""
        if not self._view.seen:
            return None
        if self._short and self._rng.random() < _SHORT_NAME_SHARE:
            short = self._rng.choice(self._short)
            return short.words, short.target
        one = self._rng.choice(self._view.seen)
        return one.info.name, one

    def _described(self) -> Referent | None:
        """An object by its place or size; rarer descriptions are drawn as often as others."""
        if self._referents is None:
            self._referents = list(referents(self._view))
        if not self._referents:
            return None
        forms = sorted({_form(one) for one in self._referents})
        form = self._rng.choice(forms)
        return self._rng.choice([one for one in self._referents if _form(one) == form])

    def _meant(self) -> tuple[str, Seen, str] | None:
        """An object in any words, and the thought that finds it."""
        if self._rng.random() < _DESCRIBED_SHARE:
            described = self._described()
            if described:
                return described.words, described.target, _reason(described)
        named = self._named()
        return (*named, "") if named else None

    def _place(self) -> Place | None:
        if self._places is None:
            self._places = list(places(self._view))
        if not self._places:
            return None
        forms = sorted({_place_form(one) for one in self._places})
        form = self._rng.choice(forms)
        return self._rng.choice([one for one in self._places if _place_form(one) == form])

    def _point(self) -> Question | None:
        named = self._named()
        if named is None:
            return None
        words, one = named
        text = self._rng.choice(wordings.POINT).format(words)
        return self._pointing(Topic.POINT, text, one, [one.point], talk.where(one))

    def _pointing(
        self, topic: Topic, text: str, one: Seen, points: Sequence[Sequence[int]], thought: str
    ) -> Question:
        return Question(
            topic,
            TaskKind.POINT,
            text,
            format_points(points),
            thought,
            region=lambda: self._view.mask(one.label),
            label=one.label,
        )

    def _relation(self) -> Question | None:
        described = self._described()
        if described is None:
            return None
        text = self._rng.choice(wordings.POINT).format(described.words)
        one = described.target
        return self._pointing(Topic.RELATION, text, one, [one.point], _reason(described))

    def _spots(self) -> Question | None:
        named = self._named()
        if named is None:
            return None
        words, one = named
        points = spots_on(self._view, one)
        if len(points) < 3:
            return None
        text = self._rng.choice(wordings.SPOTS).format(words)
        return self._pointing(Topic.SPOTS, text, one, points, talk.where(one))

    def _free_space(self) -> Question | None:
        place = self._place()
        if place is None:
            return None
        text = self._rng.choice(wordings.FREE).format(place.words)
        answer, thought = format_points([place.spot]), talk.where(*place.about)
        return Question(
            Topic.FREE_SPACE,
            TaskKind.POINT,
            text,
            answer,
            thought,
            region=place.region,
            spot=place.spot,
        )

    def _box(self) -> Question | None:
        meant = self._meant()
        if meant is None:
            return None
        return self._boxing(Topic.BOX, TaskKind.GROUNDING, wordings.BOX, meant, meant[1].box)

    def _affordance(self) -> Question | None:
        meant = self._meant()
        if meant is None or meant[1].grasp is None or meant[1].info.kind == TRAY:
            return None
        task, texts = TaskKind.AFFORDANCE, wordings.AFFORDANCE
        return self._boxing(Topic.AFFORDANCE, task, texts, meant, meant[1].grasp)

    def _boxing(
        self,
        topic: Topic,
        task: TaskKind,
        texts: Sequence[str],
        meant: tuple[str, Seen, str],
        box: Box,
    ) -> Question:
        words, one, thought = meant
        return Question(
            topic,
            task,
            self._rng.choice(texts).format(words),
            format_box(box),
            thought or talk.where(one),
            box=box,
            label=one.label,
        )

    def _trajectory(self) -> Question | None:
        view, rng = self._view, self._rng
        if view.gripper is None:
            return None
        if rng.random() < 0.2:
            place = self._place()
            if place is None:
                return None
            text, pixel, goal = (
                rng.choice(wordings.GO).format(place.words),
                place.spot,
                place.middle,
            )
            region, spared, thought = place.region, frozenset[int](), talk.where(*place.about)
            label = 0
        else:
            meant = self._meant()
            if meant is None:
                return None
            words, one, thought = meant
            text, pixel = rng.choice(wordings.REACH).format(words), one.point
            goal, thought = _surface(view, one), thought or talk.where(one)
            label, spared = one.label, frozenset({one.label})
            region = lambda: view.mask(label)  # noqa: E731
        path = plan_path(view, goal, spared)
        if path is None:
            return None
        points = [*path.pixels[:-1].tolist(), pixel]
        u, v = path.pixels[0].tolist()
        return Question(
            Topic.TRAJECTORY,
            TaskKind.TRAJECTORY,
            text,
            format_points(points),
            f"The gripper is at ({u}, {v}). {thought}",
            region=region,
            path=path,
            label=label,
            spot=None if label else tuple(pixel),
        )

    def _refusal(self) -> Question | None:
        name = self._absent()
        if name is None:
            return None
        task, texts = self._rng.choice(
            (
                (TaskKind.POINT, wordings.POINT),
                (TaskKind.POINT, wordings.POINT),
                (TaskKind.GROUNDING, wordings.BOX),
                (TaskKind.AFFORDANCE, wordings.AFFORDANCE),
                (TaskKind.TRAJECTORY, wordings.REACH),
            )
        )
        text = self._rng.choice(texts).format(name)
        return Question(Topic.REFUSAL, task, text, NOTHING, talk.absence(name), label=talk.ABSENT)

    def _absent(self) -> str | None:
        """The name of an object that isn't there, most often one like those that are."""
        view, rng = self._view, self._rng
        if view.partly:
            return None
        present = {one.info.name for one in view.seen}
        words = {word for name in present for word in name.split()}
        absent = [name for name in NAMES if name not in present]
        if rng.random() < 0.7:
            absent = [name for name in absent if words & set(name.split())] or absent
        elif rng.random() < 0.5:
            kinds = {one.info.kind for one in view.seen}
            absent = sorted({name.split()[-1] for name in absent} - words - kinds) or absent
        return rng.choice(absent)

    def _presence(self) -> Question | None:
        if self._rng.random() < 0.5:
            named = self._named()
            if named is None:
                return None
            return _spoken(Topic.PRESENCE, talk.presence(*named, self._rng))
        name = self._absent()
        if name is None:
            return None
        return _spoken(Topic.PRESENCE, talk.presence(name, None, self._rng))

    def _side(self) -> Question | None:
        return _spoken(Topic.SIDE, talk.side(self._view, self._rng))

    def _count(self) -> Question | None:
        return _spoken(Topic.COUNT, talk.count(self._view, self._rng))

    def _color(self) -> Question | None:
        return _spoken(Topic.COLOR, talk.color(self._view, self._rng))

    def _what(self) -> Question | None:
        described = self._described()
        if described is None or "object" not in described.words.split():
            return None
        if described.target.info.color and described.target.info.color in described.words:
            return None
        return _spoken(Topic.WHAT, talk.what(described, _reason(described)))


_MAKERS: Mapping[Topic, Callable[[QuestionSampler], Question | None]] = {
    Topic.POINT: QuestionSampler._point,
    Topic.SPOTS: QuestionSampler._spots,
    Topic.FREE_SPACE: QuestionSampler._free_space,
    Topic.RELATION: QuestionSampler._relation,
    Topic.BOX: QuestionSampler._box,
    Topic.AFFORDANCE: QuestionSampler._affordance,
    Topic.TRAJECTORY: QuestionSampler._trajectory,
    Topic.PRESENCE: QuestionSampler._presence,
    Topic.SIDE: QuestionSampler._side,
    Topic.COUNT: QuestionSampler._count,
    Topic.COLOR: QuestionSampler._color,
    Topic.WHAT: QuestionSampler._what,
    Topic.REFUSAL: QuestionSampler._refusal,
}


def _spoken(topic: Topic, said: talk.Said | None) -> Question | None:
    """A question that is answered in words."""
    if said is None:
        return None
    return Question(topic, TaskKind.ASK, said.text, said.answer, said.thought, label=said.label)


def spots_on(view: View, one: Seen) -> list[tuple[int, int]]:
    """A point in the middle of an object and up to four around it, all on it."""
    x, y = one.point
    x1, y1, x2, y2 = one.box
    candidates = [
        (x, y),
        (round(x + _SPREAD * (x1 - x)), y),
        (round(x + _SPREAD * (x2 - 1 - x)), y),
        (x, round(y + _SPREAD * (y1 - y))),
        (x, round(y + _SPREAD * (y2 - 1 - y))),
    ]
    mask = view.mask(one.label)
    return [(u, v) for u, v in candidates if mask[v, u]]


def _surface(view: View, one: Seen) -> np.ndarray:
    """Return the point (3,) m on the ray through an object's pixel, at the depth of its middle."""
    middle = np.array(one.info.foot) + (0, 0, one.info.height / 2)
    camera = view.pose[:3, 3]
    depth = (middle - camera) @ view.pose[:3, 2]
    return camera + depth * view.rays(np.array([one.point]) + 0.5)[0]


def _reason(described: Referent) -> str:
    target = described.target.info.name
    known = [talk.where(described.anchor)] if described.anchor else []
    return " ".join([*known, f"The {described.words} is the {target}."])


def _form(described: Referent) -> str:
    """Return the form of a description: its words without the names."""
    words = described.words
    if described.anchor:
        words = words.replace(described.anchor.info.name, "")
    for word in (described.target.info.kind, described.target.info.color or ""):
        words = words.replace(word, "") if word else words
    return words


def _place_form(place: Place) -> str:
    return place.words.split(" the ")[0]
