# SPDX-License-Identifier: Apache-2.0
"""Simulated camera, small model, RViz: `ros2 launch robobrain_ros demo.launch.py seed:=7`."""

import os
from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchDescription
from launch.actions import DeclareLaunchArgument, IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from robobrain_ros.ros import fast_dds

SHARE = Path(get_package_share_directory("robobrain_ros"))
# Arguments of brain.launch.py with other defaults; its remaining arguments are passed through.
ARGUMENTS = (
    ("namespace", "", "Namespace of both nodes and of their topics."),
    ("params_file", str(SHARE / "config" / "demo.yaml"), "Parameters of the node."),
    ("camera", "camera", "Camera name, the prefix of its topics and frames."),
    ("use_rviz", "true", "Show camera, results and TF in RViz (package rviz2)."),
)


def generate_launch_description() -> LaunchDescription:
    """The simulated camera above the static table number `seed`, and brain.launch.py."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    seed = DeclareLaunchArgument(
        "seed", default_value="2000000", description="Number of the scene."
    )
    camera = Node(
        package="robobrain_ros",
        executable="sim_camera",
        name="sim_camera",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        parameters=[
            {
                "name": ParameterValue(LaunchConfiguration("camera"), value_type=str),
                "seed": ParameterValue(LaunchConfiguration("seed"), value_type=int),
            }
        ],
        # Both ends of a topic need it.
        additional_env=fast_dds.profile_for(os.environ),
    )
    brain = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "brain.launch.py")),
        launch_arguments=[(name, LaunchConfiguration(name)) for name, _, _ in ARGUMENTS],
    )
    return LaunchDescription([*declared, seed, camera, brain])
