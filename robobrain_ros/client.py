# SPDX-License-Identifier: Apache-2.0
"""Clients of the node's services and lifecycle: awaitable in a node of yours, or blocking."""

from __future__ import annotations

import threading
import time
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.client import Client
from rclpy.node import Node
from rclpy.task import Future

from robobrain_ros.core.tasks import TASKS
from robobrain_ros.ros.executors import SpinThread
from robobrain_ros.ros.responses import service_type
from robobrain_ros.srv import Ask, GetAffordance, GroundObject, PointTo, PredictTrajectory

_NAMES = {service_type(task): task.service for task in TASKS.values()}
_POLL_S = 0.05  # for a service that isn't there yet


class NoAnswer(Exception):
    """The service isn't there, or did not answer in time; the message names it."""


class AsyncBrainClient:
    """Calls one `robobrain` node from a node of yours, without ever blocking or spinning.

    Every method returns an rclpy Future at once: await it in a callback that is a coroutine
    (`async def`), or add a callback to it. Whoever spins your node completes it. A request waits
    for its service to be there, for as long as that takes: cancel the future to give it up.
    """

    def __init__(self, node: Node, brain: str = "robobrain") -> None:
        self._node, self._brain = node, brain
        # A coroutine that waits holds its own callback group: the answer must come in another.
        self._group = ReentrantCallbackGroup()
        self._clients: dict[tuple[type, str], Client] = {}

    def point_to(self, query: str, **fields: Any) -> Future:
        """PointTo.Response: points on what `query` describes; fields: the request's others."""
        return self.send(PointTo.Request(query=query, **fields))

    def get_affordance(self, task: str, **fields: Any) -> Future:
        """GetAffordance.Response: where a gripper should touch for `task`."""
        return self.send(GetAffordance.Request(task=task, **fields))

    def predict_trajectory(self, task: str, **fields: Any) -> Future:
        """PredictTrajectory.Response: the gripper's way for `task`."""
        return self.send(PredictTrajectory.Request(task=task, **fields))

    def ground_object(self, query: str, **fields: Any) -> Future:
        """GroundObject.Response: the box of what `query` describes."""
        return self.send(GroundObject.Request(query=query, **fields))

    def ask(self, query: str, **fields: Any) -> Future:
        """Ask.Response: an answer in words."""
        return self.send(Ask.Request(query=query, **fields))

    def send(self, request: Any) -> Future:
        """The response to a request of any of the node's services."""
        client = self.client_for(request)
        if client.service_is_ready():
            return client.call_async(request)
        answer = Future()

        def when_ready() -> None:
            if not answer.cancelled() and not client.service_is_ready():
                return
            self._node.destroy_timer(timer)
            if not answer.cancelled():
                sent = client.call_async(request)
                sent.add_done_callback(lambda done: answer.set_result(done.result()))

        timer = self._node.create_timer(_POLL_S, when_ready, callback_group=self._group)
        return answer

    def client_for(self, request: Any) -> Client:
        """The rclpy client that a request goes through; made at its first use."""
        service = next(service for service in _NAMES if isinstance(request, service.Request))
        return self.client(service, f"{self._brain}/{_NAMES[service]}")

    def client(self, service: type, name: str) -> Client:
        """The rclpy client of any service."""
        if (service, name) not in self._clients:
            self._clients[service, name] = self._node.create_client(
                service, name, callback_group=self._group
            )
        return self._clients[service, name]


class BrainClient:
    """The same, blocking. Use as a context manager; rclpy must be initialised.

    It spins a node of its own on a thread of its own, so it may be used from any thread but never
    from an rclpy callback, which must not block: use `AsyncBrainClient` there.
    """

    def __init__(self, brain: str = "robobrain", name: str = "brain_client") -> None:
        # Without an EventsExecutor each answer would wait on the parameters' six services, too.
        self._node = rclpy.create_node(name, start_parameter_services=False)
        self._brain = brain
        self._async = AsyncBrainClient(self._node, brain)
        self._spinner = SpinThread(name, events=True)
        self._spinner.executor.add_node(self._node)
        self._spinner.start()

    def __enter__(self) -> BrainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()
        self._node.destroy_node()

    def point_to(self, query: str, **fields: Any) -> PointTo.Response:
        """Point at what `query` describes; `fields` are the request's other fields."""
        return self.send(PointTo.Request(query=query, **fields))

    def get_affordance(self, task: str, **fields: Any) -> GetAffordance.Response:
        """Find where a gripper should touch for `task`."""
        return self.send(GetAffordance.Request(task=task, **fields))

    def predict_trajectory(self, task: str, **fields: Any) -> PredictTrajectory.Response:
        """Predict the gripper's way for `task`."""
        return self.send(PredictTrajectory.Request(task=task, **fields))

    def ground_object(self, query: str, **fields: Any) -> GroundObject.Response:
        """Find the box of what `query` describes."""
        return self.send(GroundObject.Request(query=query, **fields))

    def ask(self, query: str, **fields: Any) -> Ask.Response:
        """Ask a question in words."""
        return self.send(Ask.Request(query=query, **fields))

    def send(self, request: Any, timeout_s: float = 60.0) -> Any:
        """Send a request of any of the node's services; raises NoAnswer in the end."""
        return self._answer(self._async.client_for(request), request, timeout_s)

    def wait_for_node(self, timeout_s: float) -> str:
        """Wait until the node answers and return its lifecycle state.

        Asks again and again: a reply sent while DDS still discovers the client can get lost.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                return self.state(timeout_s=min(2.0, timeout_s))
            except NoAnswer:
                if time.monotonic() > deadline:
                    raise

    def configure(self, timeout_s: float = 600.0) -> bool:
        """Load the model; returns whether that succeeded (the node's log says why not)."""
        return self.transition(Transition.TRANSITION_CONFIGURE, timeout_s)

    def activate(self) -> bool:
        """Subscribe to the cameras and serve."""
        return self.transition(Transition.TRANSITION_ACTIVATE)

    def deactivate(self) -> bool:
        """Stop to serve; the model stays loaded."""
        return self.transition(Transition.TRANSITION_DEACTIVATE)

    def cleanup(self) -> bool:
        """Free the model."""
        return self.transition(Transition.TRANSITION_CLEANUP)

    def transition(self, transition_id: int, timeout_s: float = 60.0) -> bool:
        """Trigger a lifecycle transition by its id of lifecycle_msgs/Transition."""
        request = ChangeState.Request(transition=Transition(id=transition_id))
        return self.call(ChangeState, f"{self._brain}/change_state", request, timeout_s).success

    def state(self, timeout_s: float = 10.0) -> str:
        """Return the lifecycle state's label, e.g. `active`."""
        name = f"{self._brain}/get_state"
        return self.call(GetState, name, GetState.Request(), timeout_s).current_state.label

    def call(self, service: type, name: str, request: Any, timeout_s: float) -> Any:
        """Call any service, once, and block until it answers; raises NoAnswer."""
        return self._answer(self._async.client(service, name), request, timeout_s)

    def _answer(self, client: Client, request: Any, timeout_s: float) -> Any:
        deadline = time.monotonic() + timeout_s
        name = client.srv_name
        if not client.wait_for_service(timeout_s):
            raise NoAnswer(f"There is no service {name} after {timeout_s:.0f} s: start the node.")
        answered = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(max(0.0, deadline - time.monotonic())):
            client.remove_pending_request(future)
            raise NoAnswer(f"{name} did not answer within {timeout_s:.0f} s.")
        return future.result()
