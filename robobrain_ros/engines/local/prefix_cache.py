# SPDX-License-Identifier: Apache-2.0
"""What a model has computed of images that it saw before, so that the next question costs no more
than its own words.

A prompt begins with fixed text and the image; up to the image's end it is the same for every
question about that image, and so are the keys and values that attention keeps of it.
"""

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from xxhash import xxh3_128


@dataclass(frozen=True, eq=False)
class Prefix:
    """The beginning of every prompt about one image, after the model has read it.

    ids: (P,) its tokens. image_tokens: how many of them stand for the image. offset: by how much
    the rotary positions of text after the image are above its columns. sent_size: (width, height)
    in pixels. keys_values: (layers, 2, key heads, P, head width).
    """

    ids: torch.Tensor
    image_tokens: int
    offset: int
    sent_size: tuple[int, int]
    keys_values: torch.Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the keys and values take."""
        return self.keys_values.nbytes

    def begins(self, ids: torch.Tensor) -> bool:
        """Whether a prompt (1, T) starts so and goes on."""
        length = len(self.ids)
        return ids.shape[1] > length and torch.equal(ids[0, :length], self.ids)


def digest(rgb: NDArray[np.uint8]) -> bytes:
    """Identify an image (H, W, 3) by its content and size.

    128 bits, but no secret: whoever may show the robot images gains nothing by two that collide.
    """
    hashed = xxh3_128(str(rgb.shape).encode())
    hashed.update(np.ascontiguousarray(rgb).data)
    return hashed.digest()


class PrefixCache:
    """The prefixes used last, within `max_bytes`; 0 holds none."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._prefixes: OrderedDict[bytes, Prefix] = OrderedDict()

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._prefixes.values())

    @property
    def nbytes(self) -> int:
        """Memory that is taken now."""
        return sum(prefix.nbytes for prefix in self)

    def get(self, key: bytes) -> Prefix | None:
        """Return the prefix of an image by its digest."""
        prefix = self._prefixes.get(key)
        if prefix is not None:
            self._prefixes.move_to_end(key)
        return prefix

    def takes(self, nbytes: int) -> bool:
        """Whether a prefix of that size can be held at all."""
        return nbytes <= self._max_bytes

    def put(self, key: bytes, prefix: Prefix) -> None:
        """Hold a prefix, and let go of those that were not used for longest."""
        self._prefixes[key] = prefix
        self._prefixes.move_to_end(key)
        while self._prefixes and self.nbytes > self._max_bytes:
            self._prefixes.popitem(last=False)

    def clear(self) -> None:
        """Forget everything."""
        self._prefixes.clear()
