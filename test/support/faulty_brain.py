# SPDX-License-Identifier: Apache-2.0
"""The node with a model that fails at certain words:
`python -m support.faulty_brain --ros-args …`."""

from __future__ import annotations

import sys
from functools import partial
from typing import Any

import torch

from robobrain_ros.brain_node import main
from robobrain_ros.core.requests import GenerationRequest
from robobrain_ros.engines.base import Progress
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.factory import create_engine, load_engine
from support.panic import Panic

OUT_OF_MEMORY, PANIC = "the last byte", "the blue screen"


class FaultyEngine:
    """The real engine, whose model fails in a decode step while it answers certain words."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._texts: dict[Any, str] = {}
        self._decode = engine.runner.decode
        engine.runner.decode = self._decode_or_fail

    def start(self, request: GenerationRequest) -> Any:
        handle = self._engine.start(request)
        self._texts[handle] = request.text
        return handle

    def step(self) -> Any:
        outcomes = self._engine.step()
        for handle, _ in outcomes:
            del self._texts[handle]
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def _decode_or_fail(self, step: Any) -> torch.Tensor:
        texts = " ".join(self._texts.values())
        if OUT_OF_MEMORY in texts:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        if PANIC in texts:
            raise Panic("index out of bounds")
        return self._decode(step)


def load(config: EngineConfig, progress: Progress) -> Any:
    return FaultyEngine(load_engine(config, progress))


if __name__ == "__main__":
    sys.exit(main(create_engine=partial(create_engine, load=load)))
