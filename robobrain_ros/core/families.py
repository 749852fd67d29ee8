# SPDX-License-Identifier: Apache-2.0
"""Model families as data: prompts, thinking, coordinate frame.

The prompts are part of each model's interface: it was trained on them, so they are kept exactly as
its authors publish them (RoboBrain's `inference.py`, Qwen-VL's cookbooks).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import PurePath
from types import MappingProxyType
from typing import Literal

from robobrain_ros.core.tasks import TASKS, AnswerType, TaskKind, Think, fill_prompt


class CoordinateFrame(Enum):
    """The frame of an answer's numbers; x runs right and y down from the image's top left."""

    SENT_PIXELS = "sent_pixels"  # pixels of the image as sent to the model
    RELATIVE_1000 = "relative_1000"  # 0 to 1000 across the image
    RELATIVE_1 = "relative_1"  # 0 to 1
    RELATIVE_100 = "relative_100"  # 0 to 100


AxisOrder = Literal["xy", "yx"]


@dataclass(frozen=True)
class Family:
    """The behaviour that models of one family share.

    `prompts` has the family's own prompt templates by task; for a task without one, the task's
    holds. `openings` is the text that opens the assistant's turn (written for the model, so it is
    no part of what the model generates). `patch_factor` is the number of pixels (patch size times
    merge size) that the sides of images sent to the model are multiples of. `affordance_is_point`
    and `has_depth` (in trajectories) are where answers differ from RoboBrain 2.0's.
    """

    name: str
    model_types: tuple[str, ...]
    prompts: Mapping[TaskKind, str]
    frame: CoordinateFrame
    axis_order: AxisOrder
    openings: Mapping[Think, str]
    thinks: bool
    patch_factor: int
    affordance_is_point: bool = False
    has_depth: bool = False

    def build_prompt(self, kind: TaskKind, **values: str) -> str:
        """The prompt of a task with its placeholders filled; see `tasks.fill_prompt`."""
        return fill_prompt(self.template(kind), values)

    def template(self, kind: TaskKind) -> str:
        """The prompt template of a task."""
        return self.prompts.get(kind, TASKS[kind].prompt)

    def answer_type(self, kind: TaskKind) -> AnswerType:
        """The answer type of a task; an affordance given as a point is POINTS here."""
        if kind is TaskKind.AFFORDANCE and self.affordance_is_point:
            return AnswerType.POINTS
        return TASKS[kind].answer


class UnknownFamily(ValueError):
    """No family fits the model; the message lists the choices."""


_ROBOBRAIN2_PROMPTS = MappingProxyType(
    {
        TaskKind.POINT: (
            "{text}. Your answer should be formatted as a list of tuples, "
            "i.e. [(x1, y1), (x2, y2), ...], where each tuple contains the x and y coordinates of "
            "a point satisfying the conditions above. The coordinates should indicate the "
            "normalized pixel locations of the points in the image."
        ),
        TaskKind.AFFORDANCE: (
            'You are a robot using the joint control. The task is "{text}". '
            "Please predict a possible affordance area of the end effector."
        ),
        TaskKind.TRAJECTORY: (
            'You are a robot using the joint control. The task is "{text}". '
            "Please predict up to 10 key trajectory points to complete the task. "
            "Your answer should be formatted as a list of tuples, i.e. [[x1, y1], [x2, y2], ...], "
            "where each tuple contains the x and y coordinates of a point."
        ),
        TaskKind.GROUNDING: (
            "Please provide the bounding box coordinate of the region this sentence describes: "
            "{text}."
        ),
    }
)

# RoboBrain 2.5 has no affordance task of its own: its authors point at "the affordance area for …".
_ROBOBRAIN2_5_POINT = (
    "{text}. Please provide its 2D coordinates. Your answer should be formatted as a tuple, "
    "i.e. [(x, y)], where the tuple contains the x and y coordinates of a point satisfying the "
    "conditions above."
)
_ROBOBRAIN2_5_PROMPTS = MappingProxyType(
    {
        TaskKind.POINT: _ROBOBRAIN2_5_POINT,
        TaskKind.AFFORDANCE: "the affordance area for " + _ROBOBRAIN2_5_POINT,
        TaskKind.TRAJECTORY: (
            "Please predict 3D end-effector-centric waypoints to complete the task successfully. "
            'The task is "{text}". Your answer should be formatted as a list of tuples, '
            "i.e., [(x1, y1, d1), (x2, y2, d2), ...], where each tuple contains the x and y "
            "coordinates and the depth of the point."
        ),
        TaskKind.GROUNDING: _ROBOBRAIN2_PROMPTS[TaskKind.GROUNDING],
    }
)

# The base models are trained on boxes and points in JSON; the robot tasks are put in those terms.
_QWEN_PROMPTS = MappingProxyType(
    {
        TaskKind.POINT: (
            "Locate {text} with points. Report the point coordinates in JSON format like this: "
            '[{"point_2d": [x, y], "label": "..."}]'
        ),
        TaskKind.AFFORDANCE: (
            'The task of a robot is "{text}". Locate the part that its gripper should touch. '
            'Report the bbox coordinates in JSON format like this: [{"bbox_2d": [x1, y1, x2, y2]}]'
        ),
        TaskKind.TRAJECTORY: (
            'The task of a robot is "{text}". Locate up to 10 points, in order, along the path '
            "of its gripper. Report the point coordinates in JSON format like this: "
            '[{"point_2d": [x, y]}]'
        ),
        TaskKind.GROUNDING: (
            "Locate {text}. Report the bbox coordinates in JSON format like this: "
            '[{"bbox_2d": [x1, y1, x2, y2], "label": "..."}]'
        ),
    }
)

_SILENT = MappingProxyType({Think.DEFAULT: "", Think.OFF: "", Think.ON: ""})
# Without thinking, perception is as good and many times faster: the default.
_THINKING = MappingProxyType(
    {
        Think.DEFAULT: "<think></think><answer>",
        Think.OFF: "<think></think><answer>",
        Think.ON: "<think>",
    }
)

FAMILIES: Mapping[str, Family] = MappingProxyType(
    {
        family.name: family
        for family in (
            Family(
                name="robobrain2",
                model_types=("qwen2_5_vl",),
                prompts=_ROBOBRAIN2_PROMPTS,
                frame=CoordinateFrame.SENT_PIXELS,
                axis_order="xy",
                openings=_THINKING,
                thinks=True,
                patch_factor=28,
            ),
            Family(
                name="robobrain2_3b",
                model_types=("qwen2_5_vl",),
                prompts=_ROBOBRAIN2_PROMPTS,
                frame=CoordinateFrame.SENT_PIXELS,
                axis_order="xy",
                openings=_SILENT,
                thinks=False,
                patch_factor=28,
            ),
            Family(
                name="robobrain2_5",
                model_types=("qwen3_vl",),
                prompts=_ROBOBRAIN2_5_PROMPTS,
                frame=CoordinateFrame.RELATIVE_1000,
                axis_order="xy",
                openings=_SILENT,
                thinks=False,
                patch_factor=32,
                affordance_is_point=True,
                has_depth=True,
            ),
            Family(
                name="qwen3_vl",
                model_types=("qwen3_vl",),
                prompts=_QWEN_PROMPTS,
                frame=CoordinateFrame.RELATIVE_1000,
                axis_order="xy",
                openings=_SILENT,
                thinks=False,
                patch_factor=32,
            ),
            Family(
                name="qwen2_5_vl",
                model_types=("qwen2_5_vl",),
                prompts=_QWEN_PROMPTS,
                frame=CoordinateFrame.SENT_PIXELS,
                axis_order="xy",
                openings=_SILENT,
                thinks=False,
                patch_factor=28,
            ),
        )
    }
)

MODEL_TYPES = tuple(
    sorted({model_type for family in FAMILIES.values() for model_type in family.model_types})
)
_HIDDEN_SIZE_3B = 2048  # RoboBrain2.0-3B; 7B has 3584, 32B 5120


def detect_family(
    model_type: str, model_name: str, hidden_size: int | None, override: str = "auto"
) -> Family:
    """Choose the family of a checkpoint.

    `model_type` is the checkpoint's `config.model_type`, `model_name` its hub id or path (the last
    part that names RoboBrain or Qwen decides), `hidden_size` the language model's width, which
    tells RoboBrain2.0-3B (no thinking) from 7B and 32B. `override` names a family, or is "auto".
    Raises UnknownFamily when no family fits, or when the name doesn't decide it: a wrong guess
    would send the wrong prompts, silently.
    """
    if override != "auto":
        return _checked_override(model_type, override)
    if model_type not in MODEL_TYPES:
        raise UnknownFamily(
            f'the architecture "{model_type}" is not supported: use a model of type '
            f"{' or '.join(MODEL_TYPES)}, or set the family whose prompts and coordinates it has"
        )
    for part in reversed(PurePath(model_name).parts):
        if "robobrain" in part.lower():
            return FAMILIES[_robobrain_name(model_type, part, hidden_size)]
        if "qwen" in part.lower():
            return FAMILIES[model_type]
    choices = [name for name, family in FAMILIES.items() if model_type in family.model_types]
    raise UnknownFamily(
        f'"{model_name}" does not tell with which prompts this {model_type} model was trained: '
        f"set the family to one of {', '.join(choices)}"
    )


def _robobrain_name(model_type: str, part: str, hidden_size: int | None) -> str:
    if model_type == "qwen3_vl":
        return "robobrain2_5"
    is_3b = (
        re.search(r"(?<!\d)3b", part.lower()) is not None
        if hidden_size is None
        else hidden_size <= _HIDDEN_SIZE_3B
    )
    return "robobrain2_3b" if is_3b else "robobrain2"


def _checked_override(model_type: str, override: str) -> Family:
    family = FAMILIES.get(override)
    if family is None:
        raise UnknownFamily(
            f'there is no model family "{override}": choose one of {", ".join(FAMILIES)}, or auto'
        )
    # Other architectures may have been trained with a family's prompts.
    if model_type in MODEL_TYPES and model_type not in family.model_types:
        raise UnknownFamily(
            f'the family "{override}" is for models of type {" or ".join(family.model_types)}, '
            f'and this one is "{model_type}"'
        )
    return family
