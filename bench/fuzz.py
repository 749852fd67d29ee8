# SPDX-License-Identifier: Apache-2.0
"""Hostile answers, requests, images, camera infos and transforms by the hundred thousand.

A crash is an exception that the node would not know how to report, or a result that can't be; a
hang is a case that takes more CPU time than `runner.BOUND_S` (not wall-clock time, so that a busy
machine makes none). Each case has a name, `--case "answers 0:17"` runs it alone.
"""

from __future__ import annotations

import argparse
import faulthandler
import os
import sys
import time
import warnings
from typing import Any

from results import reported
from support.fuzzing import cases, runner

PEAK_MB = 1500  # of growth, while the largest inputs are in memory several times
KEPT_MB = 300  # of growth after the first tenth, when every cache has been filled
_SHOWN = 5


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
    runner.end_stuck_cases()
    tools = cases.prepare()
    if options.case:
        print(cases.outcome(*options.case.split(), tools))
        return 0
    counts = {"answers": options.answers, "requests": options.requests}
    counts |= {"images": options.requests, "frames": options.requests // 10}
    total = runner.Tally()
    with reported(lambda: summary(total)):
        fuzz(counts, options, tools, total)
    return 0 if summary(total)["memory_bounded"] and not total.crashes and not total.hangs else 1


def fuzz(
    counts: dict[str, int], options: argparse.Namespace, tools: Any, total: runner.Tally
) -> None:
    """Run so many cases of each kind, and print what became of them."""
    for kind, count in counts.items():
        if not count:
            continue
        started = time.monotonic()
        # What is made at first use is made once, before the processes part.
        runner.run_case(kind, f"{options.seed}:warm", tools, runner.Tally())
        tally = runner.in_processes(kind, count, options.seed, options.jobs, tools)
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


def summary(total: runner.Tally) -> dict[str, Any]:
    """The figures of the cases so far."""
    bounded = total.peak_mb <= PEAK_MB and total.kept_mb <= KEPT_MB
    figures = {"cases": total.cases, "crashes": len(total.crashes), "hangs": len(total.hangs)}
    memory = {"peak_growth_mb": round(total.peak_mb), "kept_growth_mb": round(total.kept_mb)}
    return figures | memory | {"memory_bounded": bounded}


if __name__ == "__main__":
    sys.exit(main())
