# SPDX-License-Identifier: Apache-2.0
"""`make view`: a simulated camera, the node, questions about the table, and the live view."""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.core.extras import starting_with
from robobrain_ros.ros.executors import call_on_signals
from robobrain_ros.srv import Ask, GetAffordance, GroundObject, PointTo, PredictTrajectory

with starting_with("sim"):
    from robobrain_ros.sim.demo import SEED
    from robobrain_ros.sim.launching import StartError, init_ros, say, start_nodes
    from robobrain_ros.sim.pool import KINDS, plural
    from robobrain_ros.sim.tabletop import TABLE_FRAME
    from robobrain_ros.sim.truth import Truth

with starting_with("view"):
    from robobrain_ros.view import archetypes, options
    from robobrain_ros.view.node import start
    from robobrain_ros.view.recording import Recording
    from robobrain_ros.view.server import NoServer


def main() -> int:
    """Run until SIGINT or SIGTERM, or for --seconds; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__)
    options.add_to(parser, Path("build/view.rrd"))
    parser.add_argument("--model", default="nano", help="nano, a directory or a hub id")
    parser.add_argument("--seed", type=int, default=SEED, help="which simulated scene")
    parser.add_argument("--every", type=float, default=2.0, help="seconds between two questions")
    chosen = parser.parse_args()
    try:
        with ExitStack() as stack:
            return show(stack, chosen)
    except (NoServer, StartError, NoAnswer) as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 0


def show(stack: ExitStack, chosen: argparse.Namespace) -> int:
    """Start everything, which `stack` ends, and ask; raises KeyboardInterrupt on a signal."""
    questions = questions_about(chosen.seed)
    recording = options.opened(stack, chosen)
    camera = {"seed": chosen.seed, "depth_sensor": "stereo"}
    init_ros(stack)
    brain = start_nodes(stack, "view", chosen.model, camera)
    # In place of rclpy's handlers, which end its threads before they are told to. A pending answer
    # would never come: Ctrl-C in a terminal has ended the node as well.
    call_on_signals(_interrupt)
    start(stack, recording)
    say(f"Asking a question every {chosen.every:g} s; Ctrl-C ends it.")
    end = time.monotonic() + (chosen.seconds or math.inf)
    for request in itertools.cycle(questions):
        ask(brain, request, recording)
        if time.monotonic() > end:
            break
        time.sleep(chosen.every)
    return 0


def _interrupt() -> None:
    raise KeyboardInterrupt


def questions_about(seed: int) -> Sequence[Any]:
    """Return requests to all services about the scene of a seed, one for a missing object, too."""
    truth = Truth.of_scene(seed)
    a, b, c, d = itertools.islice(itertools.cycle(truth.largest_first()), 4)
    kinds = {item.kind for item in truth.objects}
    missing = next(kind for kind in sorted(KINDS) if kind not in kinds)
    kind = next(item.kind for item in truth.objects if item.name == a)
    return [
        PointTo.Request(query=f"Point to the {a}", target_frame=TABLE_FRAME),
        GroundObject.Request(query=f"the {b}", target_frame=TABLE_FRAME),
        PredictTrajectory.Request(task=f"reach for the {c}", target_frame=TABLE_FRAME),
        GetAffordance.Request(task=f"pick up the {d}", target_frame=TABLE_FRAME),
        Ask.Request(query=f"How many {plural(kind)} are there?"),
        PointTo.Request(query=f"Point to the free space left of the {b}", target_frame=TABLE_FRAME),
        PointTo.Request(query=f"Point to the {missing}", target_frame=TABLE_FRAME),
    ]


def ask(brain: BrainClient, request: Any, recording: Recording) -> None:
    """Send a request, and log the answer and its latency by stage."""
    words = getattr(request, "query", "") or request.task
    started = time.monotonic()
    response = brain.send(request)
    seconds = time.monotonic() - started
    now = time.time_ns()
    said = response.answer if response.success else response.error_msg
    recording.log(archetypes.said(words, said, response.success), now)
    recording.log(archetypes.latency("round trip", seconds), now)
    for stage in archetypes.STAGES:
        recording.log(archetypes.latency(stage, getattr(response.timing, stage)), now)


if __name__ == "__main__":
    sys.exit(main())
