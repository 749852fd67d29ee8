# SPDX-License-Identifier: Apache-2.0
"""Drafts of the next coordinates of a list, for the model to verify several tokens in one step.

A step reads all weights, whether it verifies one token or five: a correct draft saves a step, a
wrong one costs little, and neither changes the answer (speculative decoding, Leviathan et al.,
2023). Without a second model, the first digits of a path's next coordinate can be drafted by linear
extrapolation, and the punctuation between two numbers by copying the previous one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from transformers import PreTrainedTokenizerFast

from robobrain_ros.core.answer_formats import AnswerFormat, CoordinateList, Notation, Shape
from robobrain_ros.core.families import CoordinateFrame

_AXES = 2


class Drafter(Protocol):
    """Proposes tokens that may come next."""

    def supports(self, answer_format: AnswerFormat) -> bool:
        """Whether answers of this format can be drafted."""
        ...

    def draft(self, answer: Sequence[int]) -> list[int]:
        """Propose tokens to follow those of an answer so far; [] for none."""
        ...


@dataclass
class Speculation:
    """Settings of speculative decoding.

    drafter: None drafts nothing. step_tokens: tokens of all sequences up to which a step takes
    about as long as with one. max_misses: drafts in a row without an accepted token after which a
    sequence is drafted no more.
    """

    drafter: Drafter | None
    step_tokens: int
    max_misses: int = 4


class TrajectoryDrafter:
    """Drafts answers in whole numbers, two to a point."""

    def __init__(self, digit_ids: Sequence[int]) -> None:
        """digit_ids: the tokens of 0 to 9."""
        self._ids = tuple(digit_ids)
        self._digit_of = {token: str(digit) for digit, token in enumerate(digit_ids)}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> TrajectoryDrafter | None:
        """Return one for a tokenizer, None where that does not spell numbers digit by digit."""
        ids = tokenizer("0123456789", add_special_tokens=False)["input_ids"]
        return cls(ids) if len(ids) == len(set(ids)) == 10 else None

    def supports(self, answer_format: AnswerFormat) -> bool:
        """Whether answers are flat lists of whole numbers."""
        return (
            isinstance(answer_format, CoordinateList)
            and answer_format.frame is not CoordinateFrame.RELATIVE_1
            and answer_format.shape in (Shape.POINTS, Shape.BOXES)
            and answer_format.notation is Notation.TUPLES
        )

    def draft(self, answer: Sequence[int]) -> list[int]:
        """Propose tokens to follow those of an answer so far; [] for none."""
        numbers, gaps, tail = self._split(answer)
        coming = len(numbers)
        if not tail:
            last = coming - 1
            if last < _AXES or len(numbers[last]) < len(_extrapolated(numbers, last)):
                return []  # the number may not have ended
        elif coming < _AXES:
            return []
        # Before the first number stands the bracket that opens the list.
        between = gaps[coming - _AXES] if coming > _AXES else tail
        if between[: len(tail)] != tail:
            return []
        first_digits = _extrapolated(numbers, coming)[:-1]
        return [*between[len(tail) :], *(self._ids[int(digit)] for digit in first_digits)]

    def _split(self, answer: Sequence[int]) -> tuple[list[str], list[list[int]], list[int]]:
        """Split tokens into numbers, the tokens before each, and the tokens after the last."""
        numbers: list[str] = []
        gaps: list[list[int]] = []
        tail: list[int] = []
        in_number = False
        for token in answer:
            digit = self._digit_of.get(token)
            if digit is None:
                tail.append(token)
            elif in_number:
                numbers[-1] += digit
            else:
                numbers.append(digit)
                gaps.append(tail)
                tail = []
            in_number = digit is not None
        return numbers, gaps, tail


def _extrapolated(numbers: Sequence[str], at: int) -> str:
    """The number at an index by linear extrapolation from the two before it on its axis."""
    last = int(numbers[at - _AXES])
    before = int(numbers[at - 2 * _AXES]) if at >= 2 * _AXES else last
    return str(max(2 * last - before, 0))
