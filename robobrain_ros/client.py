# SPDX-License-Identifier: Apache-2.0
"""A small typed client of the node's services and lifecycle, blocking, on a thread of its own."""

from __future__ import annotations

import threading
import time
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.client import Client

from robobrain_ros.spinning import SpinThread
from robobrain_ros.srv import Ask, GetAffordance, GroundObject, PointTo, PredictTrajectory

_NAMES = {
    PointTo: "point_to",
    GetAffordance: "get_affordance",
    PredictTrajectory: "predict_trajectory",
    GroundObject: "ground_object",
    Ask: "ask",
}


class NoAnswer(Exception):
    """The service isn't there, or did not answer in time; the message names it."""


class BrainClient:
    """Calls one `robobrain` node. Use as a context manager; rclpy must be initialised.

    It spins a node of its own on a thread of its own, so it may be used from any thread but never
    from an rclpy callback, which must not block.
    """

    def __init__(self, brain: str = "robobrain", name: str = "brain_client") -> None:
        self.node = rclpy.create_node(name)
        self._brain = brain
        self._clients: dict[tuple[type, str], Client] = {}
        self._spinner = SpinThread(name)
        self._spinner.executor.add_node(self.node)
        self._spinner.start()

    def __enter__(self) -> BrainClient:
        return self

    def __exit__(self, *_: object) -> None:
        self._spinner.stop()
        self.node.destroy_node()

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
        service = next(service for service in _NAMES if isinstance(request, service.Request))
        return self.call(service, f"{self._brain}/{_NAMES[service]}", request, timeout_s)

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
        deadline = time.monotonic() + timeout_s
        client = self._clients.get((service, name))
        if client is None:
            client = self._clients[service, name] = self.node.create_client(service, name)
        if not client.wait_for_service(timeout_s):
            raise NoAnswer(f"There is no service {name} after {timeout_s:.0f} s: start the node.")
        answered = threading.Event()
        future = client.call_async(request)
        future.add_done_callback(lambda _: answered.set())
        if not answered.wait(max(0.0, deadline - time.monotonic())):
            client.remove_pending_request(future)
            raise NoAnswer(f"{name} did not answer within {timeout_s:.0f} s.")
        return future.result()
