# SPDX-License-Identifier: Apache-2.0
"""Pictures for the model card: the training's curve, and a contact sheet of wrong answers.

python -m robobrain_ros.nano.report curve --log build/nano/train.log --out curve.png
python -m robobrain_ros.nano.report failures --out failures.jpg
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.parsing import Answer, AnswerError, parse_answer
from robobrain_ros.core.requests import Generation
from robobrain_ros.core.results import Result
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.stepwise import StepwiseEngine
from robobrain_ros.nano.evaluate import evaluation_views, questions_about
from robobrain_ros.nano.questions import Question, Topic
from robobrain_ros.nano.scoring import IN_MASK, IOU, REACHES, REFUSED, RIGHT, ask
from robobrain_ros.nano.tokenizer import FAMILY
from robobrain_ros.nano.views import View
from robobrain_ros.tf_projection import DepthScene
from robobrain_ros.visualization.annotate import draw
from robobrain_ros.visualization.style import PALETTE

FIRST_SEED = 1_500_000
TILE = (320, 240)
COLUMNS, ROWS = 5, 4
_TRUTH_COLOR, _ANSWER_COLOR = PALETTE[4], PALETTE[1]  # bluish green and vermilion
_STEP = re.compile(r"^B \d+ (\d+) s .* loss ([\d.]+)")
_CHECK = re.compile(r"^CHECK (\d+) s (\{.*\})")
_SHOWN = {
    "point in mask": "points",
    "relation in mask": "relations",
    "free space in mask": "free space",
    "box IoU": "box IoU",
    "affordance IoU": "affordance IoU",
    "trajectory reaches": "trajectory ends",
    "not there refused": "refusals",
}


def curve(log: Path, out: Path) -> None:
    """Draw loss and held-out figures over the minutes with questions, from `train`'s output.

    A log may hold several trainings after each other, each resumed from the one before.
    """
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    steps: list[tuple[float, float]] = []
    checks: list[tuple[float, dict[str, float]]] = []
    earlier = last = 0
    for line in log.read_text().splitlines():
        step, check = _STEP.match(line), _CHECK.match(line)
        if step is None and check is None:
            continue
        seconds = int(step[1] if step else check[1])
        if seconds < last:
            earlier += last
        last = seconds
        minutes = (earlier + seconds) / 60
        if step:
            steps.append((minutes, float(step[2])))
        else:
            checks.append((minutes, json.loads(check[2])))
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    left.plot(*zip(*steps), lw=1)
    left.set(xlabel="minutes with questions", ylabel="loss of the answers", yscale="log")
    minutes, figures = zip(*checks)
    for key, label in _SHOWN.items():
        right.plot(minutes, [f.get(key, np.nan) for f in figures], marker=".", label=label)
    right.set(xlabel="minutes with questions", ylabel="held-out scenes", ylim=(0, 1))
    right.legend(fontsize=7, ncols=4, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    for axes in (left, right):
        axes.grid(alpha=0.3)
    figure.savefig(out, dpi=110)


def failures(
    engine: StepwiseEngine, views: Sequence[View], per_topic: int
) -> Iterator[NDArray[np.uint8]]:
    """Yield tiles with wrong answers: the question, the answer red, and the truth green."""
    shown: dict[Topic, int] = {}
    for view, question in questions_about(views):
        if shown.get(question.topic, 0) >= per_topic:
            continue
        scores, generation = ask(engine, view, question)
        least = 0.5 if question.box is not None else 1.0
        values = [scores[f] for f in (IN_MASK, IOU, REACHES, RIGHT, REFUSED) if f in scores]
        if min(values) >= least:
            continue
        shown[question.topic] = shown.get(question.topic, 0) + 1
        yield _tile(view, question, generation)


def _tile(view: View, question: Question, generation: Generation) -> NDArray[np.uint8]:
    image = cv2.resize(view.rgb, TILE, interpolation=cv2.INTER_AREA)
    size = (view.width, view.height)
    truth = _result(image, question, question.answer, generation, size)
    answer = _result(image, question, generation.text, generation, generation.sent_sizes[0])
    return draw(draw(image, truth, "", _TRUTH_COLOR), answer, question.text, _ANSWER_COLOR)


def _result(
    image: NDArray[np.uint8],
    question: Question,
    text: str,
    generation: Generation,
    frame: tuple[int, int],
) -> Result:
    """Return an answer in the pixels of an image of the size `frame` as a result on a tile."""
    try:
        answer = parse_answer(question.task, text, FAMILY)
    except AnswerError:
        answer = Answer(question.task, text=text)
    mapping = (FAMILY.frame, FAMILY.axis_order, frame, TILE)
    pixels = to_image_pixels(answer.points[:, :2], *mapping)[0]
    boxes = boxes_to_image_pixels(answer.boxes, *mapping)[0]
    flat = DepthScene()
    return Result(answer, generation, flat.points(pixels, image), flat.boxes(boxes))


def contact_sheet(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Return tiles in rows of five."""
    blank = np.full((TILE[1], TILE[0], 3), 255, np.uint8)
    padded = [*tiles, *[blank] * (-len(tiles) % COLUMNS)]
    rows = [np.hstack(padded[i : i + COLUMNS]) for i in range(0, len(padded), COLUMNS)]
    return np.vstack(rows)


def main() -> None:
    """Draw one of the two."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("picture", choices=("curve", "failures"))
    parser.add_argument("--log", type=Path, default=Path("build/nano/train.log"))
    parser.add_argument("--model", default="nano", help="a directory, or nano")
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if options.picture == "curve":
        curve(options.log, options.out)
        return
    engine = load_local_engine(EngineConfig(options.model, device="cpu"))
    views = list(evaluation_views(options.scenes, FIRST_SEED))
    tiles = list(failures(engine, views, per_topic=2))[: COLUMNS * ROWS]
    engine.close()
    sheet = contact_sheet(tiles)
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
