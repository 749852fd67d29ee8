# SPDX-License-Identifier: Apache-2.0
"""How right the whole graph is: unseen scenes, a noisy depth camera, and the services."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import pytest

from robobrain_ros.client import BrainClient
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.perception import SceneSwitch
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth

FIRST_SEED = 2_000_100
SCENES = 20
OBJECTS_PER_SCENE = 3
CAMERA = {"seed": FIRST_SEED - 1, "depth_sensor": "stereo", "depth_encoding": "16UC1"}
BRAIN = {"sim_camera": CAMERA}

pytestmark = pytest.mark.slow


@dataclass
class Scores:
    in_mask: list[bool] = field(default_factory=list)
    error_mm: list[float] = field(default_factory=list)


def test_unseen_scenes_through_the_services(brain, own_node):
    scores = Scores()
    table = Tabletop()
    switch = SceneSwitch(brain, own_node)
    for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
        stamp = switch.show(seed)
        table.reset(seed)
        truth = Truth(table)
        for name in truth.askable()[:OBJECTS_PER_SCENE]:
            ask(brain, truth, name, stamp, scores)
    table.close()
    assert len(scores.in_mask) >= 2 * SCENES
    median = float(np.median(scores.error_mm))
    lifted = len(scores.error_mm) / len(scores.in_mask)
    worst = max(scores.error_mm)
    print(f"{np.mean(scores.in_mask):.1%} of {len(scores.in_mask)} points in the mask")
    print(f"{lifted:.1%} lifted, median {median:.1f}, worst {worst:.1f} mm off the surface")
    assert np.mean(scores.in_mask) >= 0.90
    assert lifted >= 0.8
    assert median <= 3.0


def ask(client: BrainClient, truth: Truth, name: str, stamp, scores: Scores) -> None:
    """One question about the newest frame of the scene shown since `stamp`."""
    response = client.point_to(f"Point to the {name}", target_frame="table")
    if not response.success:
        scores.in_mask.append(False)
        return
    lifted = response.points[0]
    header = response.header
    assert (header.stamp.sec, header.stamp.nanosec) >= (stamp.sec, stamp.nanosec)
    assert header.frame_id == "camera_color_optical_frame"
    assert lifted.pose.header.stamp == header.stamp
    assert lifted.pose.header.frame_id == "table"
    scores.in_mask.append(truth.contains(name, (lifted.pixel.x, lifted.pixel.y)))
    if lifted.status == LiftedPoint.OK:
        at = lifted.pose.pose.position
        scores.error_mm.append(truth.distance_mm(name, (at.x, at.y, at.z)))
