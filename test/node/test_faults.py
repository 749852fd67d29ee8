# SPDX-License-Identifier: Apache-2.0
"""What goes wrong on a robot, on a real node: each fault is told of, and it goes on after it."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from support.faulty_brain import OUT_OF_MEMORY, PANIC
from support.node_parameters import set_parameter
from support.point_queries import point, position, seen_at
from support.polling import diagnosed, until
from support.running_brain import NODE, PATIENCE_S, running_brain
from tf2_ros import StaticTransformBroadcaster

import robobrain_ros
from robobrain_ros.client import BrainClient
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.camera_node import color_image, transform
from robobrain_ros.sim.processes import environment

NANO = Path(robobrain_ros.__file__).parent / "nano" / "model"


CAMERAS = ["camera", "restarting", "blinking", "hopping"]
PARAMETERS = {"cameras": CAMERAS, "image_timeout": 2.0, "max_image_age": 10.0}
# Its model fails at certain words.
BRAIN = {"module": "support.faulty_brain", "parameters": PARAMETERS}

point_on_table = partial(point, target_frame="table")


@pytest.fixture(scope="module", autouse=True)
def survives(brain):
    """The node outlives all faults."""
    yield
    assert brain.process.process.poll() is None


def is_right(response, scene) -> bool:
    """Whether the point is on the object, in an image of the scene's size and on the table."""
    if not response.success or response.points[0].status != LiftedPoint.OK:
        return False
    pixel = response.points[0].pixel
    height, width = scene.truth.frame.depth.shape
    if pixel.x > width - 1 or pixel.y > height - 1:
        return False
    exact = (scene.pose @ seen_at(scene, pixel))[:3]
    on_it = scene.truth.mask(scene.name)[round(pixel.y), round(pixel.x)]
    return bool(on_it) and np.linalg.norm(exact - position(response.points[0])) < 0.02


def halved(scene):
    """The scene in half as many pixels each way."""
    frame = scene.truth.frame
    half = SimpleNamespace(
        rgb=cv2.resize(frame.rgb, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA),
        depth=np.ascontiguousarray(frame.depth[::2, ::2]),
    )
    mask = np.ascontiguousarray(scene.truth.mask(scene.name)[::2, ::2])
    intrinsics = scene.intrinsics * np.array([[0.5], [0.5], [1.0]])
    truth = SimpleNamespace(frame=half, mask=lambda name: mask)
    return SimpleNamespace(truth=truth, intrinsics=intrinsics, pose=scene.pose, name=scene.name)


# Cameras


def test_a_camera_that_comes_back_with_another_resolution_and_frame(brain, still_cameras, scene):
    with still_cameras.publishing("restarting", scene):
        assert is_right(point_on_table(brain, scene, camera="restarting"), scene)
    small = halved(scene)
    with still_cameras.publishing("restarting", small, frame="restarted_optical_frame"):
        until(lambda: is_right(point_on_table(brain, small, camera="restarting"), small))


def test_depth_that_drops_out_and_comes_back(brain, still_cameras, scene):
    with still_cameras.publishing("blinking", scene):
        assert is_right(point_on_table(brain, scene, camera="blinking"), scene)
    with still_cameras.publishing("blinking", scene, depth_encoding=None):
        until(lambda: status_of(point_on_table(brain, scene, camera="blinking")) != LiftedPoint.OK)
        assert point_on_table(brain, scene, camera="blinking").success
    with still_cameras.publishing("blinking", scene):
        until(lambda: is_right(point_on_table(brain, scene, camera="blinking"), scene))


def status_of(response) -> int | None:
    return response.points[0].status if response.success else None


def test_a_tf_tree_that_is_set_anew(brain, still_cameras, scene):
    """A camera that was calibrated again: what counts is what was sent last."""
    pose = scene.pose.copy()
    pose[:3, 3] += (0.5, -0.25, 0.125)
    moved = SimpleNamespace(**{**vars(scene), "pose": pose})
    with still_cameras.publishing("hopping", scene):
        assert is_right(point_on_table(brain, scene, camera="hopping"), scene)
        # Another broadcaster: Jazzy's sends the first transform of a frame for ever.
        again = StaticTransformBroadcaster(still_cameras.node)
        again.sendTransform(transform("table", "hopping_color_optical_frame", pose))
        until(lambda: is_right(point_on_table(brain, moved, camera="hopping"), moved))


# Parameters


def test_parameters_that_change_under_load_cost_no_answer(brain, camera):
    stop = threading.Event()

    def change() -> int:
        changes = 0
        while not stop.is_set():
            for name, value in (("path_height", "surface"), ("path_height", "no such height"),
                                ("max_points", 3), ("sync_tolerance", 0.05),
                                ("path_height", "interpolate"), ("max_points", 10)):  # fmt: skip
                changes += set_parameter(brain, name, value).successful
        return changes

    with ThreadPoolExecutor(4) as threads:
        changing = threads.submit(change)
        asking = [threads.submit(point_on_table, brain, camera) for _ in range(30)]
        answers = [asked.result() for asked in asking]
        stop.set()
        assert changing.result() >= 5
    assert [answer.error_msg for answer in answers if not answer.success] == []


# The model


def test_memory_that_runs_out_ends_one_answer(brain, camera):
    response = brain.point_to(OUT_OF_MEMORY)
    assert response.error_code == ErrorCode.OUT_OF_MEMORY, response.error_msg
    assert is_right(point_on_table(brain, camera), camera)


def test_a_thread_of_the_model_that_ends_is_told_and_can_be_had_again(brain, camera):
    with ThreadPoolExecutor(3) as threads:
        asked = [threads.submit(brain.point_to, text) for text in (PANIC, "the mug", PANIC)]
        assert ErrorCode.ENGINE_UNAVAILABLE in [one.result().error_code for one in asked]
    refused = point_on_table(brain, camera)
    assert refused.error_code == ErrorCode.ENGINE_UNAVAILABLE
    assert "clean up and configure the node again" in refused.error_msg
    assert "index out of bounds" in brain.log()
    with diagnosed() as seen:
        until(lambda: any("thread has ended" in one.message for one in seen.get("model", ())))
    assert brain.state() == "active"
    assert brain.deactivate() and brain.cleanup() and brain.configure() and brain.activate()
    until(lambda: is_right(point_on_table(brain, camera), camera))


def test_model_files_that_are_cut_off_or_gone_under_the_node(camera, tmp_path):
    """They are read when the model is loaded, and not any more."""
    model = tmp_path / "nano"
    shutil.copytree(NANO, model)
    with running_brain({"model": str(model)}, name="/files") as client:
        os.truncate(model / "model.safetensors", 1000)
        assert is_right(point_on_table(client, camera), camera)
        shutil.rmtree(model)
        assert is_right(point_on_table(client, camera), camera)
        assert client.deactivate() and client.cleanup()
        assert not client.configure() and client.state() == "unconfigured"
        shutil.copytree(NANO, model)
        os.truncate(model / "model.safetensors", 1000)
        assert not client.configure() and client.state() == "unconfigured"
        shutil.copy(NANO / "model.safetensors", model)
        assert client.configure() and client.activate()
        assert is_right(point_on_table(client, camera), camera)
        assert "cut off or damaged" in client.log()


# The process


def test_a_full_disk_takes_the_log_and_nothing_else(ros, camera):
    """No file can grow by a byte, and the terminal's pipe takes nothing either."""
    command = [sys.executable, "-m", NODE, "--ros-args", "-r", "__ns:=/full"]
    # Without shared memory, whose files could not grow either.
    variables = {name: value for name, value in environment().items() if "PROFILES" not in name}
    variables["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
    with open("/dev/full", "wb") as full, BrainClient("/full/robobrain", "full_client") as client:
        process = subprocess.Popen(
            command,
            stdout=full,
            stderr=full,
            env=variables,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
        try:
            client.wait_for_node(PATIENCE_S)
            assert client.configure() and client.activate()
            picture = color_image(camera.truth.frame.rgb, "rgb8")
            response = client.point_to(f"the {camera.name}", image=picture)
            assert response.success, response.error_msg
            assert client.point_to("x", camera="none").error_code == ErrorCode.BAD_REQUEST
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(PATIENCE_S) == 0
