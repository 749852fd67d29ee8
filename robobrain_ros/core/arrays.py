# SPDX-License-Identifier: Apache-2.0
"""Array types, and lengths along polylines. Shapes are stated where the types are used."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
RgbImage = NDArray[np.uint8]
"""(H, W, 3)."""


def arc_lengths(points: ArrayLike) -> FloatArray:
    """Length (N,) of a polyline up to each of its points (N, D), from 0."""
    steps = np.linalg.norm(np.diff(np.asarray(points, np.float64), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])
