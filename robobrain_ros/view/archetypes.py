# SPDX-License-Identifier: Apache-2.0
"""Conversion of ROS messages to rerun archetypes; nothing here subscribes or logs.

An entity is a path and the archetypes that are logged there. Poses are those of TF: rerun knows
frames by name, so an entity in the frame `table` names it and is drawn where TF has the table.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import rerun as rr
from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import Point, Pose, TransformStamped
from numpy.typing import NDArray
from rcl_interfaces.msg import Log
from rerun.components import FillMode
from scipy.spatial.transform import Rotation
from std_msgs.msg import ColorRGBA
from visualization_msgs.msg import Marker

from robobrain_ros.core.observations import Observation
from robobrain_ros.tf_projection import Intrinsics
from robobrain_ros.view.frames import frame_name
from robobrain_ros.visualization.style import PALETTE

CAMERA, CLOUD, ANNOTATED = "camera", "cloud", "annotated_image"
"""Paths: the camera's image, the cloud of its depth, and the image with the answers."""

TF, ANSWERS, LATENCY, HEALTH, LOG = "tf", "answers", "latency", "diagnostics", "log"
"""Paths below which there is an entity per frame, marker, measurement, value and node."""

ROOT = "root"
"""Path of the transform of the root of all paths."""

STAGES = ("wait", "preprocess", "prefill", "decode", "lift")
LATENCIES = (*STAGES, "round trip", "image to answer")
"""Measured latencies: the stages of msg/Timing, and the times that they are parts of."""

_JPEG_QUALITY = 85
_AXES = 0.06  # metres
_IMAGE_PLANE = 0.15  # metres from the camera, where its image is drawn in 3D
_LEVELS = (
    (Log.FATAL, rr.TextLogLevel.CRITICAL),
    (Log.ERROR, rr.TextLogLevel.ERROR),
    (Log.WARN, rr.TextLogLevel.WARN),
    (Log.INFO, rr.TextLogLevel.INFO),
)


@dataclass(frozen=True)
class Entity:
    """An archetype at a path, and its frame, which stays when the archetype is cleared.

    static: valid at all times, whatever the stamp.
    """

    path: str
    drawn: rr.AsComponents
    place: tuple[rr.AsComponents, ...] = ()
    static: bool = False


def nothing(drawn: rr.AsComponents) -> rr.AsComponents:
    """Return an archetype that clears another one.

    rr.Clear would clear the frame, too: an entity without one is an error in the 3D view.
    """
    if isinstance(drawn, rr.TransformAxes3D):
        return rr.TransformAxes3D(0.0)  # cleared, they have rerun's own length
    return type(drawn).cleared()


def path_of(*names: str) -> str:
    """The path of names that may hold any character; a slash in them divides them further."""
    parts = [part for name in names for part in name.split("/") if part]
    return "/".join(rr.escape_entity_path_part(part) for part in parts)


def image(path: str, rgb: NDArray[np.uint8]) -> Entity:
    """rgb (H, W, 3), as a JPEG: a tenth of the size, to send and to record."""
    return Entity(path, rr.Image(rgb).compress(jpeg_quality=_JPEG_QUALITY))


def camera(rgb: NDArray[np.uint8], intrinsics: Intrinsics | None, frame: str) -> list[Entity]:
    """The camera's image, and where there are intrinsics its frustum in the optical frame.

    rerun's camera has no lens: where there is one the frustum is that of the image without it.
    """
    if intrinsics is None:
        return [image(CAMERA, rgb)]
    plane = f"{frame}/image"
    frustum = rr.Pinhole(
        image_from_camera=intrinsics.matrix,
        width=intrinsics.width,
        height=intrinsics.height,
        parent_frame=frame,
        child_frame=plane,
        image_plane_distance=_IMAGE_PLANE,
    )
    return [Entity(CAMERA, frustum, (rr.CoordinateFrame(plane),)), image(CAMERA, rgb)]


def cloud(
    seen: Observation, frame: str, of_color: bool, max_points: int, max_depth: float
) -> Entity:
    """The depth up to `max_depth` metres as about `max_points` points at most, in the depth's
    optical frame `frame`.

    of_color: it is the color image's frame, too. Then the points have its colors; else they
    are grey.
    """
    depth, color = seen.scene.depth, seen.scene.intrinsics
    width, height = depth.size
    window = depth.window(np.array([0, 0, width - 1, height - 1], np.float64), max_points)
    known = window.metres <= max_depth  # holes are NaN
    pixels, metres = window.pixels[known], window.metres[known]
    points = depth.intrinsics(color).back_project(pixels, metres)
    tints = np.full((len(points), 3), 150, np.uint8)
    if of_color:
        size = np.array(seen.rgb.shape[1::-1])
        # The same rays, whatever the two sizes.
        nearest = np.rint(color.project(depth.intrinsics(color).rays(pixels)))
        column, row = np.clip(np.nan_to_num(nearest).astype(np.intp), 0, size - 1).T
        tints = seen.rgb[row, column]
    # As large as the gap between neighbours in the middle of the scene.
    gap = window.step / depth.intrinsics(color).focal
    radius = 0.6 * gap * float(np.median(metres)) if len(metres) else 0.0
    drawn = rr.Points3D(points, colors=tints, radii=[radius])
    return Entity(CLOUD, drawn, (rr.CoordinateFrame(frame),))


def transform(message: TransformStamped, static: bool) -> Entity:
    """Return a frame's pose in its parent, with its axes."""
    move, turn = message.transform.translation, message.transform.rotation
    frame = frame_name(message.child_frame_id)
    place = rr.Transform3D(
        translation=[move.x, move.y, move.z],
        quaternion=rr.Quaternion(xyzw=[turn.x, turn.y, turn.z, turn.w]),
        parent_frame=frame_name(message.header.frame_id),
        child_frame=frame,
    )
    path = path_of(TF, message.child_frame_id)
    # Axes are drawn in the entity's own frame, too: by default that of its path.
    own = rr.CoordinateFrame(frame)
    return Entity(path, rr.TransformAxes3D(_AXES), (place, own), static)


def marker_path(marker: Marker) -> str:
    """Return the path of a marker; a namespace has all of its markers below it."""
    return path_of(ANSWERS, marker.ns, str(marker.id))


def marker(message: Marker) -> Entity | None:
    """Return a marker of a type that the node publishes, in its color; None for another type."""
    draw = _DRAWN.get(message.type)
    if draw is None:
        return None
    frame = rr.CoordinateFrame(frame_name(message.header.frame_id))
    return Entity(marker_path(message), draw(message), (frame,))


def _sphere(marker: Marker) -> rr.Points3D:
    radius = marker.scale.x / 2
    return rr.Points3D([_xyz(marker.pose.position)], colors=[_rgba(marker.color)], radii=[radius])


def _text(marker: Marker) -> rr.Points3D:
    return rr.Points3D(
        [_xyz(marker.pose.position)],
        colors=[_rgba(marker.color)],
        radii=[0.0],
        labels=[marker.text],
        show_labels=True,
    )


def _arrow(marker: Marker) -> rr.Arrows3D:
    tail, tip = _in_frame(marker.pose, marker.points)
    # rerun's shaft has half the radius that it is given, RViz's the diameter scale.x.
    return rr.Arrows3D(
        origins=[tail], vectors=[tip - tail], colors=[_rgba(marker.color)], radii=[marker.scale.x]
    )


def _cube(marker: Marker) -> rr.Boxes3D:
    turn, size = marker.pose.orientation, marker.scale
    return rr.Boxes3D(
        centers=[_xyz(marker.pose.position)],
        sizes=[[size.x, size.y, size.z]],
        quaternions=[rr.Quaternion(xyzw=[turn.x, turn.y, turn.z, turn.w])],
        colors=[_rgba(marker.color)],
        fill_mode=FillMode.TransparentFillMajorWireframe,
    )


def _pairs(marker: Marker) -> rr.LineStrips3D:
    points = _in_frame(marker.pose, marker.points)
    return rr.LineStrips3D(
        points.reshape(-1, 2, 3), colors=[_rgba(marker.color)], radii=[marker.scale.x / 2]
    )


def _strip(marker: Marker) -> rr.LineStrips3D:
    """Return a line per segment, since a strip has one color in rerun; each has that of its end."""
    points = _in_frame(marker.pose, marker.points)
    colors = [_rgba(one) for one in marker.colors[1:]] or [_rgba(marker.color)]
    return rr.LineStrips3D(
        np.stack([points[:-1], points[1:]], axis=1), colors=colors, radii=[marker.scale.x / 2]
    )


_DRAWN = {
    Marker.SPHERE: _sphere,
    Marker.TEXT_VIEW_FACING: _text,
    Marker.ARROW: _arrow,
    Marker.CUBE: _cube,
    Marker.LINE_LIST: _pairs,
    Marker.LINE_STRIP: _strip,
}


def log_entry(message: Log) -> Entity:
    """A line of /rosout."""
    level = next((name for least, name in _LEVELS if message.level >= least), None)
    text = rr.TextLog(message.msg, level=level or rr.TextLogLevel.DEBUG)
    return Entity(path_of(LOG, message.name.replace(".", "/")), text)


def said(question: str, answer: str, success: bool) -> Entity:
    """Return a question and the node's answer to it as a log entry."""
    level = rr.TextLogLevel.INFO if success else rr.TextLogLevel.WARN
    return Entity(path_of(LOG, "answers"), rr.TextLog(f"{question} → {answer}", level=level))


def numbers(status: DiagnosticStatus) -> Iterator[Entity]:
    """Yield the numeric values of a status of /diagnostics; the unit is in the key."""
    for value in status.values:
        try:
            number = float(value.value)
        except ValueError:
            continue
        yield Entity(path_of(HEALTH, value.key.replace("/", " ")), rr.Scalars(number))


def styles() -> Iterator[Entity]:
    """Yield the line styles of the latencies, each in a color of its own."""
    for name, color in zip(LATENCIES, PALETTE, strict=True):
        line = rr.SeriesLines(colors=[color], names=[name], widths=[2.0])
        yield Entity(path_of(LATENCY, name), line, static=True)


def latency(name: str, seconds: float) -> Entity:
    """One measurement, plotted in milliseconds."""
    return Entity(path_of(LATENCY, name), rr.Scalars(1000 * seconds))


def _in_frame(pose: Pose, points: Sequence[Point]) -> NDArray[np.float64]:
    """A marker's points (N, 3), from its own pose to the frame of its header."""
    turn = pose.orientation
    rotation = Rotation.from_quat([turn.x, turn.y, turn.z, turn.w])
    return rotation.apply([_xyz(point) for point in points]) + _xyz(pose.position)


def _xyz(point: Point) -> list[float]:
    return [point.x, point.y, point.z]


def _rgba(color: ColorRGBA) -> list[int]:
    return [round(255 * part) for part in (color.r, color.g, color.b, color.a)]
