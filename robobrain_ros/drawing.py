# SPDX-License-Identifier: Apache-2.0
"""Answers drawn on the camera image."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.families import TaskKind
from robobrain_ros.pipeline import Result

_GREEN = (60, 220, 90)
_ORANGE = (255, 150, 30)
_WHITE = (255, 255, 255)
_BLACK = (0, 0, 0)


def draw(rgb: NDArray[np.uint8], result: Result, words: str) -> NDArray[np.uint8]:
    """Return a copy of `rgb` (H, W, 3) with the answer and the words on it."""
    image = rgb.copy()
    scale = max(1.0, min(image.shape[:2]) / 480)
    pixels = [point.pixel for point in result.points]
    if result.answer.kind is TaskKind.TRAJECTORY and len(pixels) > 1:
        track = np.round(np.array(pixels)).astype(np.int32)
        cv2.polylines(image, [track], False, _ORANGE, round(2 * scale), cv2.LINE_AA)
    for number, pixel in enumerate(pixels, start=1):
        _dot(image, pixel, scale)
        if len(pixels) > 1:
            _label(image, str(number), np.asarray(pixel) + 7 * scale, scale * 0.8)
    for region in result.regions:
        x1, y1, x2, y2 = (round(float(side)) for side in region.box)
        cv2.rectangle(image, (x1, y1), (x2, y2), _ORANGE, round(2 * scale), cv2.LINE_AA)
    _label(image, _caption(result, words), (8 * scale, 20 * scale), scale)
    return image


def _caption(result: Result, words: str) -> str:
    if result.answer.kind is TaskKind.ASK:
        return f"{words} {result.answer.text}"
    return words


def _dot(image: NDArray[np.uint8], pixel: NDArray[np.float64], scale: float) -> None:
    centre = (round(float(pixel[0])), round(float(pixel[1])))
    cv2.circle(image, centre, round(7 * scale), _WHITE, -1, cv2.LINE_AA)
    cv2.circle(image, centre, round(5 * scale), _GREEN, -1, cv2.LINE_AA)


def _label(image: NDArray[np.uint8], text: str, at: tuple[float, float], scale: float) -> None:
    """Write `text` with its baseline's left end at pixel `at`; a dark rim keeps it readable."""
    origin = (round(float(at[0])), round(float(at[1])))
    for color, width in ((_BLACK, 3), (_WHITE, 1)):
        thickness = max(1, round(width * scale))
        cv2.putText(
            image,
            text,
            origin,
            cv2.FONT_HERSHEY_SIMPLEX,
            0.5 * scale,
            color,
            thickness,
            cv2.LINE_AA,
        )
