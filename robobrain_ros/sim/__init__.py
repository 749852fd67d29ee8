# SPDX-License-Identifier: Apache-2.0
"""A simulated RGB-D tabletop with ground truth, and its camera node."""

import os

# MuJoCo picks its OpenGL backend when it is first imported; a robot often has no display.
os.environ.setdefault("MUJOCO_GL", "egl")
