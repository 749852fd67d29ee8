# SPDX-License-Identifier: Apache-2.0
"""A brain node as a process of its own, with a client."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rclpy.node import Node
from rclpy.task import Future

from robobrain_ros.client import AsyncBrainClient, BrainClient
from robobrain_ros.sim.processes import NodeProcess
from robobrain_ros.srv import PointTo

NODE = "robobrain_ros.brain_node"
PATIENCE_S = 60.0
_TRANSITIONS = {  # towards `active`, and back
    ("unconfigured", "inactive"): BrainClient.configure,
    ("inactive", "active"): BrainClient.activate,
    ("active", "inactive"): BrainClient.deactivate,
    ("inactive", "unconfigured"): BrainClient.cleanup,
}
_STATES = ("unconfigured", "inactive", "active")


class RunningBrain(BrainClient):
    """A client of the node that it has started.

    name: the node's. process: its. log_file: where its stdout and stderr go.
    """

    def __init__(self, name: str, process: NodeProcess, log_file: Path) -> None:
        super().__init__(name, f"client_of_{name.strip('/').replace('/', '_')}")
        self.name = name
        self.process = process
        self.log_file = log_file

    def log(self) -> str:
        """Everything that the node has written so far."""
        return self.log_file.read_text(errors="replace")

    def bring_to(self, state: str) -> None:
        """Go through the transitions to `unconfigured`, `inactive` or `active`."""
        target = _STATES.index(state)
        while (now := self.state()) != state:
            at = _STATES.index(now)
            next_state = _STATES[at + (1 if target > at else -1)]
            assert _TRANSITIONS[now, next_state](self), f"{now} → {next_state}\n{self.log()}"


@contextmanager
def running_brain(
    parameters: Mapping[str, Any] | None = None,
    *,
    state: str | None = "active",
    name: str = "/robobrain",
    module: str = NODE,
    sim_camera: Mapping[str, Any] | None = None,
) -> Iterator[RunningBrain]:
    """Start a node, and end it when the context is left.

    state: that it is brought to, None to leave it as it starts. name: its full name. module: what
    is run, e.g. a node with a faulty engine. sim_camera: parameters of a simulated camera beside
    it, None for no camera.
    """
    namespace, _, own_name = name.rpartition("/")
    remaps = [f"__node:={own_name}", *([f"__ns:={namespace}"] if namespace else [])]
    with ExitStack() as stack:
        log = stack.enter_context(tempfile.NamedTemporaryFile(suffix=".log"))
        if sim_camera is not None:
            camera = NodeProcess("robobrain_ros.sim.camera_node", sim_camera, output=log)
            stack.enter_context(camera)
        process = stack.enter_context(NodeProcess(module, parameters, remaps, log))
        brain = stack.enter_context(RunningBrain(name, process, Path(log.name)))
        brain.wait_for_node(PATIENCE_S)
        if state is not None:
            brain.bring_to(state)
        yield brain


def request_without_image(node: Node, brain: RunningBrain) -> Future:
    """A request that the brain has received, and that waits for a camera which isn't there.

    node: spun on another thread.
    """
    client, request = AsyncBrainClient(node, brain.name), PointTo.Request(query="the red can")
    assert client.client_for(request).wait_for_service(PATIENCE_S)
    response = client.send(request)
    for _ in range(3):  # what the node answers now, it has received after the request
        brain.state()
    assert not response.done()
    return response
