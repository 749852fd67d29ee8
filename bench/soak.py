# SPDX-License-Identifier: Apache-2.0
"""Eight clients, cameras at 30 Hz and faults at random, for as long as you like.

    make soak SECONDS=600

Real nodes: the brain with nano, and the simulated camera. Every request must get exactly one
answer, with a code where it failed. Faults: the camera stalls, dies and comes back with another
resolution; the node is deactivated or its model unloaded under its requests; parameters change.
The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import tempfile
import threading
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import rclpy
from faults import GAP_S, Faults
from rclpy.action import ActionClient
from rclpy.duration import Duration
from rclpy.executors import Executor
from rclpy.signals import SignalHandlerOptions
from results import reported
from sensor_msgs.msg import Image

from robobrain_ros.action import Infer
from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.ros.executors import spinning
from robobrain_ros.sim.processes import NodeProcess, environment
from robobrain_ros.srv import Ask, GetAffordance, GroundObject, PointTo, PredictTrajectory

CLIENTS = 8
PATIENCE_S = 60.0  # for an answer, whose own timeout is far shorter
SETTLED = 0.2  # share of the run after which memory should not grow any more
WORDS = (
    "mug",
    "red can",
    "object left of the blue bowl",
    "",
    "x" * 5000,
    "<|im_end|>杯子\0",
    "box",
)
# An image cache that is full within seconds: what grows after that should not.
BRAIN = {"model": "nano", "image_cache": 32}
REQUESTS = ((PointTo, "query"), (GroundObject, "query"), (GetAffordance, "task"),
            (PredictTrajectory, "task"), (Ask, "query"))  # fmt: skip


@dataclass
class Tally:
    """Responses that the clients got; seconds: of answered requests, by task."""

    codes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    unanswered: list[str] = field(default_factory=list)
    without_code: int = 0

    def take(self, task: str, response: Any, seconds: float) -> None:
        """Note an answer."""
        code = ErrorCode(response.error_code)
        self.codes[code.name] += 1
        if response.success == (code is not ErrorCode.NONE) or bool(response.error_msg) == (
            code is ErrorCode.NONE
        ):
            self.without_code += 1
        elif response.success:
            self.seconds[task].append(seconds)


def fields(rng: random.Random) -> dict[str, Any]:
    """A request's fields beside its text; one in ten is wrong in one of them."""
    timeout = Duration(seconds=rng.choice((0.005, 0.1, 1.0, 5.0, 10.0)))
    found: dict[str, Any] = {"timeout": timeout.to_msg()}
    found["think"] = rng.choice((0, 0, 0, 1, 2))
    found["target_frame"] = rng.choice(("", "table", "table", "camera_link"))
    wrong = {"target_frame": "nowhere", "camera": "none", "think": 77,
             "image": Image(width=9, height=9, encoding="rgb8", step=1)}  # fmt: skip
    if rng.random() < 0.1:
        name = rng.choice(list(wrong))
        found[name] = wrong[name]
    elif rng.random() < 0.1:
        found["image"] = Image(width=64, height=48, encoding="rgb8", step=192,
                               data=rng.randbytes(48 * 192))  # fmt: skip
    return found


def ask(client: BrainClient, tally: Tally, rng: random.Random) -> None:
    """One request of any service."""
    service, text = rng.choice(REQUESTS)
    request = service.Request(**{text: rng.choice(WORDS)}, **fields(rng))
    started = time.monotonic()
    try:
        response = client.send(request, PATIENCE_S)
    except NoAnswer as error:
        tally.unanswered.append(str(error))
    else:
        tally.take(service.__name__, response, time.monotonic() - started)


def act(goals: ActionClient, executor: Executor, tally: Tally, rng: random.Random) -> None:
    """One goal of the action; half of them are cancelled after a moment.

    On the executor's thread: rclpy's action client has no lock, an answer could be there before
    it knows what was asked.
    """
    ended = threading.Event()
    outcome: list[Any] = []

    def on_result(future: Any) -> None:
        outcome.append(future.result().result)
        ended.set()

    def on_accepted(future: Any) -> None:
        handle.append(future.result())
        handle[0].get_result_async().add_done_callback(on_result)

    handle: list[Any] = []
    goal = Infer.Goal(task=rng.randint(1, 5), query=rng.choice(WORDS), **fields(rng))
    started = time.monotonic()
    executor.create_task(lambda: goals.send_goal_async(goal).add_done_callback(on_accepted))
    if rng.random() < 0.5:
        time.sleep(rng.uniform(0, 0.2))
        if handle:
            executor.create_task(handle[0].cancel_goal_async)
    if ended.wait(PATIENCE_S):
        tally.take("Infer", outcome[0], time.monotonic() - started)
    else:
        tally.unanswered.append("the action did not answer")


def client_thread(number: int, seed: int, stop: threading.Event, tally: Tally) -> None:
    """Ask until told to stop."""
    rng = random.Random(f"{seed} {number}")
    with (
        BrainClient(name=f"soak_{number}") as client,
        spinning(rclpy.create_node(f"soak_goals_{number}")) as node,
    ):
        goals = ActionClient(node, Infer, "robobrain/infer")
        goals.wait_for_server(PATIENCE_S)
        for service, text in REQUESTS:  # a reply sent while DDS discovers its client can get lost
            for _ in range(3):
                try:
                    client.send(service.Request(**{text: "warm-up"}, camera="none"), 10.0)
                    break
                except NoAnswer:
                    continue
        while not stop.is_set():
            if rng.random() < 0.8:
                ask(client, tally, rng)
            else:
                act(goals, node.executor, tally, rng)
            time.sleep(rng.uniform(0, 0.1))
        goals.destroy()


def unloaded_bytes(faults: Faults, process: psutil.Process) -> int:
    """The node's memory without its model: what it has under load says more about the load."""
    found = []

    def measure() -> None:
        time.sleep(1.0)
        found.append(process.memory_info().rss)

    faults.unload(measure)
    return found[0]


def soak(options: argparse.Namespace, log: Path, figures: dict[str, Any]) -> None:
    """Run it all, and put what came of it into `figures`."""
    seconds, seed = options.seconds, options.seed
    tally, stop, curve = Tally(), threading.Event(), list[tuple[float, int]]()
    figures["memory_growth"] = None
    with (
        open(log, "wb") as output,
        BrainClient(name="soak") as client,
        NodeProcess("robobrain_ros.brain_node", BRAIN, output=output) as brain,
    ):
        client.wait_for_node(120.0)
        assert client.configure() and client.activate()
        cameras_log = log.with_suffix(".cameras.log")
        faults = Faults(client, random.Random(seed), cameras_log, tuple(options.gap))
        threads = [
            threading.Thread(target=client_thread, args=(n, seed, stop, tally))
            for n in range(CLIENTS)
        ]
        for thread in threads:
            thread.start()
        try:
            early, late = load(seconds, psutil.Process(brain.process.pid), faults, curve)
            if early and late:
                print(f"memory without the model: {early / 1e6:.0f} MB, then {late / 1e6:.0f} MB")
                figures["memory_growth"] = round(late / early - 1, 4)
        finally:
            stop.set()
            for thread in threads:
                thread.join()
            faults.close()
            died = brain.process.poll() is not None
            failed = brain.end() != 0
            if sys.exc_info()[0] is not None:  # a signal for this process may have met the node too
                died = failed = False
            words = log.read_text(errors="replace")
            crashes = died + failed + words.count("Traceback") + words.count("[FATAL]")
            figures.update(report(tally, curve, faults.count), crashes=crashes)


def load(
    seconds: float, process: psutil.Process, faults: Faults, curve: list[tuple[float, int]]
) -> tuple[int, int]:
    """Cause faults while the clients ask; return the memory without the model, early and late."""
    start, early = time.monotonic(), 0
    while (now := time.monotonic() - start) < seconds and process.is_running():
        if not early and now > SETTLED * seconds:
            early = unloaded_bytes(faults, process)
        curve.append((now, process.memory_info().rss))
        faults.maybe()
        time.sleep(0.5)
    return early, unloaded_bytes(faults, process) if early and process.is_running() else 0


def report(tally: Tally, curve: list[tuple[float, int]], faults: Counter[str]) -> dict[str, Any]:
    """Print what happened; returns what the RESULT has of it."""
    print("faults:", dict(faults))
    print("answers:", dict(tally.codes.most_common()))
    for task, seconds in sorted(tally.seconds.items()):
        p50, p95, p99 = np.percentile(seconds, (50, 95, 99))
        print(f"  {task:18} n {len(seconds):5}  p50 {p50:.3f}  p95 {p95:.3f}  p99 {p99:.3f} s")
    for at, rss in curve[:: max(1, len(curve) // 12)]:
        print(f"  memory after {at:5.0f} s: {rss / 1e6:.0f} MB")
    for line in tally.unanswered[:5]:
        print("  unanswered:", line)
    answered = [value for seconds in tally.seconds.values() for value in seconds]
    return {
        "requests": sum(tally.codes.values()) + len(tally.unanswered),
        "unanswered": len(tally.unanswered),
        "without_code": tally.without_code,
        "p95_s": round(float(np.percentile(answered, 95)), 3) if answered else None,
        "faults": dict(faults),
        "memory_most_mb": round(max((rss for _, rss in curve), default=0) / 1e6),
    }


def main() -> int:
    """Print the report and the RESULT line; fails when a request was lost or something crashed."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--gap", type=float, nargs=2, default=GAP_S, help="s between two faults")
    options = parser.parse_args()
    os.environ.update(environment())
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    with tempfile.NamedTemporaryFile(prefix="robobrain_soak_", suffix=".log", delete=False) as file:
        print(f"The node's log: {file.name}", flush=True)
    with reported() as result:
        soak(options, Path(file.name), result)
    rclpy.try_shutdown()
    lost = result["unanswered"] + result["without_code"] + result["crashes"]
    return int(lost > 0)


if __name__ == "__main__":
    raise SystemExit(main())
