# SPDX-License-Identifier: Apache-2.0
"""Counts and latencies of the requests so far, for the diagnostics."""

from __future__ import annotations

from collections import Counter, defaultdict, deque
from collections.abc import Callable, Mapping
from functools import partial

import numpy as np

from robobrain_ros.core.answered_request import AnsweredRequest
from robobrain_ros.core.errors import BrainError
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.tasks import TaskKind

KEPT_ANSWERS = 200
"""Answers per task that latencies are computed from."""


class Metrics:
    """Metrics of the requests, as a result listener. For the executor's thread alone."""

    def __init__(self) -> None:
        self._seconds: Mapping[TaskKind, deque[float]] = defaultdict(
            lambda: deque(maxlen=KEPT_ANSWERS)
        )
        self._codes: Counter[str] = Counter()
        self._missing_3d: Counter[str] = Counter()
        self._tokens: deque[tuple[int, float]] = deque(maxlen=KEPT_ANSWERS)
        self._cache_hits: deque[bool] = deque(maxlen=KEPT_ANSWERS)
        self._unreported: list[str] = []

    def on_result(
        self, answered: AnsweredRequest, observation: Observation | None
    ) -> Callable[[], None]:
        """See `core.answered_request.ResultListener`."""
        return partial(self.answered, answered)

    def answered(self, answered: AnsweredRequest) -> None:
        """Count an answer."""
        generation = answered.result.generation
        self._codes["NONE"] += 1
        self._seconds[answered.result.answer.kind].append(answered.seconds)
        self._tokens.append((generation.tokens_out, generation.decode_s))
        self._cache_hits.append(generation.cached_tokens > 0)

    def failed(self, failure: BrainError) -> None:
        """Count a request that got an error."""
        self._codes[failure.code.name] += 1
        self._unreported.append(f"{failure.code.name}: {failure}")

    def missing_3d(self, status: str) -> None:
        """Count an answer that has to do without its depth or transform."""
        self._missing_3d[status] += 1

    def new_failures(self) -> list[str]:
        """Return the errors since the last call, each with its sentence."""
        unreported, self._unreported = self._unreported, []
        return unreported

    def values(self) -> dict[str, str]:
        """Return every metric by its name, the unit in parentheses."""
        found = {f"answers with {code}": str(n) for code, n in sorted(self._codes.items())}
        missing = sorted(self._missing_3d.items())
        found |= {f"answers without 3D, {status}": str(n) for status, n in missing}
        for kind, seconds in self._seconds.items():
            for share in (50, 95):
                value = np.percentile(seconds, share)
                found[f"{kind.value} p{share} (s)"] = f"{value:.3f}"
        if decoding := sum(seconds for _, seconds in self._tokens):
            found["tokens per second"] = f"{sum(count for count, _ in self._tokens) / decoding:.1f}"
        if self._cache_hits:
            found["images known already (%)"] = f"{100 * np.mean(self._cache_hits):.0f}"
        return found
