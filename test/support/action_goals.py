# SPDX-License-Identifier: Apache-2.0
"""A client of the action `~/infer` that remembers what it was told."""

from __future__ import annotations

import threading
from typing import Any

from rclpy.action import ActionClient
from rclpy.node import Node

from robobrain_ros.action import Infer

PATIENCE_S = 30.0


class Goal:
    """One goal, with a client of its own that goes when the goal has ended.

    Everything is sent on the thread that spins the node: rclpy's action client has no lock, and an
    answer to what another thread sends may come before the client knows what it has sent. There
    the client is destroyed, too: destroyed under an executor that waits for it, it ends its thread.
    """

    def __init__(
        self,
        node: Node,
        brain: str = "robobrain",
        client: ActionClient | None = None,
        **fields: Any,
    ) -> None:
        self.feedback: list[Infer.Feedback] = []
        self.news = threading.Event()
        self._executor = node.executor
        self._client = client or action_client(node, brain)
        self._handle: Any = None
        self._outcome: Any = None
        self._accepted, self._ended = threading.Event(), threading.Event()
        self._executor.create_task(self._send, Infer.Goal(**fields))

    def cancel(self) -> None:
        """Ask for the end, and don't wait for it."""
        assert self._accepted.wait(PATIENCE_S)
        self._executor.create_task(self._cancel)

    def outcome(self) -> tuple[int, Infer.Result]:
        """Wait for the end: status and result."""
        assert self._ended.wait(PATIENCE_S)
        self._executor.create_task(self._client.destroy)
        return self._outcome.status, self._outcome.result

    def wait_for(self, stage: int) -> None:
        """Wait for a feedback of this stage."""
        while all(one.stage != stage for one in self.feedback):
            assert self.news.wait(PATIENCE_S)
            self.news.clear()

    def _send(self, goal: Infer.Goal) -> None:
        sent = self._client.send_goal_async(goal, feedback_callback=self._hear)
        sent.add_done_callback(self._on_accepted)

    def _cancel(self) -> None:
        self._handle.cancel_goal_async()

    def _hear(self, message: Any) -> None:
        self.feedback.append(message.feedback)
        self.news.set()

    def _on_accepted(self, future: Any) -> None:
        self._handle = future.result()
        self._handle.get_result_async().add_done_callback(self._on_ended)
        self._accepted.set()

    def _on_ended(self, future: Any) -> None:
        self._outcome = future.result()
        self._ended.set()


def action_client(node: Node, brain: str = "robobrain") -> ActionClient:
    """A client that has found its server."""
    client = ActionClient(node, Infer, f"{brain}/infer")
    assert client.wait_for_server(PATIENCE_S)
    return client
