# SPDX-License-Identifier: Apache-2.0
"""Score a model on new tabletop scenes, through the package's own engine, prompts and parser.

    python -m robobrain_ros.nano.evaluate --scenes 100

Scenes are of seeds that training never uses, 640x480 with the arm in view. Every object that
`views.visible_labels` lets training ask about is asked for: a point, a box, an affordance and,
where the gripper is in view, a trajectory. The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.engines import create_engine
from robobrain_ros.engines.base import Engine, GenerationRequest
from robobrain_ros.families import Think
from robobrain_ros.nano.dataset import Scene, describe
from robobrain_ros.nano.views import mask_box, visible_labels
from robobrain_ros.nano.validation import box_iou
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.tasks import AnswerError, TaskKind, build_prompt, parse_answer

FIRST_SEED = 1_000_000
WIDTH, HEIGHT = 640, 480
MAX_NEW_TOKENS = 128


@dataclass(frozen=True)
class Question:
    """A request about a scene. `label` is the object's, 0 when the answer is `text`."""

    scene: Scene
    kind: TaskKind
    prompt: str
    label: int
    text: str = ""


def evaluation_scenes(count: int, first_seed: int) -> Iterator[Scene]:
    """`count` scenes with the arm shown, rendered at 640x480."""
    tabletop = Tabletop(WIDTH, HEIGHT)
    try:
        seed = first_seed
        while count:
            tabletop.reset(seed)
            if tabletop.arm_shown:
                rgb, labels = tabletop.render_rgb_labels()
                yield Scene(rgb, labels, describe(tabletop, seed))
                count -= 1
            seed += 1
    finally:
        tabletop.close()


def questions_about(scene: Scene) -> Iterator[tuple[TaskKind, str, int, str]]:
    """Kind, text, label of the object meant (0 for none), and the right answer of a question."""
    objects = scene.info.objects
    labels, partly = visible_labels(scene.labels, len(objects))
    for label in labels:
        name = objects[label - 1].name
        yield TaskKind.POINT, f"Point to the {name}", label, ""
        yield TaskKind.GROUNDING, f"the {name}", label, ""
    for label in labels[:2]:
        name = objects[label - 1].name
        yield TaskKind.AFFORDANCE, f"pick up the {name}", label, ""
        if scene.info.gripper is not None:
            yield TaskKind.TRAJECTORY, f"move the gripper to the {name}", label, ""
        yield TaskKind.ASK, f"Is there a {name} on the table?", 0, "Yes"
    if not partly:
        yield TaskKind.ASK, "How many objects are on the table?", 0, str(len(labels))


def score(scene: Scene, kind: TaskKind, label: int, right: str, answer, sent) -> float:
    """1 or 0 for points (the last of a trajectory) in the mask and for texts; IoU for boxes."""
    if kind is TaskKind.ASK:
        return float(answer.text.strip().rstrip(".").lower() == right.lower())
    mask = scene.labels == label
    if kind in (TaskKind.GROUNDING, TaskKind.AFFORDANCE):
        return box_iou(answer.boxes[0], mask_box(mask))
    u, v = answer.points[-1 if kind is TaskKind.TRAJECTORY else 0]
    return _in_mask(mask, u, v)
