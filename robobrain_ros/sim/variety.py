# SPDX-License-Identifier: Apache-2.0
"""Distributions of scenes: the one that models train on, and a shifted one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Range = tuple[float, float]


@dataclass(frozen=True)
class Variety:
    """The distribution of random scenes.

    textures: of the table, by robosuite's names. new_objects: whether the objects are the instances
    that TRAINING never shows. The camera's vertical field of view and roll are in degrees, its
    elevation in degrees above the table; distance is in metres for a field of view of 42 degrees,
    and keeps as much of the table in view for others. Each is one of several ranges.
    """

    textures: tuple[str, ...]
    new_objects: bool
    field_of_view: tuple[Range, ...]
    elevation: tuple[Range, ...]
    roll: tuple[Range, ...]
    distance: tuple[Range, ...]


def draw(ranges: Sequence[Range], rng: np.random.Generator) -> float:
    """A number from one of the ranges, each as likely as the others."""
    return float(rng.uniform(*ranges[int(rng.integers(len(ranges)))]))


TRAINING = Variety(
    textures=(
        "light-wood",
        "dark-wood",
        "wood-varnished-panels",
        "gray-woodgrain",
        "light-gray-floor-tile",
        "gray-felt",
        "gray-plaster",
        "cream-plaster",
        "yellow-plaster",
        "white-plaster",
        "steel-brushed",
        "green-wood",
        "red-wood",
        "clay",
    ),
    new_objects=False,
    field_of_view=((38.0, 56.0),),
    elevation=((30.0, 65.0),),
    roll=((-4.0, 4.0),),
    distance=((0.78, 1.05),),
)

SHIFTED = Variety(
    textures=("wood-tiles", "pink-plaster", "blue-wood", "steel-scratched", "light-gray-plaster"),
    new_objects=True,
    field_of_view=((33.0, 38.0), (56.0, 62.0)),
    elevation=((26.0, 30.0), (65.0, 71.0)),
    roll=((-8.0, -4.0), (4.0, 8.0)),
    distance=((0.74, 0.78), (1.05, 1.15)),
)
