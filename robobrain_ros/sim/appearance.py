# SPDX-License-Identifier: Apache-2.0
"""Choice of a random scene's objects, and appearance of objects, table and light."""

from __future__ import annotations

import colorsys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim.pool import (
    ARM_GROUP,
    COLORED_KINDS,
    FINISHES,
    HIDDEN_GROUP,
    TEXTURED_KINDS,
    TRAY,
    VISIBLE_GROUP,
    Instance,
    Pool,
)
from robobrain_ros.sim.variety import Variety

COLORS: Mapping[str, tuple[float, float, float]] = {
    "red": (0.0, 0.88, 0.80),
    "orange": (0.065, 0.95, 0.98),
    "yellow": (0.145, 0.88, 1.0),
    "green": (0.36, 0.80, 0.55),
    "blue": (0.60, 0.85, 0.75),
    "purple": (0.78, 0.70, 0.60),
    "white": (0.0, 0.0, 0.95),
    "black": (0.0, 0.0, 0.07),
}
"""Hue, saturation, value of each color's middle, 0..1."""

# Colored objects whose name would also fit a textured one, which has no color in its name.
_AMBIGUOUS: Mapping[tuple[str | None, str], str] = {
    ("red", "can"): "soda can",
    ("white", "box"): "milk carton",
    ("orange", "box"): "cereal box",
    ("red", "box"): "cereal box",
    ("yellow", "ball"): "lemon",
}


_STANDING = tuple(kind for kind in COLORED_KINDS if kind != TRAY)
_TRAY_SHARE = 0.35


@dataclass(frozen=True)
class Chosen:
    """An object of the pool with the name that it has in this scene."""

    name: str
    kind: str
    color: str | None
    instance: Instance


def choose_objects(pool: Pool, variety: Variety, rng: np.random.Generator) -> list[Chosen]:
    """4 to 8 differently named objects, with distractors of one kind and of one color.

    A third of the scenes have a tray, which comes first, and fewer other objects.
    """
    count = int(rng.integers(4, 9))
    favourite_kind, favourite_color = rng.choice(_STANDING), rng.choice(list(COLORS))
    chosen: list[Chosen] = []
    if rng.random() < _TRAY_SHARE:
        count = min(count, 6)
        color = str(rng.choice(list(COLORS)))
        chosen.append(_drawn(pool, variety, TRAY, color, rng))
    while len(chosen) < count:
        if rng.random() < 0.22:
            kind, color = str(rng.choice(TEXTURED_KINDS)), None
        else:
            kind = str(favourite_kind if rng.random() < 0.3 else rng.choice(_STANDING))
            color = str(favourite_color if rng.random() < 0.25 else rng.choice(list(COLORS)))
        candidate = _drawn(pool, variety, kind, color, rng)
        used = any(other.instance is candidate.instance for other in chosen)
        if not used and not _clashes(kind, color, chosen):
            chosen.append(candidate)
    return chosen


def _drawn(
    pool: Pool, variety: Variety, kind: str, color: str | None, rng: np.random.Generator
) -> Chosen:
    instances = [one for one in pool.instances[kind] if one.new == variety.new_objects]
    name = f"{color} {kind}" if color else kind
    return Chosen(name, kind, color, instances[int(rng.integers(len(instances)))])


def _clashes(kind: str, color: str | None, chosen: Sequence[Chosen]) -> bool:
    """Whether the name is taken, or would fit another object as well."""
    for other in chosen:
        if (other.kind, other.color) == (kind, color):
            return True
        if _AMBIGUOUS.get((color, kind)) == other.kind:
            return True
        if _AMBIGUOUS.get((other.color, other.kind)) == kind:
            return True
    return False


def paint(
    model: mujoco.MjModel, chosen: Sequence[Chosen], variety: Variety, rng: np.random.Generator
) -> None:
    """Show the chosen objects and no others, in their colors; dress table, floor and lights."""
    arm = model.geom_group == ARM_GROUP
    model.geom_group[model.geom_bodyid > 0] = HIDDEN_GROUP
    model.geom_group[arm] = ARM_GROUP
    for item in chosen:
        model.geom_group[list(item.instance.geoms)] = VISIBLE_GROUP
        finish = model.material(str(rng.choice(FINISHES))).id
        for geom in item.instance.painted:
            model.geom_rgba[geom] = (*_shade(item.color, rng), 1.0)
            model.geom_matid[geom] = finish
        if item.color is None:
            model.geom_rgba[list(item.instance.geoms), :3] = rng.uniform(0.85, 1.0)
    table, floor = model.geom("table").id, model.geom("floor").id
    model.geom_matid[table] = model.material(str(rng.choice(variety.textures))).id
    model.geom_rgba[table, :3] = rng.uniform(0.65, 0.95) * rng.uniform(0.93, 1.0, 3)
    model.geom_rgba[floor, :3] = np.clip(rng.uniform(0.15, 0.7) + rng.normal(0, 0.04, 3), 0, 1)
    _light(model, rng)


def _shade(color: str | None, rng: np.random.Generator) -> tuple[float, float, float]:
    """RGB near the color's middle, too near to be taken for another color."""
    if color is None:
        raise ValueError("an object with painted parts needs a color")
    hue, saturation, value = COLORS[color]
    if saturation == 0:
        saturation = abs(rng.normal(0, 0.015))
        value = np.clip(value + rng.normal(0, 0.025), 0.03, 1)
    else:
        hue += np.clip(rng.normal(0, 0.008), -0.016, 0.016)
        saturation = np.clip(saturation + rng.normal(0, 0.05), 0.55, 1)
        value = np.clip(value + rng.normal(0, 0.05), 0.45, 1)
    return colorsys.hsv_to_rgb(hue % 1, saturation, value)


def _light(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    key, fill = model.light("key").id, model.light("fill").id
    strengths = rng.uniform(0.35, 0.65), rng.uniform(0.05, 0.25)
    for light, low, strength in zip((key, fill), (35, 25), strengths, strict=True):
        towards = direction(rng.uniform(0, 2 * np.pi), np.radians(rng.uniform(low, 80)))
        model.light_pos[light] = 2 * towards
        model.light_dir[light] = -towards
        warmth = rng.uniform(0.9, 1.0, 3)
        model.light_diffuse[light] = strength * warmth
        model.light_specular[light] = 0.3 * strength
    model.vis.headlight.ambient[:] = rng.uniform(0.32, 0.5)
    model.vis.headlight.diffuse[:] = rng.uniform(0.05, 0.15)
    model.vis.headlight.specular[:] = 0


def direction(azimuth: float, elevation: float) -> NDArray[np.float64]:
    """Unit vector (3,) of angles in radians: azimuth from +x about +z, elevation above x-y."""
    flat = np.cos(elevation)
    return np.array([flat * np.cos(azimuth), flat * np.sin(azimuth), np.sin(elevation)])
