# SPDX-License-Identifier: Apache-2.0
"""Registry of the tasks: prompt, answer type, needs, and interface of each kind of request.

Services, the action, the client, prompts, parsing and constrained decoding are driven by `TASKS`;
docs/tasks.md shows how to add one.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from types import MappingProxyType
from typing import Any


class TaskKind(str, Enum):
    """Names of the tasks, in logs, diagnostics and TF frames; `Infer.action` has TASK_<NAME>."""

    POINT = "point"
    AFFORDANCE = "affordance"
    TRAJECTORY = "trajectory"
    GROUNDING = "grounding"
    ASK = "ask"


class Think(IntEnum):
    """Whether the model reasons aloud first; the numbers are those of the `think` request field."""

    DEFAULT = 0
    OFF = 1
    ON = 2


class AnswerType(Enum):
    """Type that an answer is parsed into, and the response fields that it fills."""

    POINTS = "points"  # `points`
    WAYPOINTS = "waypoints"  # `waypoints` (`points` of the action) and `path`
    REGIONS = "regions"  # boxes: `regions`
    TEXT = "text"  # `answer`, which every response has
    DATA = "data"  # JSON by the task's schema: the fields that its properties are named after

    @property
    def has_places(self) -> bool:
        """Whether the answer names places in the image."""
        return self not in (AnswerType.TEXT, AnswerType.DATA)


@dataclass(frozen=True)
class Task:
    """One kind of request.

    interface: name of the type in srv/; its snake case is the service's name. fields: request field
    that fills each placeholder of a prompt. prompt: for families that have none of their own for
    the task. schema: JSON schema of an object, for AnswerType.DATA. max_items: most points, 0 = as
    many as the answer format takes. long_answer: hundreds of tokens, which may wait for short ones.
    """

    kind: TaskKind
    interface: str
    answer: AnswerType
    fields: Mapping[str, str] = field(default_factory=lambda: {"text": "query"})
    prompt: str = "{text}"
    schema: Mapping[str, Any] | None = None
    max_items: int = 0
    needs_image: bool = True
    needs_depth: bool = True
    long_answer: bool = False

    @property
    def service(self) -> str:
        """The service's name below the node's."""
        return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", self.interface).lower()


_MOST_WAYPOINTS = 10  # the number that RoboBrain's prompt names

TASKS: Mapping[TaskKind, Task] = MappingProxyType(
    {
        task.kind: task
        for task in (
            Task(TaskKind.POINT, "PointTo", AnswerType.POINTS),
            Task(
                TaskKind.AFFORDANCE,
                "GetAffordance",
                AnswerType.REGIONS,
                fields={"text": "task"},
            ),
            Task(
                TaskKind.TRAJECTORY,
                "PredictTrajectory",
                AnswerType.WAYPOINTS,
                fields={"text": "task"},
                max_items=_MOST_WAYPOINTS,
            ),
            Task(TaskKind.GROUNDING, "GroundObject", AnswerType.REGIONS),
            Task(
                TaskKind.ASK,
                "Ask",
                AnswerType.TEXT,
                needs_depth=False,
                long_answer=True,
            ),
        )
    }
)


def fill_prompt(prompt: str, values: Mapping[str, str]) -> str:
    """Put values into the placeholders `{name}` of a prompt, in one pass: braces in the values, and
    all others in the prompt, stay as they are.

    White space around the values is dropped, and so are their final full stops where the prompt
    goes on with its own punctuation.
    """

    def value(match: re.Match[str]) -> str:
        text = values[match[1]].strip()
        return text if prompt == match[0] else text.rstrip(". \t\r\n")

    names = "|".join(map(re.escape, values))
    return re.sub(rf"\{{({names})\}}", value, prompt)
