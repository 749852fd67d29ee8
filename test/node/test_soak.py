# SPDX-License-Identifier: Apache-2.0
"""Load and faults together: `make soak` and `make cycles`, in short."""

import importlib

import pytest
from support.programs import ROOT, result_of, run_benchmark

from robobrain_ros.brain_node import BrainNode

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


def test_the_node_of_bench_busy_is_a_brain(monkeypatch):
    """Its file was once empty, and nobody noticed."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    busy_brain = importlib.import_module("busy_brain")
    assert issubclass(busy_brain.BusyBrain, BrainNode)
