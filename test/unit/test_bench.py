# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, in small, and print their keys; their figures are for quiet machines."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("mujoco")

ROOT = Path(__file__).parents[2]


def result_of(script: str, *options: str) -> dict:
    """Run a benchmark and return its RESULT."""
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "bench" / script), *options],
        env={**environment, "MUJOCO_GL": "egl"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    *_, last = done.stdout.splitlines()
    assert last.startswith("RESULT ")
    return json.loads(last.removeprefix("RESULT "))


def test_the_gpu_benchmark_runs_on_a_cpu_with_a_tiny_shape():
    result = result_of("gpu.py", "--shapes", "tiny", "--device", "cpu", "--pairs", "1")
    for precision in ("bf16", "int8", "nf4"):
        figures = result[f"tiny {precision}"]
        assert {"five_questions_x", "new_frame_x", "clients16_x", "decode_x"} <= set(figures)
        assert figures["tokens_per_s"] > 0 and figures["roofline"] > 0
    assert result["tiny bf16"]["agree"] == 1.0  # float32 on a CPU


def test_the_gpu_benchmark_says_when_there_is_no_gpu():
    torch = pytest.importorskip("torch")
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(AssertionError, match="no CUDA device"):
        result_of("gpu.py", "--shapes", "tiny")


def test_nanos_answers_are_those_of_plain_generate():
    result = result_of("engine.py", "--models", "nano", "--pairs", "1")
    keys = {"five_questions_x", "new_frame_x", "clients16_x", "decode_x", "identical"}
    assert keys <= set(result)
    assert result["identical"] is True


def test_answers_of_random_models_are_usable():
    result = result_of("grammar.py", "--answers", "250")
    assert result["answers"] == 250
    assert (result["unparsed"], result["outside"], result["too_many_points"]) == (0, 0, 0)
