# SPDX-License-Identifier: Apache-2.0
"""Batched KV cache of the running sequences."""

from __future__ import annotations

from torch import Tensor

from robobrain_ros.engines.local.qwen_language import LanguageModel

SLOT_BLOCK = 512
"""Slots that the cache grows by: few sequences need all the tokens that they are allowed."""


class KVCache:
    """Keys and values of the running sequences, a row each; a slot of a row holds one token.

    `tensor` is (layers, 2, rows, key heads, slots, head width), of which rows 0 to `count` are
    taken. It grows as needed, by `slot_block` slots at a time, and is kept for the next sequences
    until `free`.
    """

    def __init__(self, language: LanguageModel, slot_block: int = SLOT_BLOCK) -> None:
        self.slot_block = slot_block
        self.count = 0
        self.tensor = language.new_cache(0, 0)
        self._language = language

    @property
    def nbytes(self) -> int:
        """Bytes allocated."""
        return self.tensor.nbytes

    @property
    def rows(self) -> int:
        """Rows allocated."""
        return self.tensor.shape[2]

    @property
    def slots(self) -> int:
        """Slots allocated per row."""
        return self.tensor.shape[4]

    def add(self, prefix: Tensor | None, slots: int) -> int:
        """Take a row with room for `slots` tokens and return its index.

        prefix: keys and values that it begins with, (layers, 2, key heads, P, head width).
        """
        self.reserve(self.count + 1, slots)
        row = self.count
        if prefix is not None:
            self.tensor[:, :, row, :, : prefix.shape[3]] = prefix
        self.count += 1
        return row

    def remove(self, row: int) -> None:
        """Release a row; the last row, if it is another one, moves into its place."""
        self.count -= 1
        if row != self.count:
            self.tensor[:, :, row] = self.tensor[:, :, self.count]

    def reserve(self, rows: int, slots: int) -> None:
        """Grow to `rows` and `slots` at least, and keep the contents."""
        old = self.tensor
        shape = self.shape_for(rows, slots)
        if shape == (self.rows, self.slots):
            return
        self.tensor = self._language.new_cache(*shape)
        self.tensor[:, :, : self.count, :, : old.shape[4]] = old[:, :, : self.count]
        self._language.reserve(shape[1])

    def shape_for(self, rows: int, slots: int) -> tuple[int, int]:
        """Rows and slots that there would be after `reserve`."""
        have_rows, have_slots = self.rows, self.slots
        if rows > have_rows:
            have_rows = 1 << (rows - 1).bit_length()
        if slots > have_slots:
            have_slots = -(-slots // self.slot_block) * self.slot_block
        return have_rows, have_slots

    def copy(self, row: int, slots: int) -> Tensor:
        """Copy the first slots of a row, (layers, 2, key heads, `slots`, head width)."""
        return self.tensor[:, :, row, :, :slots].clone()

    def free(self) -> None:
        """Release the memory; no row may be taken."""
        self.count = 0
        self.tensor = self._language.new_cache(0, 0)
