# SPDX-License-Identifier: Apache-2.0
"""Asking the node for one point in 3D, and where that point really is."""

from __future__ import annotations

import numpy as np


def lifted(brain, scene, camera, **fields):
    response = brain.point_to(f"Point to the {scene.name}", camera=camera, **fields)
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
