# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as plain tuples of floats: for one at a time this is faster than numpy."""

from __future__ import annotations

import math
from typing import NamedTuple

Vector = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Rigid(NamedTuple):
    """x -> rotation * x + translation; rotation is a unit quaternion x, y, z, w."""

    translation: Vector = (0.0, 0.0, 0.0)
    rotation: Quaternion = (0.0, 0.0, 0.0, 1.0)

    def __matmul__(self, other: Rigid) -> Rigid:
        """The transform that applies other first."""
        moved = rotate(self.rotation, other.translation)
        translation = tuple(a + b for a, b in zip(moved, self.translation))
        return Rigid(translation, multiply(self.rotation, other.rotation))

    def inverse(self) -> Rigid:
        x, y, z, w = self.rotation
        inverse_rotation = (-x, -y, -z, w)
        return Rigid(
            tuple(-a for a in rotate(inverse_rotation, self.translation)), inverse_rotation
        )

    def interpolate(self, other: Rigid, ratio: float) -> Rigid:
        """self at ratio 0, other at ratio 1: linear in translation, slerp in rotation."""
        translation = tuple(
            a + ratio * (b - a) for a, b in zip(self.translation, other.translation)
        )
        return Rigid(translation, slerp(self.rotation, other.rotation, ratio))


def multiply(a: Quaternion, b: Quaternion) -> Quaternion:
    """The rotation that applies b first."""
    ax, ay, az, aw = a
    bx, by, bz, bw = b
    return (
        aw * bx + ax * bw + ay * bz - az * by,
        aw * by - ax * bz + ay * bw + az * bx,
        aw * bz + ax * by - ay * bx + az * bw,
        aw * bw - ax * bx - ay * by - az * bz,
    )


def rotate(q: Quaternion, v: Vector) -> Vector:
    x, y, z, _ = multiply(multiply(q, (*v, 0.0)), (-q[0], -q[1], -q[2], q[3]))
    return (x, y, z)


def normalize(q: Quaternion) -> Quaternion:
    norm = math.sqrt(sum(a * a for a in q))
    return tuple(a / norm for a in q)


def canonical(q: Quaternion) -> Quaternion:
    """Of q and -q, which are the same rotation, the one that tf2 keeps and hands out.

    As tf2's Matrix3x3::getRotation: w > 0 up to a turn of 120 degrees, beyond that the
    largest of x, y and z. It decides which way a half turn is interpolated.
    """
    leading = q[3] if abs(q[3]) > 0.5 else max(q[:3], key=abs)
    return q if leading >= 0.0 else tuple(-a for a in q)


def slerp(a: Quaternion, b: Quaternion, ratio: float) -> Quaternion:
    """The rotation on the shorter arc from a to b."""
    cosine = sum(p * q for p, q in zip(a, b))
    if cosine < 0.0:
        cosine, b = -cosine, tuple(-q for q in b)
    angle = math.acos(min(cosine, 1.0))
    # Below this the sines cannot be divided, and the arc is as good as its chord.
    if angle < 1e-6:
        weights = (1.0 - ratio, ratio)
    else:
        weights = (
            math.sin((1.0 - ratio) * angle) / math.sin(angle),
            math.sin(ratio * angle) / math.sin(angle),
        )
    return normalize(tuple(weights[0] * p + weights[1] * q for p, q in zip(a, b)))
