# SPDX-License-Identifier: Apache-2.0
"""Texts with every word that the shipped model's questions, answers and thoughts have."""

from __future__ import annotations

from robobrain_ros.nano import talk, wordings
from robobrain_ros.nano.dataset import NAMES
from robobrain_ros.nano.wordings import capitalised
from robobrain_ros.sim.pool import KINDS, plural
from robobrain_ros.sim.tabletop import COLORS

_DESCRIPTIONS = (
    "leftmost object",
    "rightmost object",
    "the far left of the far right",
    "closest farthest tallest largest biggest smallest object",
    "nearest to the camera",
    "from the camera",
    "closest to the gripper",
    "next to the",
    "in front of the",
    "behind the",
    "to the left of the",
    "to the right of the",
    "between the two",
    "on the tray",
    "and the",
)
_THOUGHTS = (
    "The mug is at (1, 2).",
    "I see the can, the mug.",
    "The gripper is at (1, 2).",
    "There are no cans on the table.",
    "The object is the mug.",
    talk.absence("mug"),
)
_REPEATS = 20  # of what isn't asked in many wordings


def vocabulary_texts() -> list[str]:
    """Return the texts that the tokenizer is trained on; prompts and formats are added apart."""
    templates = (
        *wordings.POINT,
        *wordings.SPOTS,
        *wordings.FREE,
        *wordings.BOX,
        *wordings.AFFORDANCE,
        *wordings.REACH,
        *wordings.GO,
    )
    named = [
        form(template.format(name))
        for template in templates
        for name in NAMES
        for form in (str, capitalised)
    ]
    nouns = [*KINDS, *map(plural, KINDS)]
    questions = [
        template.format(noun)
        for templates in (talk.PRESENCE, talk.COUNT, talk.COLOR, talk.WHAT)
        for template in templates
        for noun in nouns
    ]
    sides = [t.format("mug", side, "can") for t in talk.SIDE for side in ("left", "right")]
    questions += sides
    words = ["Yes", "No", *(name.capitalize() for name in (*COLORS, *nouns))]
    rare = [*_DESCRIPTIONS, *questions, *map(capitalised, questions), *_THOUGHTS, *words]
    return named + rare * _REPEATS
