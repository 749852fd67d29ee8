# SPDX-License-Identifier: Apache-2.0
"""Training batches: several questions about one image share its tokens in one sequence.

A sequence is `prefix (system turn, image) | question and answer | question and answer | …`. Each
question sees the prefix and itself, never another question, and its positions continue the
prefix: the model sees what it sees at inference, but the image is encoded once.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import IterableDataset
from transformers import Qwen2TokenizerFast

from robobrain_ros.nano.architecture import (
    MERGE,
    PATCH,
    SENT_HEIGHT,
    SENT_WIDTH,
    TOKEN_PIXELS,
    WINDOW_PIXELS,
)
from robobrain_ros.nano.dataset import ScenePool
from robobrain_ros.nano.fast_forward import window_order
from robobrain_ros.nano.questions import sample_question
from robobrain_ros.nano.views import View, make_view

ROWS, COLUMNS = SENT_HEIGHT // TOKEN_PIXELS, SENT_WIDTH // TOKEN_PIXELS
IMAGE_TOKENS = ROWS * COLUMNS
WINDOW_ORDER = window_order(ROWS, COLUMNS, WINDOW_PIXELS // TOKEN_PIXELS).numpy()
IGNORED = -100
# An image token is trained on an object that covers at least this many of its 784 pixels.
_MIN_TOKEN_COVER = 20
_REFRESH_BATCHES = 50
_MAX_LABELS = 16
_TOKEN_OF_PIXEL = (
    np.arange(SENT_HEIGHT)[:, None] // TOKEN_PIXELS * COLUMNS
    + np.arange(SENT_WIDTH) // TOKEN_PIXELS
)


def patches_of(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Patches (432, 3*14*14) of an image (252, 336, 3), image tokens in window order."""
    grid = rgb.reshape(ROWS, MERGE, PATCH, COLUMNS, MERGE, PATCH, 3)
    tokens = grid.transpose(0, 3, 1, 4, 6, 2, 5).reshape(IMAGE_TOKENS, MERGE**2, -1)
    return tokens[WINDOW_ORDER].reshape(IMAGE_TOKENS * MERGE**2, -1)


class Layout:
    """Token ids and multimodal positions of the conversation around an image of the sent size."""

    def __init__(self, tokenizer: Qwen2TokenizerFast) -> None:
        self._tokenizer = tokenizer
        before = self.encode(
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            "<|im_start|>user\n<|vision_start|>"
        )
        image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
        self.prefix = [*before, *[image] * IMAGE_TOKENS, *self.encode("<|vision_end|>")]
        self.image_start = len(before)
        self.pad = tokenizer.pad_token_id
        self.end = tokenizer.convert_tokens_to_ids("<|im_end|>")
        self.prefix_positions, self.next_position = self._positions()
        self._prompts: dict[str, tuple[int, ...]] = {}

    def encode(self, text: str) -> list[int]:
        """Token ids of a text, no special tokens added."""
        return self._tokenizer(text, add_special_tokens=False)["input_ids"]

    def decode(self, ids: Tensor) -> str:
        """Text of token ids (N,), without special tokens."""
        return self._tokenizer.decode(ids, skip_special_tokens=True)

    def prompt(self, text: str) -> tuple[int, ...]:
        """Token ids from a prompt, after the image, to the start of the answer."""
        if text not in self._prompts:
            turn = f"{text}<|im_end|>\n<|im_start|>assistant\n"
            self._prompts[text] = tuple(self.encode(turn))
        return self._prompts[text]

    def _positions(self) -> tuple[NDArray[np.int64], int]:
        # Qwen2.5-VL: an image token's row and column count from the image's start; the text
        # after the image goes on from the larger side.
        positions = np.tile(np.arange(len(self.prefix)), (3, 1))
        start, stop = self.image_start, self.image_start + IMAGE_TOKENS
        rows, columns = np.divmod(np.arange(IMAGE_TOKENS), COLUMNS)
        positions[0, start:stop] = start
        positions[1, start:stop] = start + rows
        positions[2, start:stop] = start + columns
        after = start + max(ROWS, COLUMNS)
        positions[:, stop:] = after + np.arange(len(self.prefix) - stop)
        return positions, after + len(self.prefix) - stop


def token_targets(
    view: View, kinds: Sequence[str], colours: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    """What each image token shows, for the auxiliary heads.

    Returns:
        kind, colour: (108,) int64 classes; the count of classes is "background" for kinds and
        "textured" for colours, one more is "background" for colours; `IGNORED` where an object
        that is too little visible covers the token.
        offsets: (108, 6) float32, object point and box relative to the token's centre, in tokens.
        numbers: (108, 6) int64, point and box in pixels, `IGNORED` without an object.
    """
    kind = np.full(IMAGE_TOKENS, len(kinds), np.int64)
    colour = np.full(IMAGE_TOKENS, len(colours) + 1, np.int64)
    offsets = np.zeros((IMAGE_TOKENS, 6), np.float32)
    numbers = np.full((IMAGE_TOKENS, 6), IGNORED, np.int64)
    cells = (_TOKEN_OF_PIXEL * _MAX_LABELS + view.labels).ravel()
    counts = np.bincount(cells, minlength=IMAGE_TOKENS * _MAX_LABELS)
    counts = counts.reshape(IMAGE_TOKENS, _MAX_LABELS)[:, 1:]
    best = np.where(counts.max(1) >= _MIN_TOKEN_COVER, counts.argmax(1) + 1, 0)
    kind[best > 0] = colour[best > 0] = IGNORED
    rows, columns = np.divmod(np.arange(IMAGE_TOKENS), COLUMNS)
    centres = np.stack([columns, rows], 1) * TOKEN_PIXELS + TOKEN_PIXELS / 2
    for target in view.targets:
        covered = best == target.label
        name = target.info.colour
        kind[covered] = kinds.index(target.info.kind)
        colour[covered] = colours.index(name) if name else len(colours)
        numbers[covered] = values = np.array([*target.point, *target.box])
        offsets[covered] = (values - np.tile(centres[covered], 3)) / TOKEN_PIXELS
    return {"kind": kind, "colour": colour, "offsets": offsets, "numbers": numbers}


class TrainingBatches(IterableDataset):
    """An endless stream of batches (dicts of tensors) from a directory of scenes.

    patches (B, 432, 588) uint8; ids, labels (B, L) int64 (`labels` are the next tokens of answers,
    else `IGNORED`); positions (3, B, L); segment (B, L) int64 (0 prefix, 1… questions, -1 padding);
    and `token_targets` stacked. Without questions (`length` 0), L is the prefix's length.
    """

    def __init__(
        self,
        directory: Path,
        tokenizer: Qwen2TokenizerFast,
        kinds: Sequence[str],
        colours: Sequence[str],
        names: Sequence[str],
        batch_size: int,
        length: int,
        seed: int,
    ) -> None:
        self._directory, self._layout = directory, Layout(tokenizer)
        self._kinds, self._colours, self._names = kinds, colours, names
        self._batch_size, self._seed = batch_size, seed
        self._length = max(length, len(self._layout.prefix))

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        pool = ScenePool(self._directory, "train")
        worker = torch.utils.data.get_worker_info()
        rng = random.Random(self._seed * 1000 + (worker.id if worker else 0))
        count = 0
        while True:
            if count % _REFRESH_BATCHES == 0:
                pool.refresh()
            count += 1
            samples = [
                self._sample(make_view(pool[rng.randrange(len(pool))], rng), rng)
                for _ in range(self._batch_size)
            ]
            yield {
                key: torch.from_numpy(
                    np.stack([s[key] for s in samples], 1 if key == "positions" else 0)
                )
                for key in samples[0]
            }

    def _sample(self, view: View, rng: random.Random) -> dict[str, NDArray[np.generic]]:
        layout, length, start = self._layout, self._length, len(self._layout.prefix)
        ids = np.full(length, layout.pad, np.int64)
        labels = np.full(length, IGNORED, np.int64)
        segment = np.full(length, -1, np.int64)
        positions = np.zeros((3, length), np.int64)
        ids[:start], segment[:start], positions[:, :start] = (
            layout.prefix,
            0,
            layout.prefix_positions,
        )
        for number, (prompt, answer) in enumerate(self._questions(view, rng, length - start), 1):
            stop = start + len(prompt) + len(answer)
            ids[start:stop] = [*prompt, *answer]
            labels[start + len(prompt) - 1 : stop - 1] = answer
            segment[start:stop] = number
            positions[:, start:stop] = layout.next_position + np.arange(stop - start)
            start = stop
        return {
            "patches": patches_of(view.rgb),
            "ids": ids,
            "labels": labels,
            "positions": positions,
            "segment": segment,
            **token_targets(view, self._kinds, self._colours),
        }

    def _questions(
        self, view: View, rng: random.Random, room: int
    ) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
        targets = list(view.targets)
        rng.shuffle(targets)
        for attempt in range(4 * len(targets)):
            drawn = sample_question(view, targets[attempt % len(targets)], self._names, rng)
            if drawn is None:
                continue
            prompt = self._layout.prompt(drawn[0])
            answer = [*self._layout.encode(drawn[1]), self._layout.end]
            if len(prompt) + len(answer) > room:
                return
            room -= len(prompt) + len(answer)
            yield prompt, answer
