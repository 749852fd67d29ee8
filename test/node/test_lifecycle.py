# SPDX-License-Identifier: Apache-2.0
"""Transitions of the real node process, and how it ends."""

from __future__ import annotations

import signal
import threading
import time
from inspect import iscoroutinefunction

import pytest
import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.executors import SingleThreadedExecutor
from support.node_parameters import set_parameter
from support.polling import until
from support.running_brain import NODE, request_without_image, running_brain

from robobrain_ros.brain_node import BrainNode
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.sim.processes import NodeProcess

pytestmark = pytest.mark.slow

BRAIN = {"parameters": {"image_timeout": 60.0}, "state": "unconfigured"}
OWN = "/own/robobrain"
"""The name of a test's own process, beside the one that most share."""
SIGNALS = [signal.SIGINT, signal.SIGTERM]


@pytest.fixture
def unconfigured(brain):
    """The shared node, unconfigured."""
    brain.bring_to("unconfigured")
    return brain


@pytest.fixture(scope="module")
def remapped(ros):
    """A node of another name that nothing has configured."""
    with running_brain(name="/arm/eyes", state=None) as brain:
        yield brain


# Transitions


def test_cycles_serve_only_while_active(unconfigured, still_cameras, scene):
    brain = unconfigured
    with still_cameras.publishing("camera", scene):
        for _ in range(3):
            assert brain.state() == "unconfigured"
            assert brain.point_to(scene.name).error_code == ErrorCode.NOT_ACTIVE
            assert brain.configure() and brain.state() == "inactive"
            assert brain.point_to(scene.name).error_code == ErrorCode.NOT_ACTIVE
            assert brain.activate() and brain.state() == "active"
            assert brain.point_to(f"the {scene.name}").success
            assert brain.deactivate() and brain.state() == "inactive"
            assert brain.cleanup() and brain.state() == "unconfigured"


def test_a_transition_that_is_not_possible_is_refused_and_the_node_lives(unconfigured):
    assert not unconfigured.activate()
    assert not unconfigured.transition(99)
    assert unconfigured.state() == "unconfigured"


@pytest.mark.parametrize("model", ["/does/not/exist", "nobody/no-such-model"])
def test_configure_fails_with_a_sentence_and_can_be_tried_again(unconfigured, model):
    before = unconfigured.log()
    try:
        assert set_parameter(unconfigured, "model", model).successful
        assert not unconfigured.configure()
        assert unconfigured.state() == "unconfigured"
    finally:
        assert set_parameter(unconfigured, "model", "nano").successful
    assert unconfigured.configure() and unconfigured.state() == "inactive"
    log = unconfigured.log().removeprefix(before)
    assert "Can't load the model" in log and model in log
    assert "Traceback" not in log


def test_a_camera_added_before_configure_is_served(unconfigured, still_cameras, scene):
    brain = unconfigured
    with still_cameras.publishing("side", scene):
        assert set_parameter(brain, "cameras", ["camera", "side"]).successful
        brain.bring_to("active")
        assert brain.point_to(f"the {scene.name}", camera="side").success
    brain.bring_to("unconfigured")
    assert set_parameter(brain, "cameras", ["camera"]).successful


def test_two_transitions_at_once_leave_the_node_whole(unconfigured):
    results = []
    threads = [
        threading.Thread(target=lambda: results.append(unconfigured.configure())) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == [False, False, True]
    assert unconfigured.state() == "inactive"


def test_requests_under_way_end_when_the_node_is_deactivated(brain, own_node):
    brain.bring_to("active")
    response = request_without_image(own_node, brain)
    assert brain.deactivate()
    until(response.done, 10.0)
    assert response.result().error_code == ErrorCode.NOT_ACTIVE


# The start


def test_namespace_and_name_can_be_remapped(remapped, own_node):
    wanted = {("eyes", "/arm"), ("robobrain_cameras", "/arm")}
    # The graph becomes known after the services.
    until(lambda: wanted <= set(own_node.get_node_names_and_namespaces()))


def test_services_answer_while_the_model_loads(remapped):
    """For the first time in the process, with the imports of its libraries."""
    configured = []
    thread = threading.Thread(target=lambda: configured.append(remapped.configure()))
    thread.start()
    states = []
    while thread.is_alive():
        states.append(remapped.state())
    thread.join()
    assert configured == [True]
    assert states[0] == "unconfigured" and len(states) > 3


def test_autostart_serves_until_the_shutdown_transition(ros, still_cameras, scene):
    with (
        running_brain({"autostart": True}, name=OWN, state=None) as brain,
        still_cameras.publishing("own/camera", scene),
    ):
        until(lambda: brain.state() == "active")
        assert brain.point_to(f"the {scene.name}").success
        assert brain.transition(Transition.TRANSITION_ACTIVE_SHUTDOWN)
        assert brain.state() == "finalized"
        assert brain.point_to("the red can").error_code == ErrorCode.NOT_ACTIVE


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


# The end


def assert_clean(log: str) -> None:
    assert "Traceback" not in log and "terminate called" not in log


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_ends_a_node_that_nothing_has_configured(ros, number):
    with running_brain(name=OWN, state=None) as brain:
        assert brain.process.end(number) == 0
        assert_clean(brain.log())


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_answers_the_request_that_waits_and_ends_an_active_node(own_node, number):
    with running_brain({"image_timeout": 60.0}, name=OWN) as brain:
        response = request_without_image(own_node, brain)
        assert brain.process.end(number) == 0
        until(response.done, 10.0)
        assert response.result().error_code == ErrorCode.NOT_ACTIVE
        assert_clean(brain.log())


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_while_the_model_loads_does_not_wait_for_it(own_node, number, monkeypatch):
    """A large model takes minutes, and can't be interrupted."""
    monkeypatch.setenv("LOAD_S", "120")
    with running_brain(name=OWN, state=None, module="support.slow_brain") as brain:
        request = ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE))
        change_state = own_node.create_client(ChangeState, f"{OWN}/change_state")
        assert change_state.wait_for_service(60.0)
        change_state.call_async(request)
        until(lambda: "Loading" in brain.log())
        assert brain.process.end(number) == 0
        assert "Ending without waiting" in brain.log()


def test_more_signals_while_it_ends_change_nothing(ros):
    """`ros2 launch` sends SIGINT to its nodes when the terminal has done so already."""
    with running_brain(name=OWN, state=None) as brain:
        process, deadline = brain.process.process, time.monotonic() + 60.0
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.002)
        assert process.returncode == 0
