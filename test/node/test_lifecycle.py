# SPDX-License-Identifier: Apache-2.0
"""Transitions of the real node process, and how it ends."""

from __future__ import annotations

import os
import signal
import threading
import time
from inspect import iscoroutinefunction
from pathlib import Path

import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from support.node_parameters import set_parameter
from support.polling import until

from robobrain_ros.brain_node import BrainNode
from robobrain_ros.client import BrainClient
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.sim.processes import NodeProcess

NODE = "robobrain_ros.brain_node"


@pytest.fixture
def client(ros):
    with BrainClient() as client:
        yield client


def test_cycles_serve_only_while_active(client, still_cameras, scene):
    with NodeProcess(NODE), still_cameras.publishing("camera", scene):
        assert client.wait_for_node(60.0) == "unconfigured"
        for _ in range(3):
            assert client.point_to(scene.name).error_code == ErrorCode.NOT_ACTIVE
            assert client.configure() and client.state() == "inactive"
            assert client.point_to(scene.name).error_code == ErrorCode.NOT_ACTIVE
            assert client.activate() and client.state() == "active"
            assert client.point_to(f"the {scene.name}").success
            assert client.deactivate() and client.state() == "inactive"
            assert client.cleanup() and client.state() == "unconfigured"


def test_a_transition_that_is_not_possible_is_refused_and_the_node_lives(client):
    with NodeProcess(NODE):
        client.wait_for_node(60.0)
        assert not client.activate()
        assert not client.transition(99)
        assert client.state() == "unconfigured"


@pytest.mark.parametrize("model", ["/does/not/exist", "nobody/no-such-model"])
def test_configure_fails_with_a_sentence_and_can_be_tried_again(client, model, log_file):
    with NodeProcess(NODE, {"model": model}, output=log_file):
        client.wait_for_node(60.0)
        assert not client.configure()
        assert client.state() == "unconfigured"
        assert set_parameter(client, "model", "nano").successful
        assert client.configure() and client.state() == "inactive"
    log_file.seek(0)
    log = log_file.read().decode()
    assert "Can't load the model" in log and model in log
    assert "Traceback" not in log


def test_a_camera_added_before_configure_is_served(client, still_cameras, scene):
    with NodeProcess(NODE), still_cameras.publishing("side", scene):
        client.wait_for_node(60.0)
        assert set_parameter(client, "cameras", ["camera", "side"]).successful
        assert client.configure() and client.activate()
        assert client.point_to(f"the {scene.name}", camera="side").success


def test_services_answer_while_the_model_loads(client):
    with NodeProcess(NODE):
        client.wait_for_node(60.0)
        configured = []
        thread = threading.Thread(target=lambda: configured.append(client.configure()))
        thread.start()
        states = []
        while thread.is_alive():
            states.append(client.state())
        thread.join()
        assert configured == [True]
        assert states[0] == "unconfigured" and len(states) > 3


def test_two_transitions_at_once_leave_the_node_whole(client):
    with NodeProcess(NODE):
        client.wait_for_node(60.0)
        results = []
        threads = [
            threading.Thread(target=lambda: results.append(client.configure())) for _ in range(3)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(results) == [False, False, True]
        assert client.state() == "inactive"


def test_requests_under_way_end_when_the_node_is_deactivated(client, still_cameras, scene):
    with NodeProcess(NODE, {"image_timeout": 60.0}):
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        responses = []  # there is no camera: the request waits
        thread = threading.Thread(target=lambda: responses.append(client.point_to(scene.name)))
        thread.start()
        thread.join(0.5)
        assert client.deactivate()
        thread.join(10.0)
        assert [response.error_code for response in responses] == [ErrorCode.NOT_ACTIVE]


def test_autostart(client, still_cameras, scene):
    with NodeProcess(NODE, {"autostart": True}), still_cameras.publishing("camera", scene):
        client.wait_for_node(60.0)
        for _ in range(600):
            if client.state() == "active":
                break
            threading.Event().wait(0.1)
        assert client.point_to(f"the {scene.name}").success


def test_namespace_and_name_can_be_remapped(own_node):
    remaps = ("__ns:=/arm", "__node:=eyes")
    with NodeProcess(NODE, remaps=remaps), BrainClient("/arm/eyes") as client:
        assert client.wait_for_node(60.0) == "unconfigured"
        wanted = {"eyes", "robobrain_cameras"}
        for _ in range(100):  # the graph becomes known after the services
            names = {name for name, _ in own_node.get_node_names_and_namespaces()}
            if wanted <= names:
                break
            threading.Event().wait(0.1)
        assert wanted <= names


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("active", [False, True])
def test_signals_end_the_process_cleanly(client, number, active, log_file):
    with NodeProcess(NODE, output=log_file) as node:
        client.wait_for_node(60.0)
        if active:
            assert client.configure() and client.activate()
        assert node.end(number) == 0
    log_file.seek(0)
    log = log_file.read().decode()
    assert "Traceback" not in log and "terminate called" not in log


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_the_model_loads_does_not_wait_for_it(
    client, own_node, number, log_file, monkeypatch
):
    """A large model takes minutes, and can't be interrupted."""
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]), prepend=os.pathsep)
    monkeypatch.setenv("LOAD_S", "120")
    with NodeProcess("support.slow_brain", output=log_file) as node:
        client.wait_for_node(60.0)
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        change_state = own_node.create_client(ChangeState, "robobrain/change_state")
        assert change_state.wait_for_service(60.0)
        change_state.call_async(request)
        until(lambda: b"Loading" in Path(log_file.name).read_bytes())
        assert node.end(number) == 0
    assert "Ending without waiting" in Path(log_file.name).read_text()


def test_more_signals_while_it_ends_change_nothing(client):
    """`ros2 launch` sends SIGINT to its nodes when the terminal has done so already."""
    with NodeProcess(NODE) as node:
        client.wait_for_node(60.0)
        deadline = time.monotonic() + 60.0
        while node.process.poll() is None and time.monotonic() < deadline:
            node.process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert node.process.returncode == 0


def test_a_signal_answers_the_request_that_waits_and_ends_the_process(client, log_file):
    with NodeProcess(NODE, {"image_timeout": 60.0}, output=log_file) as node:
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        responses = []  # there is no camera: the request waits
        thread = threading.Thread(target=lambda: responses.append(client.point_to("the red can")))
        thread.start()
        thread.join(0.5)
        assert node.end(signal.SIGTERM) == 0
        thread.join(10.0)
    assert [response.error_code for response in responses] == [ErrorCode.NOT_ACTIVE]
    log_file.seek(0)
    assert "Traceback" not in log_file.read().decode()


def test_shutdown_transition_ends_the_session(client):
    with NodeProcess(NODE):
        client.wait_for_node(60.0)
        assert client.configure() and client.activate()
        assert client.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert client.state() == "finalized"
        assert client.point_to("the red can").error_code == ErrorCode.NOT_ACTIVE


@pytest.mark.parametrize(
    ("name", "value"),
    [("quantization", "int3"), ("request_timeout", -1.0), ("model", 7), ("cameras", [""])],
)
def test_a_bad_parameter_ends_the_start_with_a_sentence(ros, name, value, log_file):
    with NodeProcess(NODE, {name: value}, output=log_file) as node:
        assert node.process.wait(60) == 1
    log_file.seek(0)
    log = log_file.read().decode()
    assert "Can't start" in log and name in log
    assert "Traceback" not in log


def test_no_callback_of_the_node_is_a_coroutine(ros):
    """rclpy's EventsExecutor would send a service's coroutine as its response."""
    cameras = rclpy.create_node("robobrain_cameras", start_parameter_services=False)
    executor = SingleThreadedExecutor()
    node = BrainNode(executor, cameras)
    try:
        called = [*node.services, *node.timers, *node.subscriptions]
        assert len(called) > 15
        assert not [one for one in called if iscoroutinefunction(one.callback)]
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        cameras.destroy_node()
