# SPDX-License-Identifier: Apache-2.0
"""Constrained answers of models with random weights: all of them must be usable.

    make bench-grammar

Small models of both architectures, with new weights again and again, answer random images in the
format of every task and family through the package's engine, parser and coordinate mapping.
Counted: what the parser can't read, what has a place outside the image, what has more points than
asked for. `[]`, the honest refusal, is an answer and counted apart. The last line is
machine-readable.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from results import reported
from safetensors.torch import load_file, save_file
from support import tiny_checkpoints

from robobrain_ros.core.answer_formats import answer_format
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.families import FAMILIES, Family
from robobrain_ros.core.parsing import EmptyAnswer, UnparsableAnswer, parse_answer
from robobrain_ros.core.requests import (
    FinishReason,
    Generation,
    GenerationOptions,
    GenerationRequest,
    user_message,
)
from robobrain_ros.core.tasks import TASKS, TaskKind, Think
from robobrain_ros.engines.base import EngineError
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.stepwise import generate_together

PER_WEIGHTS = 250  # answers
BATCH = 25
MAX_TOKENS = 3000  # enough for any answer in a format, 32 labels in single bytes too
REFUSAL = re.compile(r"(<answer>)?(```json)?\s*\[\]")
KINDS = [kind for kind in TaskKind if TASKS[kind].answer.has_places]
Asked = tuple[TaskKind, int, GenerationRequest]


def reseed(directory: Path, rng: np.random.Generator) -> None:
    """Give a checkpoint other random weights."""
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    weights = load_file(directory / "model.safetensors")
    for weight in weights.values():
        if weight.ndim > 1:
            weight.normal_(0.0, 0.15, generator=generator)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def random_requests(family: Family, rng: np.random.Generator, count: int) -> Iterator[Asked]:
    """Requests for all tasks, with few or many points, about noise of any size."""
    for _ in range(count):
        kind = KINDS[rng.integers(len(KINDS))]
        max_points = int(rng.choice([0, 1, 2, 7]))
        height, width = rng.integers(1, 320, 2)
        if max(height, width) > 150 * min(height, width):
            continue  # refused for its shape
        image = rng.integers(0, 255, (height, width, 3), dtype=np.uint8)
        words = "".join(map(chr, rng.integers(97, 123, 12)))
        think = Think.ON if family.thinks and rng.random() < 0.2 else Think.DEFAULT
        opening = family.openings[think] + ("</think>" if think is Think.ON else "")
        request = GenerationRequest(
            messages=(user_message(words, image),),
            opening=opening,
            answer_format=answer_format(kind, family, max_points),
            options=GenerationOptions(max_new_tokens=MAX_TOKENS),
        )
        yield kind, max_points, request


def fault(kind: TaskKind, max_points: int, asked: GenerationRequest, answer: Generation,
          family: Family) -> str:  # fmt: skip
    """The fault of an answer; `refusal` for [], an empty string for a good one."""
    if answer.finish is not FinishReason.EOS:
        return "unfinished"
    try:
        parsed = parse_answer(kind, answer.text, family, asked.opening)
    except EmptyAnswer:
        return "refusal" if REFUSAL.match(answer.text) else "unparsed"
    except UnparsableAnswer:
        return "unparsed"
    height, width = asked.images[0].shape[:2]
    frame = (family.frame, family.axis_order, answer.sent_sizes[0], (width, height))
    inside = [
        *to_image_pixels(parsed.points[:, :2], *frame)[1],
        *boxes_to_image_pixels(parsed.boxes, *frame)[1],
    ]
    if not all(inside):
        return "outside"
    return "too many" if max_points and len(parsed.points) > max_points else ""


def count(family: Family, directory: Path, number: int, rng: np.random.Generator) -> Counter[str]:
    """Faults of `number` answers of one model of a family; `good` are those without.

    Raises EngineError when the model fails.
    """
    reseed(directory, rng)
    engine = load_local_engine(EngineConfig(str(directory), family=family.name, device="cpu"))
    counts: Counter[str] = Counter()
    while counts.total() < number:
        asked = list(random_requests(family, rng, min(BATCH, number - counts.total())))
        outcomes = generate_together(engine, [request for *_, request in asked])
        for (kind, most, request), answer in zip(asked, outcomes, strict=True):
            if isinstance(answer, EngineError):
                raise answer
            wrong = fault(kind, most, request, answer, family)
            counts[wrong or "good"] += 1
            if wrong not in ("", "refusal"):
                print(f"{wrong}: {kind.value} {request.answer_format} {answer.text[:200]!r}")
    engine.close()
    return counts


def main() -> None:
    """Print a count per family and the RESULT line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--answers", type=int, default=10_000)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    total: Counter[str] = Counter()
    share = -(-options.answers // len(FAMILIES))
    with reported(lambda: summary(total)), tempfile.TemporaryDirectory() as folder:
        for name, family in FAMILIES.items():
            directory = tiny_checkpoints.save(family.model_types[0], Path(folder, name))
            counts: Counter[str] = Counter()
            while counts.total() < share:
                counts += count(family, directory, min(PER_WEIGHTS, share - counts.total()), rng)
            print(f"{name}: {dict(counts)}", flush=True)
            total += counts


def summary(total: Counter[str]) -> dict[str, int]:
    """The figures of RESULT."""
    return {
        "answers": total.total(),
        "unparsed": total["unparsed"] + total["unfinished"],
        "outside": total["outside"],
        "too_many_points": total["too many"],
        "refusals": total["refusal"],
    }


if __name__ == "__main__":
    main()
