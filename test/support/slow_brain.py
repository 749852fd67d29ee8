# SPDX-License-Identifier: Apache-2.0
"""The node with a model that takes two seconds longer: `python -m support.slow_brain --ros-args …`.

Loading it takes LOAD_S seconds (of the environment) longer.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from robobrain_ros import brain_node

DELAY_S = 2.0


class SlowEngine:
    """The real engine, and then a long thought."""

    def __init__(self, engine: Any) -> None:
        self._engine = engine

    def step(self) -> Any:
        outcomes = self._engine.step()
        if outcomes:
            time.sleep(DELAY_S)
        return outcomes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)


def main() -> int:
    create = brain_node.create_engine

    def slow(*args: Any, **options: Any) -> SlowEngine:
        time.sleep(float(os.environ.get("LOAD_S", 0)))
        return SlowEngine(create(*args, **options))

    brain_node.create_engine = slow
    return brain_node.main()


if __name__ == "__main__":
    sys.exit(main())
