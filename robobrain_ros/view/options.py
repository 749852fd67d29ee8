# SPDX-License-Identifier: Apache-2.0
"""Command-line arguments that both programs of the view share."""

from __future__ import annotations

import argparse
from contextlib import ExitStack
from pathlib import Path

from robobrain_ros.view.recording import Recording
from robobrain_ros.view.server import DATA_PORT, WEB_PORT, WebViewer


def add_to(parser: argparse.ArgumentParser, file: Path | None) -> None:
    """Add the arguments; file: the default of --record, None for no recording."""
    parser.add_argument("--port", type=int, default=WEB_PORT, help="of the page (%(default)s)")
    parser.add_argument(
        "--data-port", type=int, default=DATA_PORT, help="of what it shows (%(default)s)"
    )
    parser.add_argument(
        "--record", type=Path, default=file, metavar="FILE.rrd", help="record to it (%(default)s)"
    )
    parser.add_argument("--no-serve", action="store_true", help="only record")
    parser.add_argument("--seconds", type=float, help="end after so long, not at Ctrl-C")


def opened(stack: ExitStack, options: argparse.Namespace) -> Recording:
    """Return the recording, which `stack` closes, and print its URL. Raises NoServer."""
    server = None
    if not options.no_serve:
        viewer = stack.enter_context(WebViewer(options.port, options.data_port))
        server = viewer.source
        print(f"Open {viewer.url}", flush=True)
    recording = stack.enter_context(Recording(options.record, server))
    if options.record:
        print(f"Recording to {options.record}: open it later with `rerun {options.record}`.")
    return recording
