# SPDX-License-Identifier: Apache-2.0
"""State of one running sequence: generated, forced and drafted tokens, and stop conditions."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from torch import Tensor

from robobrain_ros.core.requests import (
    FinishReason,
    Generation,
    GenerationOptions,
    GenerationRequest,
    Stage,
)
from robobrain_ros.engines.base import EngineError
from robobrain_ros.engines.local.constrained_decoding import Constraint, Grammar, restrict
from robobrain_ros.engines.local.prefill import PreparedPrompt
from robobrain_ros.engines.local.prefix_cache import Prefix
from robobrain_ros.engines.local.processor import Processor
from robobrain_ros.engines.local.speculative import Speculation

Sizes = tuple[tuple[int, int], ...]
"""(width, height) of each image of a request, in order."""


class Sequence:
    """The first `computed` slots of its row of the KV cache hold its tokens.

    pending: tokens that are generated but not in the cache yet. drafted: tokens that may follow
    them. finish: None while it is running.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: PreparedPrompt,
        constraint: Constraint | None,
        processor: Processor,
        end_ids: frozenset[int],
        started: float,
        speculation: Speculation | None = None,
    ) -> None:
        """started: on the clock of time.monotonic(), when work on the request began. speculation:
        None drafts nothing.
        """
        self.request = request
        self.prompt = prompt
        self.computed = 0
        self.offset = 0  # rotary positions minus slots
        self.pending: list[int] = []
        self.drafted: list[int] = []
        self.finish: FinishReason | None = None
        self.failure: EngineError | None = None
        self._tokens: list[int] = []
        self._constraint = constraint
        self._speculation = speculation
        self._misses = 0
        self._sampler = Sampler(request.options) if request.options.temperature else None
        self._processor = processor
        self._end_ids = end_ids
        self._stream: Callable[[int], str] | None = processor.stream() if request.report else None
        self._started = started
        self._prepared = time.monotonic()
        self._prefilled: float | None = None

    @property
    def max_slots(self) -> int:
        """Slots that it may need."""
        return self.prompt.length + self.request.options.max_new_tokens

    @property
    def has_ended(self) -> bool:
        """Whether it is finished or has failed."""
        return self.finish is not None or self.failure is not None

    def start_prefill(self) -> list[int]:
        """Return the forced tokens that the answer begins with; they are prefilled, too."""
        forced = self._forced()
        self._append(forced)
        self.pending = []
        return forced

    def finish_prefill(self, offset: int) -> None:
        """Note that prompt and forced tokens are in the cache; offset: of `Prefiller.prefill`."""
        self.computed = self.prompt.length + len(self._tokens)
        self.offset = offset
        self._prefilled = time.monotonic()

    def defer_prefill(self, prefix: Prefix, forced: list[int]) -> None:
        """Have the next decode step compute the prompt's new tokens and the forced ones."""
        self.computed, self.offset = len(prefix.ids), prefix.offset
        self.pending = [*self.prompt.ids[0, self.computed :].tolist(), *forced]

    def draft(self, most: int) -> None:
        """Draft up to `most` tokens after the pending ones, unless drafting has been in vain."""
        if self._speculation is None or self._constraint is None or most <= 0:
            return
        drafter = self._speculation.drafter
        if drafter is not None and self._misses < self._speculation.max_misses:
            self.drafted = drafter.draft(self._constraint.answer)[:most]

    def restrict(self, logits: Tensor) -> None:
        """Mask, in place, the logits (V,) of tokens that may not come next."""
        if self._constraint is not None:
            restrict(logits, self._constraint)

    def choose(self, logits: Tensor, likeliest: int | None = None) -> int:
        """Choose a token by its logits (V,); likeliest: their argmax, if known already."""
        if self._sampler is not None:
            return self._sampler(logits)
        return int(logits.argmax()) if likeliest is None else likeliest

    def choose_and_advance(self, logits: Tensor, likeliest: int) -> None:
        """Choose the next token, and advance by it; logits: (W, V), as `advance` takes them."""
        self.advance(self.choose(logits[0], likeliest), logits)

    def advance(self, token: int, logits: Tensor) -> None:
        """Append the chosen token, the tokens forced after it, and the drafts that prove right.

        logits: (W, V), after the last of the pending tokens and after each drafted one.
        """
        self.computed += len(self.pending)
        self._prefilled = self._prefilled or time.monotonic()
        draft, self.drafted, accepted = self.drafted, [], 0
        while True:
            self._add(token)
            agreed = _common_prefix(self.pending, draft[accepted:])
            self.computed += agreed
            accepted += agreed
            if self.finish is not None or agreed < len(self.pending):
                break
            self.restrict(logits[accepted])
            token = self.choose(logits[accepted])
        self.pending = self.pending[agreed:]
        if draft:
            self._misses = 0 if accepted else self._misses + 1

    def report(self, stage: Stage, text: str = "") -> None:
        """Call the request's `report`, if it has one."""
        if self.request.report is not None:
            self.request.report(stage, text, len(self._tokens))

    def generation(self) -> Generation:
        """Return the outcome, once finished."""
        prefilled = self._prefilled or self._prepared  # stopped before the prefill
        return Generation(
            text=self._processor.decode(self._tokens),
            finish=self.finish or FinishReason.STOPPED,
            sent_sizes=self.prompt.sent_sizes,
            tokens_in=self.prompt.length,
            tokens_out=len(self._tokens),
            cached_tokens=self.prompt.cached,
            preprocess_s=self._prepared - self._started,
            prefill_s=prefilled - self._prepared,
            decode_s=time.monotonic() - prefilled,
        )

    def _add(self, token: int) -> None:
        tokens = [token]
        if self._constraint is not None:
            self._constraint.accept(tokens)
            tokens += self._forced()
        self._append(tokens)

    def _forced(self) -> list[int]:
        if self._constraint is None:
            return []
        tokens = self._constraint.forced()
        self._constraint.accept(tokens)
        return tokens

    def _append(self, tokens: list[int]) -> None:
        limit = self.request.options.max_new_tokens
        room = limit - len(self._tokens)
        fits = len(tokens) <= room
        tokens = tokens[:room]
        self._tokens += tokens
        self.pending = tokens
        # The constraint has accepted all of the tokens, also those that there is no room for.
        complete = self._constraint is not None and self._constraint.finished and fits
        if complete or (self._tokens and self._tokens[-1] in self._end_ids):
            self.finish = FinishReason.EOS
        elif len(self._tokens) >= limit:
            self.finish = FinishReason.LENGTH
        if self._stream is not None and tokens:
            self.report(Stage.DECODING, "".join(map(self._stream, tokens)))


def constrain(
    grammar: Grammar | None, request: GenerationRequest, sent_sizes: Sizes
) -> Constraint | None:
    """The constraint of a request's answer, None for free text. Raises EngineError."""
    if grammar is None or request.answer_format is None:
        return None
    sent_size = sent_sizes[0] if sent_sizes else (0, 0)
    try:
        return grammar.constrain(request.answer_format, sent_size, request.opening)
    except ValueError as error:
        raise EngineError(f"The request has no answer in its format: {error}.") from error


class Sampler:
    """Draws tokens at a temperature, from a random stream of its own."""

    def __init__(self, options: GenerationOptions) -> None:
        self._temperature = options.temperature
        self._generator = torch.Generator()
        if options.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(options.seed)

    def __call__(self, logits: Tensor) -> int:
        """Draw a token by its logits (V,); on the CPU, where a seed means the same everywhere."""
        exact = logits.double().cpu()  # in which no temperature above 0 becomes 0
        # The maximum is subtracted first: the smallest temperatures would overflow otherwise.
        weights = torch.softmax((exact - exact.max()) / self._temperature, -1)
        return int(torch.multinomial(weights, 1, generator=self._generator))


def _common_prefix(one: list[int], other: list[int]) -> int:
    """Number of tokens with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(one), len(other)))
