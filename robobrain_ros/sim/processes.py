# SPDX-License-Identifier: Apache-2.0
"""Nodes as processes of their own, as on a robot, for the demo and the tests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import IO, Any

import yaml

from robobrain_ros.ros import fast_dds

END_TIMEOUT_S = 20.0


class NodeProcess:
    """Runs a Python module as a ROS node; use as a context manager: leaving it sends SIGINT."""

    def __init__(
        self,
        module: str,
        parameters: Mapping[str, Any] | None = None,
        remaps: Sequence[str] = (),
        output: IO[bytes] | int | None = None,
    ) -> None:
        """remaps: rules such as `__ns:=/arm`. output: where stdout and stderr go (None: here)."""
        command = [sys.executable, "-m", module, "--ros-args"]
        for name, value in (parameters or {}).items():
            # As YAML flow, which is how rcl parses a parameter on the command line.
            text = yaml.safe_dump(value, default_flow_style=True, width=2**20)
            command += ["-p", f"{name}:={text.removesuffix(chr(10)).removesuffix('...').strip()}"]
        for rule in remaps:
            command += ["-r", rule]
        self.process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=environment()
        )

    def __enter__(self) -> NodeProcess:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Send a signal, wait for the end, and return the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(END_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            return self.process.wait()


def environment() -> dict[str, str]:
    """Return this process' environment with what large images on one machine need."""
    return {
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "PYTHONUNBUFFERED": "1",
        **fast_dds.profile_for(os.environ),
        **os.environ,
    }
