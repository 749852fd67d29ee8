# SPDX-License-Identifier: Apache-2.0
"""Responses of the services and the action, filled by the names of their fields."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

from std_msgs.msg import Header

from robobrain_ros import srv
from robobrain_ros.core.parsing import UnparsableAnswer
from robobrain_ros.core.requests import FinishReason
from robobrain_ros.core.results import Result
from robobrain_ros.core.tasks import TASKS, AnswerType, Task
from robobrain_ros.ros import conversions

COMMON = ("success", "error_code", "error_msg", "header", "answer", "thinking", "timing")
"""Fields of every response, which the properties of a model's JSON never fill."""

_SIZES = {f"{sign}int{bits}": (sign, bits) for sign in ("u", "") for bits in (8, 16, 32, 64)}


def service_type(task: Task) -> type:
    """The type of a task's service. Raises ImportError where it isn't built."""
    try:
        return getattr(srv, task.interface)
    except AttributeError:
        raise ImportError(
            f"srv/{task.interface}.srv of the task {task.kind.value} is not built: run `make "
            "build`, or `colcon build` on a robot."
        ) from None


def fill_response(response: Any, result: Result, header: Header) -> None:
    """Put a result into the response of a service or the action; header: of the 3D positions.

    Fields that the response doesn't have are left out. Raises UnparsableAnswer for JSON whose
    values don't fit the fields.
    """
    types = response.get_fields_and_field_types()
    is_data = TASKS[result.answer.kind].answer is AnswerType.DATA
    fields = {
        name: _typed(name, value, types[name]) if is_data else value
        for name, value in _fields(result, header).items()
        if name in types and name not in COMMON
    }
    for name, value in fields.items():
        setattr(response, name, value)
    response.answer = result.answer.text
    response.thinking = result.answer.thinking
    response.success = True


def _fields(result: Result, header: Header) -> dict[str, Any]:
    answer_type = TASKS[result.answer.kind].answer
    if answer_type is AnswerType.DATA:
        return dict(result.answer.data)
    if answer_type is AnswerType.REGIONS:
        regions = [conversions.lifted_region(region, header) for region in result.regions]
        return {"regions": regions}
    if answer_type is AnswerType.TEXT:
        return {"truncated": result.generation.finish is FinishReason.LENGTH}
    points = [conversions.lifted_point(point, header) for point in result.points]
    if answer_type is AnswerType.POINTS:
        return {"points": points}
    path = conversions.path(result.points, header)
    return {"points": points, "waypoints": points, "path": path}


def _typed(name: str, value: Any, kind: str) -> Any:
    """A JSON value as a field of the ROS type `kind` takes it: rclpy checks types by aborting."""
    if sequence := re.fullmatch(r"sequence<(.*)>", kind):
        if isinstance(value, list):
            return [_typed(name, item, sequence[1]) for item in value]
    elif (convert := _CONVERSIONS.get(kind)) and (converted := convert(value)) is not None:
        return converted
    raise UnparsableAnswer(
        f"The model's {name} is {value!r:.100}, which doesn't fit a field of type {kind}: narrow "
        "the task's JSON schema, turn constrained decoding on, or rephrase the request."
    )


def _integer(sign: str, bits: int) -> Callable[[Any], int | None]:
    low, high = (0, 2**bits - 1) if sign else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)

    def convert(value: Any) -> int | None:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        is_integer = isinstance(value, int) and not isinstance(value, bool)
        return value if is_integer and low <= value <= high else None

    return convert


def _real(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


_CONVERSIONS: dict[str, Callable[[Any], Any]] = {
    **{kind: _integer(*size) for kind, size in _SIZES.items()},
    "float": _real,
    "double": _real,
    "boolean": lambda value: value if isinstance(value, bool) else None,
    "string": lambda value: value if isinstance(value, str) else None,
}
