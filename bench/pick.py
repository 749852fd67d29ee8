# SPDX-License-Identifier: Apache-2.0
"""Success rate of a simulated arm that picks objects by the node's answers.

    make bench-pick

Scenes that no training saw, one object of each, drawn at random among those that can be asked about
and held: a gripper that opens 80 mm holds what is at most 70 mm wide where it is to be grasped, and
a bowl by its wall. That is decided by the true shapes, before anything is asked; so is nothing
else. The node sees a stereo camera's depth. With --oracle its model is left out: true boxes, lifted
as the node lifts them, say how much is lost by the rest. The last line is machine-readable.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import numpy as np
from results import reported

from robobrain_ros.sim.grasping import Answers, propose
from robobrain_ros.sim.obstacles import Obstacles
from robobrain_ros.sim.oracle import Oracle
from robobrain_ros.sim.physics import PhysicsScene
from robobrain_ros.sim.picking import Outcome, Picker
from robobrain_ros.sim.solids import grip_width
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth

FIRST_SEED = 2_400_000
HELD_WIDTH = 0.070  # metres

Ask = Callable[[Tabletop, int, str], tuple[Answers, Obstacles]]
"""Asks about the object of a name in the scene of a seed, which the Tabletop shows; and what else
the depth camera sees there.
"""


def drawn_object(table: Tabletop, seed: int) -> str | None:
    """One of the scene's objects that can be asked about and held, None where there is none."""
    askable = Truth(table).askable()
    held = [
        item.name
        for item, instance in zip(table.objects, table.instances, strict=True)
        if item.name in askable and grip_width(table.model, instance) <= HELD_WIDTH
    ]
    return str(np.random.default_rng(seed).choice(held)) if held else None


def by_oracle(table: Tabletop, seed: int, name: str) -> tuple[Answers, Obstacles]:
    """The true boxes, lifted."""
    oracle = Oracle(table, seed)
    return oracle.about(name), oracle.obstacles


@contextmanager
def by_node(model: str) -> Iterator[Ask]:
    """Start the camera and the node as processes of their own, and ask through the services."""
    import rclpy

    from robobrain_ros.ros.executors import spinning
    from robobrain_ros.sim.launching import init_ros, start_nodes
    from robobrain_ros.sim.perception import DepthCamera, ObjectPerception, SceneSwitch

    camera = {"seed": FIRST_SEED - 1, "depth_sensor": "stereo", "depth_encoding": "16UC1"}
    with ExitStack() as stack:
        init_ros(stack)
        client = start_nodes(stack, "bench_pick", model, camera)
        node = stack.enter_context(spinning(rclpy.create_node("pick")))
        switch, depth = SceneSwitch(client, node), DepthCamera(node)
        perception = ObjectPerception(client, node)

        def ask(_: Tabletop, seed: int, name: str) -> tuple[Answers, Obstacles]:
            switch.show(seed)
            return perception.about(f"the {name}"), depth.obstacles()

        yield ask


def run(scenes: int, ask: Ask, outcomes: dict[str, list[Outcome]]) -> None:
    """Pick one object in each scene; adds outcomes by kind. Failures are printed as they come."""
    table = Tabletop()
    seed = FIRST_SEED
    while sum(map(len, outcomes.values())) < scenes:
        table.reset(seed)
        name = drawn_object(table, seed)
        if name is not None:
            answers, obstacles = ask(table, seed, name)
            done = Picker(PhysicsScene(table)).pick(name, propose(answers), obstacles)
            kind = next(item.kind for item in table.objects if item.name == name)
            outcomes[kind].append(done.outcome)
            if done.outcome is not Outcome.PICKED:
                print(f"scene {seed}, the {name}: {done.outcome.value}", flush=True)
        seed += 1
    table.close()


def report(outcomes: dict[str, list[Outcome]]) -> dict[str, object]:
    """Print a table by kind, and return what RESULT says."""
    causes = list(Outcome)
    print(f"\n{'':14}" + "".join(f"{cause.value:>14}" for cause in causes))
    for kind, found in [*sorted(outcomes.items()), ("all", sum(outcomes.values(), []))]:
        counts = Counter(found)
        print(f"{kind:14}" + "".join(f"{counts[cause] or '':>14}" for cause in causes))
    everything = Counter(sum(outcomes.values(), []))
    n = everything.total()
    return {"success": round(everything[Outcome.PICKED] / max(n, 1), 3), "n": n}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=50)
    parser.add_argument("--model", default="nano", help="nano, a directory or a hub id")
    parser.add_argument("--oracle", action="store_true", help="true boxes instead of a model's")
    options = parser.parse_args()
    outcomes: dict[str, list[Outcome]] = defaultdict(list)
    with reported(lambda: report(outcomes)):
        if options.oracle:
            run(options.scenes, by_oracle, outcomes)
        else:
            with by_node(options.model) as ask:
                run(options.scenes, ask, outcomes)
    return 0


if __name__ == "__main__":
    sys.exit(main())
