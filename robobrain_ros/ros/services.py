# SPDX-License-Identifier: Apache-2.0
"""The services: each request is checked, given a snapshot and a transform, and answered."""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable, Generator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from typing import Any

from rclpy.lifecycle import LifecycleNode
from std_msgs.msg import Header

from robobrain_ros.core.cancellation import StopSignal
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.families import TaskKind, Think
from robobrain_ros.core.input_text import checked_text, sentence
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.parsing import AnswerError, EmptyAnswer, UnparsableAnswer
from robobrain_ros.core.pipeline import Query, infer
from robobrain_ros.core.requests import Generation, GenerationRequest, Report
from robobrain_ros.core.results import Result
from robobrain_ros.engines.base import (
    Engine,
    EngineBusy,
    EngineError,
    EngineOutOfMemory,
    EngineUnavailable,
)
from robobrain_ros.engines.local.scheduler import EngineWorker, Priority
from robobrain_ros.ros import conversions
from robobrain_ros.ros.acquisition import Acquisition, Poses
from robobrain_ros.ros.camera import Camera, Snapshot, nanoseconds
from robobrain_ros.ros.deferred_services import Send, create_deferred_service
from robobrain_ros.ros.event_loop import Waiting
from robobrain_ros.ros.metrics import Tally
from robobrain_ros.ros.publishers import Look, Outputs
from robobrain_ros.srv import Ask, GetAffordance, GroundObject, PointTo, PredictTrajectory
from robobrain_ros.tf_projection import (
    LiftOptions,
    LiftParameters,
    LiftStatus,
    PathHeight,
    TransformLookup,
    TransformUnavailable,
)

MAX_NAME = 1000
"""Characters in the name of a frame; each look-up while it is waited for repeats them."""

SERVICES = (
    ("point_to", PointTo, TaskKind.POINT, "query"),
    ("get_affordance", GetAffordance, TaskKind.AFFORDANCE, "task"),
    ("predict_trajectory", PredictTrajectory, TaskKind.TRAJECTORY, "task"),
    ("ground_object", GroundObject, TaskKind.GROUNDING, "query"),
    ("ask", Ask, TaskKind.ASK, "query"),
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
    """What is there while the node is active."""

    engine: Engine
    worker: EngineWorker
    cameras: dict[str, Camera]
    transforms: TransformLookup


@dataclass(frozen=True)
class _Run:
    """One request under way: when it came (time.monotonic), what ends it, who is told."""

    started: float
    stop: StopSignal
    report: Report | None
    send: Send | None


class RequestServer:
    """Serves the node's services from construction on; without a session they say NOT_ACTIVE."""

    def __init__(self, node: LifecycleNode, waiting: Waiting) -> None:
        self.session: Session | None = None
        self.tally = Tally()
        self._underway: set[StopSignal] = set()
        self._node = node
        self._waiting = waiting
        self._acquisition = Acquisition(node, waiting)
        self._outputs = Outputs(node)
        for name, service, kind, text_field in SERVICES:
            serve = partial(self._serve, kind, text_field)
            create_deferred_service(node, waiting, service, f"~/{name}", serve)

    def end_session(self, reason: BrainError) -> None:
        """Stop every request with `reason`, unsubscribe the cameras and refuse what comes."""
        session, self.session = self.session, None
        if session is None:
            return
        for stop in list(self._underway):  # a copy: requests end meanwhile
            stop.set(reason)
        for camera in session.cameras.values():
            camera.close()
        session.worker.forget()

    def drain(self, timeout_s: float) -> None:
        """Wait until every request has its answer. Never on the executor's thread."""
        deadline = time.monotonic() + timeout_s
        while self._underway and time.monotonic() < deadline:
            time.sleep(0.01)

    async def _serve(
        self, kind: TaskKind, text_field: str, request: Any, response: Any, send: Send
    ) -> Any:
        return await self.serve(kind, getattr(request, text_field), request, response, send=send)

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
            self.tally.failed(failure)
            total = time.monotonic() - started
            response.success = False
            response.error_code = int(failure.code)
            response.error_msg = sentence(str(failure))
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
            raise _not_active()
        query, stop = self._query(kind, text, request, session), run.stop
        stop.deadline = run.started + self._timeout(request)
        self._underway.add(stop)
        try:
            with_depth = query.kind is not TaskKind.ASK
            snapshot = await self._snapshot(request, session, with_depth, stop)
            response.header = snapshot.color.header
            snapshot, poses = await self._acquisition.poses(
                request, snapshot, session.transforms, stop
            )
            self._tell(snapshot, poses)
            header = Header(stamp=snapshot.color.header.stamp, frame_id=poses.target_frame)
            waited = time.monotonic() - run.started

            def answer(result: Result) -> None:
                fill(response, query.kind, result, header)
                total = time.monotonic() - run.started
                response.timing = conversions.timing(
                    result.generation, result.lift_s, total, waited
                )
                if run.send is not None:
                    run.send(response)

            job = session.worker.submit(
                lambda engine: self._infer(engine, query, snapshot, poses, run, answer),
                priority=Priority.TALK if query.is_talk else Priority.PERCEPTION,
                stop=stop,
            )
            result, look = await self._waiting.result(job)
        except CancelledError:  # the node was cleaned up while the request was queued
            stop.set(_not_active())
            stop.check()
            raise
        finally:
            self._underway.discard(stop)
        self.tally.answered(query.kind, result.generation, response.timing.total)
        # The client first, also that of the action: topics are for whoever looks on.
        self._waiting.later(self._publish, result, query.text, response, look, poses.target_frame)

    def _publish(self, *answered: Any) -> None:
        try:
            self._outputs.publish(*answered)
        # An exception that leaves a task ends rclpy's executor.
        except Exception:  # noqa: BLE001
            self._node.get_logger().error(f"Can't publish: {traceback.format_exc()}")

    def _infer(
        self,
        engine: Engine,
        query: Query,
        snapshot: Snapshot,
        poses: Poses,
        run: _Run,
        answer: Callable[[Result], None],
    ) -> Generator[GenerationRequest, Generation, tuple[Result, Look]]:
        """Run on the engine's thread, as the worker's work; `answer` takes the result there."""

        options = self._lift_options()

        def observe() -> Observation:
            return conversions.observation(snapshot, poses, options)

        result, seen = yield from infer(engine, query, observe, run.stop, run.report)
        answer(result)
        return result, self._outputs.look(seen.rgb, result, query.text, snapshot.color.header)

    def _lift_options(self) -> LiftOptions:
        def value(name: str) -> Any:
            return self._node.get_parameter(name).value

        sensor = ("min_depth", "max_depth", "depth_noise", "depth_noise_floor", "pixel_noise")
        return LiftOptions(
            LiftParameters(**{name: value(name) for name in sensor}),
            PathHeight(value("path_height")),
            value("path_clearance"),
        )

    def _tell(self, snapshot: Snapshot, poses: Poses) -> None:
        if poses.target_from_camera is None:
            self.tally.lacked(LiftStatus.NO_TRANSFORM.name)
        elif snapshot.depth_status not in (LiftStatus.OK, LiftStatus.NO_DEPTH_CAMERA):
            self.tally.lacked(snapshot.depth_status.name)
        if snapshot.absence:
            self._node.get_logger().warning(
                f"No depth for this answer: {snapshot.absence}", throttle_duration_sec=5.0
            )

    # Checks: everything that can be refused is refused before anything waits.

    def _query(self, kind: TaskKind | None, text: str, request: Any, session: Session) -> Query:
        if kind is None:
            raise _bad(f"There is no task {request.task}: use a constant of Infer, TASK_POINT, ….")
        text = checked_text(text)
        if request.stamp.sec < 0:
            raise _bad(f"The stamp is {request.stamp.sec} s: it must be positive, or 0.")
        if len(request.target_frame) > MAX_NAME:
            raise _bad(f"target_frame has more than {MAX_NAME} characters: no frame's name has.")
        if request.think not in list(Think):
            raise _bad(f"think is {request.think}: use THINK_DEFAULT, THINK_OFF or THINK_ON.")
        family = session.engine.family
        if request.think == Think.ON and not family.thinks:
            raise _bad(f"Models of the family {family.name} don't think: use THINK_DEFAULT.")
        if kind is TaskKind.ASK and (request.images or request.window_s):
            raise _bad("Several images and time windows are not supported yet: send one image.")
        if request.camera and request.camera not in session.cameras:
            names = ", ".join(session.cameras)
            raise _bad(f"There is no camera '{request.camera}': the parameter cameras has {names}.")
        return Query(
            kind,
            text,
            Think(request.think),
            getattr(request, "max_points", 0),
            self._node.get_parameter("max_new_tokens").value,
        )

    def _timeout(self, request: Any) -> float:
        if conversions.is_zero(request.timeout):
            return self._node.get_parameter("request_timeout").value
        seconds = nanoseconds(request.timeout) / 1e9
        if seconds <= 0:
            raise _bad(f"The timeout is {seconds} s: it must be positive, or 0 for the default.")
        return seconds

    async def _snapshot(
        self, request: Any, session: Session, with_depth: bool, stop: StopSignal
    ) -> Snapshot:
        if request.image.data or request.image.width or request.image.height:
            return Snapshot(request.image)
        camera = session.cameras[request.camera or next(iter(session.cameras))]
        return await self._acquisition.snapshot(request, camera, with_depth, stop)


def fill(response: Any, kind: TaskKind, result: Result, header: Header) -> None:
    """Put a result into the response of its service or the action; header: target frame and image
    stamp.
    """
    response.success = True
    response.answer = result.answer.text
    response.thinking = result.answer.thinking
    points = [conversions.lifted_point(point, header) for point in result.points]
    if kind in (TaskKind.POINT, TaskKind.TRAJECTORY):
        name = "points" if hasattr(response, "points") else "waypoints"
        setattr(response, name, points)
    if kind is TaskKind.TRAJECTORY:
        response.path = conversions.path(result.points, header)
    if kind in (TaskKind.GROUNDING, TaskKind.AFFORDANCE):
        response.regions = [conversions.lifted_region(region, header) for region in result.regions]


def as_brain_error(error: Exception) -> BrainError | None:
    """Give a known failure its code; None for one that nobody expected."""
    if isinstance(error, BrainError):
        return error
    for kind, code in _ERROR_CODES:
        if isinstance(error, kind):
            return BrainError(code, str(error))
    return None


def _not_active() -> BrainError:
    return BrainError(
        ErrorCode.NOT_ACTIVE,
        "The node is not active: configure and activate it "
        "(ros2 lifecycle set /robobrain configure, then activate).",
    )


def _bad(sentence: str) -> BrainError:
    return BrainError(ErrorCode.BAD_REQUEST, sentence)
