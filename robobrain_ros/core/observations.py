# SPDX-License-Identifier: Apache-2.0
"""Observations: an image, and the scene that its pixels are lifted in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from robobrain_ros.core.arrays import FloatArray, RgbImage
from robobrain_ros.core.results import LiftedPoint, LiftedRegion


class Scene(Protocol):
    """Lifts pixels of one image to 3D; `lifting.scene.DepthScene` is the real one."""

    def points(
        self, pixels: FloatArray, rgb: RgbImage, predicted_depths: FloatArray | None = None
    ) -> list[LiftedPoint]:
        """Lift pixels (N, 2), one result each.

        predicted_depths: (N,) m, the model's own estimates, for where the sensor has none.
        """
        ...

    def boxes(self, boxes: FloatArray) -> list[LiftedRegion]:
        """Lift boxes (M, 4) x1, y1, x2, y2 in pixels, one result each."""
        ...

    def path(self, waypoints: Sequence[LiftedPoint]) -> list[LiftedPoint]:
        """Place the waypoints of a trajectory, lifted by `points`, along its 3D path.

        Raises ValueError for a path that this scene has no room for.
        """
        ...


@dataclass(frozen=True, eq=False)
class Observation:
    """A color image (H, W, 3) uint8 RGB and the scene that its pixels are lifted in."""

    rgb: RgbImage
    scene: Scene
