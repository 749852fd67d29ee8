# SPDX-License-Identifier: Apache-2.0
"""How right the whole graph is: unseen scenes, a noisy depth camera, and the services."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import numpy as np
from rclpy.qos import DurabilityPolicy, QoSProfile
from setting import set_parameter
from tf2_msgs.msg import TFMessage

from robobrain_ros.client import BrainClient
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.processes import NodeProcess
from robobrain_ros.sim.tabletop import Tabletop
from robobrain_ros.sim.truth import Truth

FIRST_SEED = 2_000_100
SCENES = 20
OBJECTS_PER_SCENE = 3
CAMERA = {"seed": FIRST_SEED - 1, "depth_sensor": "stereo", "depth_encoding": "16UC1"}


@dataclass
class Scores:
    in_mask: list[bool] = field(default_factory=list)
    error_mm: list[float] = field(default_factory=list)


class SceneSwitch:
    """Tells the camera which scene to show, and when its first frame was taken."""

    def __init__(self, client: BrainClient) -> None:
        self._client = client
        self._stamps: list = []
        static = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        client.node.create_subscription(TFMessage, "/tf_static", self._on_pose, static)

    def _on_pose(self, message: TFMessage) -> None:
        self._stamps.append(message.transforms[0].header.stamp)

    def show(self, seed: int):
        """Return the stamp of the scene's first frame, when its pose is known to all."""
        shown = len(self._stamps)
        assert set_parameter(self._client, "seed", seed, "sim_camera").successful
        deadline = time.monotonic() + 30
        while len(self._stamps) == shown:
            assert time.monotonic() < deadline, "the camera never showed the scene"
            time.sleep(0.02)
        time.sleep(0.3)
        return self._stamps[-1]


def test_unseen_scenes_through_the_services(ros):
    scores = Scores()
    table = Tabletop()
    with (
        NodeProcess("robobrain_ros.sim.camera_node", CAMERA),
        NodeProcess("robobrain_ros.brain_node"),
        BrainClient() as client,
    ):
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        switch = SceneSwitch(client)
        for seed in range(FIRST_SEED, FIRST_SEED + SCENES):
            stamp = switch.show(seed)
            table.reset(seed)
            truth = Truth(table)
            for name in truth.askable()[:OBJECTS_PER_SCENE]:
                ask(client, truth, name, stamp, scores)
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
