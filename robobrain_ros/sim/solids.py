# SPDX-License-Identifier: Apache-2.0
"""The pool's objects as rigid bodies: convex collision pieces and masses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import mujoco
import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.sim.pool import TRAY, Instance, Part

MASSES: Mapping[str, float] = {
    "mug": 0.30,
    "bowl": 0.25,
    "bottle": 0.40,
    "can": 0.35,
    "cube": 0.10,
    "ball": 0.10,
    "box": 0.20,
    "cone": 0.10,
    TRAY: 0.50,
    "soda can": 0.35,
    "milk carton": 0.50,
    "bread": 0.30,
    "cereal box": 0.30,
    "lemon": 0.12,
}
"""Typical masses of the kinds in kilograms (drinks half full)."""

_SEGMENTS = 32  # of a lathe, see meshes.py
_SECTOR = 2  # segments to a piece of a wall: its chords are then at most 2 % of the radius inside
_HANDLE_RING = 8  # vertices around a mug's handle
_BOX_VERTICES = 24  # of a cuboid

# Of hollow objects: rows of their lathes' profiles that make one convex piece each: first the
# bottom, then the rings, which are cut into sectors.
_BOTTOMS = {"mug": (0, 1, 2, 6, 7), "bowl": (0, 1, 2, 7, 8)}
_RINGS = {"mug": ((2, 3, 4, 5, 6),), "bowl": ((2, 3, 6, 7), (3, 4, 5, 6))}
_BOWL_WALL = 0.005  # metres, of the largest bowl
_RIM_ROWS = (0, 1, 2, 3)


def convex_pieces(model: mujoco.MjModel, instance: Instance) -> list[FloatArray]:
    """Vertices (N, 3) of convex pieces, metres in the object's frame, that make up an instance.

    A mug, a bowl and a tray are hollow: their walls are pieces of their own. Everything else is
    one hull for each of its geoms.
    """
    shells = _shells(model, instance)
    if instance.kind in _RINGS:
        rows = shells[0].reshape(-1, _SEGMENTS, 3)
        pieces = [rows[list(_BOTTOMS[instance.kind])].reshape(-1, 3)]
        for ring in _RINGS[instance.kind]:
            pieces += _sectors(rows[list(ring)])
        if instance.kind == "mug":
            return pieces + list(_along(shells[1].reshape(-1, _HANDLE_RING, 3)))
        return pieces + list(_sectors(shells[1].reshape(-1, _SEGMENTS, 3)[list(_RIM_ROWS)]))
    if instance.kind == TRAY:
        return [shells[0], *shells[1].reshape(-1, _BOX_VERTICES, 3)]
    return shells


def _shells(model: mujoco.MjModel, instance: Instance) -> list[FloatArray]:
    """The vertices (N, 3) of each of an instance's geoms."""
    counts = [int(model.mesh_vertnum[model.geom_dataid[geom]]) for geom in instance.geoms]
    return np.split(instance.vertices, np.cumsum(counts)[:-1])


def _sectors(ring: FloatArray) -> Iterator[FloatArray]:
    """Cut rows (R, segments, 3) of a lathe into pieces of a few segments."""
    for start in range(0, _SEGMENTS, _SECTOR):
        columns = (start + np.arange(_SECTOR + 1)) % _SEGMENTS
        yield ring[:, columns].reshape(-1, 3)


def _along(rings: FloatArray) -> Iterator[FloatArray]:
    """Cut a bent rod, (R, around, 3), between its rings."""
    for first, second in zip(rings[:-1], rings[1:], strict=True):
        yield np.concatenate([first, second])


def grip_width(model: mujoco.MjModel, instance: Instance) -> float:
    """Return the width in meters that must fit between the fingers to hold an instance.

    This is the narrowest width of the part to grasp, seen from above and by its true shape; of a
    bowl its wall; infinite without such a part.
    """
    if instance.kind == "bowl":
        return _BOWL_WALL
    shells = zip(_shells(model, instance), instance.parts, strict=True)
    grasped = [shell for shell, part in shells if part is Part.GRASP]
    if not grasped:
        return float("inf")
    points = np.concatenate(grasped)[:, :2]
    angle = np.radians(np.arange(0, 180, 3))
    along = points @ np.stack([np.cos(angle), np.sin(angle)])
    return float((along.max(0) - along.min(0)).min())
