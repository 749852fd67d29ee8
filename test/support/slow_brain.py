# SPDX-License-Identifier: Apache-2.0
"""The node with a model that takes two seconds longer: `python -m support.slow_brain --ros-args …`.

Loading it takes LOAD_S seconds (of the environment) longer.
"""

from __future__ import annotations

import os
import sys
import time
from functools import partial
from typing import Any

from robobrain_ros.brain_node import main
from robobrain_ros.engines.base import Progress
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.factory import create_engine, load_engine

DELAY_S = 2.0


class SlowEngine:
    """The real engine, with a delay at the end of each answer."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def step(self) -> Any:
        outcomes = self._engine.step()
        if outcomes:
            time.sleep(DELAY_S)
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def load(config: EngineConfig, progress: Progress) -> Any:
    time.sleep(float(os.environ.get("LOAD_S", 0)))
    return SlowEngine(load_engine(config, progress))


if __name__ == "__main__":
    sys.exit(main(create_engine=partial(create_engine, load=load)))
