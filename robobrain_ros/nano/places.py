# SPDX-License-Identifier: Apache-2.0
"""Free places on the table: where something can be put, relative to the objects that stand there.

A place has one spot that training answers with, and a region that any right answer lies in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.nano.dataset import ObjectInfo
from robobrain_ros.nano.views import Seen, View
from robobrain_ros.sim.pool import TABLE_HALF_SIZE, TRAY, plural
from robobrain_ros.sim.tabletop import PART_BIT, TABLE_CODE
from robobrain_ros.sim.truth import inner_point

_ROOM = 0.03  # radius of what would be put there, metres
_LEAST_CLEAR = 0.01  # of a right answer from every footprint
_GAPS = (0.02, 0.04, 0.06, 0.08)
_BESIDE = 0.25  # farther than this from an object is not beside it
_WIDEST_BETWEEN = 0.35
_LEAST_TRAY_SHARE = 0.0015  # of the image

Region = Callable[[], NDArray[np.bool_]]


@dataclass(frozen=True)
class Place:
    """A free place. words: "left of the red mug"; about: the objects that they name.

    spot: a pixel (x, y) in it; middle: that spot in the table's frame, (3,) metres. region: makes
    the mask (H, W) of all pixels of free table that the words describe.
    """

    words: str
    about: tuple[Seen, ...]
    spot: tuple[int, int]
    middle: NDArray[np.float64]
    region: Region


def places(view: View) -> Iterator[Place]:
    """Every free place of a view that can be described."""
    for anchor in view.seen:
        if anchor.info.kind == TRAY:
            yield from _on_tray(view, anchor)
        else:
            yield from _beside(view, anchor)
    for first, second in _pairs(view):
        yield from _between(view, first, second)


def _beside(view: View, anchor: Seen) -> Iterator[Place]:
    info = anchor.info
    if info.foot[2] > 0:
        return
    for words, direction in (
        ("left of", -view.rightwards),
        ("right of", view.rightwards),
        ("in front of", -view.away),
        ("behind", view.away),
    ):
        reach = info.radius + _ROOM + np.array(_GAPS)
        spots = np.array(info.foot[:2]) + reach[:, None] * direction
        spot = _first_free(view, spots)
        if spot is not None:
            region = _beside_region(view, info, direction)
            yield Place(f"{words} the {info.name}", (anchor,), *_shown(view, spot), region)


def _beside_region(view: View, info: ObjectInfo, direction: NDArray[np.float64]) -> Region:
    def inside(ground: NDArray[np.float64]) -> NDArray[np.bool_]:
        offset = ground - info.foot[:2]
        along = offset @ direction
        across = np.abs(offset @ (-direction[1], direction[0]))
        return (along > info.radius / 2) & (along < info.radius + _BESIDE) & (across < along)

    return lambda: _table_where(view, inside)


def _pairs(view: View) -> Iterator[tuple[Seen, Seen]]:
    standing = [one for one in view.seen if one.info.kind != TRAY and one.info.foot[2] == 0]
    for index, first in enumerate(standing):
        for second in standing[index + 1 :]:
            yield first, second


def _between(view: View, first: Seen, second: Seen) -> Iterator[Place]:
    a, b = np.array(first.info.foot[:2]), np.array(second.info.foot[:2])
    distance = float(np.linalg.norm(b - a))
    gap = distance - first.info.radius - second.info.radius
    if not 2 * _ROOM + 0.02 < gap < _WIDEST_BETWEEN:
        return
    direction = (b - a) / distance
    spot = _first_free(view, a + (first.info.radius + gap / 2) * direction[None])
    if spot is None:
        return

    def inside(ground: NDArray[np.float64]) -> NDArray[np.bool_]:
        offset = ground - a
        along = offset @ direction
        across = np.abs(offset @ (-direction[1], direction[0]))
        width = max(0.05, first.info.radius, second.info.radius)
        ends = (along > first.info.radius) & (along < distance - second.info.radius)
        return ends & (across < width)

    words = f"between the {first.info.name} and the {second.info.name}"
    if first.info.kind == second.info.kind:
        kinds = [one.info.kind for one in view.seen]
        if kinds.count(first.info.kind) == 2 and not view.partly:
            words = f"between the two {plural(first.info.kind)}"
    shown = _shown(view, spot)
    yield Place(words, (first, second), *shown, lambda: _table_where(view, inside))


def _on_tray(view: View, tray: Seen) -> Iterator[Place]:
    floor = view.codes == (tray.label | PART_BIT)
    if floor.sum() < _LEAST_TRAY_SHARE * floor.size:
        return
    x, y = inner_point(floor)
    middle = np.array([*view.on_table(np.array([[x + 0.5, y + 0.5]]))[0], 0.0])
    yield Place(f"on the {tray.info.name}", (tray,), (x, y), middle, lambda: floor)


def _first_free(view: View, spots: NDArray[np.float64]) -> NDArray[np.float64] | None:
    """The first of the places (N, 2) that has room for something and is seen."""
    on_table = (np.abs(spots) < np.array(TABLE_HALF_SIZE[:2]) - _ROOM).all(1)
    for spot in spots[on_table & (_clearance(view, spots) > _ROOM)]:
        u, v = np.floor(view.project(np.array([[*spot, 0.0]]))[0]).astype(int)
        inside = 0 <= u < view.width and 0 <= v < view.height
        if inside and view.codes[v, u] == TABLE_CODE:
            return spot
    return None


def _shown(view: View, spot: NDArray[np.float64]) -> tuple[tuple[int, int], NDArray[np.float64]]:
    middle = np.array([*spot, 0.0])
    u, v = np.floor(view.project(middle[None])[0]).astype(int)
    return (int(u), int(v)), middle


def _clearance(view: View, ground: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance (N,) of places (N, 2) from the nearest footprint, metres."""
    feet = np.array([item.foot[:2] for item in view.info.objects])
    radii = np.array([item.radius for item in view.info.objects])
    return (np.linalg.norm(ground[:, None] - feet, axis=2) - radii).min(1)


def _table_where(
    view: View, inside: Callable[[NDArray[np.float64]], NDArray[np.bool_]]
) -> NDArray[np.bool_]:
    """Pixels (H, W) of visible table, clear of all objects, whose places are `inside`."""
    rows, columns = np.nonzero(view.codes == TABLE_CODE)
    ground = view.on_table(np.column_stack([columns, rows]) + 0.5)
    fits = inside(ground) & (_clearance(view, ground) > _LEAST_CLEAR)
    region = np.zeros(view.codes.shape, bool)
    region[rows[fits], columns[fits]] = True
    return region
