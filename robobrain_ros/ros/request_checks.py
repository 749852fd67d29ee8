# SPDX-License-Identifier: Apache-2.0
"""Validation of requests: what can be refused is refused before anything waits."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import Family
from robobrain_ros.core.input_text import checked_text
from robobrain_ros.core.pipeline import Query
from robobrain_ros.core.tasks import TASKS, TaskKind, Think
from robobrain_ros.ros import conversions
from robobrain_ros.ros.camera import nanoseconds

MAX_NAME = 1000
"""Characters in the name of a frame; each look-up while it is waited for repeats them."""


def query_from(
    kind: TaskKind | None,
    text: str,
    request: Any,
    family: Family,
    cameras: Collection[str],
    max_new_tokens: int,
) -> Query:
    """Check a request of a service or the action; kind: None for a task that there isn't.

    Raises BrainError BAD_REQUEST.
    """
    if kind is None:
        raise bad_request(
            f"There is no task {request.task}: use a constant of Infer, TASK_POINT, …."
        )
    text = checked_text(text)
    if request.stamp.sec < 0:
        raise bad_request(f"The stamp is {request.stamp.sec} s: it must be positive, or 0.")
    if len(request.target_frame) > MAX_NAME:
        raise bad_request(f"target_frame has more than {MAX_NAME} characters: no frame's name has.")
    if request.think not in list(Think):
        raise bad_request(f"think is {request.think}: use THINK_DEFAULT, THINK_OFF or THINK_ON.")
    if request.think == Think.ON and not family.thinks:
        raise bad_request(f"Models of the family {family.name} don't think: use THINK_DEFAULT.")
    if kind is TaskKind.ASK and (request.images or request.window_s):
        raise bad_request("Several images and time windows are not supported yet: send one image.")
    if request.camera and request.camera not in cameras:
        names = ", ".join(cameras)
        raise bad_request(
            f"There is no camera '{request.camera}': the parameter cameras has {names}."
        )
    fields = TASKS[kind].fields.items()
    values = {name: getattr(request, field) for name, field in fields if name != "text"}
    max_points = getattr(request, "max_points", 0)
    return Query(kind, text, Think(request.think), max_points, max_new_tokens, values)


def timeout_from(request: Any, default_s: float) -> float:
    """Seconds that a request may take. Raises BrainError BAD_REQUEST for a negative timeout."""
    if conversions.is_zero(request.timeout):
        return default_s
    seconds = nanoseconds(request.timeout) / 1e9
    if seconds <= 0:
        raise bad_request(f"The timeout is {seconds} s: it must be positive, or 0 for the default.")
    return seconds


def has_own_image(request: Any) -> bool:
    """Whether the request brings an image to use instead of the camera's."""
    return bool(request.image.data or request.image.width or request.image.height)


def bad_request(sentence: str) -> BrainError:
    """An error for a request that must not be sent again as it is."""
    return BrainError(ErrorCode.BAD_REQUEST, sentence)
