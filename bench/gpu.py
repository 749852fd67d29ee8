# SPDX-License-Identifier: Apache-2.0
"""The engine at RoboBrain's real sizes on a CUDA machine, with random weights; needs no ROS.

    python bench/gpu.py                      # 3B and 7B in bf16, int8 and nf4
    python bench/gpu.py --shapes tiny --device cpu --pairs 1

Settings and reference are those of engine.py. Beside them: the share of the memory bandwidth that
decoding reaches (bytes of weights that a token needs, over the bandwidth that copying a large
tensor shows), how many tokens of eight answers come at once, and the memory that is taken. Answers
of random weights in these precisions differ where sums round differently: the share that agrees
is printed. The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import random_models
import torch
from engine import (
    HEADER,
    LONG,
    Bench,
    Comparison,
    Scene,
    add_sizes,
    compare,
    decode_pairs,
    named,
    request_for,
)
from reference import Question, Reference
from results import reported

from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.engine import load_local_engine
from robobrain_ros.engines.local.loading import Placement, quantization_config
from robobrain_ros.engines.local.stepwise import generate_together

QUANTIZATIONS = {"bf16": "none", "int8": "int8", "nf4": "nf4"}
_WORDS = 32
_TOGETHER = 8
_NAMES = ("red can", "green mug", "blue bottle", "orange bowl")


def pictures(options: argparse.Namespace) -> list[Scene]:
    """Noise in 4:3: with random weights it is as good as any picture."""
    rng = np.random.default_rng(0)
    shape = (options.width * 3 // 4, options.width, 3)
    images = [rng.integers(0, 255, shape, dtype=np.uint8) for _ in range(options.pairs)]
    return [Scene(image, _NAMES, options.clients, options.tokens) for image in images]


def bandwidth(device: str) -> float:
    """Bytes per second that are read and written when a large tensor is copied."""
    numbers = torch.empty(2**28 if device == "cuda" else 2**25, device=device)
    other = torch.empty_like(numbers)
    best = 0.0
    for _ in range(5):
        _wait(device)
        started = time.perf_counter()
        other.copy_(numbers)
        _wait(device)
        best = max(best, 2 * numbers.nbytes / (time.perf_counter() - started))
    return best


def tokens_together(engine: Any, scene: Scene, tokens: int) -> float:
    """Tokens per second of several long answers at once."""
    asked = [
        request_for(scene.rgb, Question(TaskKind.ASK, f"Describe the {name}.", tokens))
        for name in (_NAMES * _TOGETHER)[:_TOGETHER]
    ]
    answers = generate_together(engine, asked)
    return sum(one.tokens_out for one in answers) / max(one.decode_s for one in answers)


def measure(
    directory: Path, shape: str, precision: str, device: str, options: argparse.Namespace
) -> dict[str, Any]:
    """Measure one shape in one precision, print its table and return its figures."""
    seen = pictures(options)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    started = time.perf_counter()
    loading: dict[str, Any] = {}
    if precision != "bf16":
        placement = Placement(torch.device(device), dtype, precision)
        loading["quantization_config"] = quantization_config(placement)
    config = EngineConfig(
        str(directory),
        quantization=QUANTIZATIONS[precision],
        device=device,
        precision=named(dtype),
    )
    bench = Bench(
        lambda: load_local_engine(config),
        lambda: Reference(directory, dtype, device, trained=False, **loading),
    )
    loaded_s = time.perf_counter() - started
    engine, picture = bench.engine, seen[0].rgb
    if not options.no_warm_up:
        bench.warm_up(seen[-1], _WORDS)
    result = Comparison()
    compare(bench, seen, options.pairs, _WORDS, math.inf, result)
    long = min(LONG, options.tokens)
    rates = bench.run(lambda one: decode_pairs(one, bench.reference, picture, options.pairs, long))
    ours, others = zip(*rates, strict=True)
    together = bench.run(lambda one: tokens_together(one, seen[0], long))
    token_bytes = _bytes_per_token(bench.reference.model)
    roofline = median(ours) * token_bytes / options.bandwidth
    memory = engine.memory()
    print(
        f"\n## {shape} {precision}: {engine.description}, "
        f"both loaded in {loaded_s:.0f} s\n\n{HEADER}"
    )
    for setting in result.pairs:
        print(result.row(setting))
    agree = 1 - len(result.different) / result.compared
    print(
        f"\ndecode {median(ours):.1f} tokens/s, reference {median(others):.1f}; {together:.0f} "
        f"tokens/s of {_TOGETHER} at once; {100 * roofline:.0f} % of the bandwidth "
        f"({token_bytes / 1e9:.2f} GB a token); answers that agree: {100 * agree:.0f} %; "
        f"images {memory.images / 1e6:.0f} MB, answers {memory.answers / 1e6:.0f} MB, peak "
        f"{_peak(device) / 1e9:.1f} GB with the reference beside it",
        flush=True,
    )
    bench.close()
    return {
        **result.ratios(),
        "decode_x": round(median(a / b for a, b in zip(ours, others, strict=True)), 2),
        "tokens_per_s": round(median(ours), 1),
        "roofline": round(roofline, 3),
        "agree": round(agree, 3),
        "weights_gb": round(memory.weights / 1e9, 2),
    }


def _bytes_per_token(model: torch.nn.Module) -> int:
    """Weights that are read for one token: the language layers and the head."""
    parts = [*model.model.language_model.layers.parameters(), *model.lm_head.parameters()]
    return sum(part.nbytes for part in parts)


def _peak(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else 0


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _names(text: str, known: Sequence[str]) -> list[str]:
    names = text.split(",")
    if unknown := set(names) - set(known):
        raise argparse.ArgumentTypeError(f"not one of {', '.join(known)}: {', '.join(unknown)}")
    return names


def main() -> None:
    """Print a table per shape and precision, and the RESULT line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    shapes, precisions = list(random_models.SHAPES), list(QUANTIZATIONS)
    parser.add_argument("--shapes", type=lambda text: _names(text, shapes), default=["3B", "7B"])
    parser.add_argument("--precisions", type=lambda t: _names(t, precisions), default=precisions)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--width", type=int, default=640, help="of images, pixels")
    parser.add_argument("--tokens", type=int, default=768, help="of an answer in coordinates")
    add_sizes(parser)
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA device here: use --device cpu --shapes tiny")
    options.bandwidth = bandwidth(options.device)
    name = torch.cuda.get_device_name() if options.device == "cuda" else "CPU"
    print(f"{date.today()}, {name}, torch {torch.__version__}, {options.bandwidth / 1e9:.0f} GB/s")
    with reported() as figures, tempfile.TemporaryDirectory() as folder:
        figures.update(device=name, bandwidth_gb_s=options.bandwidth / 1e9)
        for shape in options.shapes:
            dtype = torch.float32 if options.device == "cpu" else torch.bfloat16
            directory = random_models.save(shape, Path(folder, shape), dtype=dtype)
            for precision in options.precisions:
                key = f"{shape} {precision}"
                figures[key] = measure(directory, shape, precision, options.device, options)


if __name__ == "__main__":
    main()
