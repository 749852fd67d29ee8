# SPDX-License-Identifier: Apache-2.0
"""Hostile answers, requests, images, camera infos and transforms by the hundred thousand.

A crash is an exception that the node would not know how to report, or a result that can't be; a
hang is a case that takes more CPU time than BOUND_S (not wall-clock time, so that a busy machine
makes none). Each case has a name, `--case "answers 0:17"` runs it alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import multiprocessing
import os
import re
import resource
import signal
import sys
import time
import traceback
import warnings
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import hostile_cases
from results import reported

BOUND_S = 1.0  # CPU time; answers of megabytes and images of megapixels have an allowance more
STUCK_S = 60  # CPU time after which a case is ended
PEAK_MB = 1500  # of growth, while the largest inputs are in memory several times
KEPT_MB = 300  # of growth after the first tenth, when every cache has been filled
_SHOWN = 5


class Stuck(BaseException):
    """A case that doesn't end; no handler of the package's catches it."""


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
        tally.outcomes[hostile_cases.outcome(kind, seed, tools)] += 1
    except Stuck:
        tally.outcomes["stuck"] += 1
    except Exception as error:  # noqa: BLE001
        tally.outcomes["crash"] += 1
        frames = traceback.extract_tb(error.__traceback__)
        ours = [one for one in frames if re.search("robobrain_ros|bench|test_", one.filename)]
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


def _stuck(*_: object) -> None:
    raise Stuck


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


def main() -> int:
    """Run the cases, print what became of them and the RESULT line; 1 when something is wrong."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--answers", type=int, default=20_000)
    parser.add_argument("--requests", type=int, default=4_000, help="and as many images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=os.cpu_count())
    parser.add_argument("--case", help='run one, such as "answers 0:17", and say what it raises')
    options = parser.parse_args()
    faulthandler.enable()
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGPROF, _stuck)
    tools = hostile_cases.prepare()
    if options.case:
        print(hostile_cases.outcome(*options.case.split(), tools))
        return 0
    counts = {"answers": options.answers, "requests": options.requests}
    counts |= {"images": options.requests, "frames": options.requests // 10}
    total = Tally()
    with reported(lambda: summary(total)):
        fuzz(counts, options, tools, total)
    return 0 if summary(total)["memory_bounded"] and not total.crashes and not total.hangs else 1


def fuzz(counts: dict[str, int], options: argparse.Namespace, tools: Any, total: Tally) -> None:
    """Run so many cases of each kind, and print what became of them."""
    for kind, count in counts.items():
        if not count:
            continue
        started = time.monotonic()
        # What is made at first use is made once, before the processes part.
        run_case(kind, f"{options.seed}:warm", tools, Tally())
        tally = in_processes(kind, count, options.seed, options.jobs, tools)
        seconds = time.monotonic() - started
        print(
            f"{kind}: {tally.cases} in {seconds:.0f} s and {tally.cpu_s:.0f} s of CPU "
            f"({tally.cases / max(tally.cpu_s, 1e-9):.0f} a second of it), slowest "
            f"{tally.slowest_s:.2f} s; memory +{tally.peak_mb:.0f} MB at most, "
            f"+{tally.kept_mb:.0f} MB kept; {dict(tally.outcomes.most_common())}",
            flush=True,
        )
        for name, offenders in (("crash", tally.crashes), ("hang", tally.hangs)):
            for offender in offenders[:_SHOWN]:
                print(f"  {name}: {offender}", flush=True)
        total.add(tally)
    if not summary(total)["memory_bounded"]:
        print(f"  memory: more than {PEAK_MB} MB at most or {KEPT_MB} MB kept")


def summary(total: Tally) -> dict[str, Any]:
    """The figures of the cases so far."""
    bounded = total.peak_mb <= PEAK_MB and total.kept_mb <= KEPT_MB
    figures = {"cases": total.cases, "crashes": len(total.crashes), "hangs": len(total.hangs)}
    memory = {"peak_growth_mb": round(total.peak_mb), "kept_growth_mb": round(total.kept_mb)}
    return figures | memory | {"memory_bounded": bounded}


if __name__ == "__main__":
    sys.exit(main())
