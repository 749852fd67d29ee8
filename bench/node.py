# SPDX-License-Identifier: Apache-2.0
"""What the node costs: time around the engine in each request, and CPU while nobody asks.

    make bench-node

A camera of its own process publishes colour, depth and camera info at 30 Hz, by turns 640x480 and
1280x720. Two nodes subscribe to it side by side, each a process: the brain node, active with the
nano model, and a trivial rclpy node. One client asks both by turns.

Overhead of a request: the round trip that the client sees, less what the response's `timing` gives
for preprocess, prefill, decode and lift. So it has both ways through DDS, decoding the image, the
transform, every wait, building and publishing messages. The engine's prompt and image processing
and the 3D part are the work that was asked for, and count no more than the model.

Idle cost: CPU seconds per second of the brain node, over those of the trivial node in the same
seconds. The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import rclpy
from numpy.typing import NDArray

from robobrain_ros.camera import nanoseconds
from robobrain_ros.client import BrainClient
from robobrain_ros.sim.processes import NodeProcess, environment
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth
from robobrain_ros.srv import PointTo

SIZES = ((640, 480), (1280, 720))
RATE = 30.0
SEED = 2_000_003
WARM_UP = 15  # requests
_SERVICES = {"brain": "robobrain/point_to", "trivial": "trivial/point_to"}
_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Answered:
    """One request to the brain node; milliseconds. age: of the image, when it was asked about."""

    round_trip: float
    age: float
    wait: float
    preprocess: float
    prefill: float
    decode: float
    lift: float
    total: float

    @classmethod
    def of(cls, round_trip_s: float, asked_ns: int, response: PointTo.Response) -> Answered:
        """asked_ns: time of the request on the clock of the image's stamp."""
        timing, stamp = response.timing, nanoseconds(response.header.stamp)
        stages = ("wait", "preprocess", "prefill", "decode", "lift", "total")
        seconds = {stage: 1000 * getattr(timing, stage) for stage in stages}
        return cls(1000 * round_trip_s, (asked_ns - stamp) / 1e6, **seconds)

    @property
    def engine(self) -> float:
        return self.preprocess + self.prefill + self.decode

    @property
    def overhead(self) -> float:
        return self.round_trip - self.engine - self.lift


class Setup:
    """Camera, brain node, trivial node and client, at one image size."""

    def __init__(self, client: BrainClient, brain: NodeProcess, trivial: NodeProcess) -> None:
        self._client = client
        self._processes = {
            "brain": psutil.Process(brain.process.pid),
            "trivial": psutil.Process(trivial.process.pid),
        }

    @classmethod
    @contextmanager
    def running(cls, width: int, height: int) -> Iterator[Setup]:
        """Start everything, and wait until both nodes answer."""
        camera = {"width": width, "height": height, "seed": SEED, "rate": RATE}
        brain = {"model": "nano", "target_frame": "table"}
        with ExitStack() as stack:
            enter = stack.enter_context
            client = enter(BrainClient())
            enter(NodeProcess("rgbd_publisher", camera))
            setup = cls(
                client,
                enter(NodeProcess("robobrain_ros.brain_node", brain)),
                enter(NodeProcess("trivial_node")),
            )
            client.wait_for_node(_TIMEOUT_S)
            if not (client.configure() and client.activate()):
                raise SystemExit("The brain node can't be activated: its log is above.")
            yield setup

    def ask(self, node: str, query: str) -> tuple[float, int, PointTo.Response]:
        """Return the seconds of the round trip, the time it began (ns) and the response."""
        request = PointTo.Request(query=query)
        asked_ns, started = time.time_ns(), time.perf_counter()
        response = self._client.call(PointTo, _SERVICES[node], request, _TIMEOUT_S)
        return time.perf_counter() - started, asked_ns, response

    def images(self) -> NDArray[np.int64]:
        """Colour and depth images (2,) that have reached the trivial node."""
        return np.array(self.ask("trivial", "")[2].answer.split(), np.int64)

    def cpu_seconds(self) -> NDArray[np.float64]:
        """CPU time (2,) that the brain node and the trivial node have taken since they started."""
        return np.array([_cpu_seconds(process) for process in self._processes.values()])


def _cpu_seconds(process: psutil.Process) -> float:
    family = (process, *process.children(recursive=True))
    return sum(member.cpu_times().user + member.cpu_times().system for member in family)


class OtherPrograms:
    """What all programs but this benchmark take: without it nobody knows what a time is worth."""

    def __init__(self) -> None:
        self._before = self._now()

    def share(self) -> float:
        """CPU seconds per second since this object was made."""
        seconds, cpu = (now - then for now, then in zip(self._now(), self._before))
        return max(0.0, cpu / seconds)

    @staticmethod
    def _now() -> tuple[float, float]:
        machine = psutil.cpu_times()
        busy = sum(machine) - machine.idle - getattr(machine, "iowait", 0.0)
        return time.monotonic(), busy - _cpu_seconds(psutil.Process())


def idle_windows(setup: Setup, count: int, seconds: float) -> NDArray[np.float64]:
    """CPU seconds per second (count, 2) of the brain node and the trivial node, unasked."""
    rows = []
    for _ in range(count):
        started, before = time.monotonic(), setup.cpu_seconds()
        time.sleep(seconds)
        rows.append((setup.cpu_seconds() - before) / (time.monotonic() - started))
    return np.array(rows)


def requests(setup: Setup, query: str, count: int) -> tuple[list[Answered], list[float]]:
    """Ask both nodes by turns; return the brain's good answers and the trivial node's round trips
    in milliseconds.
    """
    answered, trivial = [], []
    for index in range(-WARM_UP, count):
        time.sleep(random.uniform(0.005, 0.005 + 1 / RATE))  # at any moment between two images
        round_trip, asked_ns, response = setup.ask("brain", query)
        time.sleep(random.uniform(0.005, 0.005 + 1 / RATE))
        floor, _, _ = setup.ask("trivial", query)
        if index >= 0:
            trivial.append(1000 * floor)
            if response.success:
                answered.append(Answered.of(round_trip, asked_ns, response))
    return answered, trivial


def object_in_view(width: int, height: int) -> str:
    """Return the name of the largest object that the camera shows."""
    table = Tabletop(width, height)
    table.reset(SEED)
    truth = Truth(table)
    table.close()
    return max(truth.askable(), key=lambda name: truth.mask(name).sum())


def measure(width: int, height: int, options: argparse.Namespace) -> dict[str, float]:
    """Run and report one image size; return its figures."""
    query = f"Point to the {object_in_view(width, height)}"
    with Setup.running(width, height) as setup:
        time.sleep(options.settle)
        before, started = setup.images(), time.monotonic()
        idle = [idle_windows(setup, (options.windows + 1) // 2, options.window)]
        rates = (setup.images() - before) / (time.monotonic() - started)
        others = OtherPrograms()
        answered, trivial = requests(setup, query, options.requests)
        disturbed = others.share()
        idle.append(idle_windows(setup, options.windows // 2, options.window))
    print(f"\n## {width}x{height}\n")
    print(f"Images that reached the trivial node, 1/s: colour {rates[0]:.1f}, depth {rates[1]:.1f}")
    if not answered:
        raise SystemExit(f"No answer of {options.requests} was a success.")
    print(
        f"{len(answered)} of {options.requests} requests answered with success, while other "
        f"programs took {disturbed:.2f} of {psutil.cpu_count()} CPU cores"
    )
    figures = report_requests(answered, trivial) | report_idle(np.vstack(idle))
    return figures | {"successes": len(answered), "other_programs_cores": round(disturbed, 2)}


def report_requests(answered: list[Answered], trivial: list[float]) -> dict[str, float]:
    """Print the tables of the requests; return their figures."""
    overhead = np.array([a.overhead for a in answered])
    print("\n| ms per request | median | p95 | p99 |\n|---|--:|--:|--:|")
    parts = {
        "round trip, brain node": [a.round_trip for a in answered],
        "engine: preprocess": [a.preprocess for a in answered],
        "engine: prefill": [a.prefill for a in answered],
        "engine: decode": [a.decode for a in answered],
        "lift": [a.lift for a in answered],
        "**overhead**": overhead,
        "of it in the node, until the response is sent (wait)": [a.wait for a in answered],
        "of it outside the node (DDS, client)": [a.round_trip - a.total for a in answered],
        "round trip, trivial node (floor)": trivial,
        "age of the image when asked": [a.age for a in answered],
    }
    for name, values in parts.items():
        _print_percentiles(name, values)
    over, floor = (np.percentile(values, (50, 95, 99)) for values in (overhead, trivial))
    print("| overhead - floor |" + "".join(f" {value:.2f} |" for value in over - floor))
    return {
        "overhead_median_ms": round(float(over[0]), 2),
        "overhead_p95_ms": round(float(over[1]), 2),
        "overhead_p99_ms": round(float(over[2]), 2),
        "floor_median_ms": round(float(floor[0]), 2),
        "floor_p95_ms": round(float(floor[1]), 2),
    }


def _print_percentiles(name: str, values: list[float] | NDArray[np.float64]) -> None:
    median, p95, p99 = np.percentile(values, (50, 95, 99))
    print(f"| {name} | {median:.2f} | {p95:.2f} | {p99:.2f} |")


def report_idle(windows: NDArray[np.float64]) -> dict[str, float]:
    """Print the table of the idle windows (N, 2); return its figures."""
    ratios = windows[:, 0] / windows[:, 1]
    print("\n| idle, CPU % of one core | median | least | most |\n|---|--:|--:|--:|")
    for name, values in (("brain node", windows[:, 0]), ("trivial node", windows[:, 1])):
        print(
            f"| {name} | {100 * np.median(values):.1f} | {100 * values.min():.1f} "
            f"| {100 * values.max():.1f} |"
        )
    print(f"| ratio | {np.median(ratios):.2f} | {ratios.min():.2f} | {ratios.max():.2f} |")
    return {
        "idle_cost_x": round(float(np.median(ratios)), 2),
        "idle_cpu_share": round(float(np.median(windows[:, 0])), 3),
        "idle_floor_cpu_share": round(float(np.median(windows[:, 1])), 3),
    }


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=300, help="at each image size")
    parser.add_argument("--windows", type=int, default=8, help="of idling, at each image size")
    parser.add_argument("--window", type=float, default=6.0, help="seconds of each")
    parser.add_argument("--settle", type=float, default=5.0, help="seconds before the first")
    options = parser.parse_args()
    bench = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([bench, os.environ.get("PYTHONPATH", "")])
    os.environ.update(environment())
    rclpy.init()
    try:
        found = {size: measure(*size, options) for size in SIZES}
    finally:
        rclpy.try_shutdown()
    small, large = (found[size] for size in SIZES)
    extra = {f"{key}_640x480": value for key, value in small.items()}
    print("\nRESULT " + json.dumps(large | extra))


if __name__ == "__main__":
    main()
