# SPDX-License-Identifier: Apache-2.0
"""A py_trees behaviour that writes the pose of an object named in words to the blackboard.

python3 py_trees_point_to.py "the red mug"
"""

from __future__ import annotations

import sys

import rclpy
from rclpy.node import Node
from rclpy.task import Future

from robobrain_ros.client import AsyncBrainClient
from robobrain_ros.msg import LiftedPoint

try:
    import py_trees
    from py_trees.common import Access, Status
except ModuleNotFoundError:
    sys.exit("The Python module py_trees is missing: run `sudo apt install ros-jazzy-py-trees`.")


class PointTo(py_trees.behaviour.Behaviour):
    """RUNNING during inference; SUCCESS with a PoseStamped at `key`; FAILURE with a reason.

    Whoever ticks the tree spins the node, so a tick never blocks.
    """

    def __init__(self, name: str, node: Node, query: str, key: str, **fields: object) -> None:
        """fields: further fields of the request, such as target_frame."""
        super().__init__(name)
        self._brain = AsyncBrainClient(node)
        self._query, self._key = query, key
        self._fields = {"max_points": 1, **fields}
        self._answer: Future | None = None
        self._board = self.attach_blackboard_client(name)
        self._board.register_key(key, Access.WRITE)

    def initialise(self) -> None:
        """Send the request."""
        self._answer = self._brain.point_to(self._query, **self._fields)

    def update(self) -> Status:
        """Check whether the answer has arrived."""
        if not self._answer.done():
            self.feedback_message = "waiting for the answer"
            return Status.RUNNING
        response = self._answer.result()
        if not response.success:
            self.feedback_message = response.error_msg
            return Status.FAILURE
        point = response.points[0]
        if point.status != LiftedPoint.OK:
            self.feedback_message = f"no depth at pixel ({point.pixel.x:.0f}, {point.pixel.y:.0f})"
            return Status.FAILURE
        self._board.set(self._key, point.pose)
        self.feedback_message = f"found in {response.timing.total:.2f} s"
        return Status.SUCCESS

    def terminate(self, new_status: Status) -> None:
        """Drop an answer that arrives after an interruption."""
        if new_status is Status.INVALID and self._answer is not None:
            self._answer.cancel()


def main() -> int:
    """Tick a tree of one behaviour until it ends; returns the exit status."""
    rclpy.init()
    node = rclpy.create_node("tree")
    query = " ".join(sys.argv[1:]) or "the red mug"
    behaviour = PointTo("point_to", node, query, "/target")
    while behaviour.status not in (Status.SUCCESS, Status.FAILURE):
        behaviour.tick_once()
        rclpy.spin_once(node, timeout_sec=0.1)
    print(behaviour.feedback_message)
    rclpy.shutdown()
    return 0 if behaviour.status is Status.SUCCESS else 1


if __name__ == "__main__":
    sys.exit(main())
