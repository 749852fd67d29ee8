# SPDX-License-Identifier: Apache-2.0
"""Start-up of the programs that run the node and the simulated camera as processes beside them."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import rclpy

from robobrain_ros.client import BrainClient
from robobrain_ros.sim.processes import NodeProcess, environment


class StartError(Exception):
    """The node did not become active; the message is the log of the processes."""


def init_ros(stack: ExitStack) -> None:
    """Initialize rclpy, which `stack` shuts down, in a domain that other programs rarely use."""
    os.environ.update(environment())
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    rclpy.init()
    stack.callback(rclpy.try_shutdown)


def start_nodes(
    stack: ExitStack, purpose: str, model: str, camera: Mapping[str, object] | None = None
) -> BrainClient:
    """Start the node, and the simulated camera, and bring the node to `active`; see `init_ros`.

    stack: ends both processes. purpose: part of the log file's name. camera: parameters of the
    simulated camera, None for no camera. Raises StartError, and NoAnswer without a node.
    """
    log = stack.enter_context(
        tempfile.NamedTemporaryFile(  # noqa: SIM115
            prefix=f"robobrain_{purpose}_", suffix=".log", delete=False
        )
    )
    say(f"Starting the nodes (their log: {log.name}) …")
    stack.enter_context(NodeProcess("robobrain_ros.brain_node", {"model": model}, output=log))
    if camera is not None:
        stack.enter_context(NodeProcess("robobrain_ros.sim.camera_node", camera, output=log))
    brain = stack.enter_context(BrainClient())
    brain.wait_for_node(60.0)
    say("Configuring: loading the model …")
    if not brain.configure():
        raise StartError(f"The model could not be loaded:\n{Path(log.name).read_text()}")
    say("Activating: subscribing to the camera …")
    if not brain.activate():
        raise StartError(f"The node could not be activated:\n{Path(log.name).read_text()}")
    return brain


def say(text: str) -> None:
    """Print and flush, so that progress is visible in a pipe, too."""
    print(text, flush=True)
