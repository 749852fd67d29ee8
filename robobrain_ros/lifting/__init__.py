# SPDX-License-Identifier: Apache-2.0
"""Pixels to 3D: depth, lens models, surfaces. No ROS, no torch. The facade is tf_projection."""
