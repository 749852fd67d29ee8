# SPDX-License-Identifier: Apache-2.0
"""A camera of few pixels, and its CameraInfo with any number in it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np

SIZE = (64, 48)
"""(width, height)"""
K = np.array([[60.0, 0, 32], [0, 60, 24], [0, 0, 1]])


def info(fx=60.0, fy=60.0, cx=32.0, cy=24.0, d=(), model="plumb_bob", width=64, height=48, **more):
    """A CameraInfo message in all but its type."""
    k = [fx, 0.0, cx, 0.0, fy, cy, 0.0, 0.0, 1.0]
    return SimpleNamespace(k=k, d=d, distortion_model=model, width=width, height=height, **more)
