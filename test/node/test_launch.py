# SPDX-License-Identifier: Apache-2.0
"""The launch files as `ros2 launch` starts them, wherever launch_pytest is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip(
    "launch_pytest",
    reason="launch_pytest is not installed: test_launch_files.py checks what can be without it",
)

import launch_pytest
from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from support.polling import diagnosed, until

from robobrain_ros.client import BrainClient
from robobrain_ros.core.errors import ErrorCode

START_S = 300.0


def launched(file: str, **arguments: str) -> LaunchDescription:
    path = Path(get_package_share_directory("robobrain_ros"), "launch", file)
    source = PythonLaunchDescriptionSource(str(path))
    return LaunchDescription(
        [
            IncludeLaunchDescription(source, launch_arguments=arguments.items()),
            launch_pytest.actions.ReadyToTest(),
        ]
    )


def wait_for_state(client: BrainClient, state: str) -> None:
    until(lambda: client.wait_for_node(START_S) == state, START_S)


@launch_pytest.fixture
def demo(ros, scene):
    return launched("demo.launch.py", use_rviz="false", seed=str(scene.seed))


@pytest.mark.launch(fixture=demo)
def test_the_demo_comes_up_by_itself_and_answers(scene):
    with BrainClient() as client:
        wait_for_state(client, "active")
        response = client.point_to(f"Point to the {scene.name}", max_points=1)
        assert response.success, response.error_msg
        assert response.header.frame_id == "camera_color_optical_frame"
        (point,) = response.points
        assert 0 <= point.pixel.x < 640 and 0 <= point.pixel.y < 480
        assert point.pose.header.frame_id == "table"


@launch_pytest.fixture
def managed(ros):
    return launched("brain.launch.py", model="nano", namespace="arm", autostart="false")


@pytest.mark.launch(fixture=managed)
def test_without_autostart_it_waits_for_a_manager():
    with BrainClient("arm/robobrain") as client:
        assert client.wait_for_node(START_S) == "unconfigured"
        with diagnosed("arm/robobrain") as seen:  # in the seconds in which it would have started
            until(lambda: len(seen.get("model", ())) >= 3)
        assert client.state() == "unconfigured"
        assert client.point_to("the can").error_code == ErrorCode.NOT_ACTIVE
        assert client.configure() and client.state() == "inactive"
        assert client.activate() and client.state() == "active"
