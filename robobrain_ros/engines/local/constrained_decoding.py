# SPDX-License-Identifier: Apache-2.0
"""Constrained decoding: which tokens may come next in an answer, and which ones must.

A model that decodes under a Constraint writes answers in their AnswerFormat and nothing else.
Much of such an answer is punctuation that follows from what stands before it, and the model need
not be asked for it.
"""

from collections.abc import Collection, Sequence
from functools import lru_cache, partial

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from transformers import PreTrainedTokenizerFast

from robobrain_ros.core.answer_formats import LABEL_CHARACTER, AnswerFormat

_THINK, _END_OF_THOUGHT, _ANSWER = "<think>", "</think>", "<answer>"
_CACHED_MATCHERS = 64
# Copies of a matcher share its automaton, which grows with every box that was not seen before.
# Its limit of 250,000 states was reached after 14,000 boxes; here it has a tenth of that at most.
_ANSWERS_PER_MATCHER = 150
_SLICE_LENGTHS = (10, 20, 30)  # each takes 13 MB for 151,000 tokens


class Grammar:
    """Compiler of answer formats for the vocabulary of one checkpoint; made once per engine.

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
        self._tag_id = tag[0] if len(tag) == 1 else None
        self._compiled = lru_cache(maxsize=_CACHED_MATCHERS)(partial(_compile, self._tokens))
        self._answers = 0

    def constrain(
        self, answer_format: AnswerFormat, sent_size: tuple[int, int], opening: str
    ) -> "Constraint":
        """The constraint of one answer.

        `sent_size` is (width, height) of the image as the model sees it, `opening` the text that
        opens its turn. When that ends inside the thinking, anything may come until </think>, and
        then <answer> must. Raises ValueError for an answer in pixels without an image, and
        RuntimeError when the format can't be compiled.
        """
        self._answers += 1
        if self._answers % _ANSWERS_PER_MATCHER == 0:
            self._compiled.cache_clear()
        is_thinking = _THINK in opening.rpartition(_END_OF_THOUGHT)[2]
        return Constraint(self, answer_format, sent_size, is_thinking)

    def matcher(
        self, answer_format: AnswerFormat, sent_size: tuple[int, int], prefix: str = ""
    ) -> LLMatcher:
        """A new matcher of answers in a format, after `prefix` (an expression of Lark)."""
        return self._compiled(answer_format, sent_size, prefix).deep_copy()

    def tag_after(self, begun: bytes) -> str:
        """<answer> as an expression of Lark, without its bytes that the last token has `begun`."""
        if not begun and self._tag_id is not None:
            return f"<[{self._tag_id}]>"
        return f'"{_ANSWER[len(begun) :]}"'

    def decode(self, token_ids: Sequence[int]) -> bytes:
        """Bytes that tokens stand for; they may end within a character."""
        return self._tokens.decode_bytes(list(token_ids))

    def tokenize(self, text: bytes) -> list[int]:
        """Tokens that spell `text`, as the tokenizer cuts it."""
        return self._tokens.tokenize_bytes(text)


class Constraint:
    """State of one answer under its format: the tokens so far, and how it may go on."""

    def __init__(
        self,
        grammar: Grammar,
        answer_format: AnswerFormat,
        sent_size: tuple[int, int],
        is_thinking: bool,
    ) -> None:
        """See `Grammar.constrain`, which makes them."""
        self._grammar = grammar
        self._format = answer_format
        self._sent = sent_size
        self._answer: list[int] = []
        # Compiled before the thinking too, so that a format that can't be is refused at once.
        self._matcher = grammar.matcher(answer_format, sent_size)
        self._thought: bytes | None = b"" if is_thinking else None  # its last bytes

    @property
    def finished(self) -> bool:
        """Whether the answer is complete: right after its closing bracket."""
        return self._thought is None and self._matcher.is_accepting()

    @property
    def answer(self) -> Sequence[int]:
        """The tokens of the answer so far, after the thinking."""
        return self._answer

    def allowed(self) -> torch.Tensor | None:
        """The tokens that may come next: a bit each, in int32 words (V / 32, rounded up), on CPU.

        None while anything may come (thinking). Only end tokens are allowed when the answer is
        finished.
        """
        if self._thought is not None:
            return None
        size = self._grammar.vocabulary_size
        if self.finished:
            bits = _set_bits(self._grammar.end_ids, size)
        else:
            bits = self._matcher.compute_bitmask()
        return torch.frombuffer(bytearray(bits[: -(-size // 32) * 4]), dtype=torch.int32)

    def forced(self) -> list[int]:
        """The tokens that must come next, [] when there is a choice; to be given to `accept`.

        They go on until the next choice, or to the end of the answer: its last bracket is forced
        where nothing else can come, although tokens may exist that spell more than the bracket.
        """
        forced: list[int] = []
        if self._thought is not None:
            return forced
        ahead = self._matcher.deep_copy()
        while not ahead.is_accepting():
            tokens = ahead.compute_ff_tokens() or self._forced_end(ahead)
            if not tokens:
                break
            ahead.consume_tokens(tokens)
            forced += tokens
        return forced

    def accept(self, token_ids: Sequence[int]) -> None:
        """Go on by tokens that were generated.

        Raises ValueError for a token that is not allowed; those before it are accepted then.
        """
        for token_id in token_ids:
            if self._thought is not None:
                self._think(self._thought + self._grammar.decode([token_id]))
            elif not self._consume(token_id):
                raise self._refusal(token_id)

    def _think(self, thought: bytes) -> None:
        """Look for the end of the thinking in its last bytes."""
        _, ended, rest = thought.partition(_END_OF_THOUGHT.encode())
        if not ended:
            self._thought = thought[1 - len(_END_OF_THOUGHT) :]
            return
        self._thought = None
        # The last token may have begun the tag ("><"); anything else in it is passed over.
        begun = rest if _ANSWER.encode().startswith(rest) else b""
        prefix = self._grammar.tag_after(begun)
        self._matcher = self._grammar.matcher(self._format, self._sent, prefix)

    def _consume(self, token_id: int) -> bool:
        """Go on by a token of the answer, and return whether it was allowed."""
        if self.finished:
            return token_id in self._grammar.end_ids
        is_token = 0 <= token_id < self._grammar.vocabulary_size
        if not is_token or not self._matcher.try_consume_tokens([token_id]):
            return False
        self._answer.append(token_id)
        return True

    def _refusal(self, token_id: int) -> ValueError:
        is_token = 0 <= token_id < self._grammar.vocabulary_size
        spelling = self._grammar.decode([token_id]) if is_token else b""
        before = self._grammar.decode(self._answer)
        return ValueError(
            f"token {token_id} ({spelling.decode(errors='replace')!r}) can't come after "
            f"{before.decode(errors='replace')!r} in an answer of this format"
        )

    def _forced_end(self, matcher: LLMatcher) -> list[int]:
        """The tokens that end the answer, if it can only end.

        The matcher leaves open in which token the bracket comes: "]", "]\\n", "]</". After the last
        one it makes no difference.
        """
        spelling = matcher.compute_ff_bytes()
        if not spelling.endswith((b"]", b"}")):
            return []
        tokens = self._grammar.tokenize(spelling)
        ahead = matcher.deep_copy()
        ends = ahead.try_consume_tokens(tokens) == len(tokens) and ahead.is_accepting()
        return tokens if ends else []


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


def _compile(
    tokens: LLTokenizer, answer_format: AnswerFormat, sent_size: tuple[int, int], prefix: str
) -> LLMatcher:
    lark = answer_format.lark(sent_size, prefix)
    matcher = LLMatcher(tokens, LLMatcher.grammar_from_lark(lark))
    if matcher.is_error():
        raise RuntimeError(f"this answer format can't be compiled: {matcher.get_error()[:500]}")
    return matcher
