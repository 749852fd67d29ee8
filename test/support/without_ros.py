# SPDX-License-Identifier: Apache-2.0
"""An import hook that refuses ROS: a run of test/unit alone proves that it needs none."""

from __future__ import annotations

import re
import sys
from importlib.abc import MetaPathFinder
from typing import Any

ROS_MODULE = re.compile(
    r"(rclpy|rpyutils|rosidl_\w+|ament_\w+|builtin_interfaces|\w+_msgs|tf2_\w+|cv_bridge|launch\w*"
    r"|robobrain_ros\.(msg|srv|action|client|brain_node))(\.|$)"
)


class RosFinder(MetaPathFinder):
    """Finds no ROS module, before any other finder does."""

    def find_spec(self, fullname: str, *_: Any) -> None:
        if ROS_MODULE.match(fullname):
            raise ModuleNotFoundError(
                f"{fullname} belongs to ROS, without which test/unit runs: "
                "move the test to test/node, or what it imports out of the pure module."
            )


def refuse_ros() -> None:
    """Let every import of ROS fail from now on, unless a plugin of pytest has imported it."""
    if not any(map(ROS_MODULE.match, list(sys.modules))):
        sys.meta_path.insert(0, RosFinder())
