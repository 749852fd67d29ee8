# SPDX-License-Identifier: Apache-2.0
"""Types of numpy arrays; shapes are stated where they are used."""

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]
RgbImage = NDArray[np.uint8]
"""(H, W, 3)."""
