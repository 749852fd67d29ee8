# SPDX-License-Identifier: Apache-2.0
"""The benchmarks run, in small, and print their keys; their figures are for quiet machines."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("mujoco")

BENCH = Path(__file__).parents[2] / "bench"
SHORT = ("--pairs", "1", "--clients", "3", "--no-warm-up")


@pytest.fixture
def result_of(monkeypatch, capsys):
    """A function that runs a benchmark in this process and returns its RESULT."""
    monkeypatch.syspath_prepend(str(BENCH))

    def result_of(module: str, *options: str) -> dict:
        monkeypatch.setattr(sys, "argv", [module, *options])
        importlib.import_module(module).main()
        *_, last = capsys.readouterr().out.splitlines()
        assert last.startswith("RESULT ")
        return json.loads(last.removeprefix("RESULT "))

    return result_of


def test_the_gpu_benchmark_runs_on_a_cpu_with_a_tiny_shape(result_of):
    tiny = ("--shapes", "tiny", "--device", "cpu", "--width", "160", "--tokens", "8")
    result = result_of("gpu", *tiny, *SHORT)
    for precision in ("bf16", "int8", "nf4"):
        figures = result[f"tiny {precision}"]
        assert {"five_questions_x", "new_frame_x", "clients16_x", "decode_x"} <= set(figures)
        assert figures["tokens_per_s"] > 0 and figures["roofline"] > 0
    assert result["tiny bf16"]["agree"] == 1.0  # float32 on a CPU


def test_the_gpu_benchmark_says_when_there_is_no_gpu(result_of, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit):
        result_of("gpu", "--shapes", "tiny")
    assert "no CUDA device" in capsys.readouterr().err


def test_nanos_answers_are_those_of_plain_generate(result_of):
    result = result_of("engine", "--models", "nano", *SHORT)
    keys = {"five_questions_x", "new_frame_x", "clients16_x", "decode_x", "identical"}
    assert keys <= set(result)
    assert result["identical"] is True


def test_answers_of_random_models_are_usable(result_of):
    result = result_of("grammar", "--answers", "60")
    assert result["answers"] == 60
    assert (result["unparsed"], result["outside"], result["too_many_points"]) == (0, 0, 0)


def test_picks_by_true_boxes_are_counted(result_of):
    result = result_of("pick", "--oracle", "--scenes", "1")
    assert result["n"] == 1 and 0 <= result["success"] <= 1


@pytest.mark.parametrize("ends", ["os.kill(os.getpid(), 15)", "time.sleep(60)", "pass"])
def test_a_benchmark_that_is_stopped_prints_what_there_is(ends):
    code = f"""
import os, time
from results import reported
with reported(lambda: dict(n=3), limit_s=1.0) as figures:
    figures["first"] = 1
    {ends}
    figures["second"] = 2
"""
    environment = os.environ | {"PYTHONPATH": str(BENCH)}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=60
    )
    result = json.loads(run.stdout.removeprefix("RESULT "))
    complete = ends == "pass"
    assert result == {"first": 1, "n": 3, "complete": complete} | (
        {"second": 2} if complete else {}
    )
    assert run.returncode == (143 if "kill" in ends else 0)
