# SPDX-License-Identifier: Apache-2.0
"""Answers under a constraint: of random logits, and real ones token by token."""

from __future__ import annotations

import re
import tempfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer

from robobrain_ros.core.answer_formats import CoordinateList, Notation, Shape
from robobrain_ros.core.coordinates import boxes_to_image_pixels, to_image_pixels
from robobrain_ros.core.families import CoordinateFrame, Family
from robobrain_ros.core.parsing import EmptyAnswer, parse_answer
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.engines.local.checkpoint import NANO_DIRECTORY
from robobrain_ros.engines.local.constrained_decoding import Constraint, Grammar, restrict
from support.tiny_checkpoints import save_tokenizer

PADDING = 70  # logits beyond the tokenizer's tokens


@dataclass(frozen=True)
class Vocabulary:
    """A tokenizer and its grammar."""

    tokenizer: Any
    grammar: Grammar

    def ids(self, text: str) -> list[int]:
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, clean_up_tokenization_spaces=False)


def read_vocabulary(directory: Path) -> Vocabulary:
    """That of a checkpoint."""
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    ends = {tokenizer.eos_token_id, tokenizer.pad_token_id}
    return Vocabulary(tokenizer, Grammar(tokenizer, len(tokenizer) + PADDING, ends))


def nano() -> Vocabulary:
    """The shipped model's: tags and digits are tokens."""
    return read_vocabulary(NANO_DIRECTORY)


def tiny() -> Vocabulary:
    """A few hundred tokens, bytes most of them."""
    with tempfile.TemporaryDirectory() as directory:
        save_tokenizer(Path(directory))
        return read_vocabulary(Path(directory))


def write(
    grammar: Grammar,
    constraint: Constraint,
    seed: int,
    follow_forced: bool = True,
) -> list[int]:
    """Answer as a model would whose logits are random, but the same after the same text."""
    ids: list[int] = []
    generator = torch.Generator()
    while not constraint.finished:
        tokens = constraint.forced() if follow_forced else []
        if not tokens:
            generator.manual_seed(zlib.crc32(grammar.decode(ids), seed))
            logits = torch.randn(grammar.vocabulary_size, generator=generator)
            restrict(logits, constraint)
            tokens = [int(logits.argmax())]
            assert (logits > -torch.inf).sum() > follow_forced, "a choice of one is none"
        constraint.accept(tokens)
        ids += tokens
    return ids


def check_answer(
    text: str, kind: TaskKind, family: Family, expected: CoordinateList, sent: tuple[int, int]
) -> int:
    """Parse an answer and check its places; returns their number."""
    assert re.fullmatch(expected.regex(sent), text)
    try:
        answer = parse_answer(kind, text, family)
    except EmptyAnswer:
        assert re.fullmatch(r"(```json\n)?\[\](</answer>|\s*(```)?)", text)
        return 0
    assert len(answer.points) + len(answer.boxes) <= expected.max_items
    assert (answer.points.shape[1] == 3) == (expected.shape is Shape.POINTS_WITH_DEPTH)
    image = (640, 480)
    mapping = (expected.frame, expected.axis_order, sent, image)
    points, in_image = to_image_pixels(answer.points[:, :2], *mapping)
    boxes, boxes_in_image = boxes_to_image_pixels(answer.boxes, *mapping)
    assert in_image.all() and boxes_in_image.all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()
    assert len(boxes) == text.count("bbox_2d") or expected.notation is Notation.TUPLES
    if expected.frame is CoordinateFrame.SENT_PIXELS:
        width_height = sent if expected.axis_order == "xy" else sent[::-1]
        assert (answer.points[:, :2] < width_height).all()
    return len(points) + len(boxes)


def follow(constraint: Constraint, ids: list[int]) -> tuple[int, int]:
    """Give it tokens, each of which must be allowed; returns how many were chosen and forced."""
    chosen, forced = 0, 0
    while ids:
        assert not constraint.finished
        tokens = constraint.forced()
        assert tokens == ids[: len(tokens)]
        forced += len(tokens)
        if not tokens:
            tokens = ids[:1]
            chosen += 1
            assert len(allowed_tokens(constraint)) > 1, "this was no choice"
        assert tokens[0] in allowed_tokens(constraint)
        constraint.accept(tokens)
        ids = ids[len(tokens) :]
    return chosen, forced


def allowed_tokens(constraint: Constraint) -> list[int]:
    """Ids of the tokens that may come next."""
    return np.flatnonzero(
        np.unpackbits(constraint.allowed().numpy().view(np.uint8), bitorder="little")
    ).tolist()
