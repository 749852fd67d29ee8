# SPDX-License-Identifier: Apache-2.0
"""Base class of the package's lifecycle nodes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNodeMixin, LifecycleState, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.service import Service

from robobrain_ros.ros.diagnostics import OK, Diagnostics, Part
from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.ros.parameters import AUTOSTART, Spec, declare, refuse

UNLOADED = (State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_FINALIZED)


class TransitionError(Exception):
    """Ends a transition with FAILURE; the message is logged as it is."""


class ManagedNode(LifecycleNodeMixin, Node):
    """Lifecycle node with slow transitions, autostart, diagnostics and a second node for cameras.

    Subclasses override `load`, `configure`, `activate`, `deactivate`, `cleanup`, `unload`, `close`,
    `refuse_parameters` and `diagnose` as needed; none of them has to call the base class. An
    exception in any of the first six is logged; in the first five it also ends the transition with
    FAILURE: the node returns to the state that it came from. Transitions run one at a time.

    executor: spins this node. cameras: subscribes to images and TF; it is spun by an executor on a
    thread of its own, so destroy its entities there (`on_camera_thread`).
    """

    def __init__(
        self, name: str, executor: Executor, cameras: Node, specs: Sequence[Spec] = ()
    ) -> None:
        Node.__init__(self, name)
        # Reentrant, so that get_state is answered while change_state waits for `load`.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self.cameras = cameras
        self.loop = EventLoop(self, executor)
        self._changing = False
        self._loaded = False
        self._get_state = self._lifecycle_service("get_state").callback
        self._specs = specs if AUTOSTART in specs else (*specs, AUTOSTART)
        self.add_on_set_parameters_callback(self._on_parameters)
        declare(self, self._specs)
        self._follow_clock([self.get_parameter("use_sim_time")])
        self.add_post_set_parameters_callback(self._follow_clock)
        change_state = self._lifecycle_service("change_state")
        self._rclpy_change_state = change_state.callback
        self.loop.serve(change_state, lambda request, response, _: self._change_state(request))
        self._diagnostics = Diagnostics(self, self.diagnose)
        if self.get_parameter("autostart").value:
            self.loop.call_soon(self._start)

    # For subclasses

    async def load(self) -> None:
        """Prepare for `configure`, however long it takes; the executor serves meanwhile."""

    def configure(self) -> None:
        """Unconfigured to inactive."""

    def activate(self) -> None:
        """Inactive to active, after which the lifecycle publishers publish."""

    def deactivate(self) -> None:
        """Active to inactive; also called, before `cleanup`, when an active node shuts down."""

    def cleanup(self) -> None:
        """Inactive to unconfigured; also called when the node shuts down. May be called twice."""

    async def unload(self) -> None:
        """Free what `load` has made: after cleanup, shutdown, and a configure that failed."""

    def close(self) -> bool:
        """End the work when the process ends; on the main thread, with the executors spinning.

        Returns whether all threads have ended; if not, the process exits beside them.
        """
        return True

    def refuse_parameters(self, new: Sequence[Parameter]) -> str:
        """Return why the new values can't be taken, or an empty string."""
        configured = self._changing or self.state().id not in UNLOADED
        return refuse(self._specs, new, configured)

    def diagnose(self) -> Iterable[Part]:
        """Parts of the node's /diagnostics, each second."""
        label = self.state().label
        return [Part("state", OK, label, {"state": label})]

    # For everybody

    def state(self) -> State:
        """Lifecycle state: id and label."""
        return self._get_state(GetState.Request(), GetState.Response()).current_state

    @property
    def is_loading(self) -> bool:
        """Whether a transition to configured is under way."""
        return self._changing and self.state().id == State.PRIMARY_STATE_UNCONFIGURED

    def on_camera_thread(self, callback: Callable, *arguments: Any) -> None:
        """Call on the thread that spins `cameras`, or at once before it is spun."""
        if self.cameras.executor is None:
            callback(*arguments)
        else:
            self.cameras.executor.create_task(callback, *arguments)

    # What rclpy calls within a transition

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call `configure`, if `load` has succeeded."""
        if not self._loaded:
            return TransitionCallbackReturn.FAILURE
        return self._guarded(self.configure, partial(super().on_configure, state))

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call `activate`."""
        return self._guarded(self.activate, partial(super().on_activate, state))

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call `deactivate`."""
        return self._guarded(self.deactivate, partial(super().on_deactivate, state))

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call `cleanup`."""
        return self._guarded(self.cleanup, partial(super().on_cleanup, state))

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Call `deactivate` if active, and `cleanup` if configured."""

        def shut_down() -> None:
            if state.state_id == State.PRIMARY_STATE_ACTIVE:
                self.deactivate()
            if state.state_id != State.PRIMARY_STATE_UNCONFIGURED:
                self.cleanup()

        return self._guarded(shut_down, partial(super().on_shutdown, state))

    def _guarded(
        self, hook: Callable[[], None], rclpy_part: Callable[[], TransitionCallbackReturn]
    ) -> TransitionCallbackReturn:
        # rclpy would swallow the exception, and finalize the node.
        try:
            hook()
            return rclpy_part()
        except Exception as error:  # noqa: BLE001
            self._log(hook.__name__, error)
            return TransitionCallbackReturn.FAILURE

    def _log(self, what: str, error: Exception) -> None:
        known = isinstance(error, TransitionError)
        self.get_logger().error(str(error) if known else f"{what} failed: {error!r}")

    # The service change_state

    async def _change_state(self, request: ChangeState.Request) -> ChangeState.Response:
        response = ChangeState.Response(success=False)
        if self._changing:
            self.get_logger().warning("A transition is under way: ask again when it has ended.")
            return response
        self._changing = True
        try:
            unconfigured = self.state().id == State.PRIMARY_STATE_UNCONFIGURED
            if unconfigured and _is_configure(request.transition):
                self._loaded = await self._try(self.load)
            response = self._rclpy_change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError: not possible in this state
            self.get_logger().warning(f"Refused the transition {request.transition}: {error}")
        finally:
            if self.state().id in UNLOADED:
                self._loaded = False
                await self._try(self.unload)
            self._changing = False
        return response

    async def _try(self, hook: Callable) -> bool:
        try:
            await hook()
        # An exception that leaves a coroutine ends the executor.
        except Exception as error:  # noqa: BLE001
            self._log(hook.__name__, error)
            return False
        return True

    def _start(self) -> None:
        self.loop.spawn(self._autostart())

    async def _autostart(self) -> None:
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            if not (await self._change_state(request)).success:
                self.get_logger().error("Autostart failed: see above, then configure by hand.")
                return

    def _lifecycle_service(self, name: str) -> Service:
        return next(one for one in self.services if one.srv_name.endswith(f"/{name}"))

    # Parameters

    def _on_parameters(self, new: list[Parameter]) -> SetParametersResult:
        reason = self.refuse_parameters(new)
        return SetParametersResult(successful=not reason, reason=reason)

    def _follow_clock(self, new: list[Parameter]) -> None:
        """Give the cameras' node this node's clock: TF is looked up and expires by it."""
        clock = [parameter for parameter in new if parameter.name == "use_sim_time"]
        if clock:
            self.on_camera_thread(self.cameras.set_parameters, clock)


def _is_configure(asked: Transition) -> bool:
    if asked.label:
        return asked.label == "configure"
    return asked.id == Transition.TRANSITION_CONFIGURE
