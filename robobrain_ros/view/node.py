# SPDX-License-Identifier: Apache-2.0
"""`robobrain_view`: records the camera, the node's answers, TF and diagnostics for the live view.

Camera data and TF have their own stamps; an answer has the time of its arrival, which may be
seconds after its image.
"""

from __future__ import annotations

from contextlib import ExitStack

import numpy as np
from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import Log
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile
from sensor_msgs.msg import Image
from tf2_msgs.msg import TFMessage
from visualization_msgs.msg import Marker, MarkerArray

from robobrain_ros.core.errors import BrainError
from robobrain_ros.core.observations import Observation
from robobrain_ros.ros import conversions, markers
from robobrain_ros.ros.acquisition import Poses
from robobrain_ros.ros.camera import Camera, Snapshot, Topics, nanoseconds, stamp_of
from robobrain_ros.ros.executors import spinning
from robobrain_ros.ros.parameters import Spec, declare_camera
from robobrain_ros.ros.publishers import DEPTH
from robobrain_ros.tf_projection import DepthScene
from robobrain_ros.view import archetypes
from robobrain_ros.view.frames import Frames, frame_name
from robobrain_ros.view.recording import Recording

SPECS = (
    Spec("brain", "robobrain", "The node whose answers are shown."),
    Spec("camera", "camera", "The camera that is shown; its topics are <name>.color_topic, …"),
    Spec("frame", "", "Frame of the 3D view; empty = the root of the camera's TF tree."),
    Spec("rate", 2.0, "Images and clouds shown in a second.", range=(0.1, 30.0)),
    Spec("cloud_points", 20_000, "Points of a cloud, about, at most.", range=(1, 1_000_000)),
    Spec("cloud_range", 3.0, "Depth shown as a cloud, at most, metres.", range=(0.1, 100.0)),
    Spec("tf_rate", 30.0, "Transforms of a frame shown in a second.", range=(0.1, 1000.0)),
    Spec("sync_tolerance", 0.02, "Between color and depth, at most, seconds.", range=(0.0, 1.0)),
)

_EXPIRY_PERIOD_S = 0.25
_MAX_AGE_S = 1.0  # of the image that is shown
_COMPLAINT_S = 30.0
_LONGEST_S = 3600.0  # an older stamp is no camera's
_SAMPLES = 5000  # of the depth, for its median
_NS = 1_000_000_000
_STATIC_QOS = QoSProfile(depth=100, durability=DurabilityPolicy.TRANSIENT_LOCAL)


def start(stack: ExitStack, recording: Recording) -> None:
    """Run a ViewNode on a thread of its own, until `stack` ends it."""
    stack.enter_context(spinning(ViewNode(recording)))


class ViewNode(Node):
    """Logs to a recording until it is destroyed. Spin it on one thread."""

    def __init__(self, recording: Recording, name: str = "robobrain_view") -> None:
        super().__init__(name)
        self._recording = recording
        for spec in SPECS:
            descriptor = spec.descriptor()
            descriptor.read_only = True
            self.declare_parameter(spec.name, spec.default, descriptor)
        brain = self._value("brain")
        self._brain_name = brain.rpartition("/")[2]
        self._frames = Frames()
        self._next_tf_ns: dict[str, int] = {}
        self._shown_stamp = 0
        self._shown_in = ""
        camera = self._value("camera")
        declare_camera(self, camera)
        tolerance = self._value("sync_tolerance")
        self._camera = Camera(self, camera, Topics.of(self, camera), tolerance)
        for kind, topic, callback, qos in (
            (Image, f"{brain}/annotated_image", self._annotated, DEPTH),
            (MarkerArray, f"{brain}/markers", self._markers, DEPTH),
            (TFMessage, "/tf", lambda message: self._tf(message, False), 100),
            (TFMessage, "/tf_static", lambda message: self._tf(message, True), _STATIC_QOS),
            (DiagnosticArray, "/diagnostics", self._diagnostics, DEPTH),
            (Log, "/rosout", self._log, 100),
        ):
            self.create_subscription(kind, topic, callback, qos)
        # Simulated time may stand still.
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        self.create_timer(1 / self._value("rate"), self._show_camera, clock=steady)
        self.create_timer(_EXPIRY_PERIOD_S, self._expire, clock=steady)

    def _value(self, name: str):
        return self.get_parameter(name).value

    def _now(self) -> int:
        return self.get_clock().now().nanoseconds

    def _show_camera(self) -> None:
        """Convert and draw the newest frame; of all others only references were held."""
        now = self._now()
        # With its depth if that has arrived.
        newest = (0, now, _MAX_AGE_S)
        snapshot = self._camera.find(*newest) or self._camera.find_color(*newest)
        if snapshot is None or stamp_of(snapshot.color) == self._shown_stamp:
            return
        self._shown_stamp = stamp_of(snapshot.color)
        frame = frame_name(snapshot.color.header.frame_id)
        try:
            seen = conversions.observation(snapshot, Poses("", np.eye(4)))
        except BrainError as error:
            self._complain(str(error))
            seen = self._without_depth(snapshot)
            if seen is None:
                return
        for entity in archetypes.camera(seen.rgb, seen.scene.intrinsics, frame):
            self._recording.log(entity, self._shown_stamp)
        if seen.scene.depth is not None:
            source = frame_name(snapshot.depth.header.frame_id)
            limits = (self._value("cloud_points"), self._value("cloud_range"))
            points = archetypes.cloud(seen, source, source == frame, *limits)
            self._recording.log(points, stamp_of(snapshot.depth))
        self._show_from(frame, seen)

    def _without_depth(self, snapshot: Snapshot) -> Observation | None:
        try:
            return Observation(conversions.rgb_from(snapshot.color), DepthScene())
        except BrainError as error:
            self._complain(str(error))
            return None

    def _show_from(self, camera: str, seen: Observation) -> None:
        """Choose the 3D view's frame, and face the scene in front of the camera when it changes."""
        root, _ = self._frames.root(camera)
        chosen = self._value("frame") or root
        if chosen == self._shown_in:
            return
        self._shown_in = chosen
        distance = self._value("cloud_range")
        if seen.scene.depth is not None:
            depth = seen.scene.depth
            near = depth.window(np.array([0, 0, *depth.size]), _SAMPLES).metres
            near = near[near <= distance]
            distance = float(np.median(near)) if near.size else distance
        eye = self._frames.eye(camera, distance) if chosen == root else None
        self._recording.show_in(chosen, eye)

    def _annotated(self, message: Image) -> None:
        now = self._now()
        try:
            rgb = conversions.rgb_from(message)
        except BrainError as error:
            self._complain(str(error))
            return
        self._recording.log(archetypes.image(archetypes.ANNOTATED, rgb), now)
        age = (now - nanoseconds(message.header.stamp)) / _NS
        if 0 <= age < _LONGEST_S:
            self._recording.log(archetypes.latency("image to answer", age), now)

    def _markers(self, message: MarkerArray) -> None:
        now = self._now()
        for marker in message.markers:
            if marker.action == Marker.DELETE:
                self._recording.remove(archetypes.marker_path(marker), now)
            elif marker.action == Marker.DELETEALL:
                self._recording.remove(archetypes.ANSWERS, now)
            elif (entity := archetypes.marker(marker)) is not None:
                lifetime = marker.lifetime.sec * _NS + marker.lifetime.nanosec
                self._recording.log(entity, now, now + lifetime if lifetime else 0)

    def _tf(self, message: TFMessage, static: bool) -> None:
        now = self._now()
        period = _NS / self._value("tf_rate")
        for one in message.transforms:
            child = frame_name(one.child_frame_id)
            try:
                self._frames.add(one)
            except ValueError as error:
                self._complain(f"TF of {child}: {error}")
                continue
            # A frame of an answer goes with its markers.
            if child.startswith(f"{self._brain_name}/"):
                end = now + markers.LIFETIME.sec * _NS
                self._recording.log(archetypes.transform(one, False), now, end)
                continue
            stamp = nanoseconds(one.header.stamp)
            # A stamp far below the next one's turn: the clock was set back.
            due = self._next_tf_ns.get(child, 0)
            if static or stamp >= due or stamp < due - 2 * _NS:
                self._next_tf_ns[child] = int(stamp + period)
                self._recording.log(archetypes.transform(one, static), stamp)

    def _diagnostics(self, message: DiagnosticArray) -> None:
        now = self._now()
        for status in message.status:
            if status.hardware_id.rpartition("/")[2] == self._brain_name:
                for entity in archetypes.numbers(status):
                    self._recording.log(entity, now)

    def _log(self, message: Log) -> None:
        if message.name.rpartition(".")[2] == self._brain_name:
            self._recording.log(archetypes.log_entry(message), self._now())

    def _expire(self) -> None:
        self._recording.expire(self._now())

    def _complain(self, sentence: str) -> None:
        self.get_logger().warning(sentence, throttle_duration_sec=_COMPLAINT_S)
