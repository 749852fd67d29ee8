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

SHARE = Path(get_package_share_directory("robobrain_ros"))
FAST_DDS_PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
# Of brain.launch.py's, with other defaults; its other arguments can be given, too.
ARGUMENTS = (
    ("namespace", "", "Namespace of both nodes and of their topics."),
    ("params_file", str(SHARE / "config" / "demo.yaml"), "Parameters of the node."),
    ("camera", "camera", "Name of the camera, the prefix of its topics and frames."),
    ("use_rviz", "true", "Show camera, answers and TF in RViz."),
)


def generate_launch_description() -> LaunchDescription:
    """What the camera sees stands still; `seed` tells which of the simulated tables it is."""
    declared = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    seed = DeclareLaunchArgument("seed", default_value="2000000", description="Which scene.")
    profile = str(SHARE / "config" / "fastdds_large_images.xml")
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
        # Both ends of a topic need it, see brain.launch.py.
        additional_env={} if FAST_DDS_PROFILE in os.environ else {FAST_DDS_PROFILE: profile},
    )
    brain = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(str(SHARE / "launch" / "brain.launch.py")),
        launch_arguments=[(name, LaunchConfiguration(name)) for name, _, _ in ARGUMENTS],
    )
    return LaunchDescription([*declared, seed, camera, brain])
