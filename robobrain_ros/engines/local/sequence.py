# SPDX-License-Identifier: Apache-2.0
"""One answer in progress: what was written, what comes next without a choice, when it ends."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from torch import Tensor

from robobrain_ros.core.requests import FinishReason, Generation, GenerationRequest, Stage
from robobrain_ros.engines.local.constrained_decoding import Constraint, restrict
from robobrain_ros.engines.local.prefill import Prompt
from robobrain_ros.engines.local.prefix_cache import Prefix
from robobrain_ros.engines.local.processor import Encoder
from robobrain_ros.engines.local.speculative import Drafter

_MOST_MISSED = 4  # drafts in a row without a right token: what is written is not what they guess


class Writing:
    """The first `filled` columns of its row of the cache hold what was read and written; `pending`
    are the tokens that are known but not yet in the cache, `drafted` those that may come then.
    """

    def __init__(
        self,
        request: GenerationRequest,
        prompt: Prompt,
        constraint: Constraint | None,
        encoder: Encoder,
        end_ids: frozenset[int],
        started: float,
        drafter: Drafter | None = None,
    ) -> None:
        """started: on the clock of time.monotonic(), when work on the request began. drafter:
        guesses at answers of the constraint's form.
        """
        self.request = request
        self.prompt = prompt
        self.filled = 0
        self.offset = 0
        self.pending: list[int] = []
        self.drafted: list[int] = []
        self.finish: FinishReason | None = None
        self._tokens: list[int] = []
        self._constraint = constraint
        self._drafter = drafter
        self._missed = 0
        self._encoder = encoder
        self._end_ids = end_ids
        self._stream: Callable[[int], str] | None = encoder.stream() if request.report else None
        self._started = started
        self._encoded = time.monotonic()
        self._first_token: float | None = None  # when all before it was read

    @property
    def most_tokens(self) -> int:
        """Columns that it may take in the end."""
        return self.prompt.length + self.request.max_new_tokens

    def open(self) -> list[int]:
        """Return the tokens with which the answer must begin; they are read with the prompt."""
        opening = self._forced()
        self._write(opening)
        self.pending = []
        return opening

    def placed(self, offset: int) -> None:
        """Note that prompt and opening are in the cache; offset: of `Reader.read`."""
        self.filled = self.prompt.length + len(self._tokens)
        self.offset = offset
        self._first_token = time.monotonic()

    def begin(self, prefix: Prefix, opening: list[int]) -> None:
        """Have what is new of the prompt, and the opening, read in the next step."""
        self.filled, self.offset = len(prefix.ids), prefix.offset
        self.pending = [*self.prompt.ids[0, self.filled :].tolist(), *opening]

    def draft(self, most: int) -> None:
        """Guess up to `most` tokens after the pending ones, unless guessing has been in vain."""
        if self._drafter is not None and self._constraint is not None and most > 0:
            self.drafted = self._drafter.draft(self._constraint.answer)[:most]

    def restrict(self, scores: Tensor) -> None:
        """Rule out, in place, what must not come next; scores: (V,)."""
        if self._constraint is not None:
            restrict(scores, self._constraint)

    def go_on(self, token: int, scores: Tensor) -> None:
        """Write the token that was chosen after what is in the cache now, what must follow it, and
        the same for each drafted token that turns out to be right.

        scores: (W, V), after the last of the pending tokens and after each drafted one.
        """
        self.filled += len(self.pending)
        self._first_token = self._first_token or time.monotonic()
        draft, self.drafted, right = self.drafted, [], 0
        while True:
            self._add(token)
            agreed = _agreed(self.pending, draft[right:])
            self.filled += agreed
            right += agreed
            if self.finish is not None or agreed < len(self.pending):
                break
            self.restrict(scores[right])
            token = int(scores[right].argmax())
        self.pending = self.pending[agreed:]
        if draft:
            self._missed = 0 if right else self._missed + 1
            if self._missed == _MOST_MISSED:
                self._drafter = None

    def tell(self, stage: Stage, text: str = "") -> None:
        """Report to whoever wants to know."""
        if self.request.report is not None:
            self.request.report(stage, text, len(self._tokens))

    def generation(self) -> Generation:
        """Return the answer, which has ended."""
        first_token = self._first_token or self._encoded  # stopped before it was read
        return Generation(
            text=self._encoder.decode(self._tokens),
            finish=self.finish or FinishReason.STOPPED,
            sent_size=self.prompt.sent_size,
            tokens_in=self.prompt.length,
            tokens_out=len(self._tokens),
            cached_tokens=self.prompt.cached,
            preprocess_s=self._encoded - self._started,
            prefill_s=first_token - self._encoded,
            decode_s=time.monotonic() - first_token,
        )

    def _add(self, token: int) -> None:
        tokens = [token]
        if self._constraint is not None:
            self._constraint.accept(tokens)
            tokens += self._forced()
        self._write(tokens)

    def _forced(self) -> list[int]:
        if self._constraint is None:
            return []
        tokens = self._constraint.forced()
        self._constraint.accept(tokens)
        return tokens

    def _write(self, tokens: list[int]) -> None:
        tokens = tokens[: self.request.max_new_tokens - len(self._tokens)]
        self._tokens += tokens
        self.pending = tokens
        complete = self._constraint is not None and self._constraint.finished
        if complete or (self._tokens and self._tokens[-1] in self._end_ids):
            self.finish = FinishReason.EOS
        elif len(self._tokens) >= self.request.max_new_tokens:
            self.finish = FinishReason.LENGTH
        if self._stream is not None and tokens:
            self.tell(Stage.DECODING, "".join(map(self._stream, tokens)))


def _agreed(written: Sequence[int], draft: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    pairs = enumerate(zip(written, draft, strict=False))
    return next((i for i, (one, other) in pairs if one != other), min(len(written), len(draft)))
