# SPDX-License-Identifier: Apache-2.0
"""A second managed node: counts the frames of a camera. `python -m support.minimal_node`"""

from __future__ import annotations

import sys

from rclpy.executors import Executor
from rclpy.node import Node
from std_srvs.srv import Trigger

from robobrain_ros.ros.camera import Camera, Topics
from robobrain_ros.ros.managed_node import ManagedNode
from robobrain_ros.ros.node_process import run_node
from robobrain_ros.ros.parameters import Spec

STEPS = ("load", "activate", "deactivate", "cleanup")
SPECS = (
    Spec("load_s", 0.0, "Duration of loading, seconds.", range=(0.0, 60.0), load_time=True),
    Spec("raises_in", "", "Method that raises an exception.", choices=("", *STEPS)),
)


class FrameCounter(ManagedNode):
    """Serves `~/count` with the number of color frames since it was activated."""

    def __init__(self, executor: Executor, cameras: Node) -> None:
        super().__init__("frame_counter", executor, cameras, SPECS)
        self._frames: list[object] = []
        self.loop.create_service(Trigger, "~/count", self._count)

    async def load(self) -> None:
        await self.loop.poll_until(lambda: None, self.get_parameter("load_s").value)
        self._may_raise("load")

    def activate(self) -> None:
        self._may_raise("activate")
        self._camera = Camera(self.cameras, "camera", Topics("color", "info", "", ""), 0.02)
        self._camera.color_frames.subscribe(self._frames.append)

    def deactivate(self) -> None:
        self._may_raise("deactivate")
        self._camera.close()
        self._frames.clear()

    def cleanup(self) -> None:
        self._may_raise("cleanup")

    async def _count(self, request: Trigger.Request, response: Trigger.Response, _) -> object:
        response.message = str(len(self._frames))
        return response

    def _may_raise(self, step: str) -> None:
        if self.get_parameter("raises_in").value == step:
            raise RuntimeError(f"asked to raise in {step}")


if __name__ == "__main__":
    sys.exit(run_node("frame_counter", FrameCounter))
