# SPDX-License-Identifier: Apache-2.0
"""Descriptions that fit exactly one object of a view: names, superlatives and relations.

Left and right are the image's, near and far the camera's. A description is used only when it is
clear: what it compares differs by a margin from that of every other object it could mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.nano.views import Seen, View
from robobrain_ros.sim.pool import TRAY

_SIDE_MARGIN = 0.04  # of the image's width
_DEPTH_MARGIN = 0.05  # metres
_GRIPPER_MARGIN = 0.06
_NEXT_MARGIN = 1.35  # ratio of distances
_NEXT = 0.25
_TALLER, _LARGER = 1.15, 1.3  # ratios
_ANYTHING = "object"


@dataclass(frozen=True)
class Referent:
    """The object that `words` describe, without their article, and the other one that they name."""

    words: str
    target: Seen
    anchor: Seen | None = None


def unique_names(view: View) -> Iterator[Referent]:
    """Objects by their kind or color alone, where that is enough."""
    if view.partly:
        return
    for one in view.seen:
        kind, color = one.info.kind, one.info.color
        if color and sum(other.info.kind == kind for other in view.seen) == 1:
            yield Referent(kind, one)
        if color and sum(other.info.color == color for other in view.seen) == 1:
            yield Referent(f"{color} {_ANYTHING}", one)


def referents(view: View) -> Iterator[Referent]:
    """Every description of an object by its place or size that is clear in this view."""
    if view.partly:
        return
    nouns: dict[str, list[Seen]] = {_ANYTHING: [o for o in view.seen if o.info.kind != TRAY]}
    for one in view.seen:
        nouns.setdefault(one.info.kind, []).append(one)
        if one.info.color:
            nouns.setdefault(f"{one.info.color} {_ANYTHING}", []).append(one)
    for noun, members in nouns.items():
        if len(members) > 1:
            yield from _superlatives(view, noun, members)
        for anchor in view.seen:
            others = [one for one in members if one is not anchor]
            if others and anchor.info.kind != TRAY:
                yield from _relatives(view, noun, others, anchor)
    for noun, members in nouns.items():
        for tray in (one for one in view.seen if one.info.kind == TRAY):
            on_it = [one for one in members if one.info.foot[2] > 0]
            if len(on_it) == 1:
                yield Referent(f"{noun} on the tray", on_it[0], tray)


def sides(view: View, seen: Sequence[Seen]) -> NDArray[np.float64]:
    """Return the horizontal positions (N,) of objects in widths of the image."""
    middles = np.array([one.info.foot for one in seen])
    return view.project(middles)[:, 0] / view.width


def depths(view: View, seen: Sequence[Seen]) -> NDArray[np.float64]:
    """Return the distances (N,) of objects along the table, away from the camera, meters."""
    return np.array([one.info.foot[:2] for one in seen]) @ view.away


def _superlatives(view: View, noun: str, members: Sequence[Seen]) -> Iterator[Referent]:
    side, depth = sides(view, members), depths(view, members)
    found = [
        (("leftmost {}", "{} on the far left"), _least(side, _SIDE_MARGIN)),
        (("rightmost {}", "{} on the far right"), _least(-side, _SIDE_MARGIN)),
        (("closest {}", "{} closest to the camera"), _least(depth, _DEPTH_MARGIN)),
        (("farthest {}", "{} farthest from the camera"), _least(-depth, _DEPTH_MARGIN)),
    ]
    heights = np.log([one.info.height for one in members])
    found.append((("tallest {}",), _least(-heights, np.log(_TALLER))))
    if noun == members[0].info.kind:
        sizes = np.log([one.info.radius**2 * one.info.height for one in members])
        found.append((("largest {}", "biggest {}"), _least(-sizes, np.log(_LARGER))))
        found.append((("smallest {}",), _least(sizes, np.log(_LARGER))))
    if view.gripper is not None:
        middles = np.array([o.info.foot for o in members])
        middles[:, 2] += [o.info.height / 2 for o in members]
        distance = np.linalg.norm(middles - np.array(view.info.gripper), axis=1)
        in_image = np.linalg.norm(view.project(middles) - view.gripper, axis=1)
        nearest = _least(distance, _GRIPPER_MARGIN)
        if nearest is not None and nearest == in_image.argmin():
            found.append((("{} nearest the gripper", "{} closest to the gripper"), nearest))
    for forms, index in found:
        if index is not None:
            for form in forms:
                yield Referent(form.format(noun), members[index])


def _relatives(view: View, noun: str, members: Sequence[Seen], anchor: Seen) -> Iterator[Referent]:
    name = anchor.info.name
    side = sides(view, members) - sides(view, [anchor])
    depth = depths(view, members) - depths(view, [anchor])
    found = [
        (("{} left of the {}", "{} to the left of the {}"), _only(-side, _SIDE_MARGIN)),
        (("{} right of the {}", "{} to the right of the {}"), _only(side, _SIDE_MARGIN)),
        (("{} in front of the {}",), _only(-depth, _DEPTH_MARGIN)),
        (("{} behind the {}",), _only(depth, _DEPTH_MARGIN)),
    ]
    feet = np.array([one.info.foot[:2] for one in members])
    distance = np.linalg.norm(feet - anchor.info.foot[:2], axis=1)
    nearest = _least(np.log(distance), np.log(_NEXT_MARGIN))
    if nearest is not None and len(members) > 1 and distance[nearest] < _NEXT:
        found.append((("{} next to the {}", "{} nearest to the {}"), nearest))
    for forms, index in found:
        if index is not None:
            for form in forms:
                yield Referent(form.format(noun, name), members[index], anchor)


def _least(values: NDArray[np.float64], margin: float) -> int | None:
    """Index of the least of the values (N,), None where another is within the margin."""
    first, *rest = np.argsort(values)
    if rest and values[rest[0]] - values[first] < margin:
        return None
    return int(first)


def _only(values: NDArray[np.float64], margin: float) -> int | None:
    """Index of the one value of (N,) above the margin, where all others are below its negative."""
    above = np.flatnonzero(values > margin)
    clear = (np.abs(values) > margin).all()
    return int(above[0]) if len(above) == 1 and clear else None
