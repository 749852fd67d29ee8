# SPDX-License-Identifier: Apache-2.0
"""Prefix cache: keys and values of prompts up to the end of their images.

Prompts about the same images begin with the same tokens up to the last image's end, so that the
next question about them only needs the prefill of its own words.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from xxhash import xxh3_128

Key = tuple[bytes, ...]
"""The digests of a prompt's images, in order."""


@dataclass(frozen=True, eq=False)
class Prefix:
    """The computed beginning of prompts about the same images.

    ids: (P,) its tokens. image_tokens: number of tokens of each image. offset: rotary positions of
    the text after the images minus its slots. sent_sizes: (width, height) of each image in pixels.
    keys_values: (layers, 2, key heads, P, head width).
    """

    ids: torch.Tensor
    image_tokens: tuple[int, ...]
    offset: int
    sent_sizes: tuple[tuple[int, int], ...]
    keys_values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the keys and values."""
        return self.keys_values.nbytes

    def begins(self, ids: torch.Tensor) -> bool:
        """Whether a prompt (1, T) starts with this prefix and is longer."""
        length = len(self.ids)
        return ids.shape[1] > length and torch.equal(ids[0, :length], self.ids)


def digest(rgb: NDArray[np.uint8]) -> bytes:
    """Identify an image (H, W, 3) by its content and size.

    128 bits, not cryptographic: nothing is gained by showing the robot two images that collide.
    """
    hashed = xxh3_128(str(rgb.shape).encode())
    hashed.update(np.ascontiguousarray(rgb).data)
    return hashed.digest()


class PrefixCache:
    """The prefixes used most recently, within `max_bytes`; 0 holds none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: OrderedDict[Key, Prefix] = OrderedDict()

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes.values())

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(prefix.nbytes for prefix in self)

    def get(self, key: Key) -> Prefix | None:
        """Return the prefix of some images, and mark it as used."""
        prefix = self._prefixes.get(key)
        if prefix is not None:
            self._prefixes.move_to_end(key)
        return prefix

    def accepts(self, nbytes: int) -> bool:
        """Whether a prefix of that size can be held at all."""
        return nbytes <= self._max_bytes

    def put(self, key: Key, prefix: Prefix) -> None:
        """Add a prefix, and drop the least recently used ones beyond the limit."""
        self._prefixes[key] = prefix
        self._prefixes.move_to_end(key)
        while self._prefixes and self.nbytes > self._max_bytes:
            self._prefixes.popitem(last=False)

    def clear(self) -> None:
        """Drop everything."""
        self._prefixes.clear()
