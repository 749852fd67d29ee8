# SPDX-License-Identifier: Apache-2.0
"""One decode step of all running sequences: some new tokens in, logits of the next ones out.

On a CUDA device the step is captured once per shape as a CUDA graph, so that it costs one launch
instead of some hundreds; a graph is only used once its logits have equalled the eager step's.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from robobrain_ros.engines.local.kv_cache import KVCache
from robobrain_ros.engines.local.qwen_language import AttentionMetadata, LanguageModel

_WARM_UPS = 2
_TOLERANCE = 0.05  # of the largest logit: kernels may round differently, a wrong graph is far off


@dataclass(frozen=True, eq=False)
class StepInput:
    """The new tokens of a step, padded on the right.

    ids, slots, positions: (B, T) int64: new tokens, their cache slots and rotary positions.
    logit_indices: (B, W) int64, the indices of the tokens after which logits are wanted.
    """

    ids: Tensor
    slots: Tensor
    positions: Tensor
    logit_indices: Tensor

    @classmethod
    def of(
        cls,
        tokens: list[list[int]],
        starts: list[int],
        offsets: list[int],
        wanted: list[int] | None = None,
    ) -> StepInput:
        """Batch the sequences' new tokens.

        starts: slots of the first ones. offsets: rotary positions minus slots. wanted: logits are
        wanted after how many of each sequence's last tokens, one by default.
        """
        width = max(map(len, tokens))
        ids = torch.tensor([row + [0] * (width - len(row)) for row in tokens])
        slots = torch.tensor(starts)[:, None] + torch.arange(width)
        wanted = wanted or [1] * len(tokens)
        last = torch.tensor([len(row) - 1 for row in tokens])[:, None]
        first = torch.tensor([len(row) - count for row, count in zip(tokens, wanted, strict=True)])
        # All rows have as many indices; those that want fewer repeat their last one.
        indices = torch.minimum(first[:, None] + torch.arange(max(wanted)), last)
        return cls(ids, slots, slots + torch.tensor(offsets)[:, None], indices)


def eager_step(language: LanguageModel, cache: KVCache, step: StepInput) -> Tensor:
    """Return the logits (B, W, V) after the tokens at `logit_indices`."""
    device = language.device
    parts = (step.ids, step.positions, step.logit_indices)
    ids, positions, indices = (part.to(device) for part in parts)
    return _logits(
        language, cache, language.attention_metadata(step.slots), ids, positions, indices
    )


def _logits(
    language: LanguageModel,
    cache: KVCache,
    metadata: AttentionMetadata,
    ids: Tensor,
    positions: Tensor,
    indices: Tensor,
) -> Tensor:
    rows = cache.tensor[:, :, : len(ids)]
    hidden = language.hidden(language.embed(ids), language.text_rope(positions), metadata, rows)
    wanted = hidden[torch.arange(len(ids), device=ids.device)[:, None], indices]
    return language.logits(wanted.flatten(0, 1)).unflatten(0, indices.shape)


class CudaGraphStep:
    """Decode steps as CUDA graphs, one per shape, while the cache stays at its address."""

    def __init__(
        self, language: LanguageModel, cache: KVCache, warn: Callable[[str], None]
    ) -> None:
        """warn: called once with the reason if graphs can't be used."""
        self._language = language
        self._cache = cache
        self._warn = warn
        self._captured: weakref.ref[Tensor] | None = None
        self._works = True
        self.graphs: dict[tuple[int, int, int], _Graph] = {}
        """By rows, tokens per row and logits per row."""

    def __call__(self, step: StepInput) -> Tensor:
        """Compute what `eager_step` does."""
        if not self._works:
            return eager_step(self._language, self._cache, step)
        if self._captured is None or self._captured() is not self._cache.tensor:
            self.graphs.clear()
            self._captured = weakref.ref(self._cache.tensor)
        width, wanted = step.ids.shape[1], step.logit_indices.shape[1]
        shape = (self._cache.rows, _rounded_up(width), _rounded_up(wanted))
        if shape[1] > self._cache.slots - int(step.slots[:, 0].max()):
            return eager_step(self._language, self._cache, step)  # padding would leave the cache
        if shape not in self.graphs:
            return self._capture(shape, step)
        return self.graphs[shape].run(step)

    def _capture(self, shape: tuple[int, int, int], step: StepInput) -> Tensor:
        """Capture a graph and compare it with the eager step, whose logits are returned."""
        logits, reason = None, ""
        try:
            graph = _Graph(self._language, self._cache, shape)
            logits = graph.run(step)
        except RuntimeError as error:  # e.g. int8, whose kernels ask the device for sizes
            reason = f"can't be captured ({str(error).splitlines()[0]})"
        # After the graph, so that the cache holds the eager step's keys and values.
        eager = eager_step(self._language, self._cache, step)
        if logits is not None:
            # Written so that NaN counts as a difference.
            if (logits - eager).abs().max() <= _TOLERANCE * eager.abs().max():
                self.graphs[shape] = graph
            else:
                reason = "gives other logits than the eager step"
        if reason:
            self._works = False
            self.graphs.clear()
            self._warn(f"decoding without CUDA graphs: the step {reason}")
        return eager


class _Graph:
    """A captured step of (rows, tokens, logits) over the whole cache; unused places are padding."""

    def __init__(
        self, language: LanguageModel, cache: KVCache, shape: tuple[int, int, int]
    ) -> None:
        device = language.device
        ids, slots, positions = torch.zeros((3, *shape[:2]), dtype=torch.int64, device=device)
        indices = torch.zeros((shape[0], shape[2]), dtype=torch.int64, device=device)
        self._input = StepInput(ids, slots, positions, indices)

        def logits() -> Tensor:
            step = self._input
            metadata = language.attention_metadata(step.slots, cache.slots)
            return _logits(language, cache, metadata, step.ids, step.positions, step.logit_indices)

        # The trial runs write into the first slots of every row, which are restored.
        saved = cache.tensor[:, :, :, :, : shape[1]].clone()
        self._replay = capture(logits, device)
        cache.tensor[:, :, :, :, : shape[1]] = saved

    def run(self, step: StepInput) -> Tensor:
        rows, width = step.ids.shape
        for name in ("ids", "slots", "positions"):
            mine, new = getattr(self._input, name), getattr(step, name)
            mine[:rows, :width].copy_(new)
            # Padding goes to the slots that come next, which nothing has attended to yet.
            if name != "ids" and width < mine.shape[1]:
                right = new[:, -1:] + torch.arange(1, mine.shape[1] - width + 1)
                mine[:rows, width:].copy_(right)
        count = step.logit_indices.shape[1]
        self._input.logit_indices[:rows, :count].copy_(step.logit_indices)
        return self._replay()[:rows, :count].clone()


def _rounded_up(count: int) -> int:
    """The next power of two, so that few shapes are captured."""
    return 1 << (count - 1).bit_length()


def capture(work: Callable[[], Tensor], device: torch.device) -> Callable[[], Tensor]:
    """Capture work on a CUDA device and return a function that replays it.

    The function returns the work's result, in memory that the next replay overwrites.
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
