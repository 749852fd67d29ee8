# SPDX-License-Identifier: Apache-2.0
"""The lifecycle node `robobrain`: parts, wiring and transitions."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import partial
from typing import Any

from rclpy.executors import Executor
from rclpy.node import Node
from rclpy.parameter import Parameter
from tf2_ros import Buffer, TransformException, TransformListener

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.engines.base import Engine, EngineError
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.factory import create_engine
from robobrain_ros.ros import parameters
from robobrain_ros.ros.actions import InferAction
from robobrain_ros.ros.camera import Camera, Topics
from robobrain_ros.ros.diagnostics import Health, Part
from robobrain_ros.ros.managed_node import ManagedNode, TransitionError
from robobrain_ros.ros.node_process import run_node
from robobrain_ros.ros.services import RequestServer, Session
from robobrain_ros.tf_projection import TransformLookup

_UNLOAD_S = 60.0
_DRAIN_S, _CLOSE_S = 1.0, 0.5  # of the two seconds in which a signal should end the process


class BrainNode(ManagedNode):
    """Serves language queries about camera images; returns pixels and 3D poses.

    No callback waits for the model: the engine has a thread of its own, and coroutines on `loop`
    await it. create_engine: makes it, as `engines.factory.create_engine` does.
    """

    def __init__(
        self,
        executor: Executor,
        cameras: Node,
        create_engine: Callable[..., Engine] = create_engine,
    ) -> None:
        self._create_engine = create_engine
        self._engine: Engine | None = None
        self._tf: TransformListener | None = None
        super().__init__("robobrain", executor, cameras, parameters.SPECS)
        for name in self.get_parameter("cameras").value:
            parameters.declare_camera(self, name)
        # For the node's life: what a buffer registers with its node can't be unregistered.
        self._transforms = Buffer(node=cameras)
        self._requests = RequestServer(self, self.loop)
        self._action = InferAction(self, self.loop, self._requests)

    def close(self) -> bool:
        """Answer the requests under way and free the model.

        Returns whether the engine's thread has ended: loading can't be interrupted.
        """
        self._end_session()
        self._requests.drain(_DRAIN_S)
        return self._engine is None or self._engine.close(_CLOSE_S)

    # Transitions

    def configure(self) -> None:
        """Listen to TF."""
        self._transforms.clear()
        self._tf = TransformListener(self._transforms, self.cameras)

    def activate(self) -> None:
        """Subscribe to the cameras and serve."""
        tolerance = self.get_parameter("sync_tolerance").value
        names = self.get_parameter("cameras").value
        cameras = {
            name: Camera(self.cameras, name, Topics.of(self, name), tolerance) for name in names
        }
        transforms = TransformLookup(self._transforms, (TransformException,))
        self._requests.session = Session(self._engine, cameras, transforms)
        self.get_logger().info(f"Active: serving {', '.join(names)}.")

    def deactivate(self) -> None:
        """End the requests under way and unsubscribe."""
        self._end_session()

    def cleanup(self) -> None:
        """Stop listening to TF."""
        tf, self._tf = self._tf, None
        if tf is not None:
            self.on_camera_thread(tf.unregister)

    async def load(self) -> None:
        """Load the model on the engine's thread."""
        value = {spec.name: self.get_parameter(spec.name).value for spec in parameters.SPECS}
        started = time.monotonic()
        self.get_logger().info(f"Loading {value['model']} ({value['quantization']}) …")
        try:
            for name in value["cameras"]:
                parameters.declare_camera(self, name)
            self._engine = self._create_engine(
                _engine_config(value),
                progress=self.get_logger().info,
                on_failure=self.get_logger().fatal,
            )
            await self.loop.wait_for(self._engine.ready)
        except EngineError as error:
            raise TransitionError(f"Can't load the model: {error}") from error
        # Whatever else a checkpoint makes the libraries raise.
        except Exception as error:
            raise TransitionError(f"Can't load the model: {error!r}") from error
        free = self._engine.memory.free / 1e6
        self.get_logger().info(
            f"Loaded {self._engine.description}, in {time.monotonic() - started:.1f} s; "
            f"{free:.0f} MB are free beside it."
        )

    async def unload(self) -> None:
        """Free the model."""
        engine, self._engine = self._engine, None
        if engine is not None:
            await self.loop.poll_until(lambda: engine.close(timeout=0) or None, _UNLOAD_S)

    def diagnose(self) -> list[Part]:
        """Model, requests, and each camera."""
        engine = self._engine
        session, now = self._requests.session, self.get_clock().now().nanoseconds
        return Health(
            self.state().label,
            model=(engine.description if engine else "") or "none",
            running=engine.running if engine else 0,
            waiting=engine.pending if engine else 0,
            memory=engine.memory if engine else None,
            figures=self._requests.metrics.values(),
            failures=self._requests.metrics.new_failures(),
            cameras={n: c.topics(now) for n, c in session.cameras.items()} if session else {},
            max_image_age_s=self.get_parameter("max_image_age").value,
            failure=str(engine.failure) if engine and engine.failure else "",
        ).parts()

    def _end_session(self) -> None:
        self._requests.end_session(
            BrainError(
                ErrorCode.NOT_ACTIVE,
                "The node was deactivated before the answer was complete: activate it again.",
            )
        )

    def refuse_parameters(self, new: Sequence[Parameter]) -> str:
        """Return why the new values can't be taken, or an empty string."""
        return parameters.refuse_brain(self, new, configured=self._engine is not None)


def _engine_config(value: Mapping[str, Any]) -> EngineConfig:
    """The engine's settings, by the node's parameters."""
    same = {field.name for field in fields(EngineConfig)} & value.keys()
    cache_bytes = value["image_cache"] * 1_000_000
    return EngineConfig(**{name: value[name] for name in same}, cache_bytes=cache_bytes)


def main(
    args: list[str] | None = None,
    create_engine: Callable[..., Engine] = create_engine,
    node: Callable[..., BrainNode] = BrainNode,
) -> int:
    """Run the node until SIGINT or SIGTERM; returns the exit status.

    create_engine: of BrainNode. node: makes the node, for one with more to it.
    """
    return run_node("robobrain", partial(node, create_engine=create_engine), args)


if __name__ == "__main__":
    sys.exit(main())
