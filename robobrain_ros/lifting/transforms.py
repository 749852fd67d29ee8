# SPDX-License-Identifier: Apache-2.0
"""Rigid transforms as (4, 4) matrices, and their lookup in TF.

`a_from_b` takes points of frame b to frame a; quaternions are (x, y, z, w).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from robobrain_ros.core.arrays import FloatArray


def checked_rigid(matrix: ArrayLike) -> FloatArray:
    """Return a rigid transform as a (4, 4) array; raises ValueError for any other matrix."""
    rigid = np.asarray(matrix, dtype=np.float64)
    if rigid.shape != (4, 4) or not np.isfinite(rigid).all():
        raise ValueError(f"A rigid transform is a finite (4, 4) matrix, not {rigid.tolist()}.")
    rotation = rigid[:3, :3]
    if np.abs(rotation @ rotation.T - np.eye(3)).max() > 1e-4 or np.linalg.det(rotation) < 0:
        raise ValueError(f"A rigid transform needs a rotation matrix, not {rotation.tolist()}.")
    return rigid


def quaternion_from_matrix(matrix: ArrayLike) -> FloatArray:
    """Quaternions (..., 4), x, y, z, w with w >= 0, of rotations (..., 3, 3) or (..., 4, 4).

    4 q q^T is linear in the rotation, and its longest row is proportional to q (Shepperd 1978).
    Written out because scipy's Rotation alone takes 0.1 ms, a noticeable part of lifting a point.
    """
    rotation = np.asarray(matrix, dtype=np.float64)[..., :3, :3]
    products = rotation.reshape(-1, 9) @ _PRODUCTS + _ONES
    longest = products[:, ::5].argmax(axis=1)  # by the diagonals
    quaternions = products.reshape(-1, 4, 4)[np.arange(len(products)), longest]
    quaternions /= np.sqrt((quaternions**2).sum(axis=1, keepdims=True))
    quaternions[quaternions[:, 3] < 0] *= -1
    return quaternions.reshape(*rotation.shape[:-2], 4)


def _products() -> FloatArray:
    """Coefficients (9, 16) of the rotation's nine numbers in 4 q q^T."""
    added = np.zeros((3, 3, 4, 4))
    for i in range(3):
        j, k = (i + 1) % 3, (i + 2) % 3
        added[i, i] = np.diag(np.where(np.isin(range(4), (i, 3)), 1.0, -1.0))
        for row, column in ((i, j), (j, i)):
            added[row, column, i, j] = added[row, column, j, i] = 1.0
        added[k, j, i, 3] = added[k, j, 3, i] = 1.0
        added[j, k, i, 3] = added[j, k, 3, i] = -1.0
    return added.reshape(9, 16)


_PRODUCTS = _products()
_ONES = np.eye(4).ravel()


def matrix_from_transform(message: Any) -> FloatArray:
    """(4, 4) matrix of a geometry_msgs/Transform or TransformStamped.

    The result of lookup_transform(target, source) takes points of the source frame to the target
    frame. Raises ValueError for a zero quaternion and for numbers that are not finite.
    """
    transform = getattr(message, "transform", message)
    t, q = transform.translation, transform.rotation
    x, y, z, w = q.x, q.y, q.z, q.w
    square = x * x + y * y + z * z + w * w
    if not (square > 0 and math.isfinite(square + abs(t.x) + abs(t.y) + abs(t.z))):
        raise ValueError(
            f"translation {(t.x, t.y, t.z)}, quaternion {(x, y, z, w)}: all numbers must be "
            "finite, and the quaternion must not be zero"
        )
    # Same as scipy's Rotation.as_matrix, in a tenth of the time; every request needs several.
    k = 2.0 / square
    return np.array(
        [
            [1 - k * (y * y + z * z), k * (x * y - z * w), k * (x * z + y * w), t.x],
            [k * (x * y + z * w), 1 - k * (x * x + z * z), k * (y * z - x * w), t.y],
            [k * (x * z - y * w), k * (y * z + x * w), 1 - k * (x * x + y * y), t.z],
            [0.0, 0.0, 0.0, 1.0],
        ]
    )


class TransformUnavailable(Exception):
    """No transform between two frames at a time; the message names them and says what to do."""


class TransformLookup:
    """Non-blocking lookup of matrices in a tf2_ros buffer.

    buffer: a tf2_ros.Buffer. errors: the exceptions that its lookup_transform raises,
    (tf2_ros.TransformException,); passed in so that this module needs no ROS.
    """

    def __init__(self, buffer: Any, errors: tuple[type[Exception], ...]) -> None:
        self._buffer = buffer
        self._errors: tuple[type[Exception], ...] = (*errors, ValueError)

    def try_lookup(self, target_frame: str, source_frame: str, stamp: Any) -> FloatArray:
        """Return (4, 4) target_from_source at `stamp`, from the buffer's present content.

        stamp: a time as the buffer accepts it. Raises TransformUnavailable; retry while the
        transform may still arrive.
        """
        # tf2 raises for a frame that it has not received yet, even here.
        if target_frame == source_frame:
            return np.eye(4)
        return self._matrix(
            lambda: self._buffer.lookup_transform(target_frame, source_frame, stamp),
            f"No transform from '{source_frame}' to '{target_frame}' at the image's stamp",
        )

    def try_lookup_between(
        self, target_frame: str, target_stamp: Any, source_frame: str, source_stamp: Any, fixed: str
    ) -> FloatArray:
        """Return (4, 4) target_from_source, each frame at its own time.

        fixed: a frame that does not move in the world between the two times. Errors as of
        `try_lookup`.
        """
        return self._matrix(
            lambda: self._buffer.lookup_transform_full(
                target_frame, target_stamp, source_frame, source_stamp, fixed
            ),
            f"No transform from '{source_frame}' at the depth's stamp over '{fixed}' to "
            f"'{target_frame}' at the color image's",
        )

    def _matrix(self, look_up: Callable[[], Any], what: str) -> FloatArray:
        try:
            return matrix_from_transform(look_up())
        except self._errors as error:
            raise TransformUnavailable(
                f"{what}: {str(error).rstrip(' .')}. Check that every frame between the two is "
                "published, with the camera's clock, and that the frame names are correct."
            ) from error
