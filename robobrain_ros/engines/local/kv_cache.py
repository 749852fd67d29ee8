# SPDX-License-Identifier: Apache-2.0
"""The keys and values of the answers in progress, side by side so that one step serves them all."""

from __future__ import annotations

from torch import Tensor

from robobrain_ros.engines.local.qwen_language import LanguageModel

COLUMNS_STEP = 512
"""Rows grow by this many tokens at a time: an answer seldom needs all that it may take."""


class Rows:
    """Rows 0 to `count` of one cache (layers, 2, rows, key heads, columns, head width) are taken.

    Memory is taken as it is needed and kept for the next answers until `free`.
    """

    def __init__(self, language: LanguageModel) -> None:
        self._language = language
        self.count = 0
        self.cache = language.new_cache(0, 0)

    @property
    def nbytes(self) -> int:
        """Memory that is taken now."""
        return self.cache.nbytes

    def add(self, prefix: Tensor | None, columns: int) -> int:
        """Take a row with room for `columns` tokens, begun with `prefix` (layers, 2, key heads, P,
        head width); returns its index.
        """
        self.reserve(self.count + 1, columns)
        row = self.count
        if prefix is not None:
            self.cache[:, :, row, :, : prefix.shape[3]] = prefix
        self.count += 1
        return row

    def remove(self, row: int) -> None:
        """Give a row back; the last row, if it is another one, moves to its place."""
        self.count -= 1
        if row != self.count:
            self.cache[:, :, row] = self.cache[:, :, self.count]

    def reserve(self, rows: int, columns: int) -> None:
        """Make room; what the rows hold is kept."""
        old = self.cache
        shape = self.shape_for(rows, columns)
        if shape == (old.shape[2], old.shape[4]):
            return
        self.cache = self._language.new_cache(*shape)
        self.cache[:, :, : self.count, :, : old.shape[4]] = old[:, :, : self.count]
        self._language.reserve(shape[1])

    def shape_for(self, rows: int, columns: int) -> tuple[int, int]:
        """Rows and columns that there would be after `reserve`."""
        have_rows, have_columns = self.cache.shape[2], self.cache.shape[4]
        if rows > have_rows:
            have_rows = 1 << (rows - 1).bit_length()
        if columns > have_columns:
            have_columns = -(-columns // COLUMNS_STEP) * COLUMNS_STEP
        return have_rows, have_columns

    def copy(self, row: int, columns: int) -> Tensor:
        """Copy the first tokens of a row, (layers, 2, key heads, `columns`, head width)."""
        return self.cache[:, :, row, :, :columns].clone()

    def free(self) -> None:
        """Give the memory back; there must be no row."""
        self.count = 0
        self.cache = self._language.new_cache(0, 0)
