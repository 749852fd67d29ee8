# SPDX-License-Identifier: Apache-2.0
"""The brain node with a 10 Hz timer that publishes its lateness: `python -m busy_brain`."""

from __future__ import annotations

import sys
import time
from typing import Any

from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from std_msgs.msg import Float64

from robobrain_ros import brain_node

PERIOD_S = 0.1


class BusyBrain(brain_node.BrainNode):
    """Publishes on `~/late` by how many seconds each tick of the timer came late."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._late = self.create_publisher(Float64, "~/late", 10)
        self._next = time.monotonic() + PERIOD_S
        self.create_timer(PERIOD_S, self._tick, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def _tick(self) -> None:
        self._late.publish(Float64(data=time.monotonic() - self._next))
        self._next += PERIOD_S


if __name__ == "__main__":
    sys.exit(brain_node.main(node=BusyBrain))
