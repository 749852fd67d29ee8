# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `robobrain`: parameters, wiring and transitions."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

import rclpy
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState
from rcl_interfaces.msg import SetParametersResult
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from tf2_ros import Buffer, TransformException, TransformListener

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.engines import create_engine
from robobrain_ros.engines.base import Engine, EngineError
from robobrain_ros.engines.local.scheduler import EngineWorker
from robobrain_ros.ros import parameters
from robobrain_ros.ros.actions import InferAction
from robobrain_ros.ros.camera import Camera, Topics
from robobrain_ros.ros.diagnostics import Diagnostics, Health
from robobrain_ros.ros.event_loop import EventLoop
from robobrain_ros.ros.executors import SpinThread, until_signalled, wait_until_set
from robobrain_ros.ros.services import RequestServer, Session
from robobrain_ros.tf_projection import TransformLookup

_UNLOAD_S = 60.0
_DRAIN_S, _CLOSE_S = 1.0, 0.5  # of the two seconds in which a signal should end the process
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 32 << 20
_ARENAS = 2


def _caught(transition: Callable) -> Callable:
    """Log what a transition raises and return FAILURE: rclpy would swallow it."""

    def guarded(self: BrainNode, state: LifecycleState) -> TransitionCallbackReturn:
        try:
            return transition(self, state)
        except Exception as error:  # noqa: BLE001
            self.get_logger().error(f"{transition.__name__} failed: {error!r}")
            return TransitionCallbackReturn.FAILURE

    return guarded


class BrainNode(LifecycleNode):
    """Answers words about camera images with pixels and 3D poses.

    executor: spins this node, `cameras` (images and TF) spins on an executor of its own thread.
    Nothing here waits for the model: the engine lives on its worker's thread, and whatever takes
    long is a coroutine that awaits it.
    """

    def __init__(self, executor: Executor, cameras: Node) -> None:
        super().__init__("robobrain")
        self._cameras = cameras
        self._loop = EventLoop(self, executor)
        self._worker: EngineWorker | None = None
        self._engine: Engine | None = None
        self._tf: TransformListener | None = None
        self._changing = False
        self.add_on_set_parameters_callback(self._on_parameters)
        parameters.declare(self)
        self._follow_clock([self.get_parameter("use_sim_time")])
        self.add_post_set_parameters_callback(self._follow_clock)
        self._requests = RequestServer(self, self._loop)
        self._action = InferAction(self, self._loop, self._requests)
        self._diagnostics = Diagnostics(self, self._describe)
        self._make_change_state_awaitable()
        if self.get_parameter("autostart").value:
            self._loop.call_soon(self._loop.spawn, self._autostart())

    def close(self) -> bool:
        """Answer what is under way and free the model; for the main thread, at the end.

        Returns whether the model's thread has ended: loading can't be interrupted.
        """
        self._end_session()
        self._requests.drain(_DRAIN_S)
        return self._worker is None or self._worker.close(_CLOSE_S)

    # Transitions. The slow part of each (loading, freeing) is awaited around it in _change_state.

    @_caught
    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        if self._engine is None:
            return TransitionCallbackReturn.FAILURE
        buffer = Buffer(node=self._cameras)
        self._tf = TransformListener(buffer, self._cameras)
        self._transforms = TransformLookup(buffer, (TransformException,))
        return TransitionCallbackReturn.SUCCESS

    @_caught
    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        tolerance = self.get_parameter("sync_tolerance").value
        names = self.get_parameter("cameras").value
        cameras = {
            name: Camera(self._cameras, name, Topics.of(self, name), tolerance) for name in names
        }
        self._requests.session = Session(self._engine, self._worker, cameras, self._transforms)
        self.get_logger().info(f"Active: serving {', '.join(names)}.")
        return super().on_activate(state)

    @_caught
    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_session()
        return super().on_deactivate(state)

    @_caught
    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_transforms()
        return TransitionCallbackReturn.SUCCESS

    @_caught
    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        self._end_session()
        self._end_transforms()
        return TransitionCallbackReturn.SUCCESS

    def _make_change_state_awaitable(self) -> None:
        """Put `_change_state` in front of rclpy's own service callback, which can't await."""
        suffix = "/change_state"
        service = next(s for s in self.services if s.srv_name.endswith(suffix))
        self._rclpy_change_state = service.callback
        self._loop.serve(service, lambda asked, answer, _: self._change_state(asked, answer))

    async def _change_state(
        self, request: ChangeState.Request, response: ChangeState.Response
    ) -> ChangeState.Response:
        """Load before `configure` and free after `cleanup`, with the executor free meanwhile."""
        if self._changing:
            self.get_logger().warning("A transition is under way: ask again when it has ended.")
            response.success = False
            return response
        self._changing = True
        try:
            unconfigured = self._state() == State.PRIMARY_STATE_UNCONFIGURED
            if unconfigured and _wants(request, Transition.TRANSITION_CONFIGURE, "configure"):
                await self._load()
            response = self._rclpy_change_state(request, response)
        except RuntimeError as error:  # rclpy's RCLError: the transition is not possible now
            self.get_logger().warning(f"Refused the transition {request.transition}: {error}")
            response.success = False
        finally:
            if self._state() in (State.PRIMARY_STATE_UNCONFIGURED, State.PRIMARY_STATE_FINALIZED):
                await self._unload()
            self._changing = False
        return response

    async def _autostart(self) -> None:
        for transition in (Transition.TRANSITION_CONFIGURE, Transition.TRANSITION_ACTIVATE):
            request = ChangeState.Request(transition=Transition(id=transition))
            if not (await self._change_state(request, ChangeState.Response())).success:
                self.get_logger().error("Autostart failed: see above, then configure by hand.")
                return

    def _state(self) -> int:
        return self._state_machine.current_state[0]

    # What transitions do

    async def _load(self) -> None:
        value = {spec.name: self.get_parameter(spec.name).value for spec in parameters.SPECS}
        started = time.monotonic()
        self.get_logger().info(f"Loading {value['model']} ({value['quantization']}) …")
        try:
            for name in value["cameras"]:
                parameters.declare_camera(self, name)
            self._worker = EngineWorker(
                lambda: create_engine(
                    value["model"],
                    quantization=value["quantization"],
                    device=value["device"],
                    max_pixels=value["max_pixels"],
                    family=value["family"],
                    cache_bytes=value["image_cache"] * 1_000_000,
                    grammar=value["grammar"],
                    progress=self.get_logger().info,
                ),
                max_pending=value["max_pending"],
                max_batch=value["max_batch"],
                on_failure=self.get_logger().fatal,
            )
            self._engine = await self._loop.wait_for(self._worker.ready)
        except EngineError as error:
            self.get_logger().error(f"Can't load the model: {error}")
        # Whatever else a checkpoint makes the libraries raise.
        except Exception as error:  # noqa: BLE001
            self.get_logger().error(f"Can't load the model: {error!r}")
        else:
            free = self._engine.memory().free / 1e6
            self.get_logger().info(
                f"Loaded {self._engine.description}, in {time.monotonic() - started:.1f} s; "
                f"{free:.0f} MB are free beside it."
            )

    async def _unload(self) -> None:
        worker, self._worker, self._engine = self._worker, None, None
        if worker is not None:
            await self._loop.poll_until(lambda: worker.close(timeout=0) or None, _UNLOAD_S)

    def _describe(self) -> Health:
        worker, state = self._worker, self._state_machine.current_state[1]
        model = self._engine.description if self._engine is not None else "none"
        session, now = self._requests.session, self.get_clock().now().nanoseconds
        return Health(
            state,
            model,
            running=worker.running if worker else 0,
            waiting=worker.pending if worker else 0,
            memory=worker.memory if worker else None,
            figures=self._requests.metrics.values(),
            failures=self._requests.metrics.new_failures(),
            cameras={n: c.topics(now) for n, c in session.cameras.items()} if session else {},
            max_image_age_s=self.get_parameter("max_image_age").value,
            failure=str(worker.failure) if worker and worker.failure else "",
        )

    def _end_session(self) -> None:
        self._requests.end_session(
            BrainError(
                ErrorCode.NOT_ACTIVE,
                "The node was deactivated before the answer was complete: activate it again.",
            )
        )

    def _end_transforms(self) -> None:
        tf, self._tf = self._tf, None
        if tf is not None:
            self._cameras.executor.create_task(_end, tf)  # its thread, as in Camera.close

    def _on_parameters(self, new: list[Parameter]) -> SetParametersResult:
        reason = parameters.refuse(self, new, configured=self._worker is not None)
        return SetParametersResult(successful=not reason, reason=reason)

    def _follow_clock(self, new: list[Parameter]) -> None:
        """Give the cameras' node this node's clock: TF is looked up and forgotten by it."""
        clock = [parameter for parameter in new if parameter.name == "use_sim_time"]
        if clock and self._cameras.executor is None:
            self._cameras.set_parameters(clock)
        elif clock:
            self._cameras.executor.create_task(self._cameras.set_parameters, clock)


def _end(tf: TransformListener) -> None:
    """End a listener and its buffer, which would keep a service and a callback on the node."""
    tf.unregister()
    tf.buffer.jump_handle.unregister()
    tf.node.destroy_service(tf.buffer.srv)


def _wants(request: ChangeState.Request, transition_id: int, label: str) -> bool:
    asked = request.transition
    return asked.label == label if asked.label else asked.id == transition_id


def main(args: list[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status."""
    stop = until_signalled()
    _keep_freed_memory()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(stop)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        get_logger("robobrain").fatal(f"Can't start: {error}")
        return 1
    finally:
        rclpy.shutdown()


def _keep_freed_memory() -> None:
    """Have glibc keep what images leave behind: given back and taken again, each page of each frame
    would be a fault.

    In few arenas: each new engine thread would fill another one, up to eight a core.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)


def _run(stop: threading.Event) -> int:
    failed = threading.Event()

    def on_failure() -> None:
        failed.set()
        stop.set()

    camera_thread = SpinThread("robobrain_cameras", on_failure, events=True)
    main_thread = SpinThread("robobrain", on_failure, events=True)
    # Named for this node alone: a __node remap is meant for `robobrain`.
    cameras = rclpy.create_node(
        "robobrain_cameras",
        cli_args=["--ros-args", "-r", "__node:=robobrain_cameras"],
        start_parameter_services=False,  # each frame would wait on them, too
    )
    brain = BrainNode(main_thread.executor, cameras)
    camera_thread.executor.add_node(cameras)
    main_thread.executor.add_node(brain)
    camera_thread.start()
    main_thread.start()
    try:
        wait_until_set(stop)
    finally:
        ended = brain.close()
        main_thread.stop()
        camera_thread.stop()
        brain.destroy_node()
        cameras.destroy_node()
    if not ended:
        _exit_now(int(failed.is_set()))
    return int(failed.is_set())


def _exit_now(status: int) -> NoReturn:
    """End the process beside a thread that can't be ended: it holds nothing but memory."""
    get_logger("robobrain").info("Ending without waiting for the model.")
    rclpy.shutdown()
    sys.stdout.flush()
    os._exit(status)


if __name__ == "__main__":
    sys.exit(main())
