# SPDX-License-Identifier: Apache-2.0
"""Latency of timers and services while the model computes.

    make bench-busy

A random model of 180 M parameters writes for ten seconds on all cores. Meanwhile a client calls
`get_parameters` and `get_state` in turn, and a 10 Hz timer on the node's executor tells how late
it is. The same without work for the model comes first. The last line is machine-readable; its
figures are the largest, in milliseconds.
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import random_models
import rclpy
from lifecycle_msgs.srv import GetState
from rcl_interfaces.srv import GetParameters
from rclpy.signals import SignalHandlerOptions
from results import reported
from std_msgs.msg import Float64

from robobrain_ros.client import BrainClient
from robobrain_ros.ros.executors import spinning
from robobrain_ros.sim.camera_node import color_image
from robobrain_ros.sim.processes import NodeProcess

GAP_S = 0.02  # between calls
Milliseconds = dict[str, list[float]]


def observe(client: BrainClient, seconds: float) -> Milliseconds:
    """Call the services in turn, and listen to the timer."""
    found: Milliseconds = {"timer": [], "get_parameters": [], "get_state": []}
    names = GetParameters.Request(names=["model", "target_frame"])
    calls = {
        "get_parameters": (GetParameters, names),
        "get_state": (GetState, GetState.Request()),
    }
    with spinning(rclpy.create_node("busy")) as node:
        node.create_subscription(
            Float64, "robobrain/late", lambda tick: found["timer"].append(1000 * tick.data), 10
        )
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for name, (service, request) in calls.items():
                started = time.perf_counter()
                client.call(service, f"robobrain/{name}", request, 30.0)
                found[name].append(1000 * (time.perf_counter() - started))
                time.sleep(GAP_S)
    # The timer's phase is its own: late is what is more than the least.
    found["timer"] = [value - min(found["timer"]) for value in found["timer"]]
    return found


def show(title: str, found: Milliseconds) -> None:
    """Print a row per service, and for the timer."""
    for name, values in found.items():
        cells = [np.median(values), np.percentile(values, 95), max(values)]
        print(
            f"| {title} | {name} | {len(values)} | " + " | ".join(f"{c:.1f}" for c in cells) + " |"
        )


def main() -> None:
    """Print the table and the RESULT line."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--shape", default="180M", choices=random_models.SHAPES)
    options = parser.parse_args()
    rng = np.random.default_rng(0)
    picture = color_image(rng.integers(0, 255, (480, 640, 3), dtype=np.uint8), "rgb8")
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    with reported() as figures, tempfile.TemporaryDirectory() as folder:
        model = str(random_models.save(options.shape, Path(folder, "model")))
        parameters = {"model": model, "max_new_tokens": 16384, "request_timeout": 600.0}
        with NodeProcess("busy_brain", parameters), BrainClient() as client:
            client.wait_for_node(60.0)
            assert client.configure() and client.activate()
            idle = observe(client, options.seconds / 2)
            asked = threading.Thread(target=client.ask, args=("Why?",), kwargs={"image": picture})
            asked.start()
            busy = observe(client, options.seconds)
            assert asked.is_alive(), "the model was not busy all the time"
            client.deactivate()
            asked.join()
        figures["busy_s"] = options.seconds
        figures.update({f"{name}_max_ms": round(max(values), 1) for name, values in busy.items()})
        print(
            "| model | what | n | median, ms | p95, ms | largest, ms |\n|---|---|---|---|---|---|"
        )
        show("idle", idle)
        show("busy", busy)
    rclpy.shutdown()


if __name__ == "__main__":
    main()
