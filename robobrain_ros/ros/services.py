# SPDX-License-Identifier: Apache-2.0
"""The services: a request is checked, gets a snapshot and a transform, and is answered."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

from rclpy.lifecycle import LifecycleNode
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from robobrain_ros.core.answered_request import AnsweredRequest, ResultListener
from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import Family
from robobrain_ros.core.input_text import sanitize_error
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.parsing import AnswerError, EmptyAnswer, UnparsableAnswer
from robobrain_ros.core.pipeline import Query, infer
from robobrain_ros.core.requests import Generation, GenerationRequest, Report
from robobrain_ros.core.tasks import TASKS, Task, TaskKind
from robobrain_ros.engines.base import (
    Engine,
    EngineBusy,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
    Priority,
)
from robobrain_ros.ros import conversions
from robobrain_ros.ros.acquisition import Acquisition, Poses
from robobrain_ros.ros.camera import Camera, Snapshot, nanoseconds
from robobrain_ros.ros.event_loop import EventLoop, Send
from robobrain_ros.ros.metrics import Metrics
from robobrain_ros.ros.publishers import AnswerDisplay, ResultPublisher
from robobrain_ros.ros.request_checks import has_own_image, query_from, timeout_from
from robobrain_ros.ros.responses import fill_response, service_type
from robobrain_ros.tf_projection import (
    LiftOptions,
    LiftParameters,
    LiftStatus,
    PathHeight,
    TransformLookup,
    TransformUnavailable,
)

_ERROR_CODES = (
    (UnparsableAnswer, ErrorCode.UNPARSABLE_ANSWER),
    (EmptyAnswer, ErrorCode.EMPTY_ANSWER),
    (TransformUnavailable, ErrorCode.TF_ERROR),
    (EngineOutOfMemory, ErrorCode.OUT_OF_MEMORY),
    (EngineBusy, ErrorCode.BUSY),
    (EngineUnavailable, ErrorCode.ENGINE_UNAVAILABLE),
    (EngineError, ErrorCode.BAD_REQUEST),  # what is left: a request that this model can't take
)


@dataclass
class Session:
    """Engine, cameras and transforms of an active node."""

    engine: Engine
    cameras: dict[str, Camera]
    transforms: TransformLookup


@dataclass(frozen=True, eq=False)
class _View:
    """A snapshot and where it was taken."""

    snapshot: Snapshot
    poses: Poses

    @property
    def header(self) -> Header:
        """Stamp and optical frame of the image."""
        return self.snapshot.color.header

    @property
    def target_header(self) -> Header:
        """Stamp of the image, and frame of the 3D positions."""
        return Header(stamp=self.header.stamp, frame_id=self.poses.target_frame)


@dataclass(frozen=True)
class _Run:
    """One request under way: when it came (time.monotonic), what ends it, who is told."""

    started: float
    stop: StopSignal
    report: Report | None
    send: Send | None


class RequestServer:
    """Serves the node's services from construction on; without a session they say NOT_ACTIVE.

    Every answered request goes to `metrics`, the topics and TF, and whoever `add_listener` adds.
    """

    def __init__(self, node: LifecycleNode, loop: EventLoop) -> None:
        self.session: Session | None = None
        self.metrics = Metrics()
        self._listeners: list[ResultListener] = [
            self.metrics,
            ResultPublisher(node),
            AnswerDisplay(node),
        ]
        self._underway: set[StopSignal] = set()
        self._numbers = count(1)
        self._node = node
        self._loop = loop
        self._acquisition = Acquisition(node, loop)
        for task in TASKS.values():
            serve = partial(self._serve, task)
            interface = service_type(task)
            loop.create_service(interface, f"~/{task.service}", serve)

    def add_listener(self, listener: ResultListener) -> None:
        """Tell `listener` of every answered request from now on."""
        self._listeners.append(listener)

    def end_session(self, reason: BrainError) -> None:
        """Stop every request with `reason`, unsubscribe the cameras and refuse what comes."""
        session, self.session = self.session, None
        if session is None:
            return
        for stop in list(self._underway):  # a copy: requests end meanwhile
            stop.set(reason)
        for camera in session.cameras.values():
            camera.close()
        session.engine.clear_cache()

    def drain(self, timeout_s: float) -> None:
        """Wait until every request has its answer. Never on the executor's thread."""
        deadline = time.monotonic() + timeout_s
        while self._underway and time.monotonic() < deadline:
            time.sleep(0.01)

    async def _serve(self, task: Task, request: Any, response: Any, send: Send) -> Any:
        text = getattr(request, task.fields["text"])
        return await self.serve(task.kind, text, request, response, send=send)

    async def serve(
        self,
        kind: TaskKind | None,
        text: str,
        request: Any,
        response: Any,
        stop: StopSignal | None = None,
        report: Report | None = None,
        send: Send | None = None,
    ) -> Any:
        """Fill the response of a service or the action, whose fields are alike; never raises.

        kind: None for a task that there isn't. stop: ends the request early; its deadline is set
        here. report: told of stages and text, on the engine's thread. send: takes the response as
        soon as it is an answer, on that thread.
        """
        started = time.monotonic()
        stop = stop or StopSignal(math.inf)
        try:
            await self._answer(kind, text, request, response, _Run(started, stop, report, send))
        # An exception that leaves a callback ends rclpy's executor.
        except Exception as error:  # noqa: BLE001
            failure = as_brain_error(error)
            if failure is None:
                self._node.get_logger().error(traceback.format_exc())
                failure = BrainError(
                    ErrorCode.ENGINE_UNAVAILABLE,
                    f"Internal error {error!r}: please report it with the node's log.",
                )
            self.metrics.failed(failure)
            total = time.monotonic() - started
            response.success = False
            response.error_code = int(failure.code)
            response.error_msg = sanitize_error(str(failure))
            if isinstance(error, AnswerError) and error.generation is not None:
                response.answer = error.answer
                response.timing = conversions.timing(error.generation, 0.0, total)
            response.timing.total = total
            name = "infer" if kind is None else kind.value
            self._node.get_logger().warning(f"{name}: {failure.code.name}: {response.error_msg}")
        return response

    async def _answer(
        self,
        kind: TaskKind | None,
        text: str,
        request: Any,
        response: Any,
        run: _Run,
    ) -> None:
        session = self.session
        if session is None:
            raise _not_active(self._node)
        limit = self._value("max_new_tokens")
        family = session.engine.capabilities.family
        query = query_from(kind, text, request, family, session.cameras, limit)
        stop = run.stop
        stop.deadline = run.started + timeout_from(request, self._value("request_timeout"))
        self._underway.add(stop)
        try:
            view = await self._view(request, query, session, stop)
            response.header = view.header
            work = self._infer(family, query, view, run, response)
            job = session.engine.run(
                work,
                priority=Priority.BACKGROUND if query.expects_long_answer else Priority.PERCEPTION,
                stop=stop,
            )
            follow_ups = await self._loop.wait_for(job)
        except CancelledError:  # the node was cleaned up while the request was queued
            stop.set(_not_active(self._node))
            stop.check()
            raise
        finally:
            self._underway.discard(stop)
        # The client first, also that of the action: listeners are for whoever looks on.
        for follow_up in follow_ups:
            self._loop.call_soon(self._guarded, follow_up)

    async def _view(self, request: Any, query: Query, session: Session, stop: StopSignal) -> _View:
        """Wait for the image that the request asks for, and for where it was taken."""
        if not query.task.needs_image:
            return _View(Snapshot(Image()), Poses("", None))
        if has_own_image(request):
            snapshot = Snapshot(request.image)
        else:
            camera = session.cameras[request.camera or next(iter(session.cameras))]
            snapshot = await self._acquisition.snapshot(
                request, camera, query.task.needs_depth, stop
            )
        snapshot, poses = await self._acquisition.poses(request, snapshot, session.transforms, stop)
        self._note_missing_3d(snapshot, poses)
        return _View(snapshot, poses)

    def _infer(
        self, family: Family, query: Query, view: _View, run: _Run, response: Any
    ) -> Generator[GenerationRequest, Generation, list[Callable[[], None]]]:
        """Run on the engine's thread, as its work: answer, then tell the listeners.

        Returns what these want to have done on the executor's thread.
        """
        waited = time.monotonic() - run.started
        options = self._lift_options()

        def observe() -> Observation:
            return conversions.observation(view.snapshot, view.poses, options)

        result, seen = yield from infer(family, query, observe, run.stop, run.report)
        total = time.monotonic() - run.started
        try:
            fill_response(response, result, view.target_header)
        except AnswerError as error:
            error.answer, error.generation = result.answer.text, result.generation
            raise
        response.timing = conversions.timing(result.generation, result.lift_s, total, waited)
        if run.send is not None:
            run.send(response)
        answered = AnsweredRequest(
            id=f"{query.kind.value}_{next(self._numbers)}",
            text=query.text,
            stamp_ns=nanoseconds(view.header.stamp),
            camera_frame=view.header.frame_id,
            target_frame=view.poses.target_frame,
            result=result,
            seconds=total,
        )
        follow_ups = [
            self._guarded(partial(listener.on_result, answered, seen))
            for listener in self._listeners
        ]
        return [follow_up for follow_up in follow_ups if follow_up is not None]

    def _guarded(self, call: Callable[[], Any]) -> Any:
        """Call a listener's code; what it raises is logged.

        Who asked has the answer, and an exception that leaves a task ends rclpy's executor.
        """
        try:
            return call()
        except Exception:  # noqa: BLE001
            self._node.get_logger().error(f"Can't publish an answer: {traceback.format_exc()}")
            return None

    def _value(self, name: str) -> Any:
        return self._node.get_parameter(name).value

    def _lift_options(self) -> LiftOptions:
        sensor = ("min_depth", "max_depth", "depth_noise", "depth_noise_floor", "pixel_noise")
        return LiftOptions(
            LiftParameters(**{name: self._value(name) for name in sensor}),
            PathHeight(self._value("path_height")),
            self._value("path_clearance"),
        )

    def _note_missing_3d(self, snapshot: Snapshot, poses: Poses) -> None:
        if poses.target_from_camera is None:
            self.metrics.missing_3d(LiftStatus.NO_TRANSFORM.name)
        elif snapshot.depth_status not in (LiftStatus.OK, LiftStatus.NO_DEPTH_CAMERA):
            self.metrics.missing_3d(snapshot.depth_status.name)
        if snapshot.reason:
            self._node.get_logger().warning(
                f"No depth for this answer: {snapshot.reason}", throttle_duration_sec=5.0
            )


def as_brain_error(error: Exception) -> BrainError | None:
    """Give a known failure its code; None for one that nobody expected."""
    if isinstance(error, BrainError):
        return error
    for kind, code in _ERROR_CODES:
        if isinstance(error, kind):
            return BrainError(code, str(error))
    return None


def _not_active(node: Any) -> BrainError:
    name = node.get_fully_qualified_name()
    if node.is_loading:
        return BrainError(
            ErrorCode.NOT_ACTIVE,
            f"The node {name} is loading its model: ask again when it is active.",
        )
    return BrainError(
        ErrorCode.NOT_ACTIVE,
        f"The node {name} is not active: configure and activate it "
        f"(ros2 lifecycle set {name} configure, then activate).",
    )
