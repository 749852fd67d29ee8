# SPDX-License-Identifier: Apache-2.0
"""Asking the node for one point in 3D, and checking where that point is."""

from __future__ import annotations

import numpy as np

from robobrain_ros.msg import LiftedPoint


def point(brain, scene, camera="camera", **fields):
    """The response about the scene's object."""
    return brain.point_to(f"Point to the {scene.name}", camera=camera, **fields)


def assert_on_object(response, scene, max_mm=10.0) -> None:
    """The first point is on the scene's object: its pixel, and its position in the table frame."""
    assert response.success, response.error_msg
    first = response.points[0]
    assert scene.truth.contains(scene.name, (first.pixel.x, first.pixel.y))
    assert first.status == LiftedPoint.OK
    assert first.pose.header.frame_id == "table"
    assert first.pose.header.stamp == response.header.stamp
    assert scene.truth.distance_mm(scene.name, position(first)) <= max_mm


def lifted(brain, scene, camera, **fields):
    """The response about the scene's object, and its first point."""
    response = point(brain, scene, camera, **fields)
    assert response.success, response.error_msg
    return response, response.points[0]


def seen_at(scene, pixel) -> np.ndarray:
    """The true point (4,), homogeneous, under a pixel, in the optical frame."""
    depth = scene.truth.frame.depth[round(pixel.y), round(pixel.x)]
    ray = np.linalg.inv(scene.intrinsics) @ [pixel.x, pixel.y, 1]
    return np.append(ray * depth, 1.0)


def position(point) -> np.ndarray:
    at = point.pose.pose.position
    return np.array([at.x, at.y, at.z])
