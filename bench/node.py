# SPDX-License-Identifier: Apache-2.0
"""Overhead of the node: time around the engine in each request, and CPU while idle.

    make bench-node

A camera of its own process publishes color, depth and camera info at 30 Hz, by turns 640x480 and
1280x720. By turns, too, it has one of two subscribers, each a process: the brain node, active with
the nano model, and a trivial rclpy node. A client asks whoever has its turn.

Overhead of a request: the round trip that the client sees, less what the response's `timing` gives
for preprocess, prefill, decode and lift. So it has both ways through DDS, decoding the image, the
transform, every wait, building the response. The engine's prompt and image processing
and the 3D part are the work that was asked for, and count no more than the model.

Idle cost: CPU seconds per second of the brain node, over those of the trivial node in its next
turn. The last line is machine-readable: figures of 1280x720, and with a suffix of 640x480.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import rclpy
from numpy.typing import NDArray
from rclpy.signals import SignalHandlerOptions
from results import reported

from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.ros.camera import nanoseconds
from robobrain_ros.sim.processes import NodeProcess, environment
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth
from robobrain_ros.srv import PointTo

SIZES = ((640, 480), (1280, 720))
MAIN_SIZE = (1280, 720)
RATE = 30.0
SEED = 2_000_003
WARM_UP = 15  # requests
_TIMEOUT_S = 60.0

Asked = tuple[float, int, PointTo.Response]
"""Seconds of a round trip, the time it began (ns, on the clock of the images), the response."""


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


class Turn:
    """One node that subscribes to the camera, alone, until its turn is over."""

    def __init__(self, client: BrainClient, name: str, process: int) -> None:
        self._client = client
        self._service = f"{name}/point_to"
        self._process = psutil.Process(process)

    def greet(self, query: str) -> None:
        """Ask until there is an answer: one sent while DDS discovers its client can get lost."""
        for _ in range(5):
            with suppress(NoAnswer):
                self._client.call(PointTo, self._service, PointTo.Request(query=query), 10.0)
                return

    def ask(self, query: str) -> Asked:
        """Ask once, and return what came."""
        request = PointTo.Request(query=query)
        asked_ns, started = time.time_ns(), time.perf_counter()
        response = self._client.call(PointTo, self._service, request, _TIMEOUT_S)
        return time.perf_counter() - started, asked_ns, response

    def ask_often(self, query: str, count: int) -> list[Asked]:
        """Ask at any moment between two images."""
        found = []
        for _ in range(WARM_UP + count):
            time.sleep(random.uniform(0.005, 0.005 + 1 / RATE))
            found.append(self.ask(query))
        return found[WARM_UP:]

    def idle(self, seconds: float) -> float:
        """Return the CPU seconds per second that the node takes while nobody asks."""
        started, before = time.monotonic(), _cpu_seconds(self._process)
        time.sleep(seconds)
        return (_cpu_seconds(self._process) - before) / (time.monotonic() - started)


TurnContext = AbstractContextManager[Turn]


@contextmanager
def subscribers(width: int, height: int) -> Iterator[dict[str, Callable[[], TurnContext]]]:
    """Start the camera and the brain node, its model loaded; give what makes each node's turn."""
    with ExitStack() as stack:
        client = stack.enter_context(BrainClient())
        camera = {"width": width, "height": height, "seed": SEED, "rate": RATE}
        stack.enter_context(NodeProcess("rgbd_publisher", camera))
        parameters = {"model": "nano", "target_frame": "table"}
        brain_node = stack.enter_context(NodeProcess("robobrain_ros.brain_node", parameters))
        client.wait_for_node(_TIMEOUT_S)
        if not client.configure():
            raise SystemExit("The brain node can't be configured: its log is above.")

        @contextmanager
        def brain() -> Iterator[Turn]:
            if not client.activate():
                raise SystemExit("The brain node can't be activated: its log is above.")
            yield Turn(client, "robobrain", brain_node.process.pid)
            client.deactivate()

        @contextmanager
        def trivial() -> Iterator[Turn]:
            with NodeProcess("trivial_node") as node:
                yield Turn(client, "trivial", node.process.pid)

        yield {"brain": brain, "trivial": trivial}


def _cpu_seconds(process: psutil.Process) -> float:
    family = (process, *process.children(recursive=True))
    return sum(member.cpu_times().user + member.cpu_times().system for member in family)


class OtherPrograms:
    """CPU usage of all other programs, which disturbs the times."""

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
    asked: dict[str, list[Asked]] = {"brain": [], "trivial": []}
    idle: dict[str, list[float]] = {"brain": [], "trivial": []}
    rates = []
    with subscribers(width, height) as turns:
        others = OtherPrograms()
        for _ in range(options.turns):
            for name, turn in turns.items():
                with turn() as node:
                    node.greet(query)
                    time.sleep(options.settle)
                    idle[name].append(node.idle(options.window))
                    found = node.ask_often(query, options.requests // options.turns)
                asked[name] += found
            rates.append(image_rates(found))
        disturbed = others.share()
    answered = [Answered.of(*one) for one in asked["brain"] if one[2].success]
    trivial = [1000 * round_trip for round_trip, _, _ in asked["trivial"]]
    color, depth = np.mean(rates, axis=0)
    print(f"\n## {width}x{height}\n")
    print(f"Images that reached the trivial node, 1/s: color {color:.1f}, depth {depth:.1f}")
    if not answered:
        raise SystemExit("No answer was a success.")
    print(
        f"{len(answered)} of {len(asked['brain'])} requests answered with success, while other "
        f"programs took {disturbed:.2f} of {psutil.cpu_count()} CPU cores"
    )
    figures = report_requests(answered, trivial)
    figures |= report_idle(np.array([idle["brain"], idle["trivial"]]).T)
    return figures | {"successes": len(answered), "other_programs_cores": round(disturbed, 2)}


def image_rates(asked: list[Asked]) -> NDArray[np.float64]:
    """Return how many color and depth images (2,) reach the trivial node in a second."""
    (_, first_ns, first), (_, last_ns, last) = asked[0], asked[-1]
    counts = [np.array(response.answer.split(), np.int64) for response in (first, last)]
    return (counts[1] - counts[0]) / ((last_ns - first_ns) / 1e9)


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
        "overhead_p95_over_floor_ms": round(float(over[1] - floor[1]), 2),
    }


def _print_percentiles(name: str, values: list[float] | NDArray[np.float64]) -> None:
    median, p95, p99 = np.percentile(values, (50, 95, 99))
    print(f"| {name} | {median:.2f} | {p95:.2f} | {p99:.2f} |")


def report_idle(windows: NDArray[np.float64]) -> dict[str, float]:
    """Print the table of the idle windows (turns, 2); return its figures."""
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
    parser.add_argument("--requests", type=int, default=400, help="to each, at each image size")
    parser.add_argument("--turns", type=int, default=5, help="of each, at each image size")
    parser.add_argument("--window", type=float, default=6.0, help="seconds of idling in each turn")
    parser.add_argument("--settle", type=float, default=2.0, help="seconds before that")
    options = parser.parse_args()
    bench = str(Path(__file__).parent)
    os.environ["PYTHONPATH"] = os.pathsep.join([bench, os.environ.get("PYTHONPATH", "")])
    os.environ.update(environment())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    try:
        with reported() as figures:
            for width, height in SIZES:
                suffix = "" if (width, height) == MAIN_SIZE else f"_{width}x{height}"
                found = measure(width, height, options)
                figures.update({f"{key}{suffix}": value for key, value in found.items()})
    finally:
        rclpy.try_shutdown()


if __name__ == "__main__":
    main()
