# SPDX-License-Identifier: Apache-2.0
"""A map of a simulated table with 3D answers: the visible surfaces seen from above.

The camera is at the bottom and looks up, so that left in its image is left on the map.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.sim.truth import Truth
from robobrain_ros.visualization.canvas import Canvas
from robobrain_ros.visualization.fonts import Font
from robobrain_ros.visualization.style import INK, WHITE, Color, text_color_on

_PAPER, _GRID, _LABEL = (246, 246, 244), (226, 226, 224), (96, 96, 100)
_AXES = {"x": (200, 45, 45), "y": (40, 140, 60)}  # RViz's colors
_MARGIN = 0.07  # meters around everything that is shown
_GRID_STEP, _AXIS_LENGTH, _CAMERA_SIZE = 0.1, 0.12, 0.06  # meters


def draw_top_view(
    truth: Truth,
    answers: Sequence[tuple[str, FloatArray, Color]],
    size: tuple[int, int],
) -> NDArray[np.uint8]:
    """Return the map as an image of a size (width, height).

    answers: label, position (3,) m in the table's frame, and color of each 3D answer.
    """
    width, height = size
    canvas = Canvas(np.full((height, width, 3), _PAPER, np.uint8))
    surfaces = {item.name: truth.surface(item.name) for item in truth.objects}
    everything = [np.zeros((1, 3)), truth.table_from_optical[None, :3, 3], *surfaces.values()]
    project = _Projection(truth.table_from_optical, np.vstack(everything), size)
    _draw_grid(canvas, project)
    for name, surface in surfaces.items():
        colors = truth.frame.rgb[truth.mask(name)]
        for pixel, color in zip(project(surface)[::3], colors[::3].tolist()):
            canvas.disc(pixel, 1.2 * canvas.unit, tuple(color))
    _draw_axes(canvas, project)
    _draw_camera(canvas, project, truth.table_from_optical)
    font = Font("0123456789", round(13 * canvas.unit))
    for label, position, color in answers:
        (at,) = project(np.reshape(position, (1, 3)))
        for radius, fill in ((9.2, INK), (8.0, color)):
            canvas.disc(at, radius * canvas.unit, fill)
        corner = at - (font.width(label) / 2, font.height / 2)
        canvas.text(corner, [label], font, text_color_on(color))
    note = f"from above, {100 * _GRID_STEP:.0f} cm grid: 3D answers on the true surfaces"
    font = Font(note, round(14 * canvas.unit))
    canvas.text((10 * canvas.unit, 8 * canvas.unit), [note], font, _LABEL)
    return canvas.array()


class _Projection:
    """From the table's frame to the map: the camera's horizontal heading points up."""

    def __init__(self, table_from_optical: FloatArray, points: FloatArray, size: ArrayLike) -> None:
        """points (N, 3): what has to be on the map."""
        right = table_from_optical[:2, 0] / np.linalg.norm(table_from_optical[:2, 0])
        self.axes = np.array([right, [right[1], -right[0]]])  # right and down on the map
        seen = points[:, :2] @ self.axes.T
        low, high = seen.min(0) - _MARGIN, seen.max(0) + _MARGIN
        self.scale = float((np.asarray(size) / (high - low)).min())  # pixels per meter
        self._offset = (np.asarray(size) - self.scale * (low + high)) / 2

    def __call__(self, points: FloatArray) -> FloatArray:
        """Return the pixels (N, 2) of points (N, 2 or 3)."""
        return self.scale * points[:, :2] @ self.axes.T + self._offset


def _draw_grid(canvas: Canvas, project: _Projection) -> None:
    for at in np.arange(-2, 2 + _GRID_STEP, _GRID_STEP):
        for line in ([(at, -2), (at, 2)], [(-2, at), (2, at)]):
            canvas.line(project(np.array(line)), canvas.unit, _GRID)


def _draw_axes(canvas: Canvas, project: _Projection) -> None:
    """Draw the frame `table` at its origin."""
    (origin,) = project(np.zeros((1, 2)))
    for (name, color), axis in zip(_AXES.items(), np.eye(2)):
        tip, text_at = project(np.array([axis, 1.25 * axis]) * _AXIS_LENGTH)
        canvas.line([origin, tip], 3 * canvas.unit, color)
        font = Font(name, round(14 * canvas.unit))
        canvas.text(text_at - (font.width(name) / 2, font.height / 2), [name], font, color)
    canvas.disc(origin, 3.5 * canvas.unit, INK)


def _draw_camera(canvas: Canvas, project: _Projection, pose: FloatArray) -> None:
    """Draw the camera as a triangle that opens where it looks."""
    (at,) = project(pose[None, :3, 3])
    length = _CAMERA_SIZE * project.scale
    canvas.polygon([at, at + (-0.6 * length, -length), at + (0.6 * length, -length)], INK)
    canvas.disc(at, 4 * canvas.unit, INK)
    canvas.disc(at, 2.5 * canvas.unit, WHITE)
    font = Font("camera", round(14 * canvas.unit))
    canvas.text(at + (10 * canvas.unit, -font.height / 2), ["camera"], font, _LABEL)
