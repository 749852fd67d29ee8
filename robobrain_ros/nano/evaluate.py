# SPDX-License-Identifier: Apache-2.0
"""Score a model on new tabletop scenes, through the package's own engine, prompts and parser.

    python -m robobrain_ros.nano.evaluate --scenes 100

Scenes are of seeds that training never uses, 640x480 with the arm in view. Every object that
`views.visible_labels` lets training ask about is asked for, as a point and as a box; two objects
of each scene also in the smaller tasks. The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from robobrain_ros.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.engines import create_engine
from robobrain_ros.engines.base import Engine, Generation, GenerationRequest, generate
from robobrain_ros.families import Think
from robobrain_ros.forms import answer_form
from robobrain_ros.nano.dataset import NAMES, Scene, describe
from robobrain_ros.nano.questions import COLOUR_TEXT, COUNT_TEXT, PRESENCE_TEXT
from robobrain_ros.nano.views import visible_labels
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import box_iou, mask_box
from robobrain_ros.tasks import Answer, AnswerError, TaskKind, build_prompt, parse_answer

FIRST_SEED = 1_000_000
WIDTH, HEIGHT = 640, 480
_MAX_NEW_TOKENS = 128
_SECONDARY_OBJECTS = 2
_FIGURES = {
    TaskKind.POINT: "point in the mask",
    TaskKind.GROUNDING: "box IoU",
    TaskKind.AFFORDANCE: "box IoU",
    TaskKind.TRAJECTORY: "end in the mask",
    TaskKind.ASK: "right answer",
}


@dataclass(frozen=True)
class Question:
    """A request; `label` is the object meant, or 0 when the right answer is `text`.

    `topic` tells questions of one task apart in the table.
    """

    kind: TaskKind
    request: str
    label: int = 0
    text: str = ""
    topic: str = ""

    @property
    def row(self) -> str:
        return f"{self.kind.value} {self.topic}".strip()


def evaluation_scenes(count: int, first_seed: int = FIRST_SEED) -> Iterator[Scene]:
    """`count` scenes with the arm shown, rendered at 640x480, from consecutive seeds."""
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


def questions_about(scene: Scene) -> Iterator[Question]:
    """Every question that the evaluation asks about a scene."""
    objects = scene.info.objects
    labels, partly = visible_labels(scene.labels, len(objects))
    for label in labels:
        name = objects[label - 1].name
        yield Question(TaskKind.POINT, f"Point to the {name}", label)
        yield Question(TaskKind.GROUNDING, f"the {name}", label)
    for label in labels[:_SECONDARY_OBJECTS]:
        name = objects[label - 1].name
        yield Question(TaskKind.AFFORDANCE, f"pick up the {name}", label)
        if scene.info.gripper is not None:
            yield Question(TaskKind.TRAJECTORY, f"move the gripper to the {name}", label)
        yield Question(TaskKind.ASK, PRESENCE_TEXT.format(name), text="Yes", topic="presence")
    if partly:
        return
    absent = [name for name in NAMES if name not in {item.name for item in objects}]
    for name in random.Random(scene.info.seed).sample(absent, _SECONDARY_OBJECTS):
        yield Question(TaskKind.ASK, PRESENCE_TEXT.format(name), text="No", topic="presence")
    yield Question(TaskKind.ASK, COUNT_TEXT, text=str(len(labels)), topic="count")
    kinds = [objects[label - 1].kind for label in labels]
    for label in labels:
        item = objects[label - 1]
        if item.colour and kinds.count(item.kind) == 1:
            question = COLOUR_TEXT.format(item.kind)
            yield Question(TaskKind.ASK, question, text=item.colour, topic="colour")


def score(
    question: Question, scene: Scene, answer: Answer, engine: Engine, sent: tuple[int, int]
) -> float:
    """Score 0 to 1 of an answer; `sent` is the (width, height) of the image that the model saw."""
    if question.kind is TaskKind.ASK:
        return float(answer.text.strip(" .").lower() == question.text.lower())
    mask = scene.labels == question.label
    frame = (engine.family.frame, engine.family.axis_order, sent, (WIDTH, HEIGHT))
    if question.kind in (TaskKind.GROUNDING, TaskKind.AFFORDANCE):
        boxes, inside = boxes_to_image_pixels(answer.boxes, *frame)
        return box_iou(boxes[0], mask_box(mask)) if len(boxes) and inside[0] else 0.0
    points, inside = to_image_pixels(answer.points, *frame)
    index = -1 if question.kind is TaskKind.TRAJECTORY else 0
    column, row = np.floor(points[index]).astype(int)
    return float(bool(inside[index]) and bool(mask[row, column]))


def ask(engine: Engine, scene: Scene, question: Question) -> tuple[float, Generation]:
    """Put a question through prompt, engine, parser and coordinate mapping; score the answer.

    An answer that the parser refuses scores 0.
    """
    prompt = build_prompt(question.kind, question.request, engine.family)
    opening = engine.family.openings[Think.DEFAULT]
    form = answer_form(question.kind, engine.family)
    request = GenerationRequest(scene.rgb, prompt, opening, _MAX_NEW_TOKENS, form)
    generation = generate(engine, request)
    try:
        answer = parse_answer(question.kind, generation.text, engine.family, opening)
    except AnswerError:
        return 0.0, generation
    return score(question, scene, answer, engine, generation.sent_size), generation


def evaluate(engine: Engine, scenes: Sequence[Scene]) -> dict[str, list[float]]:
    """Scores of every question about `scenes`, by `Question.row`."""
    scores: dict[str, list[float]] = defaultdict(list)
    for scene in scenes:
        for question in questions_about(scene):
            scores[question.row].append(ask(engine, scene, question)[0])
    return scores


def main() -> None:
    """Print a table per quantization and the RESULT line of the first."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="nano", help="a directory, a hub id, or nano")
    parser.add_argument("--scenes", type=int, default=100)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--quantizations", default="none,int8,nf4")
    parser.add_argument("--quantized-scenes", type=int, default=20, help="but for the first")
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    scenes = list(evaluation_scenes(options.scenes, options.first_seed))
    result = None
    print("| quantization | task | figure | n | mean |\n|---|---|---|---|---|")
    for quantization in options.quantizations.split(","):
        engine = create_engine(options.model, quantization=quantization, device=options.device)
        chosen = scenes if result is None else scenes[: options.quantized_scenes]
        start = time.monotonic()
        scores = evaluate(engine, chosen)
        seconds = (time.monotonic() - start) / sum(map(len, scores.values()))
        engine.close()
        for row, values in scores.items():
            figure = _FIGURES[TaskKind(row.split()[0])]
            print(f"| {quantization} | {row} | {figure} | {len(values)} | {np.mean(values):.3f} |")
        print(f"| {quantization} | all | ms a question | | {seconds * 1e3:.0f} |", flush=True)
        result = result or {
            "points_in_mask": round(float(np.mean(scores["point"])), 4),
            "box_iou": round(float(np.mean(scores["grounding"])), 4),
            "n": len(scores["point"]) + len(scores["grounding"]),
        }
    print("RESULT", json.dumps(result))


if __name__ == "__main__":
    main()
