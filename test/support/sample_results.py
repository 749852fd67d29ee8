# SPDX-License-Identifier: Apache-2.0
"""Answers made by hand, for what shows them."""

from __future__ import annotations

from typing import Any

import numpy as np

from robobrain_ros.core.answered_request import AnsweredRequest
from robobrain_ros.core.parsing import Answer
from robobrain_ros.core.requests import FinishReason, Generation
from robobrain_ros.core.results import IDENTITY_QUATERNION, Result, failed_point
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.tf_projection import LiftedPoint, LiftedRegion, LiftStatus

FACING_THE_CAMERA = np.array([1.0, 0.0, 0.0, 0.0])
"""Orientation in the optical frame of a surface that is seen square on: its z axis is -z."""


def point(pixel: tuple[float, float] = (320, 240), depth: float = 1.0, **other: Any) -> LiftedPoint:
    """A point well measured, in the optical frame of a camera with f = 500 and c = (320, 240)."""
    u, v = pixel
    known = {
        "status": LiftStatus.OK,
        "position": np.array([(u - 320) / 500 * depth, (v - 240) / 500 * depth, depth]),
        "orientation": FACING_THE_CAMERA,
        "has_normal": True,
        "depth": depth,
        "valid_fraction": 1.0,
        "spread": 0.0,
        "covariance": np.eye(3) * 1e-6,
    }
    return LiftedPoint(pixel=np.array(pixel, float), **(known | other))


def between(pixel: tuple[float, float], depth: float = 1.0) -> LiftedPoint:
    """A waypoint that was put between others."""
    return point(pixel, depth, interpolated=True, has_normal=False, orientation=IDENTITY_QUATERNION)


def hole(pixel: tuple[float, float], status: LiftStatus = LiftStatus.DEPTH_HOLE) -> LiftedPoint:
    """A point without a position."""
    return failed_point(np.array(pixel, float), status)


def region(box: tuple[float, float, float, float], depth: float = 1.0) -> LiftedRegion:
    """A box around something 0.2 m wide, 0.1 m high and 0.3 m deep."""
    centre = point(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2), depth)
    assert centre.position is not None
    return LiftedRegion(
        box=np.array(box, float),
        centre=centre.position + [0, 0, 0.15],
        size=np.array([0.2, 0.1, 0.3]),
        box_orientation=IDENTITY_QUATERNION,
        **{name: value for name, value in vars(centre).items() if name != "interpolated"},
    )


def answer(
    kind: TaskKind,
    points: list[LiftedPoint] | None = None,
    regions: list[LiftedRegion] | None = None,
    text: str = "",
) -> Result:
    """A result as the pipeline gives it."""
    generation = Generation(text, FinishReason.EOS, ((640, 480),), 200, 9, 0, 0.1, 0.2, 0.3)
    return Result(Answer(kind, text=text), generation, points or [], regions or [], 0.01)


def answered(
    result: Result,
    text: str = "the can",
    frame: str = "table",
    camera_frame: str = "camera_color_optical_frame",
    seconds: float = 0.5,
) -> AnsweredRequest:
    """The request that a result answers."""
    stamp_ns = 12 * 10**9 + 34
    name = f"{result.answer.kind.value}_1"
    return AnsweredRequest(name, text, stamp_ns, camera_frame, frame, result, seconds)
