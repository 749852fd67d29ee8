# SPDX-License-Identifier: Apache-2.0
"""rviz/robobrain.rviz against what the node and the camera really publish, and what RViz has."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header
from support.sample_results import answer, between, point, region

from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros import parameters
from robobrain_ros.ros.markers import MarkerBoard
from robobrain_ros.ros.publishers import AnswerDisplay, ResultPublisher
from robobrain_ros.sim.camera_node import SimCamera
from robobrain_ros.sim.tabletop import TABLE_FRAME

FILE = Path(__file__).resolve().parents[2] / "rviz" / "robobrain.rviz"
MANAGER = "Visualization Manager"

# What rviz_default_plugins of Jazzy brings, by its plugin description.
DISPLAYS = """AccelStamped Axes Camera DepthCloud CameraInfo Effort Grid GridCells FluidPressure
    Illuminance Image InteractiveMarkers LaserScan Map PointCloud PointCloud2 Polygon Pose
    PoseWithCovariance Range RelativeHumidity RobotModel Temperature TF TwistStamped Marker
    MarkerArray Odometry PoseArray Path PointStamped Wrench"""
TOOLS = "MoveCamera PublishPoint Select SetGoal Measure FocusCamera SetInitialPose Interact"
VIEWS = "FPS Orbit TopDownOrtho XYOrbit ThirdPersonFollower"

TYPES = {
    "Image": "sensor_msgs/msg/Image",
    "MarkerArray": "visualization_msgs/msg/MarkerArray",
    "Path": "nav_msgs/msg/Path",
    "PoseArray": "geometry_msgs/msg/PoseArray",
}


@pytest.fixture(scope="module")
def config() -> dict:
    return yaml.safe_load(FILE.read_text())


@pytest.fixture(scope="module")
def published(ros) -> dict[str, list[str]]:
    """Topics and their types of the node's outputs and of the simulated camera."""
    node, camera, executor = LifecycleNode("robobrain"), SimCamera(), SingleThreadedExecutor()
    ResultPublisher(node), AnswerDisplay(node)
    topics: dict[str, list[str]] = {}
    for one in (node, camera):
        found = node.get_publisher_names_and_types_by_node(one.get_name(), one.get_namespace())
        topics |= dict(found)
    executor.shutdown()
    node.destroy_node()
    camera.destroy_node()
    return topics


def displays(config: dict) -> list[dict]:
    return config[MANAGER]["Displays"]


def kind(display: dict) -> str:
    return display["Class"].removeprefix("rviz_default_plugins/")


def named(plugins: str) -> set[str]:
    return {f"rviz_default_plugins/{name}" for name in plugins.split()}


def test_every_class_is_one_of_rviz(config):
    manager = config[MANAGER]
    assert {display["Class"] for display in displays(config)} <= named(DISPLAYS)
    assert {tool["Class"] for tool in manager["Tools"]} <= named(TOOLS)
    assert manager["Views"]["Current"]["Class"] in named(VIEWS)
    assert manager["Transformation"]["Current"]["Class"] in named("TF")
    assert {panel["Class"] for panel in config["Panels"]} == {"rviz_common/Displays"}


def test_every_topic_is_published_with_the_type_that_its_display_shows(config, published):
    shown = {}
    for display in displays(config):
        if "Topic" in display:
            topic = "/" + display["Topic"]["Value"]
            assert TYPES[kind(display)] in published[topic]
            shown[topic] = kind(display)
    assert shown == {
        "/camera/color/image_raw": "Image",
        "/robobrain/annotated_image": "Image",
        "/robobrain/markers": "MarkerArray",
        "/robobrain/path": "Path",
        "/robobrain/poses": "PoseArray",
    }


def test_the_depth_cloud_has_depth_colour_and_intrinsics(config, published):
    (cloud,) = (display for display in displays(config) if kind(display) == "DepthCloud")
    depth, colour = cloud["Depth Map Topic"], cloud["Color Image Topic"]
    defaults = parameters.CAMERA_PARAMETERS
    assert depth == defaults["depth_topic"][0].format(name="camera")
    assert colour == defaults["color_topic"][0].format(name="camera")
    assert TYPES["Image"] in published[f"/{depth}"] and TYPES["Image"] in published[f"/{colour}"]
    info = depth.rpartition("/")[0] + "/camera_info"  # where image_transport looks for it
    assert "sensor_msgs/msg/CameraInfo" in published[f"/{info}"]


def test_camera_topics_are_heard_from_drivers_that_publish_best_effort(config):
    policies = {
        display["Topic"]["Value"]: display["Topic"]["Reliability Policy"]
        for display in displays(config)
        if "Topic" in display
    }
    camera = {topic: policy for topic, policy in policies.items() if topic.startswith("camera")}
    assert set(camera.values()) == {"Best Effort"}
    assert {policies[topic] for topic in policies.keys() - camera.keys()} == {"Reliable"}


def test_everything_is_shown_in_a_frame_that_is_there(config):
    assert config[MANAGER]["Global Options"]["Fixed Frame"] == TABLE_FRAME
    assert "TF" in map(kind, displays(config))
    assert all(display["Enabled"] and display["Value"] for display in displays(config))
    names = [display["Name"] for display in displays(config)]
    assert len(set(names)) == len(names)


def test_every_kind_of_marker_can_be_hidden(config):
    everything = answer(TaskKind.TRAJECTORY, [point(), between((3, 4))], [region((1, 2, 3, 4))])
    made = MarkerBoard().show(everything, "it", Header(frame_id=TABLE_FRAME), "camera", 0).markers
    (display,) = (d for d in displays(config) if kind(d) == "MarkerArray")
    assert set(display["Namespaces"]) == {marker.ns for marker in made}
