# SPDX-License-Identifier: Apache-2.0
"""Lines through points."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray


def arc_lengths(points: ArrayLike) -> NDArray[np.float64]:
    """How far along the line through points (N, D) each of them is: (N,), from 0."""
    steps = np.linalg.norm(np.diff(np.asarray(points, np.float64), axis=0), axis=1)
    return np.concatenate([[0.0], np.cumsum(steps)])
