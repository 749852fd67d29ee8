# SPDX-License-Identifier: Apache-2.0
"""The last line of every benchmark: `RESULT {json}`, also when it is stopped before its end."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

STOPPED = 143  # exit status of a process that SIGTERM ended, 128 + 15


class Stopped(SystemExit):
    """SIGTERM came, or the time limit was reached."""


@contextmanager
def reported(
    summary: Callable[[], dict[str, Any]] = dict, limit_s: float = 0.0
) -> Iterator[dict[str, Any]]:
    """Print the figures that were put into the dictionary, and those of `summary()`, at the end.

    Stopped by SIGTERM, by Ctrl-C or after `limit_s` seconds (0 = no limit), the line has what there
    is and `"complete": false`; the process then ends with status 143, or 0 after the limit. Nodes
    that were started in the context are ended as usual. `summary` must take half a run. For the
    main thread; rclpy must be initialized without signal handlers of its own.
    """
    figures: dict[str, Any] = {}
    complete = False

    def stop(number: int, frame: FrameType | None) -> None:
        raise Stopped(0 if number == signal.SIGALRM else STOPPED)

    before = {one: signal.signal(one, stop) for one in (signal.SIGTERM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield figures
        complete = True
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        for one, handler in before.items():
            signal.signal(one, handler)
        print("RESULT", json.dumps(figures | summary() | {"complete": complete}), flush=True)
