# SPDX-License-Identifier: Apache-2.0
"""The node with a model that fails at certain words:
`python -m support.faulty_brain --ros-args …`."""

from __future__ import annotations

import sys

import torch

from robobrain_ros import brain_node
from robobrain_ros.engines.local.engine import TransformersEngine

OUT_OF_MEMORY, PANIC = "the last byte", "the blue screen"


class Panic(BaseException):
    """What a library in Rust raises where it gives up: no Exception."""


def main() -> int:
    advance = TransformersEngine._advance

    def failing(self: TransformersEngine) -> None:
        prompts = " ".join(writing.request.prompt for writing in self._writings)
        if OUT_OF_MEMORY in prompts:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if PANIC in prompts:
            raise Panic("index out of bounds")
        advance(self)

    TransformersEngine._advance = failing
    return brain_node.main()


if __name__ == "__main__":
    sys.exit(main())
