# SPDX-License-Identifier: Apache-2.0
"""Speedup of the engine over plain `generate`, with the same model and answers.

    make bench-engine

Two models: nano, and random weights of 180 M parameters in RoboBrain's proportions (its answers are
constrained in both procedures, or they would never end). Four settings, each timed by turns
with the reference (`reference.py`: plain `generate`, one request after the other, nothing kept):

  five questions   about one frame (point, box, affordance, trajectory, words), asked one after the
                   other; and all at once
  new frame        one question about a frame that was never seen
  16 clients       a thread each, with a question each about the newest frame
  decode           tokens per second of one long answer

A ratio is the median over pairs; there are as many pairs as the time allows. `identical`: every
answer has the reference's text, letter for letter. The last line is machine-readable: keys end in
the model's name, and those without one are the lower of both models.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import random_models
import torch
from numpy.typing import NDArray
from reference import FAMILY, Question, Reference
from results import reported

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.requests import (
    Generation,
    GenerationOptions,
    GenerationRequest,
    user_message,
)
from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.checkpoint import NANO_DIRECTORY
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.scheduler import Scheduler
from robobrain_ros.engines.local.stepwise import StepwiseEngine, generate, generate_together
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth

FIRST_SEED = 3_000_000
CLIENTS = 16
LONG = 64  # tokens at most of the answer of which the decoding is timed
_COMPARED = 0.85  # of a model's time; the rest is for `decode`
_WORDS = 16  # tokens of an answer in words of a model that never ends one


@dataclass(frozen=True)
class Scene:
    """A picture (H, W, 3), and the names of what is on the table, largest first.

    client_count: of the setting with a thread per client. max_tokens: of an answer in coordinates.
    """

    rgb: NDArray[np.uint8]
    names: tuple[str, ...]
    client_count: int = CLIENTS
    max_tokens: int = 768

    def questions(self, words: int) -> list[Question]:
        """One of each task. words: tokens that the answer in words may have."""
        first, second, most = self.names[0], self.names[-1], self.max_tokens
        return [
            Question(TaskKind.POINT, f"Point to the {first}", most),
            Question(TaskKind.GROUNDING, f"the {second}", most),
            Question(TaskKind.AFFORDANCE, f"pick up the {first}", most),
            Question(TaskKind.TRAJECTORY, f"move the gripper to the {first}", most),
            Question(TaskKind.ASK, "How many objects are on the table?", words),
        ]

    def clients(self, words: int) -> list[Question]:
        """A question for each client: all tasks, about one object after the other."""
        turns = [self.names[turn:] + self.names[:turn] for turn in range(len(self.names))]
        asked = [replace(self, names=names).questions(words) for names in turns]
        return [question for some in asked for question in some][: self.client_count]


def scenes(count: int, clients: int) -> list[Scene]:
    """Simulated tables that no training has seen."""
    table, found = Tabletop(), []
    for seed in range(FIRST_SEED, FIRST_SEED + 1000):
        table.reset(seed)
        truth = Truth(table)
        names = sorted(truth.askable(), key=lambda name: -truth.mask(name).sum())
        if len(names) >= 4:
            found.append(Scene(truth.frame.rgb, tuple(names), clients))
        if len(found) == count:
            break
    table.close()
    return found


def request_for(image: NDArray[np.uint8], question: Question) -> GenerationRequest:
    """The request that the node makes of a question."""
    return GenerationRequest(
        messages=(user_message(question.prompt, image),),
        opening=FAMILY.openings[Think.DEFAULT],
        answer_format=answer_format(question.kind, FAMILY),
        options=GenerationOptions(max_new_tokens=question.max_new_tokens),
    )


def in_turn(engine: StepwiseEngine, requests: Sequence[GenerationRequest]) -> list[Generation]:
    """Answer one request after the other."""
    return [generate(engine, request) for request in requests]


@dataclass
class Comparison:
    """Pairs of seconds (ours, reference) by setting, ours by stage, and whether answers agree."""

    pairs: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    stages: dict[str, list[Generation]] = field(default_factory=dict)
    different: list[tuple[str, str]] = field(default_factory=list)
    compared: int = 0
    decode: list[tuple[float, float]] = field(default_factory=list)
    """Pairs of tokens per second (ours, reference)."""

    def add(
        self,
        setting: str,
        ours: Callable[[], list[Generation]],
        reference: Callable[[], list[str]],
    ) -> None:
        """Time both, by turns which comes first."""
        times, answers = {}, {}
        order = [("ours", ours), ("reference", reference)]
        for name, run in order if len(self.pairs.get(setting, ())) % 2 else order[::-1]:
            started = time.perf_counter()
            answers[name] = run()
            times[name] = time.perf_counter() - started
        self.pairs.setdefault(setting, []).append((times["ours"], times["reference"]))
        self.stages.setdefault(setting, []).extend(answers["ours"])
        for mine, other in zip(answers["ours"], answers["reference"], strict=True):
            self.compared += 1
            if _said(mine.text) != _said(other):
                self.different.append((mine.text, other))

    def ratio(self, setting: str) -> float:
        """The speedup: median over the pairs."""
        return median(other / mine for mine, other in self.pairs[setting])

    def ratios(self) -> dict[str, float]:
        """The ratios by their keys of RESULT."""
        keys = {
            "five_questions_x": "five questions at once",
            "five_in_turn_x": "five questions in turn",
            "new_frame_x": "new frame",
            "clients16_x": "16 clients",
        }
        known = {key: setting for key, setting in keys.items() if setting in self.pairs}
        return {key: round(self.ratio(setting), 2) for key, setting in known.items()}

    def figures(self) -> dict[str, Any]:
        """The figures so far by their keys of RESULT."""
        found: dict[str, Any] = self.ratios()
        if self.decode:
            found["decode_x"] = round(median(mine / other for mine, other in self.decode), 2)
        return found | {"identical": not self.different}

    def row(self, setting: str) -> str:
        """A line of the table."""
        mine, other = (median(column) for column in zip(*self.pairs[setting], strict=True))
        parts = self.stages[setting]
        means = [
            1000 * sum(getattr(one, name) for one in parts) / len(parts)
            for name in ("preprocess_s", "prefill_s", "decode_s")
        ]
        tokens = sum(one.tokens_out for one in parts) / len(parts)
        cells = [f"{1000 * mine:.0f}", f"{1000 * other:.0f}", f"{self.ratio(setting):.2f}x"]
        cells += [f"{mean:.1f}" for mean in means] + [f"{tokens:.0f}"]
        return f"| {setting} | " + " | ".join(cells) + " |"


def _said(text: str) -> str:
    """An answer without its closing tag, which needn't be written under a form."""
    return text.strip().removesuffix("</answer>")


HEADER = (
    "| setting | ours, ms | reference, ms | ratio | preprocess, ms | prefill, ms | decode, ms "
    "| tokens |\n|---|---|---|---|---|---|---|---|"
)


def compare(
    bench: Bench, seen: Sequence[Scene], pairs: int, words: int, budget_s: float, result: Comparison
) -> None:
    """Add pairs of all settings but decode to `result`, until another one would exceed the budget.

    Each is asked about a picture of its own, a pixel of the scene's changed: the engine has not
    seen it.
    """
    started, longest = time.monotonic(), 0.0
    for number in range(pairs):
        began = time.monotonic()
        if number and began - started + longest > budget_s:
            break
        scene = seen[number % len(seen)]
        asked, clients = scene.questions(words), scene.clients(words)
        settings = [
            ("five questions in turn", in_turn, asked),
            ("five questions at once", generate_together, asked),
            ("new frame", in_turn, asked[:1]),
        ]
        if number < max(1, pairs // 2):
            settings.append(("16 clients", None, clients))
        for index, (setting, how, questions) in enumerate(settings):
            picture = scene.rgb.copy()
            picture[0, 0] = (number, index, 0)
            result.add(
                setting,
                lambda how=how, p=picture, q=questions: bench.ours(how, p, q),
                lambda p=picture, q=questions: bench.theirs(p, q),
            )
        longest = max(longest, time.monotonic() - began)


class Bench:
    """Engine and reference on the scheduler's thread, where all else that computes is, too: on two
    threads, OpenMP would have twice as many threads as there are cores, and both be slower.
    """

    def __init__(
        self, load: Callable[[], StepwiseEngine], load_reference: Callable[[], Reference]
    ) -> None:
        self.engine: Any = None

        def loading() -> StepwiseEngine:
            self.engine = load()
            return self.engine

        self._scheduler = Scheduler(loading, max_batch=CLIENTS, max_pending=CLIENTS)
        self._pool = ThreadPoolExecutor(CLIENTS)
        self._scheduler.ready.result()
        self.reference = self.run(lambda engine: load_reference())

    def run(self, call: Callable[[Any], Any]) -> Any:
        """Call with the engine on the scheduler's thread."""

        def work() -> Any:
            return call(self.engine)
            yield

        return self._scheduler.run(work()).result()

    def ours(
        self, how: Callable | None, picture: NDArray[np.uint8], asked: Sequence[Question]
    ) -> list[Generation]:
        """Ask the engine; how: `in_turn`, `generate_together`, or None for a thread for each."""
        requests = [request_for(picture, question) for question in asked]
        if how is not None:
            return self.run(lambda engine: how(engine, requests))
        return list(self._pool.map(lambda one: self._scheduler.generate(one).result(), requests))

    def theirs(self, picture: NDArray[np.uint8], asked: Sequence[Question]) -> list[str]:
        """Ask the reference."""
        return self.run(lambda _: [self.reference.ask(picture, question) for question in asked])

    def warm_up(self, scene: Scene, words: int) -> None:
        """Ask both about a picture that is asked about no more."""
        asked = scene.questions(words)
        self.ours(generate_together, scene.rgb, asked)
        self.theirs(scene.rgb, asked)

    def close(self) -> None:
        """Free both models."""
        del self.reference
        self._pool.shutdown()
        self._scheduler.close()


def decode_pairs(
    engine: StepwiseEngine,
    reference: Reference,
    image: NDArray[np.uint8],
    pairs: int,
    tokens: int = LONG,
) -> list[tuple[float, float]]:
    """Tokens per second (ours, reference) of one long answer, the first token not counted."""
    question = Question(TaskKind.TRAJECTORY, "Reach for the object nearest the gripper.", tokens)
    request = GenerationRequest(
        messages=(user_message(question.prompt, image),),
        options=GenerationOptions(max_new_tokens=tokens + 1),
    )
    found = []
    for _ in range(pairs):
        engine.clear_cache()
        mine = generate(engine, request)
        count = mine.tokens_out - 1
        found.append((count / mine.decode_s, count / reference.decode_s(image, question, count)))
    return found


def named(dtype: torch.dtype) -> Any:
    """The precision as EngineConfig calls it."""
    return str(dtype).removeprefix("torch.")


def run(
    name: str,
    directory: Path,
    dtype: torch.dtype,
    options: argparse.Namespace,
    seen: list[Scene],
    budget_s: float,
    result: Comparison,
) -> None:
    """Measure one model into `result`, and print its table."""
    pairs = options.pairs
    trained = name == "nano"
    started = time.monotonic()
    bench = Bench(
        lambda: load_local_engine(
            EngineConfig(str(directory), device="cpu", precision=named(dtype))
        ),
        lambda: Reference(directory, dtype, "cpu", trained),
    )
    try:
        if not options.no_warm_up:  # what is slow the first time
            bench.warm_up(seen[-1], _WORDS)
        left = _COMPARED * (budget_s - (time.monotonic() - started))
        compare(bench, seen, pairs, 64 if trained else _WORDS, left, result)
        picture = seen[0].rgb
        rates = bench.run(lambda engine: decode_pairs(engine, bench.reference, picture, pairs))
        result.decode = rates
        print(f"\n{name}: {bench.engine.description}\n\n{HEADER}")
        for setting in result.pairs:
            print(result.row(setting))
        ours, others = (median(column) for column in zip(*rates, strict=True))
        ratio = result.figures()["decode_x"]
        print(f"decode: {ours:.0f} tokens/s, reference {others:.0f}, {ratio:.2f}x")
        print(f"answers compared: {result.compared}, different: {len(result.different)}")
        for mine, other in result.different[:3]:
            print(f"  ours {mine!r}\n  reference {other!r}")
        print(end="", flush=True)
    finally:
        bench.close()


def summary(results: dict[str, Comparison]) -> dict[str, Any]:
    """The figures of RESULT: by model, and the lower of both."""
    by_model = {name: result.figures() for name, result in results.items() if result.compared}
    named_figures = {
        f"{key}_{name.lower().replace('-', '_')}": value
        for name, figures in by_model.items()
        for key, value in figures.items()
    }
    # In bfloat16 sums of another order round otherwise, so that random weights answer otherwise.
    counted = [figures for name, figures in by_model.items() if "bf16" not in name]
    keys = {key for figures in counted for key in figures}
    lowest = {key: min(one[key] for one in counted if key in one) for key in sorted(keys)}
    return lowest | named_figures


def add_sizes(parser: argparse.ArgumentParser) -> None:
    """Add the options with which tests make a benchmark short."""
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--no-warm-up", action="store_true", help="figures of no use")


def main() -> None:
    """Print a table per model and the RESULT line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--pairs", type=int, default=6)
    parser.add_argument("--models", default="nano,180M", help="also 180M-bf16")
    add_sizes(parser)
    parser.add_argument("--minutes", type=float, default=9.0, help="in all, more or less")
    options = parser.parse_args()
    names = options.models.split(",")
    deadline = time.monotonic() + 60 * options.minutes
    results = {name: Comparison() for name in names}
    with (
        reported(lambda: summary(results), limit_s=70 * options.minutes),
        tempfile.TemporaryDirectory() as folder,
    ):
        seen = scenes(options.pairs, options.clients)
        for number, name in enumerate(names):
            shape, _, precision = name.partition("-")
            directory = NANO_DIRECTORY
            if shape != "nano":
                directory = random_models.save(shape, Path(folder, shape))
            dtype = torch.bfloat16 if precision == "bf16" else torch.float32
            budget_s = (deadline - time.monotonic()) / (len(names) - number)
            run(name, directory, dtype, options, seen, budget_s, results[name])


if __name__ == "__main__":
    main()
