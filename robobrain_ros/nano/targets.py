# SPDX-License-Identifier: Apache-2.0
"""Dense auxiliary targets for the image tokens of a view, which speed up training."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.nano.architecture import TOKEN_PIXELS
from robobrain_ros.nano.questions import Question
from robobrain_ros.nano.talk import ABSENT
from robobrain_ros.nano.views import View
from robobrain_ros.sim.pool import KINDS
from robobrain_ros.sim.tabletop import ARM_CODE, COLORS, PART_BIT, TABLE_CODE

IGNORED = -100
CLASSES = (*KINDS, "gripper", "table", "arm", "elsewhere")
GRIPPER, TABLE, ARM, ELSEWHERE = range(len(KINDS), len(CLASSES))
BACKGROUND = (TABLE, ARM, ELSEWHERE)
TEXTURED, NO_COLOR = len(COLORS), len(COLORS) + 1
COLOR_CLASSES = len(COLORS) + 2
NUMBERS = 10
"""x, y of the point; x1, y1, x2, y2 of the box; the same of the part to grasp."""
MEASURES = 3
"""Distance from the camera in metres; radius and height in decimetres."""
_COLOR_NAMES = tuple(COLORS)
# An image token is trained on an object that covers at least this many of its 784 pixels.
_MIN_TOKEN_COVER = 20
_CODES = 12  # elsewhere, up to nine objects, table, arm
_TABLE_INDEX, _ARM_INDEX = 10, 11


def token_targets(
    view: View, best: NDArray[np.int64], background: NDArray[np.int64]
) -> dict[str, NDArray[np.generic]]:
    """Return the targets of the N image tokens in raster order; best, background: of `dominant`.

    Returns:
        kind: (N,) int64, of `CLASSES`; color: (N,) int64, of `COLORS`, `TEXTURED` or `NO_COLOR`.
        Both are `IGNORED` where an object that is too little visible covers the token.
        numbers: (N, 10) int64 pixels (`NUMBERS`), measures: (N, 3) float32 (`MEASURES`) of the
        object; `IGNORED` where there is none. The gripper has a point only.
        middle: (N,) float32, 1 where the token holds its object's point, else 0.
    """
    count = len(best)
    columns = view.width // TOKEN_PIXELS
    kind = np.choose(background, (ELSEWHERE, TABLE, ARM)).astype(np.int64)
    color = np.full(count, NO_COLOR, np.int64)
    numbers = np.full((count, NUMBERS), IGNORED, np.int64)
    measures = np.full((count, MEASURES), IGNORED, np.float32)
    middle = np.zeros(count, np.float32)
    if view.gripper is not None:
        token = (
            int(view.gripper[1]) // TOKEN_PIXELS * columns + int(view.gripper[0]) // TOKEN_PIXELS
        )
        if best[token] == 0:
            kind[token], numbers[token, :2] = GRIPPER, np.floor(view.gripper)
    kind[best > 0] = color[best > 0] = IGNORED
    for one in view.seen:
        covered = best == one.label
        kind[covered] = KINDS.index(one.info.kind)
        name = one.info.color
        color[covered] = _COLOR_NAMES.index(name) if name else TEXTURED
        numbers[covered] = [*one.point, *one.box, *(one.grasp or (IGNORED,) * 4)]
        away = np.linalg.norm(np.array(one.info.foot) - view.pose[:3, 3])
        measures[covered] = away, 10 * one.info.radius, 10 * one.info.height
        middle[one.point[1] // TOKEN_PIXELS * columns + one.point[0] // TOKEN_PIXELS] = 1
    return {
        "kind": kind,
        "color": color,
        "numbers": numbers,
        "measures": measures,
        "middle": middle,
    }


def meant_tokens(view: View, best: NDArray[np.int64], question: Question) -> NDArray[np.bool_]:
    """Return which of the N image tokens, and of one more for "none", a question is about.

    best: each token's object, of `dominant`. All False where it is about none in particular.
    """
    meant = np.zeros(len(best) + 1, bool)
    if question.label > 0:
        meant[:-1] = best == question.label
    elif question.spot is not None:
        x, y = question.spot
        meant[y // TOKEN_PIXELS * (view.width // TOKEN_PIXELS) + x // TOKEN_PIXELS] = True
    elif question.label == ABSENT:
        meant[-1] = True
    return meant


def dominant(view: View) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each token's object (label, 0 for none) and background (0 elsewhere, 1 table, 2 arm)."""
    table = np.zeros(256, np.uint8)
    labels = np.arange(1, _TABLE_INDEX)
    table[labels] = table[labels | PART_BIT] = labels
    table[TABLE_CODE], table[ARM_CODE] = _TABLE_INDEX, _ARM_INDEX
    rows, columns = view.height // TOKEN_PIXELS, view.width // TOKEN_PIXELS
    cells = table[view.codes].reshape(rows, TOKEN_PIXELS, columns, TOKEN_PIXELS)
    cells = cells.transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    index = cells + _CODES * np.arange(len(cells))[:, None]
    counts = np.bincount(index.ravel(), minlength=_CODES * len(cells)).reshape(-1, _CODES)
    objects = counts[:, 1:_TABLE_INDEX]
    best = np.where(objects.max(1) >= _MIN_TOKEN_COVER, objects.argmax(1) + 1, 0)
    return best, counts[:, [0, _TABLE_INDEX, _ARM_INDEX]].argmax(1)
