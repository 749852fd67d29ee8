# SPDX-License-Identifier: Apache-2.0
"""One step of all answers in progress: some new tokens in, the scores of the next ones out.

On a CUDA device the step is captured once a shape as a graph, so that it costs one launch instead
of some hundreds; a graph is only used after it gave what the plain step gives.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robobrain_ros.engines.local.kv_cache import Rows
from robobrain_ros.engines.local.qwen_language import LanguageModel, Reach

_WARM_UPS = 2
_TOLERANCE = 0.05  # of the largest score: kernels may differ in rounding, a wrong graph is far off


@dataclass(frozen=True, eq=False)
class Step:
    """ids, columns, positions: (B, T) int64: new tokens, their cache columns and rotary positions.
    asked: (B, W) int64, the indices of the tokens after which the next one's scores are wanted.
    Right of a row's last token is padding.
    """

    ids: Tensor
    columns: Tensor
    positions: Tensor
    asked: Tensor

    @classmethod
    def of(
        cls,
        tokens: list[list[int]],
        starts: list[int],
        offsets: list[int],
        asked: list[int] | None = None,
    ) -> Step:
        """Lay out the rows' new tokens; `starts` are their columns, `offsets` positions less
        columns. asked: how many of each row's last tokens scores are wanted after, one by default.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
        columns = torch.tensor(starts)[:, None] + torch.arange(width)
        asked = asked or [1] * len(tokens)
        last = torch.tensor([len(row) - 1 for row in tokens])[:, None]
        first = torch.tensor([len(row) - count for row, count in zip(tokens, asked, strict=True)])
        # All rows have as many; those that want fewer have their last one again.
        places = torch.minimum(first[:, None] + torch.arange(max(asked)), last)
        return cls(ids, columns, columns + torch.tensor(offsets)[:, None], places)


def plain_step(language: LanguageModel, rows: Rows, step: Step) -> Tensor:
    """Scores (B, W, V) of the tokens after those that were asked for."""
    device = language.device
    ids, positions, asked = (part.to(device) for part in (step.ids, step.positions, step.asked))
    return _scores(language, rows, language.reach(step.columns), ids, positions, asked)


def _scores(
    language: LanguageModel, rows: Rows, reach: Reach, ids: Tensor, positions: Tensor, asked: Tensor
) -> Tensor:
    cache = rows.cache[:, :, : len(ids)]
    hidden = language.hidden(language.embed(ids), language.text_rope(positions), reach, cache)
    wanted = hidden[torch.arange(len(ids), device=ids.device)[:, None], asked]
    return language.logits(wanted.flatten(0, 1)).unflatten(0, asked.shape)


class GraphStepper:
    """Runs steps as CUDA graphs, one a shape, as long as the cache stays where it is."""

    def __init__(self, language: LanguageModel, rows: Rows, report: Callable[[str], None]) -> None:
        """report: told once why graphs aren't used, if they can't be."""
        self._language = language
        self._rows = rows
        self._report = report
        self._graphs: dict[tuple[int, int, int], _Graph] = {}
        self._cache: weakref.ref[Tensor] | None = None
        self._works = True

    def __call__(self, step: Step) -> Tensor:
        """As `plain_step`."""
        if not self._works:
            return plain_step(self._language, self._rows, step)
        if self._cache is None or self._cache() is not self._rows.cache:
            self._graphs.clear()
            self._cache = weakref.ref(self._rows.cache)
        rows, width, asked = self._rows.cache.shape[2], step.ids.shape[1], step.asked.shape[1]
        shape = (rows, _rounded_up(width), _rounded_up(asked))
        if shape[1] > self._rows.cache.shape[4] - int(step.columns[:, 0].max()):
            return plain_step(self._language, self._rows, step)  # padding would leave the cache
        if shape not in self._graphs:
            return self._first(shape, step)
        return self._graphs[shape].run(step)

    def _first(self, shape: tuple[int, int, int], step: Step) -> Tensor:
        """Capture a graph and compare it with the plain step, whose scores are returned."""
        scores, reason = None, ""
        try:
            graph = _Graph(self._language, self._rows, shape)
            scores = graph.run(step)
        except RuntimeError as error:  # e.g. int8, whose kernels ask the device for sizes
            reason = f"can't be captured ({str(error).splitlines()[0]})"
        # Last, so that the cache holds what this one writes.
        plain = plain_step(self._language, self._rows, step)
        if scores is not None:
            # Written so that NaN is no agreement.
            if (scores - plain).abs().max() <= _TOLERANCE * plain.abs().max():
                self._graphs[shape] = graph
            else:
                reason = "gives other scores than the plain step"
        if reason:
            self._works = False
            self._graphs.clear()
            self._report(f"decoding without CUDA graphs: the step {reason}")
        return plain


class _Graph:
    """A captured step of (rows, tokens, asked) over the whole cache; what is unused is padding."""

    def __init__(self, language: LanguageModel, rows: Rows, shape: tuple[int, int, int]) -> None:
        device = language.device
        length = rows.cache.shape[4]
        ids, columns, positions = torch.zeros((3, *shape[:2]), dtype=torch.int64, device=device)
        asked = torch.zeros((shape[0], shape[2]), dtype=torch.int64, device=device)
        self._step = Step(ids, columns, positions, asked)

        def scores() -> Tensor:
            step = self._step
            reach = language.reach(step.columns, length)
            return _scores(language, rows, reach, step.ids, step.positions, step.asked)

        # The trial runs write into the first columns of every row: they are put back.
        kept = rows.cache[:, :, :, :, : shape[1]].clone()
        self._replay = capture(scores, device)
        rows.cache[:, :, :, :, : shape[1]] = kept

    def run(self, step: Step) -> Tensor:
        rows, width = step.ids.shape
        for name in ("ids", "columns", "positions"):
            mine, new = getattr(self._step, name), getattr(step, name)
            mine[:rows, :width].copy_(new)
            # Padding goes to the columns that come next, which nothing has looked at yet.
            if name != "ids" and width < mine.shape[1]:
                right = new[:, -1:] + torch.arange(1, mine.shape[1] - width + 1)
                mine[:rows, width:].copy_(right)
        count = step.asked.shape[1]
        self._step.asked[:rows, :count].copy_(step.asked)
        return self._replay()[:rows, :count].clone()


def _rounded_up(count: int) -> int:
    """The next power of two, so that few shapes are captured."""
    return 1 << (count - 1).bit_length()


def capture(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Capture work on a CUDA device; what is returned does it again and gives its result, which is
    overwritten the next time.
    """
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):
        for _ in range(_WARM_UPS):
            work()
    torch.cuda.current_stream(device).wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = work()

    def replay() -> Tensor:
        graph.replay()
        return result

    return replay
