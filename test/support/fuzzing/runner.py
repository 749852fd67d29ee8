# SPDX-License-Identifier: Apache-2.0
"""Runs cases of hostile input, and counts crashes, hangs and memory: see bench/fuzz.py."""

from __future__ import annotations

import multiprocessing
import os
import re
import resource
import signal
import time
import traceback
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from support.fuzzing import cases

BOUND_S = 1.0  # CPU time; answers of megabytes and images of megapixels have an allowance more
STUCK_S = 60  # CPU time after which a case is ended


class Stuck(BaseException):
    """A case that doesn't end; no handler of the package's catches it."""


def end_stuck_cases() -> None:
    """Let this process and its children raise Stuck in cases that take more than STUCK_S."""

    def end(*_: object) -> None:
        raise Stuck

    signal.signal(signal.SIGPROF, end)


@dataclass
class Tally:
    """What became of the cases of one process."""

    outcomes: Counter[str] = field(default_factory=Counter)
    crashes: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    slowest_s: float = 0.0
    cpu_s: float = 0.0
    peak_mb: float = 0.0
    kept_mb: float = 0.0

    @property
    def cases(self) -> int:
        return self.outcomes.total()

    def add(self, other: Tally) -> None:
        """Take in what another process counted."""
        self.outcomes += other.outcomes
        self.crashes += other.crashes
        self.hangs += other.hangs
        self.cpu_s += other.cpu_s
        for name in ("slowest_s", "peak_mb", "kept_mb"):
            setattr(self, name, max(getattr(self, name), getattr(other, name)))


def run_case(kind: str, seed: str, tools: Any, tally: Tally, bound_s: float = BOUND_S) -> None:
    """Run one case and count it."""
    name, started, tools.allowance_s = f"{kind} {seed}", time.process_time(), 0.0
    signal.setitimer(signal.ITIMER_PROF, STUCK_S)
    try:
        tally.outcomes[cases.outcome(kind, seed, tools)] += 1
    except Stuck:
        tally.outcomes["stuck"] += 1
    except Exception as error:  # noqa: BLE001
        tally.outcomes["crash"] += 1
        frames = traceback.extract_tb(error.__traceback__)
        ours = [one for one in frames if re.search("robobrain_ros|fuzzing|test_", one.filename)]
        at = f"{os.path.basename(ours[-1].filename)}:{ours[-1].lineno}"
        tally.crashes.append(f"{name}: {repr(error)[:300]} in {ours[-1].name}, {at}")
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    took = time.process_time() - started
    tally.cpu_s += took
    tally.slowest_s = max(tally.slowest_s, took)
    if took > bound_s + tools.allowance_s:
        tally.hangs.append(f"{name}: {took:.1f} s of CPU time")


def run_cases(kind: str, seeds: list[str], tools: Any, current: Any = None) -> Tally:
    """Run cases one after the other. current: where the number of the one that runs is kept."""
    tally = Tally()
    before, filled = _peak_mb(), 0.0
    for number, seed in enumerate(seeds):
        if current is not None:
            current.value = number
        run_case(kind, seed, tools, tally)
        if number == len(seeds) // 10:
            filled = _now_mb()
    tally.peak_mb, tally.kept_mb = _peak_mb() - before, _now_mb() - filled
    return tally


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _now_mb() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def in_processes(kind: str, count: int, seed: int, jobs: int, tools: Any) -> Tally:
    """Run cases in processes of their own: one that dies is a crash as well."""
    context, total = multiprocessing.get_context("fork"), Tally()
    running = []
    for job in range(jobs):
        seeds = [f"{seed}:{number}" for number in range(job, count, jobs)]
        current, (receiver, sender) = context.Value("q", 0), context.Pipe(False)

        def work(seeds: list[str] = seeds, current: Any = current, sender: Any = sender) -> None:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            sender.send(run_cases(kind, seeds, tools, current))

        process = context.Process(target=work, daemon=True)
        process.start()
        sender.close()
        running.append((process, receiver, seeds, current))
    for process, receiver, seeds, current in running:
        try:
            total.add(receiver.recv())
        except EOFError:
            process.join()
            at = seeds[current.value] if seeds else ""
            total.outcomes["crash"] += 1
            total.crashes.append(f"{kind} {at}: the process ended with {process.exitcode}")
        process.join()
    return total
