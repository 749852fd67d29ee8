# SPDX-License-Identifier: Apache-2.0
"""What came of the requests so far, in figures for the diagnostics."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Mapping

import numpy as np

from robobrain_ros.core.errors import BrainError
from robobrain_ros.core.families import TaskKind
from robobrain_ros.core.requests import Generation

KEPT_ANSWERS = 200
"""Answers per task from which latencies are told."""


class Tally:
    """Counts requests. For one thread: the executor's, where they all end."""

    def __init__(self) -> None:
        self._seconds: Mapping[TaskKind, deque[float]] = defaultdict(
            lambda: deque(maxlen=KEPT_ANSWERS)
        )
        self._codes: Counter[str] = Counter()
        self._lacked: Counter[str] = Counter()
        self._tokens: deque[tuple[int, float]] = deque(maxlen=KEPT_ANSWERS)
        self._known: deque[bool] = deque(maxlen=KEPT_ANSWERS)
        self._unheard: list[str] = []

    def answered(self, kind: TaskKind, generation: Generation, seconds: float) -> None:
        """Note an answer, and the seconds that its request took in all."""
        self._codes["NONE"] += 1
        self._seconds[kind].append(seconds)
        self._tokens.append((generation.tokens_out, generation.decode_s))
        self._known.append(generation.cached_tokens > 0)

    def failed(self, failure: BrainError) -> None:
        """Note a request that got an error."""
        self._codes[failure.code.name] += 1
        self._unheard.append(f"{failure.code.name}: {failure}")

    def lacked(self, what: str) -> None:
        """Note an answer that had to do without its depth or transform; `what`: the status."""
        self._lacked[what] += 1

    def failures(self) -> list[str]:
        """Return the errors since the last call, each with its sentence."""
        unheard, self._unheard = self._unheard, []
        return unheard

    def figures(self) -> dict[str, str]:
        """Return every figure by its name, the unit in parentheses."""
        found = {f"answers with {code}": str(n) for code, n in sorted(self._codes.items())}
        found |= {f"answers without 3D, {what}": str(n) for what, n in sorted(self._lacked.items())}
        for kind, seconds in self._seconds.items():
            for share in (50, 95):
                value = np.percentile(seconds, share)
                found[f"{kind.value} p{share} (s)"] = f"{value:.3f}"
        if decoding := sum(seconds for _, seconds in self._tokens):
            found["tokens per second"] = f"{sum(count for count, _ in self._tokens) / decoding:.1f}"
        if self._known:
            found["images known already (%)"] = f"{100 * np.mean(self._known):.0f}"
        return found
