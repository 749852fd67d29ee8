# SPDX-License-Identifier: Apache-2.0
"""Answers that cannot fail to parse: which tokens may come next, and which ones must.

A model that answers under a Constraint writes what its AnswerForm allows and nothing else: inside
the image, with every bracket closed. Much of such an answer is punctuation that follows from what
stands before it: the model need not be asked for it.
"""

import copy
from collections.abc import Collection, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from robobrain_ros.core.answer_formats import LABEL_CHARACTER, AnswerForm, next_part

_THINK, _END_OF_THOUGHT, _ANSWER = "<think>", "</think>", "<answer>"
_KEPT_MATCHERS = 64
_SLICE_LENGTHS = (10, 20, 30)  # each takes 13 MB for 151,000 tokens


class Grammar:
    """What a checkpoint's tokens spell; made once per engine.

    Of 151,000 tokens that takes 1 s, and 80 MB are kept.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        vocabulary_size: int,
        end_ids: Collection[int],
    ) -> None:
        """Read the tokenizer.

        `vocabulary_size` is the number of logits; those beyond the tokenizer's tokens are padding
        and never allowed. `end_ids` end an answer. Raises ValueError when there are fewer logits
        than tokens.
        """
        self.vocabulary_size = vocabulary_size
        self.end_ids = frozenset(end_ids)
        # Tokens sorted by whether they fit in a label: there most masks take 0.05 instead of 1 ms.
        slices = [f"{LABEL_CHARACTER}{{1,{length}}}" for length in _SLICE_LENGTHS]
        self._tokens = from_tokenizer(
            tokenizer, n_vocab=vocabulary_size, eos_token=sorted(self.end_ids), slices=slices
        )
        tag = self.tokenize(_ANSWER.encode())
        self.tag_id = tag[0] if len(tag) == 1 else None
        self._compiled = lru_cache(maxsize=_KEPT_MATCHERS)(partial(_compile, self._tokens))
        self._first_part = lru_cache(maxsize=_KEPT_MATCHERS)(next_part)

    def constrain(self, form: AnswerForm, sent_size: tuple[int, int], opening: str) -> "Constraint":
        """The constraint of one answer.

        `sent_size` is (width, height) of the image as the model sees it, `opening` the text that
        opens its turn. When that ends inside the thinking, anything may come until </think>, and
        then <answer> must. Raises ValueError for an answer in pixels without an image, and
        RuntimeError when the form can't be compiled.
        """
        is_thinking = _THINK in opening.rpartition(_END_OF_THOUGHT)[2]
        return Constraint(self, form, sent_size, is_thinking)

    def part(
        self, form: AnswerForm, sent: tuple[int, int], text: str, tag: str
    ) -> LLMatcher | None:
        """A matcher of `tag` and what comes after `text`; None when the answer is complete."""
        part = next_part(form, sent, text) if text else self._first_part(form, sent, text)
        # A copy costs microseconds and shares what its original has learnt.
        return None if part is None else self._compiled(tag + part).deep_copy()

    def spelling(self, token_ids: Sequence[int]) -> bytes:
        """What tokens spell, which may end within a character."""
        return self._tokens.decode_bytes(list(token_ids))

    def tokenize(self, text: bytes) -> list[int]:
        """Tokens that spell `text`, as the tokenizer cuts it."""
        return self._tokens.tokenize_bytes(text)


class Constraint:
    """Follows one answer, token by token, and says how it may go on."""

    def __init__(
        self, grammar: Grammar, form: AnswerForm, sent_size: tuple[int, int], is_thinking: bool
    ) -> None:
        """See `Grammar.constrain`, which makes them."""
        self._grammar = grammar
        self._form = form
        self._sent = sent_size
        self._answer: list[int] = []
        # Compiled before the thinking too, so that what can't be is said at once.
        self._matcher = grammar.part(form, sent_size, "", "")
        self._mask: bytes | None = None
        self._thought: bytes | None = b"" if is_thinking else None  # its last bytes
        self._tag = ""  # what is still to be written before the answer, as text …
        self._tag_id: int | None = None  # … or as a token, which no expression can match

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: right after its closing bracket."""
        return self._matcher is None

    @property
    def answer(self) -> Sequence[int]:
        """The tokens of the answer so far, after the thinking."""
        return self._answer

    def allowed(self) -> torch.Tensor | None:
        """The tokens that may come next: a bit each, in int32 words (V / 32, rounded up), on CPU.

        None while anything may come (thinking). End tokens are allowed when the answer is finished.
        """
        if self._thought is not None:
            return None
        words = -(-self._grammar.vocabulary_size // 32)
        return torch.frombuffer(bytearray(self._bits()[: 4 * words]), dtype=torch.int32)

    def forced(self) -> list[int]:
        """The tokens that must come next, [] when there is a choice; to be given to `accept`.

        They go on until the next choice, or to the end of the answer: its last bracket is forced
        where nothing else can come, although tokens may exist that spell more than the bracket.
        """
        tokens = self._forced_here()
        if not tokens:
            return []
        ahead = copy.copy(self)
        ahead._answer = self._answer.copy()
        ahead._matcher = self._matcher and self._matcher.deep_copy()
        ahead.accept(tokens)
        return tokens + ahead.forced()

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens that were generated.

        Raises ValueError for a token that is not allowed; those before it are accepted then.
        """
        for token_id in token_ids:
            if self._thought is not None:
                self._think(self._thought + self._grammar.spelling([token_id]))
            elif self._tag_id is not None and token_id == self._tag_id:
                self._tag_id = None
            elif self._tag_id is not None or not self._consume(token_id):
                raise self._refusal(token_id)
            self._mask = None

    def _think(self, thought: bytes) -> None:
        """Look for the end of the thinking in its last bytes."""
        _, ended, rest = thought.partition(_END_OF_THOUGHT.encode())
        if not ended:
            self._thought = thought[1 - len(_END_OF_THOUGHT) :]
            return
        self._thought = None
        # The last token may have begun the tag ("><"); anything else in it is passed over.
        begun = len(rest) if _ANSWER.encode().startswith(rest) else 0
        if not begun and self._grammar.tag_id is not None:
            self._tag_id = self._grammar.tag_id
            return
        self._tag = _ANSWER[begun:]
        self._matcher = self._grammar.part(self._form, self._sent, "", self._tag)

    def _consume(self, token_id: int) -> bool:
        """Go on by a token of the answer, and tell whether it was allowed."""
        if self._matcher is None:
            return token_id in self._grammar.end_ids
        is_token = 0 <= token_id < self._grammar.vocabulary_size
        if not is_token or not self._matcher.try_consume_tokens([token_id]):
            return False
        self._answer.append(token_id)
        if self._matcher.is_accepting():
            text = self._grammar.spelling(self._answer).decode().removeprefix(self._tag)
            self._matcher = self._grammar.part(self._form, self._sent, text, "")
        return True

    def _refusal(self, token_id: int) -> ValueError:
        is_token = 0 <= token_id < self._grammar.vocabulary_size
        spelling = self._grammar.spelling([token_id]) if is_token else b""
        before = self._grammar.spelling(self._answer)
        return ValueError(
            f"token {token_id} ({spelling.decode(errors='replace')!r}) can't come after "
            f"{before.decode(errors='replace')!r} in an answer of this form"
        )

    def _forced_here(self) -> list[int]:
        """Forced tokens, to the end of this part of the answer at most."""
        if self._thought is not None or self._matcher is None:
            return []
        if self._tag_id is not None:
            return [self._tag_id]
        return self._matcher.compute_ff_tokens() or self._forced_end(self._matcher)

    def _forced_end(self, matcher: LLMatcher) -> list[int]:
        """The tokens that end the answer, if it can only end.

        The matcher leaves open in which token the bracket comes: "]", "]\\n", "]</". After the last
        one it makes no difference.
        """
        spelling = matcher.compute_ff_bytes()
        if not spelling.endswith(b"]"):
            return []
        tokens = self._grammar.tokenize(spelling)
        ahead = matcher.deep_copy()
        ends = ahead.try_consume_tokens(tokens) == len(tokens) and ahead.is_accepting()
        return tokens if ends else []

    def _bits(self) -> bytes:
        """A bit for each token, the first one lowest; computed once per token."""
        if self._mask is None:
            size = self._grammar.vocabulary_size
            if self._tag_id is not None:
                self._mask = _set_bits([self._tag_id], size)
            elif self._matcher is None:
                self._mask = _set_bits(self._grammar.end_ids, size)
            else:
                self._mask = self._matcher.compute_bitmask()
        return self._mask


def restrict(logits: torch.Tensor, constraint: Constraint) -> None:
    """Set the logits (V,) of tokens that are not allowed to -inf, in place, on any device."""
    mask = constraint.allowed()
    if mask is None:
        return
    bits = np.unpackbits(mask.numpy().view(np.uint8), count=len(logits), bitorder="little")
    # Few tokens are allowed nearly always, so what is kept is less work than what is masked.
    allowed = torch.from_numpy(np.flatnonzero(bits.view(np.bool_))).to(logits.device)
    kept = logits[allowed]
    logits.fill_(float("-inf"))
    logits[allowed] = kept


def _set_bits(places: Collection[int], size: int) -> bytes:
    bits = sum(1 << place for place in set(places))
    return bits.to_bytes(-(-size // 32) * 4, "little")


def _compile(tokens: LLTokenizer, expression: str) -> LLMatcher:
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_regex(expression))
    if matcher.is_error():
        raise RuntimeError(f"this form can't be compiled: {matcher.get_error()[:500]}")
    return matcher
