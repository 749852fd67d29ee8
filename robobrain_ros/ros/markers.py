# SPDX-License-Identifier: Apache-2.0
"""Answers as RViz markers.

Each request has the color of its slot (style.py). Namespaces are types of markers, so that RViz can
hide them one by one: `points` (spheres), `normals` (arrows), `boxes` and their `edges`, `path`,
`numbers` and `words`. A marker's opacity shows the quality of its depth (style.opacity).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from builtin_interfaces.msg import Duration
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from std_msgs.msg import ColorRGBA, Header
from visualization_msgs.msg import Marker, MarkerArray

from robobrain_ros.core.results import Lifted, Result
from robobrain_ros.core.tasks import TASKS, AnswerType
from robobrain_ros.ros.conversions import box_3d, point_message, pose_of
from robobrain_ros.tf_projection import LiftedRegion
from robobrain_ros.visualization.style import (
    PALETTE,
    WHITE,
    Color,
    mixed,
    opacity,
    shortened,
    without_accents,
)

LIFETIME = Duration(sec=10)
"""Lifetime of the markers, unless another answer replaces them."""

LONGEST_WORDS = 40
"""Characters of the query that are shown."""

_IDS_OF_A_SLOT = 10_000
_ROWS = 3  # of query texts above each other, so that requests about one place are all legible
_BOX_OPACITY = 0.25  # relative to its edges, so that one can see through it
_NEAREST, _FARTHEST = 0.3, 6.0  # metres; sizes follow the distance between these

# Sizes of what is one metre from the camera, metres.
_SPHERE = 0.02
_ARROW_LENGTH, _SHAFT, _HEAD, _HEAD_LENGTH = 0.1, 0.006, 0.014, 0.028
_PATH_WIDTH, _EDGE_WIDTH = 0.008, 0.003
_NUMBER_HEIGHT, _WORDS_HEIGHT = 0.02, 0.022

_CORNERS = np.array([(x, y, z) for x in (-1, 1) for y in (-1, 1) for z in (-1, 1)]) / 2
_EDGES = [(a, a | bit) for bit in (1, 2, 4) for a in range(8) if not a & bit]
"""Pairs of indices of corners that differ in one coordinate."""


class MarkerBoard:
    """Converts answers to marker messages, with deletions of the markers that they replace.

    A marker is replaced by the next answer in its slot, which is to the same question or to a
    seventh other one, or expires. The markers of other slots stay.
    """

    def __init__(self) -> None:
        self._shown: dict[int, set[tuple[str, int]]] = {}  # by slot: namespaces and ids

    def show(
        self, result: Result, words: str, header: Header, camera_frame: str, slot: int
    ) -> MarkerArray:
        """Return the markers of an answer, and deletions of what its slot had besides.

        header: the target frame and the image's stamp. camera_frame: the optical frame of the
        image. An answer without any position only deletes.
        """
        # A camera's own frame doesn't define up; the image's up is the best guess.
        is_camera = header.frame_id == camera_frame
        up = np.array([0.0, -1.0, 0.0] if is_camera else [0.0, 0.0, 1.0])
        answer = _Answer(header, PALETTE[slot], slot * _IDS_OF_A_SLOT, up, slot % _ROWS)
        new = answer.markers(result, words)
        names = {(marker.ns, marker.id) for marker in new}
        gone = self._shown.get(slot, set()) - names
        self._shown[slot] = names
        # RViz takes one of a name and id in a message: what is replaced is not deleted first.
        deletions = [
            Marker(header=header, ns=space, id=number, action=Marker.DELETE)
            for space, number in sorted(gone)
        ]
        return MarkerArray(markers=[*deletions, *new])


@dataclass
class _Answer:
    """The markers of one answer. up: (3,) direction in the target frame. row: of its words."""

    header: Header
    color: Color
    first_id: int
    up: NDArray[np.float64]
    row: int
    unit: float = 1.0
    """The distance from the camera for which sizes are made, metres."""
    made: list[Marker] = field(default_factory=list)

    def markers(self, result: Result, words: str) -> list[Marker]:
        everything = [*result.points, *result.regions]
        shown = [(n, one) for n, one in enumerate(everything, 1) if one.position is not None]
        if not shown:
            return []
        distance = float(np.median([one.depth for _, one in shown]))
        self.unit = min(max(distance, _NEAREST), _FARTHEST)
        if TASKS[result.answer.kind].answer is AnswerType.WAYPOINTS:
            self._path([one for _, one in shown])
        for number, lifted in shown:
            self._point(lifted)
            if isinstance(lifted, LiftedRegion):
                self._box(lifted)
            if len(everything) > 1:
                at = self._above(lifted, 0.8 * _NUMBER_HEIGHT)
                self._text("numbers", str(number), at, _NUMBER_HEIGHT)
        clear = 1.6 * _NUMBER_HEIGHT if len(everything) > 1 else 0.0
        clear += (0.9 + 1.4 * self.row) * _WORDS_HEIGHT
        # RViz draws a text byte by byte, so that only ASCII is sure to be read.
        label = without_accents(shortened(words, LONGEST_WORDS))
        self._text("words", label, self._above(shown[0][1], clear), _WORDS_HEIGHT)
        return self.made

    def _new(self, space: str, kind: int, sizes: Iterable[float], color: ColorRGBA) -> Marker:
        marker = Marker(header=self.header, ns=space, type=kind, color=color, lifetime=LIFETIME)
        marker.id = self.first_id + len(self.made)
        marker.scale.x, marker.scale.y, marker.scale.z = map(float, sizes)
        marker.pose.orientation.w = 1.0
        self.made.append(marker)
        return marker

    def _point(self, lifted: Lifted) -> None:
        color = _rgba(self.color, opacity(lifted))
        sphere = self._new("points", Marker.SPHERE, [_SPHERE * self.unit] * 3, color)
        sphere.pose = pose_of(lifted)
        if lifted.has_normal:
            sizes = np.array([_SHAFT, _HEAD, _HEAD_LENGTH]) * self.unit
            arrow = self._new("normals", Marker.ARROW, sizes, color)
            arrow.points = [point_message(lifted.position), point_message(self._tip(lifted))]

    def _box(self, region: LiftedRegion) -> None:
        solid = opacity(region)
        box = box_3d(region)
        sizes = np.maximum(region.size, 1e-3)  # RViz warns of flat boxes
        clear = _rgba(self.color, _BOX_OPACITY * solid)
        self._new("boxes", Marker.CUBE, sizes, clear).pose = box.center
        width = [_EDGE_WIDTH * self.unit, 0, 0]
        edges = self._new("edges", Marker.LINE_LIST, width, _rgba(self.color, solid))
        edges.pose = box.center
        edges.points = [point_message(_CORNERS[i] * sizes) for pair in _EDGES for i in pair]

    def _path(self, waypoints: list[Lifted]) -> None:
        """Draw the line through the waypoints that have a position; each end of a piece is as solid
        as its waypoint.
        """
        if len(waypoints) < 2:
            return
        width = [_PATH_WIDTH * self.unit, 0, 0]
        line = self._new("path", Marker.LINE_STRIP, width, _rgba(self.color, 1.0))
        line.points = [point_message(waypoint.position) for waypoint in waypoints]
        line.colors = [_rgba(self.color, opacity(waypoint)) for waypoint in waypoints]

    def _text(self, space: str, words: str, at: NDArray[np.float64], height: float) -> None:
        color = _rgba(mixed(self.color, WHITE, 0.7), 1.0)
        kind = Marker.TEXT_VIEW_FACING
        text = self._new(space, kind, [0, 0, height * self.unit], color)
        text.text = words
        text.pose.position = point_message(at)

    def _tip(self, lifted: Lifted) -> NDArray[np.float64]:
        """Return the end (3,) of a result's normal: its z axis, an arrow's length long."""
        normal = Rotation.from_quat(lifted.orientation).apply([0.0, 0.0, 1.0])
        return np.asarray(lifted.position) + _ARROW_LENGTH * self.unit * normal

    def _above(self, lifted: Lifted, clear: float) -> NDArray[np.float64]:
        """Return the point (3,) over a result, `clear` metres (at one metre from the camera) above
        the top of what is drawn of it.
        """
        middle = lifted.centre if isinstance(lifted, LiftedRegion) else lifted.position
        return middle + (self._top(lifted) + clear * self.unit - middle @ self.up) * self.up

    def _top(self, lifted: Lifted) -> float:
        """Return how far up a result reaches, metres along `up`."""
        tops = [lifted.position @ self.up + _SPHERE / 2 * self.unit]
        if lifted.has_normal:
            tops.append(self._tip(lifted) @ self.up)
        if isinstance(lifted, LiftedRegion):
            turned = Rotation.from_quat(lifted.box_orientation).apply(_CORNERS * lifted.size)
            tops.append(np.max((lifted.centre + turned) @ self.up))
        return float(max(tops))


def _rgba(color: Color, alpha: float) -> ColorRGBA:
    red, green, blue = (part / 255 for part in color)
    return ColorRGBA(r=red, g=green, b=blue, a=float(alpha))
