# SPDX-License-Identifier: Apache-2.0
"""Load and faults together: a minute of `make soak`, and a few of `make cycles`."""

import json
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"


def result_of(program, *arguments):
    run = subprocess.run(
        [sys.executable, BENCH / program, *arguments], capture_output=True, text=True, timeout=900
    )
    name, _, result = run.stdout.strip().splitlines()[-1].partition(" ")
    assert name == "RESULT", run.stdout + run.stderr
    print(run.stdout)
    return run.returncode, json.loads(result)


def test_every_request_is_answered_whatever_happens():
    status, result = result_of("soak.py", "--seconds", "60")
    assert (result["unanswered"], result["without_code"], result["crashes"]) == (0, 0, 0)
    assert result["requests"] > 50
    assert status == 0


def test_lifecycle_cycles_leave_no_thread_and_no_file_behind():
    status, result = result_of("cycles.py", "--cycles", "10")
    assert (result["failed"], result["unanswered"], result["exit_status"]) == (0, 0, 0)
    assert (result["threads_more"], result["files_more"]) == (0, 0)
    assert status == 0
