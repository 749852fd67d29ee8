# SPDX-License-Identifier: Apache-2.0
"""The node on a robot: `ros2 launch robobrain_ros brain.launch.py camera:=wrist use_rviz:=true`.

What an argument doesn't say, `params_file` says, and what that doesn't, `config/robot.yaml`.
"""

from pathlib import Path

from ament_index_python.packages import get_package_share_directory
from launch import LaunchContext, LaunchDescription
from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.conditions import IfCondition
from launch.substitutions import LaunchConfiguration
from launch_ros.actions import LifecycleNode, Node
from launch_ros.parameter_descriptions import ParameterValue

SHARE = Path(get_package_share_directory("robobrain_ros"))
FAST_DDS_PROFILE = "FASTRTPS_DEFAULT_PROFILES_FILE"
ARGUMENTS = (
    ("namespace", "", "Namespace of the node and of its relative topics."),
    ("params_file", "", "Your parameters; config/brain.yaml shows all that there are."),
    ("model", "", "A hub id, a directory, or nano. Empty: params_file's, BAAI/RoboBrain2.0-3B."),
    ("quantization", "", "auto, none, int8 or nf4. Empty: params_file's, auto (nf4 with CUDA)."),
    ("camera", "", "Name of the camera, prefix of its topics. Empty: params_file's, camera."),
    ("autostart", "true", "Configure and activate by itself; false for a lifecycle manager."),
    ("use_sim_time", "", "true: follow /clock. Empty: params_file's, false."),
    ("log_level", "info", "debug, info, warn, error or fatal."),
    ("use_respawn", "false", "Start the node again when it dies."),
    ("use_rviz", "false", "Show camera, answers and TF in RViz."),
)


def generate_launch_description() -> LaunchDescription:
    """The lifecycle node, and RViz if asked for."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, default, description in ARGUMENTS
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=_nodes)])


def _nodes(context: LaunchContext) -> list[Node]:
    """A function, because what is empty must be left out."""
    kinds = {"model": str, "quantization": str, "autostart": bool, "use_sim_time": bool}
    given = {
        name: ParameterValue(LaunchConfiguration(name), value_type=kind)
        for name, kind in kinds.items()
        if _value(context, name)
    }
    if camera := _value(context, "camera"):
        given["cameras"] = [camera]
    files = [str(SHARE / "config" / "robot.yaml"), _value(context, "params_file")]
    # Fast DDS's own buffers lose large images silently. Who has a profile keeps it.
    profile = str(SHARE / "config" / "fastdds_large_images.xml")
    environment = {} if FAST_DDS_PROFILE in context.environment else {FAST_DDS_PROFILE: profile}
    brain = LifecycleNode(
        package="robobrain_ros",
        executable="brain_node",
        name="robobrain",
        namespace=LaunchConfiguration("namespace"),
        output="screen",
        # The node starts itself, which launch_ros would not do after a respawn.
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
