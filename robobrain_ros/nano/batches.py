# SPDX-License-Identifier: Apache-2.0
"""Training batches: several questions about one image share its tokens in one sequence.

A sequence is `prefix (system turn, image) | question and answer | question and answer | …`. Each
question sees the prefix and itself, never another question, and its positions continue the
prefix: the model sees what it sees at inference, but the image is encoded once.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Qwen2TokenizerFast

from robobrain_ros.core.tasks import TaskKind, Think
from robobrain_ros.engines.local.image_patches import split_patches
from robobrain_ros.nano.architecture import MERGE, PATCH, SENT_SIZES, TOKEN_PIXELS
from robobrain_ros.nano.dataset import ScenePool
from robobrain_ros.nano.gripper_paths import WAYPOINTS
from robobrain_ros.nano.questions import NOTHING, Question, QuestionSampler
from robobrain_ros.nano.targets import IGNORED, dominant, meant_tokens, token_targets
from robobrain_ros.nano.tokenizer import FAMILY
from robobrain_ros.nano.views import View, training_view
from robobrain_ros.nano.wordings import capitalised

_SIZE_SHARES = (0.6, 0.15, 0.25)
_REFRESH_BATCHES = 50
_THINK_SHARE = 0.12
_MOST_MISSES = 12
# An answer of n tokens weighs n to this power: a path of sixty tokens more than a word, but not
# sixty times as much.
_ANSWER_WEIGHT = 0.4
_WORD_WEIGHT = 4.0  # of an answer in words, whose one telling token would else count for little
# Saying that there is nothing weighs as the first token of the answer that it stands in for: at
# the weight of its own two tokens, one path in a hundred was refused though its goal was there.
_USUAL_TOKENS = {
    TaskKind.POINT: 10,
    TaskKind.GROUNDING: 18,
    TaskKind.AFFORDANCE: 18,
    TaskKind.TRAJECTORY: 50,
}

_STRAYED_SHARE = 0.6  # of paths
_STRAY = 9.0  # pixels by which each point of those is off the one before, standard deviation

_MOST_QUESTIONS, _MOST_NAMES, _MOST_POINTS = 24, 48, 64
_POINT = re.compile(r"\((\d+), (\d+)\)")

Example = tuple[Sequence[int], Sequence[int]]
"""Token ids of a prompt and of its answer."""


def patches_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches (N, 3*14*14) of an image (H, W, 3), image tokens in raster order."""
    patches = split_patches(rgb, PATCH, MERGE)
    return patches.reshape(len(patches), -1)


class Words:
    """Token ids of prompts and answers; prompts are kept."""

    def __init__(self, tokenizer: Qwen2TokenizerFast) -> None:
        self._tokenizer = tokenizer
        self.pad = tokenizer.pad_token_id
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self._digits = {tokenizer.convert_tokens_to_ids(digit) for digit in "0123456789"}
        self._opens = {i for token, i in tokenizer.get_vocab().items() if token.endswith("(")}
        self._prompts: dict[str, tuple[int, ...]] = {}
        self._names: dict[str, list[tuple[int, ...]]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        # Not through the tokenizer's own call, which takes longer than the training's views.
        return self._tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids

    def prompt(self, text: str) -> tuple[int, ...]:
        """Token ids of what follows the image, up to the end of `text`."""
        if text not in self._prompts:
            self._prompts[text] = tuple(self.encode(text))
        return self._prompts[text]

    def name_end(self, prompt: Sequence[int], name: str) -> int | None:
        """Index of the token that ends an object's name in a prompt, None where it has no such."""
        if name not in self._names:
            forms = (f" {name}", name, capitalised(name), f" {capitalised(name)}")
            self._names[name] = [tuple(self.encode(form)) for form in forms]
        for ids in self._names[name]:
            for stop in range(len(ids), len(prompt) + 1):
                if prompt[stop - 1] == ids[-1] and tuple(prompt[stop - len(ids) : stop]) == ids:
                    return stop - 1
        return None

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return self._tokenizer.backend_tokenizer.decode(list(ids), skip_special_tokens=False)

    def points(self, answer: Sequence[int]) -> list[tuple[int, int]]:
        """The points (x, y) of an answer, in its order: each after one of `point_starts`."""
        return [(int(x), int(y)) for x, y in _POINT.findall(self.decode(answer))]

    def point_starts(self, answer: Sequence[int]) -> list[int]:
        """Indices of the tokens of an answer after which a point's numbers come."""
        return [i for i, token in enumerate(answer) if token in self._opens]

    def strayed(
        self, answer: Sequence[int], starts: Sequence[int], rng: random.Random
    ) -> tuple[list[int], int]:
        """An answer whose first points are off, and how many of its tokens are not to be taught.

        Taught on true paths alone, a model learns to go on as the path went so far, and its own
        small errors add up. The points that are off keep their numbers of digits.
        """
        strayed, last = list(answer), rng.randrange(len(starts) - WAYPOINTS + 1, len(starts))
        off = [0.0, 0.0]
        for start in starts[-WAYPOINTS:last]:
            for axis in range(2):
                while answer[start] not in self._digits:
                    start += 1
                stop = start
                while answer[stop] in self._digits:
                    stop += 1
                off[axis] += rng.gauss(0, _STRAY)
                low = 10 ** (stop - start - 1) if stop - start > 1 else 0
                value = round(int(self.decode(answer[start:stop])) + off[axis])
                value = min(max(value, low), 10 ** (stop - start) - 1)
                strayed[start:stop] = self.encode(str(value))
                start = stop
        return strayed, starts[last] + 1

    def example(self, question: Question, think: bool) -> Example:
        """Prompt, with the opening of the answer, and the answer, with the thought before it."""
        prompt = FAMILY.build_prompt(question.task, text=question.text)
        opening = FAMILY.openings[Think.ON if think else Think.OFF]
        turn = f"{prompt}<|im_end|>\n<|im_start|>assistant\n{opening}"
        answer = f"{question.answer}</answer>"
        if think:
            answer = f"{question.thought}</think><answer>{answer}"
        return self.prompt(turn), [*self.encode(answer), self.end]


class Layout:
    """Token ids and multimodal positions of what precedes the questions: system turn and image."""

    def __init__(self, words: Words, size: tuple[int, int]) -> None:
        """size: width and height of the image."""
        self.columns, self.rows = size[0] // TOKEN_PIXELS, size[1] // TOKEN_PIXELS
        self.image_tokens = self.rows * self.columns
        before = words.encode(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>"
        )
        image = [words.image] * self.image_tokens
        self.prefix = [*before, *image, *words.encode("<|vision_end|>")]
        self.image_start = len(before)
        self.positions, self.next_position = self._positions()

    def _positions(self) -> tuple[NDArray[np.int64], int]:
        # Qwen2.5-VL: an image token's row and column count from the image's start; the text
        # after the image goes on from the larger side.
        positions = np.tile(np.arange(len(self.prefix)), (3, 1))
        start, stop = self.image_start, self.image_start + self.image_tokens
        rows, columns = np.divmod(np.arange(self.image_tokens), self.columns)
        positions[0, start:stop] = start
        positions[1, start:stop] = start + rows
        positions[2, start:stop] = start + columns
        after = start + max(self.rows, self.columns)
        positions[:, stop:] = after + np.arange(len(self.prefix) - stop)
        return positions, after + len(self.prefix) - stop


class TrainingBatches(IterableDataset):
    """An endless stream of batches (dicts of tensors) from a directory of scenes.

    size () int64, index into `SENT_SIZES`: all images of a batch have one; patches (B, 4N, 588)
    uint8; ids, labels (B, L) int64 (`labels` are the next tokens of answers, else `IGNORED`);
    weights (B, L) float32, of the labels in the loss;
    positions (3, B, L); segment (B, L) int64 (0 prefix, 1… questions, -1 padding); asked (B, Q)
    int64, where the questions' answers begin, and meant (B, Q, N + 1) bool of `meant_tokens`;
    named (B, M) int64, where the names of objects end in the questions, and shown (B, M, N + 1)
    bool, which image tokens show them; before_point (B, P) int64, the tokens before an answer's
    points, and coming (B, P, 2) float32, these points in pixels; and `token_targets` stacked.
    Without questions (`length` 0), L is the prefix's length. Streams of one `seed` have the same
    sizes in the same order, whatever their `rank`.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: Qwen2TokenizerFast,
        batch_size: int,
        length: int,
        seed: int,
        rank: int,
    ) -> None:
        self._directory, self._words = directory, Words(tokenizer)
        self._layouts = [Layout(self._words, size) for size in SENT_SIZES]
        self._batch_size, self._length = batch_size, length
        self._seed, self._rank = seed, rank

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        pool = ScenePool(self._directory, "train")
        sizes = random.Random(self._seed)
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(f"{self._seed} {self._rank} {worker.id if worker else 0}")
        count = 0
        while True:
            if count % _REFRESH_BATCHES == 0:
                pool.refresh()
            count += 1
            index = sizes.choices(range(len(SENT_SIZES)), _SIZE_SHARES)[0]
            samples = [self._sample(index, self._view(pool, index, rng), rng)
                       for _ in range(self._batch_size)]  # fmt: skip
            batch = {
                key: torch.from_numpy(
                    np.stack([s[key] for s in samples], 1 if key == "positions" else 0)
                )
                for key in samples[0]
            }
            yield {"size": torch.tensor(index), **batch}

    @staticmethod
    def _view(pool: ScenePool, index: int, rng: random.Random) -> View:
        """A view of the size, from the scenes whose shape is nearest to it."""
        width, height = SENT_SIZES[index]
        size = min(pool.sizes(), key=lambda s: abs(s[0] / s[1] - width / height))
        scene = pool.scene(size, rng.randrange(pool.scenes(size)))
        return training_view(scene, (width, height), rng)

    def _sample(self, index: int, view: View, rng: random.Random) -> dict[str, NDArray[np.generic]]:
        layout = self._layouts[index]
        room = self._length and self._length + layout.image_tokens - len(layout.prefix)
        sequence = _Sequence(self._words, layout, view, max(room, 0))
        for question, example in self._examples(view, rng, sequence.room):
            sequence.add(question, example, rng)
        return sequence.arrays()

    def _examples(
        self, view: View, rng: random.Random, room: int
    ) -> Iterator[tuple[Question, Example]]:
        if not room:
            return
        sampler, misses, asked = QuestionSampler(view, rng), 0, set[str]()
        while misses < _MOST_MISSES and len(asked) < _MOST_QUESTIONS:
            question = sampler.any()
            if question is None or question.text in asked:
                misses += 1
                continue
            asked.add(question.text)
            prompt, answer = self._words.example(question, rng.random() < _THINK_SHARE)
            if len(prompt) + len(answer) > room:
                misses += 4  # shorter ones may still fit
                continue
            room -= len(prompt) + len(answer)
            yield question, (prompt, answer)


class _Sequence:
    """One sequence as it grows, and what is known of its tokens; see TrainingBatches."""

    def __init__(self, words: Words, layout: Layout, view: View, room: int) -> None:
        """room: tokens for questions and answers."""
        self._words, self._layout, self._view = words, layout, view
        self._end, self._count = len(layout.prefix), 0
        length = self._end + room
        self._ids = np.full(length, words.pad, np.int64)
        self._labels = np.full(length, IGNORED, np.int64)
        self._weights = np.zeros(length, np.float32)
        self._segment = np.full(length, -1, np.int64)
        self._positions = np.zeros((3, length), np.int64)
        prefix = slice(0, self._end)
        self._ids[prefix], self._segment[prefix] = layout.prefix, 0
        self._positions[:, prefix] = layout.positions
        self._asked = np.zeros(_MOST_QUESTIONS, np.int64)
        self._meant = np.zeros((_MOST_QUESTIONS, layout.image_tokens + 1), bool)
        self._best, self._background = dominant(view)
        self._named: list[tuple[int, NDArray[np.bool_]]] = []
        self._points: list[tuple[int, tuple[int, int]]] = []

    @property
    def room(self) -> int:
        """Number of tokens that still fit."""
        return len(self._ids) - self._end

    def add(self, question: Question, example: Example, rng: random.Random) -> None:
        """Write a question and its answer; a path may go astray first."""
        prompt, answer = example
        asked, begin = self._end, self._end + len(prompt)
        self._end = begin + len(answer)
        starts = self._words.point_starts(answer)
        read, taught = answer, 0
        if question.path is not None and rng.random() < _STRAYED_SHARE:
            read, taught = self._words.strayed(answer, starts, rng)
        written = slice(asked, self._end)
        self._ids[written] = [*prompt, *read]
        self._positions[:, written] = self._layout.next_position + np.arange(self._end - asked)
        said = np.arange(begin - 1, self._end - 1)  # each token foretells the next one
        said = np.delete(said, slice(1, taught))  # but whether there is an answer is taught always
        self._labels[said] = self._ids[said + 1]
        self._weights[said] = token_weight(question, len(answer))
        self._asked[self._count] = begin - 1
        self._meant[self._count] = meant_tokens(self._view, self._best, question)
        self._count += 1
        self._segment[written] = self._count
        self._named += [
            (asked + end, np.append(self._best == one.label, False))
            for one in self._view.seen
            if (end := self._words.name_end(prompt, one.info.name)) is not None
        ]
        self._points += [
            (begin + before, point)
            for before, point in zip(starts, self._words.points(answer), strict=True)
        ]

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """All of it, as TrainingBatches stacks it."""
        nobody = np.zeros(len(self._best) + 1, bool)
        named, shown = _padded(self._named, _MOST_NAMES, nobody)
        before, coming = _padded(self._points, _MOST_POINTS, np.full(2, IGNORED, np.float32))
        return {
            "patches": patches_of(self._view.rgb),
            "ids": self._ids,
            "labels": self._labels,
            "weights": self._weights,
            "positions": self._positions,
            "segment": self._segment,
            "asked": self._asked,
            "meant": self._meant,
            "named": named,
            "shown": shown,
            "before_point": before,
            "coming": coming,
            **token_targets(self._view, self._best, self._background),
        }


def token_weight(question: Question, tokens: int) -> float:
    """Weight in the loss of each of the `tokens` of a question's answer."""
    if question.task is TaskKind.ASK:
        return _WORD_WEIGHT * tokens ** (_ANSWER_WEIGHT - 1)
    usual = _USUAL_TOKENS[question.task] if question.answer == NOTHING else tokens
    return max(usual, tokens) ** (_ANSWER_WEIGHT - 1)


def _padded(
    found: Sequence[tuple[int, Sequence[float] | NDArray[np.generic]]],
    length: int,
    nothing: NDArray[np.generic],
) -> tuple[NDArray[np.int64], NDArray[np.generic]]:
    """Places (length,) in a sequence and what is there, (length, …); place 0 has `nothing`."""
    places = np.zeros(length, np.int64)
    values = np.tile(nothing, (length, 1))
    for index, (place, value) in enumerate(found[:length]):
        places[index], values[index] = place, value
    return places, values
