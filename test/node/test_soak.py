# SPDX-License-Identifier: Apache-2.0
"""Benchmarks with nodes, in short: `make soak`, `make cycles` and `make bench-busy`."""

import os

import pytest
from support.programs import ROOT, result_of, run_benchmark

pytestmark = [pytest.mark.slow, pytest.mark.soak]

FAULTS = {"stall", "restart", "deactivate", "unload", "change"}


def test_every_request_is_answered_whatever_happens():
    run = run_benchmark("soak.py", "--seconds", "20", "--gap", "0.1", "0.5")
    result = result_of(run)
    assert (result["unanswered"], result["without_code"], result["crashes"]) == (0, 0, 0)
    assert result["faults"].keys() == FAULTS
    assert result["requests"] > 50
    assert run.returncode == 0


def test_lifecycle_cycles_leave_no_thread_and_no_file_behind():
    run = run_benchmark("cycles.py", "--cycles", "5")
    result = result_of(run)
    assert (result["failed"], result["unanswered"], result["exit_status"]) == (0, 0, 0)
    assert (result["threads_more"], result["files_more"]) == (0, 0)
    assert run.returncode == 0


def test_latencies_are_measured_while_the_model_computes(monkeypatch):
    """The file of this benchmark's node was once empty, and nobody noticed."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "bench"), prepend=os.pathsep)
    run = run_benchmark("busy.py", "--seconds", "1", "--shape", "tiny")
    result = result_of(run)
    assert {"timer_max_ms", "get_parameters_max_ms", "get_state_max_ms"} <= result.keys()
    assert result["complete"] is True and run.returncode == 0
