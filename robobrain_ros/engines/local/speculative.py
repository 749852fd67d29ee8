# SPDX-License-Identifier: Apache-2.0
"""Guesses of how a list of coordinates goes on, for the model to check several tokens in one step.

A step reads all weights, whether it checks one token or five: a guess that is right saves a step,
one that is wrong costs little, and neither changes the answer (speculative decoding, Leviathan et
al., 2023, with greedy choices). What can be guessed about a path without a model are the first
digits of its next coordinate, by going straight on, and what stands between two numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerFast

from robobrain_ros.core.answer_formats import AnswerFormat, CoordinateList, Notation, Shape
from robobrain_ros.core.families import CoordinateFrame

_AXES = 2


class Drafter:
    """Guesses the next tokens of answers in whole numbers, two to a point."""

    def __init__(self, digit_ids: Sequence[int]) -> None:
        """digit_ids: the tokens of 0 to 9."""
        self._ids = tuple(digit_ids)
        self._digit_of = {token: str(digit) for digit, token in enumerate(digit_ids)}

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast) -> Drafter | None:
        """One for a tokenizer, None where that does not spell numbers digit by digit."""
        ids = tokenizer("0123456789", add_special_tokens=False)["input_ids"]
        return cls(ids) if len(ids) == len(set(ids)) == 10 else None

    @staticmethod
    def knows(expected: AnswerFormat) -> bool:
        """Whether answers in this format are what `draft` guesses at."""
        return (
            isinstance(expected, CoordinateList)
            and expected.frame is not CoordinateFrame.RELATIVE_1
            and expected.shape in (Shape.POINTS, Shape.BOXES)
            and expected.notation is Notation.TUPLES
        )

    def draft(self, answer: Sequence[int]) -> list[int]:
        """The tokens that may come after the tokens of an answer so far; [] without a guess."""
        numbers, gaps, tail = self._parted(answer)
        coming = len(numbers)
        if not tail:
            last = coming - 1
            if last < _AXES or len(numbers[last]) < len(_straight_on(numbers, last)):
                return []  # nothing says that this number has ended
        elif coming < _AXES:
            return []
        # Before the first number stands the bracket that opens the list.
        between = gaps[coming - _AXES] if coming > _AXES else tail
        if between[: len(tail)] != tail:
            return []
        first_digits = _straight_on(numbers, coming)[:-1]
        return [*between[len(tail) :], *(self._ids[int(digit)] for digit in first_digits)]

    def _parted(self, answer: Sequence[int]) -> tuple[list[str], list[list[int]], list[int]]:
        """Split tokens into numbers, what stands before each, and what stands after the last."""
        numbers: list[str] = []
        gaps: list[list[int]] = []
        tail: list[int] = []
        writing = False
        for token in answer:
            digit = self._digit_of.get(token)
            if digit is None:
                tail.append(token)
            elif writing:
                numbers[-1] += digit
            else:
                numbers.append(digit)
                gaps.append(tail)
                tail = []
            writing = digit is not None
        return numbers, gaps, tail


def _straight_on(numbers: Sequence[str], at: int) -> str:
    """The number at an index, as far from the one before it on its axis as that from its own."""
    last = int(numbers[at - _AXES])
    before = int(numbers[at - 2 * _AXES]) if at >= 2 * _AXES else last
    return str(max(2 * last - before, 0))
