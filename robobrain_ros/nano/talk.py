# SPDX-License-Identifier: Apache-2.0
"""Questions about a view that are answered in a word or two, and the thoughts that lead there."""

from __future__ import annotations

import random
from typing import NamedTuple

import numpy as np

from robobrain_ros.nano.referents import Referent, sides
from robobrain_ros.nano.views import Seen, View
from robobrain_ros.nano.wordings import capitalised
from robobrain_ros.sim.pool import COLORED_KINDS, TRAY, plural
from robobrain_ros.sim.tabletop import COLORS

ABSENT = -1


class Said(NamedTuple):
    """Question, answer, the thought before the answer, and the label of the object that it is
    about: 0 where it is about none in particular, ABSENT where there is no such object.
    """

    text: str
    answer: str
    thought: str
    label: int = 0


PRESENCE = ("is there a {} on the table?", "is there a {}?", "do you see a {}?")
SIDE = ("is the {} {} of the {}?", "is the {} to the {} of the {}?")
COUNT = ("how many {} are there?", "how many {} are on the table?")
COLOR = (
    "what colour is the {}?",
    "what color is the {}?",
    "which colour is the {}?",
    "which color is the {}?",
)
WHAT = ("what is the {}?",)
_SIDE_MARGIN = 0.04  # of the image's width


def presence(name: str, one: Seen | None, rng: random.Random) -> Said:
    """Whether there is such an object; `one` is None when there is not."""
    text = rng.choice(PRESENCE).format(name)
    if one is None:
        return Said(text, "No", absence(name), ABSENT)
    return Said(text, "Yes", where(one), one.label)


def where(*objects: Seen) -> str:
    """ "The red mug is at (x, y)." for each of the objects."""
    return " ".join(f"The {o.info.name} is at ({o.point[0]}, {o.point[1]})." for o in objects)


def absence(name: str) -> str:
    """The thought before saying that there is no such object."""
    return f"There is no {name} on the table."


def side(view: View, rng: random.Random) -> Said | None:
    """Whether one object is left or right of another."""
    if len(view.seen) < 2:
        return None
    first, second = rng.sample(view.seen, 2)
    of_first, of_second = sides(view, [first, second])
    if abs(of_first - of_second) < _SIDE_MARGIN:
        return None
    asked = rng.choice(("left", "right"))
    true = "left" if of_first < of_second else "right"
    text = rng.choice(SIDE).format(first.info.name, asked, second.info.name)
    return Said(text, "Yes" if asked == true else "No", where(first, second), first.label)


def count(view: View, rng: random.Random) -> Said | None:
    """Return a question for the number of objects of a kind, of a color, or in all (without trays).

    Half of the kinds and colors asked about occur several times.
    """
    if view.partly:
        return None
    kinds = [one.info.kind for one in view.seen]
    colors = [one.info.color for one in view.seen if one.info.color]
    choice = rng.random()
    if choice < 0.2:
        noun, found = "objects", [one for one in view.seen if one.info.kind != TRAY]
    elif choice < 0.65:
        several = [kind for kind in kinds if kinds.count(kind) > 1]
        kind = rng.choice(several if several and rng.random() < 0.5 else COLORED_KINDS)
        noun, found = plural(kind), [one for one in view.seen if one.info.kind == kind]
    else:
        several = [color for color in colors if colors.count(color) > 1]
        color = rng.choice(several if several and rng.random() < 0.5 else tuple(COLORS))
        noun = f"{color} objects"
        found = [one for one in view.seen if one.info.color == color]
    order = np.argsort([one.point[0] for one in found]) if found else []
    names = [f"the {found[i].info.name}" for i in order]
    thought = f"I see {', '.join(names)}." if names else f"There are no {noun} on the table."
    return Said(rng.choice(COUNT).format(noun), str(len(found)), thought)


def color(view: View, rng: random.Random) -> Said | None:
    """Return a question for the color of the only object of a kind."""
    kinds = [one.info.kind for one in view.seen]
    unique = [one for one in view.seen if one.info.color and kinds.count(one.info.kind) == 1]
    if not unique or view.partly:
        return None
    one = rng.choice(unique)
    text = rng.choice(COLOR).format(one.info.kind)
    thought = f"The {one.info.kind} is at ({one.point[0]}, {one.point[1]})."
    return Said(text, str(one.info.color).capitalize(), thought, one.label)


def what(described: Referent, thought: str) -> Said:
    """Return a question for the name of a described object."""
    name, label = capitalised(described.target.info.name), described.target.label
    return Said(WHAT[0].format(described.words), name, thought, label)
