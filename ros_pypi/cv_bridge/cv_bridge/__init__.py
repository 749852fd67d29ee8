# SPDX-License-Identifier: Apache-2.0
"""cv_bridge's Python API, for ROS 2 from PyPI, which lacks it (PyPI's cv-bridge is ROS 1's).

Names, arguments, results and refusals are those of cv_bridge in Jazzy.
"""

from .core import CvBridge, CvBridgeError

__all__ = ["CvBridge", "CvBridgeError"]
