# SPDX-License-Identifier: Apache-2.0
"""`make pick QUERY="the red can"`: a simulated arm picks an object by the node's answers.

The node sees the ordinary simulated camera. The grasp is chosen from its answers alone; the arm
carries it out in a physics model of the same scene.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import rclpy

from robobrain_ros.client import NoAnswer
from robobrain_ros.core.extras import starting_with
from robobrain_ros.ros.executors import spinning

with starting_with("sim"):
    from robobrain_ros.sim.film import Film
    from robobrain_ros.sim.grasping import Grasp, propose
    from robobrain_ros.sim.launching import StartError, init_ros, say, start_nodes
    from robobrain_ros.sim.obstacles import Obstacles
    from robobrain_ros.sim.perception import DepthCamera, ObjectPerception
    from robobrain_ros.sim.physics import PhysicsScene
    from robobrain_ros.sim.picking import Outcome, Picker
    from robobrain_ros.sim.tabletop import Tabletop
    from robobrain_ros.sim.truth import named_object

SEED = 2_000_002
"""Never seen in training; a red can is among its objects."""


def main() -> int:
    """Run one pick; returns the exit status: 0 when the object was picked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--query", default="the red can", help="what to pick")
    parser.add_argument("--model", default="nano", help="nano, a directory or a hub id")
    parser.add_argument("--seed", type=int, default=SEED, help="which simulated scene")
    parser.add_argument("--output", type=Path, default=Path("build/pick.png"))
    options = parser.parse_args()
    camera = {"seed": options.seed, "depth_sensor": "stereo", "depth_encoding": "16UC1"}
    try:
        with ExitStack() as stack:
            init_ros(stack)
            brain = start_nodes(stack, "pick", options.model, camera)
            node = stack.enter_context(spinning(rclpy.create_node("pick")))
            say(f"Asking for {options.query} …")
            obstacles = DepthCamera(node).obstacles()
            answers = ObjectPerception(brain, node).about(options.query)
            status = pick(options.seed, options.query, propose(answers), obstacles, options.output)
            if status and answers.error:
                say(f"The node said: {answers.error}")
            return status
    except (StartError, NoAnswer) as error:
        print(error, file=sys.stderr)
        return 1


def pick(seed: int, query: str, grasps: Iterable[Grasp], obstacles: Obstacles, output: Path) -> int:
    """Carry out one of the grasps, film it and report; the exit status."""
    table = Tabletop()
    table.reset(seed)
    scene = PhysicsScene(table)
    table.close()
    say(f"On the table: {', '.join(scene.names)}.")
    with Film(scene) as film:
        asked = named_object(query, scene.names)
        done = Picker(scene, film.watch).pick(asked, grasps, obstacles)
        if film.frames:
            gif = film.save(output)
            say(f"Film: {output} and {gif}")
    if done.grasp:
        x, y, z = done.grasp.position
        say(f"Grasp at ({x:.3f}, {y:.3f}, {z:.3f}) m, {1000 * done.grasp.width:.0f} mm wide.")
    for name, metres in done.risen.items():
        if abs(metres) > 0.02:
            say(f"The {name} {'rose' if metres > 0 else 'fell'} by {100 * abs(metres):.0f} cm.")
    picked = done.outcome is Outcome.PICKED
    say("Picked." if picked else f"Not picked: {done.outcome.value}.")
    print("RESULT " + json.dumps({"success": float(picked), "n": 1}))
    return 0 if picked else 1


if __name__ == "__main__":
    sys.exit(main())
