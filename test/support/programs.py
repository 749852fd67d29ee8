# SPDX-License-Identifier: Apache-2.0
"""The package's programs and benchmarks as processes, and their machine-readable last line."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
TIMEOUT_S = 300.0

Run = subprocess.CompletedProcess[str]


def run_module(name: str, *arguments: str | Path) -> Run:
    """Run `python -m name`."""
    return _run("-m", name, *arguments)


def run_benchmark(file: str, *arguments: str | Path) -> Run:
    """Run a file of bench/."""
    return _run(ROOT / "bench" / file, *arguments)


def _run(*command: str | Path) -> Run:
    return subprocess.run(
        [sys.executable, *command], capture_output=True, text=True, timeout=TIMEOUT_S
    )


def result_of(run: Run) -> dict[str, Any]:
    """What the RESULT line, the last one, holds."""
    *_, last = run.stdout.splitlines() or [""]
    assert last.startswith("RESULT "), run.stdout + run.stderr
    return json.loads(last.removeprefix("RESULT "))
