# SPDX-License-Identifier: Apache-2.0
"""The view: what is in the recording is what was published, and the page is served to this machine.

Recordings are read back from their files with rerun's own reader.
"""

from __future__ import annotations

import http.client
import signal
import socket
import subprocess
import sys
import time
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import parse_qs, urlsplit

import cv2
import numpy as np
import pytest

pytest.importorskip("tf2_msgs", reason="needs a ROS 2 shell: run `make test`")
pytest.importorskip("rerun", reason="needs requirements-view.txt")

from builtin_interfaces.msg import Time
from geometry_msgs.msg import TransformStamped
from rclpy.duration import Duration
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rerun.chunk import RrdReader
from rerun.error_utils import RerunWarning
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation
from std_msgs.msg import Header
from support.cameras import StillCameras
from support.polling import until
from support.sample_results import answer, between, point, region
from visualization_msgs.msg import Marker

from robobrain_ros.core.answered_request import AnsweredRequest
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros import markers
from robobrain_ros.ros.publishers import AnswerDisplay, ResultPublisher
from robobrain_ros.sim.demo import SEED
from robobrain_ros.sim.tabletop import TABLE_FRAME, Tabletop
from robobrain_ros.sim.truth import Truth
from robobrain_ros.tf_projection import DepthScene
from robobrain_ros.view import archetypes
from robobrain_ros.view.node import ViewNode
from robobrain_ros.view.recording import Recording
from robobrain_ros.view.server import NoServer, WebViewer
from robobrain_ros.visualization.style import PALETTE, opacity

WAIT_S = 120.0
NS = 1_000_000_000
LATENCY = r"/latency/image\ to\ answer"


class Read:
    """A recording by entity path; of each path its rows by time, static ones first."""

    def __init__(self, file: Path) -> None:
        self.rows: dict[str, list[tuple[int, bytes, dict[str, Any]]]] = {}
        for chunk in RrdReader(file).stream().to_chunks():
            batch = chunk.to_record_batch()
            columns = dict(zip(batch.schema.names, batch.columns))
            ids = columns.pop("rerun.controls.RowId")
            times = columns.pop("ros_time").cast("int64") if "ros_time" in columns else None
            columns.pop("log_time", None)
            for i in range(batch.num_rows):
                row = {name: column[i] for name, column in columns.items() if column[i].is_valid}
                time_ns = -1 if times is None else times[i].as_py()
                self.rows.setdefault(chunk.entity_path, []).append((time_ns, ids[i].as_py(), row))
        for rows in self.rows.values():
            rows.sort(key=lambda row: row[:2])

    def below(self, path: str) -> list[str]:
        return sorted(one for one in self.rows if one.startswith(path))

    def all(self, path: str, component: str) -> list[list]:
        """The values of a component, the oldest first."""
        rows = [row[component] for _, _, row in self.rows[path] if component in row]
        return [value.as_py() for value in rows if len(value)]

    def last(self, path: str, component: str) -> list:
        return self.all(path, component)[-1]

    def is_removed(self, path: str) -> bool:
        """Whether nothing is drawn there in the end."""
        return not any(len(value) for value in self.rows[path][-1][2].values())


def rgba(packed: int) -> tuple[int, ...]:
    return tuple(packed >> shift & 255 for shift in (24, 16, 8, 0))


@pytest.fixture
def drawn(tmp_path: Path):
    """Record what the block logs, and read it: `drawn(log)`, where `log` takes the recording."""

    def read(log) -> Read:
        with Recording(tmp_path / "drawn.rrd") as recording:
            log(recording)
        return Read(tmp_path / "drawn.rrd")

    return read


def shown(result, slot: int = 0) -> list[Marker]:
    header = Header(frame_id="table", stamp=Time(sec=5))
    return markers.MarkerBoard().show(result, "it", header, "camera", slot).markers


def test_points_boxes_and_paths_are_drawn_where_they_are_and_in_their_color(drawn):
    one, box, way = point((100, 50), 0.8), region((10, 20, 60, 80), 1.2), between((400, 300), 0.9)
    made = shown(answer(TaskKind.TRAJECTORY, [one, way], [box]), slot=2)
    read = drawn(lambda to: [to.log(archetypes.marker(marker), NS) for marker in made])
    path = {space: read.below(f"/answers/{space}/") for space in {marker.ns for marker in made}}
    for place, lifted in zip(path["points"], (one, way, box), strict=True):
        at = read.last(place, "Points3D:positions")
        np.testing.assert_allclose(at, [lifted.position], atol=1e-6)
        color = rgba(read.last(place, "Points3D:colors")[0])
        assert color[:3] == PALETTE[2]
        assert color[3] == pytest.approx(255 * opacity(lifted), abs=1)
        assert read.last(place, "CoordinateFrame:frame") == ["table"]
    (solid,) = path["boxes"]
    np.testing.assert_allclose(read.last(solid, "Boxes3D:centers"), [box.centre], atol=1e-6)
    np.testing.assert_allclose(read.last(solid, "Boxes3D:half_sizes"), [box.size / 2], atol=1e-6)
    (edges,) = path["edges"]
    corners = np.array(read.last(edges, "LineStrips3D:strips")).reshape(-1, 3)
    np.testing.assert_allclose(corners.max(0), box.centre + box.size / 2, atol=1e-6)
    np.testing.assert_allclose(corners.min(0), box.centre - box.size / 2, atol=1e-6)
    (line,) = path["path"]
    ends = np.array(read.last(line, "LineStrips3D:strips"))
    pieces = [[one.position, way.position], [way.position, box.position]]
    np.testing.assert_allclose(ends, pieces, atol=1e-6)
    arrow = path["normals"][0]
    tail = np.array(read.last(arrow, "Arrows3D:origins"))
    tip = tail + read.last(arrow, "Arrows3D:vectors")
    np.testing.assert_allclose(tail, [one.position], atol=1e-6)
    assert tip[0, 2] < tail[0, 2]  # towards the camera
    assert read.last(path["words"][0], "Points3D:labels") == ["it"]


def test_a_marker_is_drawn_in_its_own_pose():
    turned = Marker(type=Marker.LINE_LIST)
    turned.pose.position.x = 1.0
    turned.pose.orientation.z = turned.pose.orientation.w = np.sqrt(0.5)  # a quarter turn
    turned.points = [markers.point_message(p) for p in np.array([[0, 0, 0], [1, 0, 0]], float)]
    points = archetypes._in_frame(turned.pose, turned.points)
    np.testing.assert_allclose(points, [[1, 0, 0], [1, 1, 0]], atol=1e-9)


def test_markers_of_other_kinds_are_left_out():
    assert archetypes.marker(Marker(type=Marker.MESH_RESOURCE)) is None


def test_what_has_not_appeared_yet_has_a_place_in_the_3d_view(drawn):
    """Rewound to before an answer, rerun found no way to its frame and showed an error."""
    read = drawn(lambda to: to.show_in("table", None))
    (path,) = read.below("/root")
    assert read.last(path, "Transform3D:parent_frame") == ["table"]
    assert read.last(path, "Transform3D:child_frame") == ["tf#/"]


def test_a_transform_is_the_one_of_tf(drawn):
    message = TransformStamped(child_frame_id="/arm/tool 0")
    message.header.frame_id = "base_link"
    move, turn = message.transform.translation, message.transform.rotation
    move.x, move.y, move.z = 0.1, -0.2, 0.3
    turn.x, turn.y, turn.z, turn.w = (0.5, -0.5, 0.5, 0.5)
    read = drawn(lambda to: to.log(archetypes.transform(message, True), NS))
    (path,) = read.below("/tf/")
    np.testing.assert_allclose(read.last(path, "Transform3D:translation"), [[0.1, -0.2, 0.3]])
    np.testing.assert_allclose(read.last(path, "Transform3D:quaternion"), [[0.5, -0.5, 0.5, 0.5]])
    assert read.last(path, "Transform3D:parent_frame") == ["base_link"]
    assert read.last(path, "Transform3D:child_frame") == ["arm/tool 0"]
    assert read.last(path, "CoordinateFrame:frame") == ["arm/tool 0"]


def test_what_outlives_its_lifetime_goes_and_what_was_renewed_stays(drawn):
    one, other = shown(answer(TaskKind.POINT, [point()]))[:2]

    def log(to: Recording) -> None:
        for marker in (one, other):
            to.log(archetypes.marker(marker), NS, end_ns=2 * NS)
        to.log(archetypes.marker(other), NS + 1, end_ns=9 * NS)
        to.expire(3 * NS)

    read = drawn(log)
    assert read.is_removed("/" + archetypes.marker_path(one))
    assert not read.is_removed("/" + archetypes.marker_path(other))


@pytest.fixture(scope="module")
def seen(still_cameras, scene, tmp_path_factory) -> SimpleNamespace:
    """The recording of a view of a real camera's topics and a real node's answers."""
    drawn: set[str] = set()

    class Noting(Recording):
        def log(self, entity, *stamps) -> None:
            super().log(entity, *stamps)
            drawn.add(entity.path)

    file = tmp_path_factory.mktemp("view") / "seen.rrd"
    executor, node = SingleThreadedExecutor(), LifecycleNode("robobrain")
    frame = "camera_color_optical_frame"
    result = answer(TaskKind.POINT, [point((200, 300), 0.7)])
    with Noting(file) as recording, still_cameras.publishing("camera", scene):
        view = ViewNode(recording)
        for one in (node, view):
            executor.add_node(one)
        listeners = ResultPublisher(node), AnswerDisplay(node)
        node.trigger_configure()
        node.trigger_activate()

        def spin_until(condition) -> None:
            end = time.monotonic() + WAIT_S
            while not condition():
                assert time.monotonic() < end
                executor.spin_once(timeout_sec=0.05)

        spin_until(lambda: node.count_subscribers("/robobrain/annotated_image"))
        spin_until(lambda: node.count_subscribers("/robobrain/markers"))
        spin_until(lambda: frame in view._frames and view._shown_stamp)
        asked = node.get_clock().now() - Duration(seconds=0.3)
        request = AnsweredRequest(
            "point_1", "the can", asked.nanoseconds, frame, frame, result, 0.3
        )
        observation = Observation(scene.truth.frame.rgb, DepthScene())
        publications = [listener.on_result(request, observation) for listener in listeners]
        for publish in publications:
            publish()
        spin_until(lambda: "robobrain/point_0" in view._frames)
        node.get_logger().warning("said by the node")
        paths = {"camera", "cloud", "annotated_image", LATENCY[1:], "log/robobrain"}
        spin_until(lambda: paths <= drawn)
    executor.shutdown()
    for one in (node, view):
        one.destroy_node()
    return SimpleNamespace(read=Read(file), file=file, result=result, frame=frame)


def test_the_answer_of_the_node_is_in_the_recording(seen):
    (at,) = seen.read.below("/answers/points/")
    expected = [seen.result.points[0].position]
    np.testing.assert_allclose(seen.read.last(at, "Points3D:positions"), expected, atol=1e-6)
    assert seen.read.last(at, "CoordinateFrame:frame") == [seen.frame]
    pose = seen.read.last("/tf/robobrain/point_0", "Transform3D:translation")
    np.testing.assert_allclose(pose, expected, atol=1e-6)
    picture = decoded(seen.read, "/annotated_image")
    assert picture.shape == (480, 640, 3)
    assert np.abs(picture[300, 200].astype(int) - PALETTE[0]).max() < 60  # JPEG


def test_the_camera_is_where_tf_has_it_with_its_image_and_intrinsics(seen, scene):
    path = f"/tf/{seen.frame}"
    assert seen.read.last(path, "Transform3D:parent_frame") == ["table"]
    (move,), (turn,) = (
        seen.read.last(path, f"Transform3D:{part}") for part in ("translation", "quaternion")
    )
    np.testing.assert_allclose(move, scene.pose[:3, 3], atol=1e-6)
    rotation = Rotation.from_quat(turn).as_matrix()
    np.testing.assert_allclose(rotation, scene.pose[:3, :3], atol=1e-6)
    (matrix,) = seen.read.last("/camera", "Pinhole:image_from_camera")
    np.testing.assert_allclose(np.reshape(matrix, (3, 3)).T, scene.intrinsics, rtol=1e-6)
    assert seen.read.last("/camera", "Pinhole:parent_frame") == [seen.frame]
    difference = decoded(seen.read, "/camera").astype(int) - scene.truth.frame.rgb
    assert np.abs(difference).mean() < 4  # JPEG


def test_the_cloud_is_the_scene_in_its_colors(seen, scene):
    points = np.array(seen.read.last("/cloud", "Points3D:positions"))
    assert 8_000 < len(points) <= 20_000
    assert seen.read.last("/cloud", "CoordinateFrame:frame") == [seen.frame]
    in_table = points @ scene.pose[:3, :3].T + scene.pose[:3, 3]
    surface = scene.truth.surface(scene.name)
    distances, nearest = cKDTree(in_table).query(surface)
    assert np.percentile(distances, 95) < 0.01
    colors = np.array([rgba(one)[:3] for one in seen.read.last("/cloud", "Points3D:colors")])
    own = scene.truth.frame.rgb[scene.truth.mask(scene.name)].mean(0)
    np.testing.assert_allclose(colors[nearest].mean(0), own, atol=12)


def test_latency_diagnostics_and_log_are_plotted_and_listed(seen):
    (milliseconds,) = seen.read.last(LATENCY, "Scalars:scalars")
    assert 300 <= milliseconds < 60_000
    assert ["said by the node"] in seen.read.all("/log/robobrain", "TextLog:text")


def decoded(read: Read, path: str) -> np.ndarray:
    """The newest image (H, W, 3) RGB."""
    blob = bytes(np.array(read.last(path, "EncodedImage:blob")[0], np.uint8))
    return cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]


def free_ports(count: int) -> list[int]:
    with_port = [socket.socket() for _ in range(count)]
    for one in with_port:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in with_port]
    for one in with_port:
        one.close()
    return ports


def test_the_page_is_served_to_this_machine_with_what_is_logged(tmp_path):
    port, data_port = free_ports(2)
    with WebViewer(port, data_port) as viewer, Recording(None, viewer.source) as recording:
        recording.log(archetypes.latency("lift", 0.002), NS)
        page = urlsplit(viewer.url)
        assert parse_qs(page.query)["url"] == [viewer.source]
        connection = http.client.HTTPConnection(page.netloc, timeout=WAIT_S)
        connection.request("GET", "/re_viewer_bg.wasm")
        assert len(connection.getresponse().read()) > 1_000_000
        with pytest.raises(NoServer, match=f"Port {port} is in use"):
            WebViewer(port, data_port)
        # Other machines come by other addresses, as this one may.
        listening = Path("/proc/net/tcp").read_text()
        for one in (port, data_port):
            assert f" 0100007F:{one:04X} " in listening
            assert f" 00000000:{one:04X} " not in listening
    with pytest.raises(OSError):
        socket.create_connection(("127.0.0.1", port), timeout=5).close()


def run(module: str, *arguments: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", f"robobrain_ros.view{module}", *arguments]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True)


def paths_so_far(file: Path) -> set[str]:
    """Of a recording that is still being written."""
    if not file.is_file():
        return set()
    with warnings.catch_warnings(action="ignore", category=RerunWarning):  # it has no end yet
        try:
            return set(Read(file).rows)
        except ValueError:  # nor a beginning
            return set()


def test_the_view_of_a_robot_in_a_namespace(ros, scene, tmp_path):
    """As a process of its own, ended by Ctrl-C."""
    file = tmp_path / "robot.rrd"
    arguments = ["--no-serve", "--record", str(file)]
    names = ["--ros-args", "-r", "__ns:=/robot1", "-p", "camera:=wrist"]
    with StillCameras(namespace="/robot1") as cameras, cameras.publishing("wrist", scene):
        process = run("", *arguments, *names)
        try:
            until(lambda: {"/camera", "/cloud"} <= paths_so_far(file))
        finally:
            process.send_signal(signal.SIGINT)
            said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 0, said
    read = Read(file)
    assert read.last("/camera", "Pinhole:parent_frame") == ["wrist_color_optical_frame"]


def test_a_view_that_would_show_and_record_nothing_is_refused():
    process = run("", "--no-serve")
    said, _ = process.communicate(timeout=WAIT_S)
    assert process.returncode == 2 and "--no-serve needs --record" in said


def test_make_view_asks_and_records(ros, tmp_path):
    """With the real node and nano: the point it records lies on what was asked for."""
    file = tmp_path / "view.rrd"
    often = ["--every", "0.1", "--seconds", "6"]
    process = run(".simulated", "--no-serve", "--record", str(file), *often)
    said, _ = process.communicate(timeout=10 * WAIT_S)
    assert process.returncode == 0, said
    read = Read(file)
    table = Tabletop()
    table.reset(SEED)
    truth = Truth(table)
    table.close()
    name = max(truth.askable(), key=lambda one: truth.mask(one).sum())
    # Of the first question; the numbers below count markers.
    label = next(
        path
        for path in read.below("/answers/words/")
        if read.last(path, "Points3D:labels") == [f"Point to the {name}"]
    )
    first = int(label.rpartition("/")[2]) // 10_000 * 10_000
    path = f"/answers/points/{first}"
    assert read.last(path, "CoordinateFrame:frame") == [TABLE_FRAME]
    (position,) = read.last(path, "Points3D:positions")
    assert truth.distance_mm(name, tuple(position)) < 20
    entries = read.all("/log/answers", "TextLog:text")
    assert any(entry.startswith(f"Point to the {name} → ") for (entry,) in entries)
    for stage in ("prefill", "decode", r"round\ trip"):
        (milliseconds,) = read.last(f"/latency/{stage}", "Scalars:scalars")
        assert milliseconds > 0
    # What isn't there is not lifted, which takes no time, and may have been asked for last.
    assert max(read.all("/latency/lift", "Scalars:scalars")) > [0]
    assert "/diagnostics/requests\\ waiting" in read.rows
