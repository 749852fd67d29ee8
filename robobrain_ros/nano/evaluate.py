# SPDX-License-Identifier: Apache-2.0
"""Score a model on new tabletop scenes, through the package's own engine, prompts and parser.

    python -m robobrain_ros.nano.evaluate --scenes 250

Scenes are of seeds that training never uses, at four cameras' sizes, with noise and blur. A second
set is shifted: other table textures, cameras and objects than any that training saw. The last line
is machine-readable.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.core.tasks import Think
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.stepwise import StepwiseEngine
from robobrain_ros.nano.dataset import Scene, render_scene
from robobrain_ros.nano.questions import Question, Topic
from robobrain_ros.nano.scoring import (
    COLLIDES,
    DFD,
    HD,
    IN_MASK,
    IOU,
    REACHES,
    REFUSED,
    RIGHT,
    RMSE,
    ask,
    drawn_questions,
    scores_of,
)
from robobrain_ros.nano.views import View, whole_view
from robobrain_ros.sim.tabletop import SHIFTED, TRAINING, Tabletop
from robobrain_ros.sim.variety import Variety

FIRST_SEED = 1_000_000
SIZES = ((640, 480), (640, 480), (1280, 720), (320, 240), (848, 480))
_QUERY_SIZE = (448, 336)
_MODES = {
    "fp32": {"precision": "float32"},
    "bf16": {"precision": "bfloat16"},
    "int8": {"quantization": "int8"},
    "nf4": {"quantization": "nf4"},
}
_PER_SCENE = {
    Topic.POINT: 5,
    Topic.SPOTS: 2,
    Topic.FREE_SPACE: 5,
    Topic.RELATION: 5,
    Topic.BOX: 5,
    Topic.AFFORDANCE: 5,
    Topic.TRAJECTORY: 6,
    Topic.PRESENCE: 3,
    Topic.SIDE: 2,
    Topic.COUNT: 2,
    Topic.COLOR: 2,
    Topic.WHAT: 2,
    Topic.REFUSAL: 5,
}
_SPOKEN = (Topic.PRESENCE, Topic.SIDE, Topic.COUNT, Topic.COLOR, Topic.WHAT)
_SHARES = (IN_MASK, RIGHT, REFUSED, REACHES, COLLIDES)

Figures = Mapping[Topic, Mapping[str, Sequence[float]]]


@dataclass(frozen=True)
class Column:
    """One column of the table: figures by topic."""

    name: str
    figures: Figures

    def values(self, topics: Sequence[Topic], figure: str) -> list[float]:
        return [v for t in topics for v in self.figures.get(t, {}).get(figure, ())]

    def mean(self, topics: Sequence[Topic], figure: str) -> float:
        return float(np.mean(self.values(topics, figure)))


def evaluation_views(
    count: int, first_seed: int = FIRST_SEED, variety: Variety = TRAINING
) -> Iterator[View]:
    """`count` scenes from consecutive seeds, by turns at the `SIZES` of cameras' images."""
    for size in sorted(set(SIZES)):
        tabletop = Tabletop(*size, variety=variety)
        try:
            for seed in range(first_seed, first_seed + count):
                if SIZES[seed % len(SIZES)] == size:
                    scene = render_scene(tabletop, seed)
                    rgb = seen_by_a_sensor(scene.rgb, random.Random(seed))
                    yield whole_view(Scene(rgb, scene.codes, scene.info))
        finally:
            tabletop.close()


def seen_by_a_sensor(rgb: NDArray[np.uint8], rng: random.Random) -> NDArray[np.uint8]:
    """An image (H, W, 3) with noise, and in half of the cases a little blurred."""
    if rng.random() < 0.5:
        rgb = cv2.GaussianBlur(rgb, (3, 3), rng.uniform(0.4, 0.9))
    generator = np.random.default_rng(rng.getrandbits(32))
    noise = generator.normal(0, rng.uniform(0, 5), rgb.shape)
    return np.clip(np.rint(rgb + noise), 0, 255).astype(np.uint8)


def questions_about(views: Sequence[View]) -> list[tuple[View, Question]]:
    """Every question that the evaluation asks."""
    return [
        (view, question)
        for view in views
        for question in drawn_questions(view, _PER_SCENE, view.info.seed)
    ]


def table(columns: Sequence[Column]) -> str:
    """All figures in Markdown, a row per topic and figure."""
    lines = [
        "| topic | figure | n | " + " | ".join(column.name for column in columns) + " |",
        "|---|---|---|" + "---|" * len(columns),
    ]
    for topic in Topic:
        for figure in (IN_MASK, IOU, DFD, HD, RMSE, REACHES, COLLIDES, RIGHT, REFUSED):
            first = columns[0].values([topic], figure)
            if not first:
                continue
            cells = [_cell(figure, column.values([topic], figure)) for column in columns]
            lines.append(f"| {topic.value} | {figure} | {len(first)} | {' | '.join(cells)} |")
            for least in (0.5, 0.75) if figure == IOU else ():
                shares = [
                    f"{np.mean(np.array(column.values([topic], IOU)) >= least):.1%}"
                    for column in columns
                ]
                lines.append(f"| | {IOU} ≥ {least} | | {' | '.join(shares)} |")
    return "\n".join(lines)


def _cell(figure: str, values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{np.mean(values):.1%}" if figure in _SHARES else f"{np.mean(values):.3f}"


def query_ms(engine: StepwiseEngine, first_seed: int, count: int) -> float:
    """Median time of a question about a new image of 448x336."""
    tabletop = Tabletop(*_QUERY_SIZE)
    views = [whole_view(render_scene(tabletop, first_seed + i)) for i in range(count)]
    tabletop.close()
    seconds = []
    for view in views:
        for question in drawn_questions(view, {Topic.POINT: 1}, view.info.seed):
            started = time.perf_counter()
            ask(engine, view, question)
            seconds.append(time.perf_counter() - started)
    return 1e3 * float(np.median(seconds))


def main() -> None:
    """Print a table and the RESULT line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--model", default="nano", help="a directory, a hub id, or nano")
    parser.add_argument("--scenes", type=int, default=250)
    parser.add_argument("--shifted-scenes", type=int, default=120)
    parser.add_argument("--first-seed", type=int, default=FIRST_SEED)
    parser.add_argument("--modes", default="fp32,bf16,int8,nf4")
    parser.add_argument("--mode-scenes", type=int, default=40, help="but for the first mode")
    parser.add_argument("--thinking-scenes", type=int, default=30)
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    options = parser.parse_args()
    views = list(evaluation_views(options.scenes, options.first_seed))
    columns, ms, modes = [], [], options.modes.split(",")
    for mode in modes:
        config = EngineConfig(options.model, device=options.device, **_MODES[mode])
        engine = load_local_engine(config)
        print(f"{mode}: {engine.description}", flush=True)
        ms.append(query_ms(engine, options.first_seed, 40))
        first = not columns
        seen = views if first else views[: options.mode_scenes]
        columns.append(Column(mode, scores_of(engine, questions_about(seen))))
        if first:
            asked = questions_about(views[: options.mode_scenes])
            same = Column(f"{mode} on {options.mode_scenes}", scores_of(engine, asked))
            asked = questions_about(views[: options.thinking_scenes])
            thinking = Column("thinking", scores_of(engine, asked, Think.ON))
            shifted_views = evaluation_views(options.shifted_scenes, options.first_seed, SHIFTED)
            shifted = Column("shifted", scores_of(engine, questions_about(list(shifted_views))))
        engine.close()
    columns[1:1] = [shifted, thinking, same]
    print(table(columns))
    print("milliseconds a question:", dict(zip(modes, (round(one, 1) for one in ms))))
    print("RESULT", json.dumps(result(columns[0], shifted, {c.name: c for c in columns}, ms[0])))


def result(test: Column, shifted: Column, columns: Mapping[str, Column], ms: float) -> dict:
    """The figures of the RESULT line."""
    figures = {
        "points_in_mask": test.mean([Topic.POINT], IN_MASK),
        "points_in_mask_shifted": shifted.mean([Topic.POINT], IN_MASK),
        "free_space": test.mean([Topic.FREE_SPACE], IN_MASK),
        "relations": test.mean([Topic.RELATION], IN_MASK),
        "box_iou": test.mean([Topic.BOX], IOU),
        "affordance_iou": test.mean([Topic.AFFORDANCE], IOU),
        "trajectory_dfd": test.mean([Topic.TRAJECTORY], DFD),
        "trajectory_reaches": test.mean([Topic.TRAJECTORY], REACHES),
        "vqa": test.mean(_SPOKEN, RIGHT),
        "refusals": test.mean([Topic.REFUSAL], REFUSED),
    }
    for mode in ("int8", "nf4"):
        if mode in columns:
            figures[f"points_in_mask_{mode}"] = columns[mode].mean([Topic.POINT], IN_MASK)
    count = sum(len(next(iter(f.values()))) for f in test.figures.values())
    rounded = {key: round(value, 4) for key, value in figures.items()}
    return {**rounded, "query_ms": round(ms, 1), "n": count}


if __name__ == "__main__":
    main()
