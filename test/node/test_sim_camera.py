# SPDX-License-Identifier: Apache-2.0
"""The simulated camera: its messages show the scene, and its process behaves like a driver."""

from __future__ import annotations

import signal
import threading

import numpy as np
import pytest

pytest.importorskip("tf2_msgs", reason="needs a ROS 2 shell: run `make test`")

import rclpy
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter
from rclpy.qos import DurabilityPolicy, QoSProfile, qos_profile_sensor_data
from scipy.spatial.transform import Rotation
from sensor_msgs.msg import CameraInfo, Image
from tf2_msgs.msg import TFMessage

from robobrain_ros.ros.executors import spinning
from robobrain_ros.sim import camera_node
from robobrain_ros.sim.processes import NodeProcess
from robobrain_ros.sim.tabletop import Tabletop

SEED = 2_000_200
SIZE = (160, 120)
WAIT_S = 30.0


@pytest.mark.parametrize("encoding, pixel", [("bgr8", [3, 2, 1]), ("rgba8", [1, 2, 3, 255])])
def test_color_encodings(encoding, pixel):
    rgb = np.full((2, 3, 3), (1, 2, 3), np.uint8)
    image = camera_node.color_image(rgb, encoding)
    assert (image.width, image.height, image.step) == (3, 2, 3 * len(pixel))
    assert list(image.data) == 6 * pixel


def test_millimetres_are_rounded():
    depth = np.array([[0.4996, 1.0004, 12.0]], np.float32)
    image = camera_node.depth_image(depth, "16UC1", 1.0)
    assert np.frombuffer(image.data, np.uint16).tolist() == [500, 1000, 12000]


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_intrinsics_of_a_resized_depth_see_the_same_rays(scale):
    k = np.array([[600.0, 0, 79.5], [0, 600.0, 59.5], [0, 0, 1]])
    color = Image(width=160, height=120)
    depth = camera_node.depth_image(np.ones((120, 160), np.float32), "32FC1", scale)
    info = camera_node.camera_info(k, color, depth)
    assert (info.width, info.height) == (160 * scale, 120 * scale)
    scaled = np.array(info.k).reshape(3, 3)
    # The images' corners lie half a pixel outside the middles of their corner pixels.
    for corner in ((-0.5, -0.5), (159.5, 119.5)):
        ray = np.linalg.solve(k, (*corner, 1))
        expected = scale * (np.array(corner) + 0.5) - 0.5
        np.testing.assert_allclose((scaled @ ray)[:2], expected)


def test_optical_axes_in_the_link():
    """REP-103: forward is the link's x and the optical z; the image's right is the link's -y."""
    rotation = camera_node.LINK_FROM_OPTICAL[:3, :3]
    np.testing.assert_array_equal(rotation @ (0, 0, 1), (1, 0, 0))
    np.testing.assert_array_equal(rotation @ (1, 0, 0), (0, -1, 0))
    assert np.linalg.det(rotation) == 1


class Listener:
    """Keeps what a camera publishes, subscribed as image consumers are: best effort."""

    def __init__(self, node, name):
        self.node = node
        self.heard = {}
        self._changed = threading.Condition()
        for topic in ("color", "aligned_depth_to_color"):
            self._listen(Image, f"{name}/{topic}/image_raw", qos_profile_sensor_data)
            self._listen(CameraInfo, f"{name}/{topic}/camera_info", qos_profile_sensor_data)
        static = QoSProfile(depth=10, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._listen(TFMessage, "/tf_static", static)

    def _listen(self, kind, topic, qos):
        def keep(message):
            with self._changed:
                self.heard.setdefault(topic, []).append(message)
                self._changed.notify_all()

        self.node.create_subscription(kind, topic, keep, qos)

    def wait(self, condition):
        """Return the first truthy value of `condition()`, asked after every message."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), list(self.heard)
            return condition()


@pytest.fixture
def listener(ros):
    with spinning(rclpy.create_node("sim_camera_listener")) as node:
        yield Listener(node, "left")


@pytest.fixture
def camera(ros, log_file):
    parameters = {"name": "left", "seed": SEED, "width": SIZE[0], "height": SIZE[1]}
    module = "robobrain_ros.sim.camera_node"
    with NodeProcess(module, parameters, ["__node:=left_camera"], log_file) as process:
        yield process


def pose_of(transform):
    move, turn = transform.transform.translation, transform.transform.rotation
    pose = np.eye(4)
    pose[:3, :3] = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w]).as_matrix()
    pose[:3, 3] = move.x, move.y, move.z
    return pose


def image_of(listener, rgb):
    """Whether the newest color image heard is this one."""
    images = listener.heard.get("left/color/image_raw", ())
    return bool(images) and bytes(images[-1].data) == rgb.tobytes()


def one_frame(listener):
    """The four messages of the newest stamp that all topics have, or None."""
    topics = [topic for topic in listener.heard if topic != "/tf_static"]
    if len(topics) < 4:
        return None
    by_stamp = [{str(m.header.stamp): m for m in listener.heard[topic]} for topic in topics]
    common = set.intersection(*(set(messages) for messages in by_stamp))
    if not common:
        return None
    stamp = max(common)
    return dict(zip(topics, (messages[stamp] for messages in by_stamp), strict=True))


def test_a_camera_process_shows_its_scene_and_the_next(camera, listener):
    table = Tabletop(*SIZE)
    table.reset(SEED)
    truth = table.render()

    frame = listener.wait(lambda: one_frame(listener))
    assert {m.header.frame_id for m in frame.values()} == {"left_color_optical_frame"}
    assert bytes(frame["left/color/image_raw"].data) == truth.rgb.tobytes()
    depth = frame["left/aligned_depth_to_color/image_raw"]
    assert (depth.encoding, depth.step) == ("32FC1", 4 * SIZE[0])
    assert bytes(depth.data) == truth.depth.tobytes()
    np.testing.assert_allclose(frame["left/color/camera_info"].k, table.K.ravel())

    to_link, to_optical = listener.wait(lambda: listener.heard.get("/tf_static"))[-1].transforms
    assert [to_link.header.frame_id, to_link.child_frame_id] == ["table", "left_link"]
    assert to_optical.header.frame_id == "left_link"
    np.testing.assert_allclose(
        pose_of(to_link) @ pose_of(to_optical), table.world_from_optical, atol=1e-9
    )

    client = listener.node.create_client(SetParameters, "left_camera/set_parameters")
    assert client.wait_for_service(WAIT_S)
    next_seed = Parameter("seed", value=SEED + 1).to_parameter_msg()
    client.call_async(SetParameters.Request(parameters=[next_seed]))
    table.reset(SEED + 1)
    rgb = table.render().rgb
    table.close()
    listener.wait(lambda: image_of(listener, rgb))
    listener.wait(lambda: len(listener.heard["/tf_static"]) == 2)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_camera(camera, listener, number, log_file):
    listener.wait(lambda: listener.heard.get("left/color/image_raw"))
    assert camera.end(number) == 0
    log_file.seek(0)
    assert b"Traceback" not in log_file.read()


@pytest.mark.parametrize(
    "parameters, sentence",
    [
        ({"depth_encoding": "8UC1"}, b"depth_encoding is one of 32FC1, 16UC1, not 8UC1"),
        ({"rate": 0.0}, b"rate"),
        ({"width": 40, "height": 400}, b"make it wider"),
    ],
)
def test_a_bad_parameter_is_refused_in_a_sentence(ros, log_file, parameters, sentence):
    with NodeProcess("robobrain_ros.sim.camera_node", parameters, (), log_file) as process:
        assert process.process.wait(WAIT_S) == 1
    log_file.seek(0)
    log = log_file.read()
    assert sentence in log
    assert b"Traceback" not in log
