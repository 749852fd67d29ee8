# SPDX-License-Identifier: Apache-2.0
"""The newest pose of each TF frame, for the 3D view's initial viewpoint."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from geometry_msgs.msg import TransformStamped
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from robobrain_ros.tf_projection import matrix_from_transform

Matrix = NDArray[np.float64]

_ASIDE = np.radians(35)
_BACK = 1.05


@dataclass(frozen=True, eq=False)
class Eye:
    """Viewpoint of a 3D view: position, target and up direction (3,), in the view's frame."""

    position: Matrix
    target: Matrix
    up: Matrix


class Frames:
    """The tree of the frames received so far."""

    def __init__(self) -> None:
        self._parents: dict[str, tuple[str, Matrix]] = {}

    def __contains__(self, frame: str) -> bool:
        return frame in self._parents

    def add(self, message: TransformStamped) -> None:
        """Raises ValueError for what is no transform."""
        child, parent = frame_name(message.child_frame_id), frame_name(message.header.frame_id)
        self._parents[child] = parent, matrix_from_transform(message.transform)

    def root(self, frame: str) -> tuple[str, Matrix]:
        """The frame above `frame` that has no parent, and the pose (4, 4) of `frame` in it."""
        pose, seen = np.eye(4), {frame}
        while frame in self._parents and self._parents[frame][0] not in seen:
            frame, parent_from_child = self._parents[frame]
            pose = parent_from_child @ pose
            seen.add(frame)
        return frame, pose

    def eye(self, camera: str, distance: float) -> Eye:
        """Beside the camera and a little behind it, in the root's frame, looking where it looks.

        camera: its optical frame. distance: of what it looks at, metres.
        """
        root, pose = self.root(camera)
        # A camera's own frame doesn't define up; the image's up is the best guess.
        up = np.array([0.0, -1.0, 0.0] if root == camera else [0.0, 0.0, 1.0])
        target = pose[:3, 3] + distance * pose[:3, 2]
        away = Rotation.from_rotvec(_ASIDE * up).apply(pose[:3, 3] - target)
        return Eye(target + _BACK * away, target, up)


def frame_name(frame_id: str) -> str:
    """The name without the slash in front, which old drivers still send."""
    return frame_id.lstrip("/")
