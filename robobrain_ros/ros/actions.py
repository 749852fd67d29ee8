# SPDX-License-Identifier: Apache-2.0
"""The action `~/infer`: any task, with feedback by stage, streamed text, and cancellation."""

from __future__ import annotations

import math
import threading

from rclpy.action import CancelResponse
from rclpy.action.server import ServerGoalHandle
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock
from rclpy.clock_type import ClockType
from rclpy.node import Node

from robobrain_ros.action import Infer
from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.requests import Stage
from robobrain_ros.core.tasks import TaskKind
from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.ros.services import RequestServer

KINDS = {getattr(Infer.Goal, f"TASK_{kind.name}"): kind for kind in TaskKind}
"""Tasks by the goal's constants."""

STAGES = {
    Stage.WAITING: Infer.Feedback.STAGE_WAITING,
    Stage.PREPROCESSING: Infer.Feedback.STAGE_PREPROCESSING,
    Stage.PREFILL: Infer.Feedback.STAGE_PREFILL,
    Stage.DECODING: Infer.Feedback.STAGE_DECODING,
    Stage.LIFTING: Infer.Feedback.STAGE_LIFTING,
}
WATCH_PERIOD_S = 0.5


class InferAction:
    """Executes goals as the services serve requests; one that fails is aborted with its code."""

    def __init__(self, node: Node, loop: EventLoop, requests: RequestServer) -> None:
        self._node = node
        self._loop = loop
        self._requests = requests
        self._stops: dict[bytes, StopSignal] = {}
        self._audiences: dict[bytes, set[bytes]] = {}
        group = ReentrantCallbackGroup()
        self._server = loop.create_action_server(
            Infer, "~/infer", self._execute, cancel_callback=self._cancel
        )
        self._feedback_topic = f"{node.get_fully_qualified_name()}/infer/_action/feedback"
        steady = Clock(clock_type=ClockType.STEADY_TIME)
        node.create_timer(WATCH_PERIOD_S, self._watch, callback_group=group, clock=steady)

    async def _execute(self, handle: ServerGoalHandle) -> Infer.Result:
        goal, key = handle.request, bytes(handle.goal_id.uuid)
        stop = self._stops[key] = StopSignal(math.inf)
        self._audiences[key] = self._audience()
        if handle.is_cancel_requested:  # before this began
            self._cancel(handle)
        feedback = _Feedback(handle, self._loop)
        feedback.report(Stage.WAITING, "", 0)
        try:
            kind = KINDS.get(goal.task)
            result = await self._requests.serve(
                kind, goal.query, goal, Infer.Result(), stop, feedback.report
            )
        finally:
            del self._stops[key], self._audiences[key]
        feedback.close()
        if result.success:
            handle.succeed()
        elif handle.is_cancel_requested:
            handle.canceled()
        else:
            handle.abort()
        return result

    def _cancel(self, handle: ServerGoalHandle) -> CancelResponse:
        self._end(bytes(handle.goal_id.uuid), "The goal was cancelled.")
        return CancelResponse.ACCEPT

    def _watch(self) -> None:
        """Cancel goals whose clients have gone: all that were subscribed when the goal came. (rclpy
        doesn't tell which of them sent it.)
        """
        if not self._stops:
            return
        now = self._audience()
        for key, then in list(self._audiences.items()):
            if then and not then & now:
                self._end(key, "The action's client is gone.")

    def _audience(self) -> set[bytes]:
        """Endpoints that are subscribed to feedback, as every action client is."""
        listeners = self._node.get_subscriptions_info_by_topic(self._feedback_topic)
        return {bytes(listener.endpoint_gid) for listener in listeners}

    def _end(self, key: bytes, sentence: str) -> None:
        stop = self._stops.get(key)
        if stop is not None:
            stop.set(BrainError(ErrorCode.CANCELLED, sentence))


class _Feedback:
    """Publishes reports of the engine's thread on the executor's; a backlog becomes one message."""

    def __init__(self, handle: ServerGoalHandle, loop: EventLoop) -> None:
        self._handle = handle
        self._loop = loop
        self._lock = threading.Lock()
        self._news: Infer.Feedback | None = None
        self._open = True

    def report(self, stage: Stage, text: str, tokens: int) -> None:
        """Take a report; see `engines.base.Report`."""
        with self._lock:
            news, waits = self._news, self._news is not None
            if news is None or news.stage != STAGES[stage]:
                news = Infer.Feedback(stage=STAGES[stage], text=news.text if news else "")
            news.text += text
            news.tokens = tokens
            self._news = news
        if not waits:
            self._loop.call_soon(self._publish)

    def close(self) -> None:
        """Publish the rest, and nothing afterwards."""
        self._publish()
        self._open = False

    def _publish(self) -> None:
        with self._lock:
            news, self._news = self._news, None
        if news is not None and self._open:
            self._handle.publish_feedback(news)
