# SPDX-License-Identifier: Apache-2.0
"""Triangle meshes of everyday objects, made of profiles turned about the z axis.

All are in metres, z up, standing on z = 0 with their axis at the origin. Faces are
counter-clockwise as seen from outside.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

# A lathe's pole is a tiny ring: MuJoCo merges nothing, so its normals stay vertical.
_POLE = 1e-4


@dataclass(frozen=True)
class Mesh:
    """vertices (N, 3) float64 in metres; faces (M, 3) int64 indices into them."""

    vertices: NDArray[np.float64]
    faces: NDArray[np.int64]

    def shaped(self, factors: tuple[float, float, float], taper: float = 0.0) -> Mesh:
        """Return this mesh, larger by the factors of x, y and z about the origin.

        taper: how much wider it also gets per metre of height, its foot narrower by as much as
        its top at 0.1 m is wider.
        """
        vertices = self.vertices * factors
        vertices[:, :2] *= 1 + taper * (vertices[:, 2:] - 0.05)
        return Mesh(vertices, self.faces)


def join(*meshes: Mesh) -> Mesh:
    """One mesh with the triangles of all."""
    offsets = np.cumsum([0] + [len(mesh.vertices) for mesh in meshes[:-1]])
    faces = [mesh.faces + offset for mesh, offset in zip(meshes, offsets, strict=True)]
    return Mesh(np.concatenate([mesh.vertices for mesh in meshes]), np.concatenate(faces))


def _grid_faces(rows: int, columns: int) -> NDArray[np.int64]:
    """Triangles of a (rows x columns) vertex grid whose columns wrap around."""
    row, column = np.meshgrid(np.arange(rows - 1), np.arange(columns), indexing="ij")
    a = row * columns + column
    b = row * columns + (column + 1) % columns
    c, d = b + columns, a + columns
    return np.stack([np.stack([a, b, c], -1), np.stack([a, c, d], -1)], -2).reshape(-1, 3)


def lathe(profile: Sequence[tuple[float, float]], segments: int = 32) -> Mesh:
    """Surface of revolution of (radius, z) points, listed from the bottom outwards and up."""
    radius, height = np.array(profile, dtype=np.float64).T
    angle = 2 * np.pi * np.arange(segments) / segments
    ring = np.stack([np.cos(angle), np.sin(angle)], -1)
    xy = np.maximum(radius, _POLE)[:, None, None] * ring
    z = np.broadcast_to(height[:, None, None], (*xy.shape[:2], 1))
    vertices = np.concatenate([xy, z], -1).reshape(-1, 3)
    return Mesh(vertices, _grid_faces(len(profile), segments))


def _handle(x: float, z: float, width: float, height: float, thickness: float) -> Mesh:
    """Half an elliptic torus in the x-z plane, bulging towards +x from (x, 0, z)."""
    bend = np.linspace(-np.pi / 2, np.pi / 2, 13)[:, None]
    turn = 2 * np.pi * np.arange(8) / 8
    along, across = thickness * np.cos(turn), thickness * np.sin(turn)
    vertices = np.stack(
        [
            x + (width + along) * np.cos(bend),
            np.broadcast_to(across, (len(bend), len(turn))),
            z + (height + along) * np.sin(bend),
        ],
        -1,
    ).reshape(-1, 3)
    return Mesh(vertices, _grid_faces(len(bend), len(turn)))


def mug() -> Mesh:
    """A mug without `mug_handle`."""
    outside = [(0, 0), (0.036, 0), (0.039, 0.004), (0.039, 0.092)]
    inside = [(0.0375, 0.094), (0.0355, 0.092), (0.035, 0.008), (0, 0.008)]
    return lathe(outside + inside)


def mug_handle() -> Mesh:
    """The handle of `mug`, towards +x."""
    return _handle(0.037, 0.048, 0.026, 0.027, 0.0055)


def bowl() -> Mesh:
    """A bowl up to `bowl_rim`."""
    outside = [(0, 0), (0.030, 0), (0.033, 0.004), (0.052, 0.020), (0.062, 0.037)]
    inside = [(0.0575, 0.0375), (0.048, 0.023), (0.028, 0.009), (0, 0.008)]
    return lathe(outside + inside)


def bowl_rim() -> Mesh:
    """The upper third of `bowl`."""
    return lathe([(0.062, 0.037), (0.068, 0.058), (0.0655, 0.059), (0.0575, 0.0375)])


def bottle() -> Mesh:
    """A bottle up to `bottle_neck`."""
    return lathe(
        [(0, 0), (0.030, 0), (0.033, 0.004), (0.033, 0.110), (0.030, 0.125), (0.022, 0.141)]
    )


def bottle_neck() -> Mesh:
    """The neck of `bottle`, in its place; `bottle_cap` fits on it."""
    return lathe([(0.022, 0.141), (0.0145, 0.156), (0.0130, 0.176), (0, 0.176)])


def bottle_cap() -> Mesh:
    """The cap of `bottle`, in its place."""
    return lathe([(0, 0.176), (0.016, 0.176), (0.016, 0.194), (0.0145, 0.196), (0, 0.196)])


def can() -> Mesh:
    """The painted side of a drinks can; `can_rims` closes it."""
    return lathe([(0, 0.006), (0.028, 0.006), (0.033, 0.012), (0.033, 0.103), (0.0285, 0.111)])


def can_rims() -> Mesh:
    """The bare metal at the bottom and the top of `can`, in its place."""
    bottom = lathe([(0, 0.001), (0.026, 0), (0.028, 0.006), (0, 0.0065)])
    top = lathe([(0.0285, 0.111), (0.028, 0.115), (0.0265, 0.115), (0.026, 0.112), (0, 0.112)])
    return join(bottom, top)


def cone() -> Mesh:
    """The lower half of a cone; `cone_tip` stands on it."""
    return lathe([(0, 0), (0.040, 0), (0.040, 0.002), (0.0213, 0.052)])


def cone_tip() -> Mesh:
    """The upper half of `cone`, in its place."""
    return lathe([(0.0213, 0.052), (0.002, 0.104), (0, 0.105)])


TRAY_SIZE = (0.220, 0.150)
"""Length and width of the floor of `tray_floor`, metres."""
TRAY_THICKNESS = 0.006


def tray_floor() -> Mesh:
    """Return the floor of a tray, on which objects can stand."""
    return cuboid(*TRAY_SIZE, TRAY_THICKNESS)


def tray_border() -> Mesh:
    """The border around `tray_floor`."""
    length, width = TRAY_SIZE
    wall, height = 0.007, 0.020
    sides = []
    for x, y, along, across in (
        (0, (width + wall) / 2, length + 2 * wall, wall),
        (0, -(width + wall) / 2, length + 2 * wall, wall),
        ((length + wall) / 2, 0, wall, width),
        (-(length + wall) / 2, 0, wall, width),
    ):
        side = cuboid(along, across, height)
        sides.append(Mesh(side.vertices + (x, y, 0), side.faces))
    return join(*sides)


def ball() -> Mesh:
    """A ball."""
    polar = np.linspace(0, np.pi, 17)
    return lathe([(0.034 * np.sin(p), 0.034 * (1 - np.cos(p))) for p in polar])


def cuboid(length: float, width: float, height: float) -> Mesh:
    """Axis-aligned box; each side has its own vertices, so its edges stay sharp."""
    corners = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (0, 1)], float)
    corners *= (length / 2, width / 2, height)
    sides = [(0, 1, 3, 2), (4, 6, 7, 5), (0, 4, 5, 1), (2, 3, 7, 6), (0, 2, 6, 4), (1, 5, 7, 3)]
    first = 4 * np.arange(len(sides))[:, None, None]
    faces = first + np.array([(0, 1, 2), (0, 2, 3)])
    return Mesh(corners[np.ravel(sides)], faces.reshape(-1, 3))


def read_stl(path: Path) -> Mesh:
    """Binary STL file, in the file's own frame and units; every triangle has its own vertices."""
    record = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("attribute", "<u2")])
    corners = np.fromfile(path, record, offset=84)["corners"].astype(np.float64)
    return Mesh(corners.reshape(-1, 3), np.arange(3 * len(corners)).reshape(-1, 3))


def clustered(mesh: Mesh, cell: float) -> Mesh:
    """Fewer triangles: the vertices in each cube of edge `cell` (m) become their mean.

    Rossignac and Borrel, "Multi-resolution 3D approximations for rendering complex scenes" (1993).
    """
    _, cluster = np.unique(np.floor(mesh.vertices / cell), axis=0, return_inverse=True)
    cluster = cluster.reshape(-1)
    members = np.bincount(cluster)[:, None]
    vertices = np.stack([np.bincount(cluster, axis) for axis in mesh.vertices.T], -1) / members
    faces = cluster[mesh.faces]
    collapsed = (faces == np.roll(faces, 1, axis=1)).any(1)
    faces = faces[~collapsed]
    _, first = np.unique(np.sort(faces, axis=1), axis=0, return_index=True)
    return Mesh(vertices, faces[np.sort(first)])
