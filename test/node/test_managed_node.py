# SPDX-License-Identifier: Apache-2.0
"""What a lifecycle node gets from its base class, tried with a small one in a process."""

from __future__ import annotations

import inspect
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from lifecycle_msgs.msg import Transition
from sensor_msgs.msg import Image
from std_srvs.srv import Trigger
from support import minimal_node
from support.node_parameters import set_parameter
from support.polling import diagnosed, until, values

from robobrain_ros.client import BrainClient
from robobrain_ros.sim.processes import NodeProcess

NAME = "frame_counter"


@contextmanager
def running(log=None, **parameters) -> Iterator[tuple[BrainClient, NodeProcess]]:
    with (
        NodeProcess("support.minimal_node", parameters, output=log) as node,
        BrainClient(NAME, "minimal_client") as client,
    ):
        client.wait_for_node(60.0)
        yield client, node


def counted(client: BrainClient) -> int:
    return int(client.call(Trigger, f"{NAME}/count", Trigger.Request(), 30.0).message)


def logged(log) -> str:
    log.seek(0)
    return log.read().decode()


def test_a_second_node_takes_fewer_than_60_lines():
    assert len(inspect.getsource(minimal_node).splitlines()) < 60


def test_it_runs_through_its_states_and_ends_on_a_signal(own_node, patched, log_file):
    publisher = own_node.create_publisher(Image, "color", 5)
    with running(log_file) as (client, node):

        def heard() -> bool:
            image = Image()
            image.header.stamp = own_node.get_clock().now().to_msg()
            publisher.publish(image)
            return counted(client) > 0

        for _ in range(2):
            assert client.configure() and client.state() == "inactive"
            assert client.activate() and client.state() == "active"
            until(heard)
            assert client.deactivate() and client.state() == "inactive"
            assert counted(client) == 0
            assert client.cleanup() and client.state() == "unconfigured"
        assert node.end(signal.SIGTERM) == 0
    own_node.destroy_publisher(publisher)
    assert "Traceback" not in logged(log_file)


def test_it_configures_and_activates_itself_and_ends_while_active(ros, patched):
    with running(autostart=True) as (client, node):
        until(lambda: client.state() == "active")
        assert node.end(signal.SIGTERM) == 0


def test_its_state_is_in_diagnostics(ros):
    with running() as (client, _), diagnosed(NAME) as seen:
        until(lambda: "state" in seen and values(seen["state"][-1])["state"] == "unconfigured")
        assert client.configure()
        until(lambda: seen["state"][-1].message == "inactive")


def test_load_time_parameters_are_fixed_while_it_is_configured(ros):
    with running() as (client, _):
        assert set_parameter(client, "load_s", 0.1, NAME).successful
        assert not set_parameter(client, "raises_in", "nowhere", NAME).successful
        assert client.configure()
        assert "fixed while" in set_parameter(client, "load_s", 0.2, NAME).reason
        assert set_parameter(client, "raises_in", "cleanup", NAME).successful


@pytest.mark.parametrize(
    ("step", "before", "transition"),
    [
        ("load", "unconfigured", Transition.TRANSITION_CONFIGURE),
        ("activate", "inactive", Transition.TRANSITION_ACTIVATE),
        ("deactivate", "active", Transition.TRANSITION_DEACTIVATE),
        ("cleanup", "inactive", Transition.TRANSITION_CLEANUP),
    ],
)
def test_an_exception_fails_the_transition_and_no_more(ros, step, before, transition, log_file):
    with running(log_file) as (client, node):
        if before != "unconfigured":
            assert client.configure()
        if before == "active":
            assert client.activate()
        assert set_parameter(client, "raises_in", step, NAME).successful
        assert not client.transition(transition)
        assert client.state() == before
        assert set_parameter(client, "raises_in", "", NAME).successful
        assert client.transition(transition)
        assert node.process.poll() is None
    assert f"{step} failed: RuntimeError('asked to raise in {step}')" in logged(log_file)


def test_a_transition_is_refused_while_another_is_under_way(ros, patched, log_file):
    with running(log_file, load_s=3.0) as (client, _):
        results: list[bool] = []
        asked = [
            threading.Thread(target=lambda: results.append(client.configure())) for _ in range(2)
        ]
        for thread in asked:
            thread.start()
        until(lambda: results)
        # Answered on the executor that runs the other transition.
        assert client.state() == "unconfigured" and counted(client) == 0
        assert results == [False]
        for thread in asked:
            thread.join(30.0)
        assert results == [False, True] and client.state() == "inactive"
    assert "A transition is under way" in logged(log_file)
