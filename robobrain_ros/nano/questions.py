# SPDX-License-Identifier: Apache-2.0
"""Questions with answers about a view, in RoboBrain's prompts and answer formats."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import lru_cache

from robobrain_ros.families import FAMILIES
from robobrain_ros.nano.architecture import SENT_HEIGHT, SENT_WIDTH
from robobrain_ros.nano.tokenizer import FAMILY_NAME
from robobrain_ros.nano.views import Target, View
from robobrain_ros.tasks import TaskKind, build_prompt

SHARES = {
    TaskKind.POINT: 0.52,
    TaskKind.GROUNDING: 0.30,
    TaskKind.AFFORDANCE: 0.07,
    TaskKind.TRAJECTORY: 0.05,
    TaskKind.ASK: 0.06,
}
POINT_TEXTS = (
    "point to the {}",
    "locate the {}",
    "identify the {}",
    "find the {}",
    "the {}",
    "{}",
)
GROUNDING_TEXTS = ("the {}", "the {}", "the {}", "{}")
AFFORDANCE_TEXTS = (
    "pick up the {}",
    "grasp the {}",
    "grab the {}",
    "lift the {}",
    "take the {}",
    "hold the {}",
)
TRAJECTORY_TEXTS = (
    "move the gripper to the {}",
    "reach for the {}",
    "reach the {}",
    "move to the {}",
)
COUNT_TEXT = "how many objects are on the table?"
PRESENCE_TEXT = "is there a {} on the table?"
COLOUR_TEXT = "what colour is the {}?"
_COLOUR_SPELLINGS = ("colour", "color")
_ARC_HEIGHT = 0.15
_ARC_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def vocabulary_texts(names: Sequence[str], kinds: Sequence[str]) -> list[str]:
    """Every question text over object `names` and `kinds`, for training the tokenizer."""
    templates = {
        *POINT_TEXTS,
        *GROUNDING_TEXTS,
        *AFFORDANCE_TEXTS,
        *TRAJECTORY_TEXTS,
        PRESENCE_TEXT,
    }
    texts = [
        form(template.format(name))
        for template in templates
        for name in names
        for form in (str, _capitalise)
    ]
    for spelling in _COLOUR_SPELLINGS:
        question = COLOUR_TEXT.replace("colour", spelling)
        texts += [form(question.format(kind)) for kind in kinds for form in (str, _capitalise)]
    return [*texts, *[COUNT_TEXT, _capitalise(COUNT_TEXT), "Yes", "No"] * 20]


def format_point(points: Sequence[tuple[int, int]]) -> str:
    """`[(x, y), …]`, RoboBrain's list of points."""
    return "[" + ", ".join(f"({x}, {y})" for x, y in points) + "]"


def format_box(box: tuple[int, int, int, int]) -> str:
    """`[x1, y1, x2, y2]`, RoboBrain's box."""
    return "[" + ", ".join(map(str, box)) + "]"


def reach_points(start: tuple[float, float], goal: tuple[int, int]) -> list[tuple[int, int]]:
    """Five image points from the gripper to a goal along an arc raised by 15 % of the image."""
    points = []
    for t in _ARC_STEPS:
        lift = _ARC_HEIGHT * SENT_HEIGHT * 4 * t * (1 - t)
        x = (1 - t) * start[0] + t * goal[0]
        y = (1 - t) * start[1] + t * goal[1] - lift
        points.append(
            (min(max(round(x), 0), SENT_WIDTH - 1), min(max(round(y), 0), SENT_HEIGHT - 1))
        )
    return points


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


@lru_cache(maxsize=100_000)
def prompt_for(kind: TaskKind, text: str) -> str:
    """RoboBrain's prompt of the 3B family."""
    return build_prompt(kind, text, FAMILIES[FAMILY_NAME])


def _ask(view: View, names: Sequence[str], rng: random.Random) -> tuple[str, str] | None:
    present = [target.info for target in view.targets]
    choice = rng.random()
    if choice < 0.35:
        return None if view.partly else (COUNT_TEXT, str(len(present)))
    if choice < 0.7:
        if rng.random() < 0.5 and present:
            return PRESENCE_TEXT.format(rng.choice(present).name), "Yes"
        # Near misses: absent names that share a word with something on the table.
        words = {word for info in present for word in info.name.split()}
        absent = sorted(set(names) - {info.name for info in present})
        near = [name for name in absent if words & set(name.split())]
        return None if view.partly else (PRESENCE_TEXT.format(rng.choice(near or absent)), "No")
    kinds = [info.kind for info in present]
    unique = [
        (info.kind, info.colour) for info in present if info.colour and kinds.count(info.kind) == 1
    ]
    if not unique or view.partly:
        return None
    kind, colour = rng.choice(unique)
    question = COLOUR_TEXT.replace("colour", rng.choice(_COLOUR_SPELLINGS))
    return question.format(kind), _capitalise(colour)


def _about(
    kind: TaskKind, target: Target, view: View, rng: random.Random
) -> tuple[str, str] | None:
    name = target.info.name
    if kind is TaskKind.POINT:
        return rng.choice(POINT_TEXTS).format(name), format_point([target.point])
    if kind is TaskKind.GROUNDING:
        return rng.choice(GROUNDING_TEXTS).format(name), format_box(target.box)
    if kind is TaskKind.AFFORDANCE:
        return rng.choice(AFFORDANCE_TEXTS).format(name), format_box(target.box)
    if view.gripper is None:
        return None
    path = reach_points(view.gripper, target.point)
    return rng.choice(TRAJECTORY_TEXTS).format(name), format_point(path)


def sample_question(
    view: View, target: Target, names: Sequence[str], rng: random.Random
) -> tuple[str, str] | None:
    """A prompt and its answer about `target` (or about the whole view), by `SHARES`.

    Returns None when the drawn question has no clean answer in this view. `names` are all names
    that a scene can have, for questions about absent objects.
    """
    kind = rng.choices(list(SHARES), list(SHARES.values()))[0]
    drawn = _ask(view, names, rng) if kind is TaskKind.ASK else _about(kind, target, view, rng)
    if drawn is None:
        return None
    text, answer = drawn
    if rng.random() < 0.5:
        text = _capitalise(text)
    return prompt_for(kind, text), answer
