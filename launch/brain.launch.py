# SPDX-License-Identifier: Apache-2.0
"""The node on a robot: `ros2 launch robobrain_ros brain.launch.py camera:=wrist use_rviz:=true`.

Arguments override `params_file`, which overrides `config/robot.yaml`.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

from robobrain_ros.ros import fast_dds

SHARE = Path(get_package_share_directory("robobrain_ros"))
ARGUMENTS = (
    ("namespace", "", "Namespace of the node and of its relative topics."),
    ("params_file", "", "Parameter file; config/brain.yaml has all parameters."),
    ("model", "", "Hub id, directory, or nano. Empty: of params_file, else BAAI/RoboBrain2.0-3B."),
    (
        "quantization",
        "",
        "auto, none, int8 or nf4. Empty: of params_file, else auto (CUDA: nf4).",
    ),
    ("camera", "", "Camera name, the prefix of its topics. Empty: of params_file, else camera."),
    ("autostart", "true", "Configure and activate at start; false for a lifecycle manager."),
    ("use_sim_time", "", "true: follow /clock. Empty: of params_file, else false."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("use_respawn", "false", "Restart the node when it dies."),
    ("use_rviz", "false", "Show camera, results and TF in RViz (package rviz2)."),
)


def generate_launch_description() -> LaunchDescription:
    """The lifecycle node, and RViz on request."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    """The nodes, without the parameters whose arguments are empty."""
    kinds = {"model": str, "quantization": str, "autostart": bool, "use_sim_time": bool}
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in kinds.items()
        if _value(context, name)
    }
    if camera := _value(context, "camera"):
        given["cameras"] = [camera]
    files = [str(SHARE / "config" / "robot.yaml"), _value(context, "params_file")]
    environment = fast_dds.profile_for(context.environment)
    brain = LifecycleNode(
        package="robobrain_ros",
        executable="brain_node",
        name="robobrain",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        # With the node's own autostart: launch_ros' would not be repeated after a respawn.
        parameters=[*filter(None, files), given],
        ros_arguments=["--log-level", LaunchConfiguration("log_level")],
        additional_env=environment,
        respawn=LaunchConfiguration("use_respawn"),
        respawn_delay=2.0,
    )
    rviz = Node(
        package="rviz2",
        executable="rviz2",
        namespace=LaunchConfiguration("namespace"),
        arguments=["-d", str(SHARE / "rviz" / "robobrain.rviz")],
        parameters=[{name: given[name] for name in ("use_sim_time",) if name in given}],
        additional_env=environment,
        condition=IfCondition(LaunchConfiguration("use_rviz")),
    )
    return [brain, rviz]


def _value(context: LaunchContext, name: str) -> str:
    return LaunchConfiguration(name).perform(context)
