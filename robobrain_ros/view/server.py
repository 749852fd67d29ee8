# SPDX-License-Identifier: Apache-2.0
"""rerun's own server of its web viewer, as a process beside this one."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from urllib.parse import quote

import rerun_cli

HOST = "127.0.0.1"
WEB_PORT, DATA_PORT = 9090, 9876
"""rerun's own defaults."""

MEMORY = "512MB"
"""Limit of the data kept for viewers that are opened later; the oldest is dropped first."""

_START_S, _END_S = 60.0, 10.0


class NoServer(Exception):
    """The server can't be started; the message says why."""


class WebViewer:
    """Serves the viewer (HTTP) and what it shows (gRPC) on loopback. Use as a context manager.

    As a process, not by `rerun.serve_web_viewer`, which serves to the whole network. It needs no
    network itself: the viewer is part of the Python package.
    """

    def __init__(self, port: int = WEB_PORT, data_port: int = DATA_PORT) -> None:
        """Raises NoServer."""
        for wanted in (port, data_port):
            if _listens(wanted):
                raise NoServer(f"Port {wanted} is in use: choose others by --port and --data-port.")
        self.source = f"rerun+http://{HOST}:{data_port}/proxy"
        """URL to send recordings to."""
        self.url = f"http://{HOST}:{port}/?url={quote(self.source, safe='')}"
        """URL to open in the browser."""
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  open as long as the process
        # The program itself: `rerun` is a script around it, which ends before it does.
        program = str(Path(rerun_cli.__file__).with_name("rerun"))
        command = [program, "--serve-web", "--bind", HOST]
        command += ["--web-viewer-port", str(port), "--port", str(data_port)]
        command += ["--server-memory-limit", MEMORY]
        # rerun sends usage statistics, except in CI; the user has not agreed to that.
        environment = {**os.environ, "CI": "true"}
        # In a session of its own: Ctrl-C ends it when all has been sent, and not before.
        self._process = subprocess.Popen(
            command,
            env=environment,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            self._wait(port, data_port)
        except NoServer:
            self.end()
            raise

    def __enter__(self) -> WebViewer:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def end(self) -> None:
        """End the server; open viewers keep what they have."""
        self._process.terminate()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()

    def _wait(self, *ports: int) -> None:
        deadline = time.monotonic() + _START_S
        while not all(map(_listens, ports)):
            if self._process.poll() is not None or time.monotonic() > deadline:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace").strip()
                raise NoServer(f"rerun's server did not start: {said}")
            time.sleep(0.1)


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((HOST, port)) == 0
