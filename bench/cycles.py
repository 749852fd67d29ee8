# SPDX-License-Identifier: Apache-2.0
"""The whole lifecycle over and over, with requests in flight at every transition.

    make cycles N=1000

Configure, activate, deactivate, cleanup: real node, nano, a camera. The node must neither hang nor
grow: memory, threads and open files are compared with what they were after a tenth of the cycles.
The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path

import psutil
import rclpy
from rclpy.signals import SignalHandlerOptions
from results import reported

from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.sim.processes import NodeProcess, environment

_LOOKS, _LOOK_PERIOD_S = 10, 0.02
CLIENTS = 2
CAMERA = {"seed": 2_000_023, "rate": 10.0, "shadows": False, "width": 320, "height": 240}


def size_of(process: psutil.Process) -> dict[str, int]:
    """Memory, threads and files of a process; of several looks the fewest, as some are ending."""
    looks = []
    for _ in range(_LOOKS):
        with process.oneshot():
            looks.append((process.num_threads(), process.num_fds(), process.memory_info().rss))
        time.sleep(_LOOK_PERIOD_S)
    threads, files, memory = map(min, zip(*looks, strict=True))
    return {"memory": memory, "threads": threads, "files": files}


def client_thread(stop: threading.Event, codes: Counter[str], number: int) -> None:
    """Ask without a pause; what comes back depends on the state."""
    with BrainClient(name=f"cycles_{number}") as client:
        while not stop.is_set():
            try:
                response = client.point_to("the orange bowl", target_frame="table")
                codes[ErrorCode(response.error_code).name] += 1
            except NoAnswer:
                codes["unanswered"] += 1
            time.sleep(0.02)


def cycle(client: BrainClient) -> list[str]:
    """One round; returns what failed."""
    steps = (client.configure, client.activate, client.deactivate, client.cleanup)
    failed = []
    for step in steps:
        if not step():
            failed.append(step.__name__)
        if step == client.activate:
            time.sleep(0.25)  # for requests to be under way
    return failed


def main() -> int:
    """Print the figures and the RESULT line; fails when a transition did, or the node ended."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--cycles", type=int, default=1000)
    options = parser.parse_args()
    os.environ.update(environment())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    stop, codes, failed, sizes = threading.Event(), Counter[str](), Counter[str](), []
    with reported(lambda: summary(sizes, codes, failed)) as figures:
        figures["exit_status"] = run(options.cycles, stop, codes, failed, sizes)
    rclpy.try_shutdown()
    return int(bool(failed) or figures["exit_status"] != 0 or codes["unanswered"] > 0)


def run(
    cycles: int,
    stop: threading.Event,
    codes: Counter[str],
    failed: Counter[str],
    sizes: list[dict[str, int]],
) -> int:
    """Run the cycles, noting what happens; return the node's exit status."""
    log = Path(tempfile.mkstemp(prefix="robobrain_cycles_", suffix=".log")[1])
    with (
        open(log, "wb") as output,
        NodeProcess("robobrain_ros.sim.camera_node", CAMERA, output=output),
        NodeProcess("robobrain_ros.brain_node", {"model": "nano"}, output=output) as brain,
        BrainClient(name="cycles") as client,
    ):
        client.wait_for_node(120.0)
        threads = [
            threading.Thread(target=client_thread, args=(stop, codes, n)) for n in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        process = psutil.Process(brain.process.pid)
        try:
            for number in range(1, cycles + 1):
                failed.update(cycle(client))
                sizes.append(size_of(process))
                if number % max(1, cycles // 10) == 0:
                    print(f"after {number:5} cycles: {sizes[-1]} {dict(codes)}", flush=True)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        print(f"The nodes' log: {log}")
        return brain.end()


def summary(
    sizes: list[dict[str, int]], codes: Counter[str], failed: Counter[str]
) -> dict[str, float]:
    """The figures of the cycles so far."""
    if not sizes:
        return {"cycles": 0}
    # The first cycles start what stays, such as threads of libraries.
    early, late = sizes[min(max(1, len(sizes) // 10 - 1), len(sizes) - 1)], sizes[-1]
    return {
        "cycles": len(sizes),
        "failed": sum(failed.values()),
        "unanswered": codes["unanswered"],
        "answered": codes["NONE"],
        "memory_growth": round(late["memory"] / early["memory"] - 1, 4),
        "threads_more": late["threads"] - early["threads"],
        "files_more": late["files"] - early["files"],
    }


if __name__ == "__main__":
    raise SystemExit(main())
