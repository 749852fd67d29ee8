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
from robobrain_ros.core.parsing import AnswerError, parse_answer
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.engines import create_engine
from robobrain_ros.engines.base import Engine
from robobrain_ros.nano.evaluate import evaluation_views, questions_about
from robobrain_ros.nano.questions import Question, Topic
from robobrain_ros.nano.scoring import IN_MASK, IOU, REACHES, REFUSED, RIGHT, ask
from robobrain_ros.nano.tokenizer import FAMILY
from robobrain_ros.nano.views import View

FIRST_SEED = 1_500_000
TILE = (320, 240)
COLUMNS, ROWS = 5, 4
_RED, _GREEN, _WHITE, _BLACK = (255, 70, 60), (60, 220, 90), (255, 255, 255), (0, 0, 0)
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


def failures(engine: Engine, views: Sequence[View], per_topic: int) -> Iterator[NDArray[np.uint8]]:
    """Tiles with wrong answers: what was asked and said, the answer red and the truth green."""
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
        yield _tile(view, question, generation.text, generation.sent_size)


def _tile(view: View, question: Question, said: str, sent: tuple[int, int]) -> NDArray[np.uint8]:
    scale = np.array(TILE) / (view.width, view.height)
    image = cv2.resize(view.rgb, TILE, interpolation=cv2.INTER_AREA)
    size = (view.width, view.height)
    for text, frame, color in ((question.answer, size, _GREEN), (said, sent, _RED)):
        _draw(image, question.task, text, frame, size, scale, color)
    said = said.split("</answer>")[0]
    words = f"{question.text} -> {said if question.task is TaskKind.ASK or len(said) < 3 else ''}"
    for color, width in ((_BLACK, 3), (_WHITE, 1)):
        font = cv2.FONT_HERSHEY_SIMPLEX
        cv2.putText(image, words, (4, 12), font, 0.36, color, width, cv2.LINE_AA)
    return image


def _draw(
    image: NDArray[np.uint8],
    task: TaskKind,
    text: str,
    frame: tuple[int, int],
    size: tuple[int, int],
    scale: NDArray[np.float64],
    color: tuple[int, int, int],
) -> None:
    """Draw an answer that was given in pixels of an image of the size `frame`."""
    if task is TaskKind.ASK:
        return
    try:
        answer = parse_answer(task, text, FAMILY)
    except AnswerError:
        return
    mapping = (FAMILY.frame, FAMILY.axis_order, frame, size)
    for box in boxes_to_image_pixels(answer.boxes, *mapping)[0]:
        x1, y1, x2, y2 = np.rint(box * np.tile(scale, 2)).astype(int).tolist()
        cv2.rectangle(image, (x1, y1), (x2, y2), color, 2, cv2.LINE_AA)
    pixels = to_image_pixels(answer.points[:, :2], *mapping)[0]
    points = np.rint((pixels + 0.5) * scale).astype(np.int32)
    if task is TaskKind.TRAJECTORY and len(points):
        cv2.polylines(image, [points], False, color, 2, cv2.LINE_AA)
    for x, y in points.tolist():
        cv2.circle(image, (x, y), 4, color, -1, cv2.LINE_AA)


def contact_sheet(tiles: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Tiles in rows of five."""
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
    engine = create_engine(options.model, device="cpu")
    views = list(evaluation_views(options.scenes, FIRST_SEED))
    tiles = list(failures(engine, views, per_topic=2))[: COLUMNS * ROWS]
    engine.close()
    sheet = contact_sheet(tiles)
    cv2.imwrite(str(options.out), sheet[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 80])


if __name__ == "__main__":
    main()
