# SPDX-License-Identifier: Apache-2.0
"""`make fuzz` in small finds nothing, and would find what there was."""

from __future__ import annotations

import os
import time

from support.fuzzing import cases, runner
from support.programs import result_of, run_benchmark

from robobrain_ros.core.errors import BrainError, ErrorCode


def test_a_small_run_finds_no_crash_and_no_hang():
    run = run_benchmark("fuzz.py", "--answers", "1000", "--requests", "200", "--seed", "9")
    assert run.returncode == 0, run.stdout + run.stderr
    result = result_of(run)
    assert (result["cases"], result["crashes"], result["hangs"]) == (1420, 0, 0)


def crash(rng, tools):
    raise ZeroDivisionError("as a bug would")


def refuse(rng, tools):
    raise BrainError(ErrorCode.BAD_REQUEST, "The text is empty: say what to look for.")


def burn(rng, tools):
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    return "answered"


def die(rng, tools):
    os._exit(3)


def test_what_the_node_could_not_report_is_a_crash(monkeypatch):
    monkeypatch.setattr(cases, "CASES", {"crash": crash, "refuse": refuse})
    tally, tools = runner.Tally(), cases.Tools()
    runner.run_case("crash", "0:1", tools, tally)
    runner.run_case("refuse", "0:1", tools, tally)
    assert tally.outcomes == {"crash": 1, "BAD_REQUEST": 1}
    (line,) = tally.crashes
    assert line.startswith("crash 0:1: ZeroDivisionError") and "test_hostile_fuzz.py" in line


def test_what_takes_more_cpu_time_than_the_bound_is_a_hang(monkeypatch):
    monkeypatch.setattr(cases, "CASES", {"burn": burn})
    tally = runner.Tally()
    runner.run_case("burn", "0:1", cases.Tools(), tally, bound_s=0.1)
    assert len(tally.hangs) == 1 and not tally.crashes


def test_a_process_that_dies_is_a_crash_with_its_case(monkeypatch):
    monkeypatch.setattr(cases, "CASES", {"die": die})
    tally = runner.in_processes("die", 3, 0, 2, cases.Tools())
    assert [line.split(":")[:2] for line in tally.crashes] == [["die 0", "0"], ["die 0", "1"]]
