# SPDX-License-Identifier: Apache-2.0
"""Process of one managed node: signals, executor threads, memory, exit status."""

from __future__ import annotations

import ctypes
import os
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import Executor
from rclpy.logging import get_logger
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from robobrain_ros.ros.executors import SpinThread, until_signalled, wait_until_set
from robobrain_ros.ros.managed_node import ManagedNode
from robobrain_ros.ros.rclpy_patches import missing_internals

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h
_KEPT_BYTES = 32 << 20
_ARENAS = 2


def run_node(
    name: str, create: Callable[[Executor, Node], ManagedNode], args: list[str] | None = None
) -> int:
    """Run the node `name` until SIGINT or SIGTERM; returns the exit status.

    create: returns the node, given its executor and the node for its cameras.
    """
    stop = until_signalled()
    _keep_freed_memory()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        return _run(name, create, stop)
    except (InvalidParameterTypeException, InvalidParameterValueException) as error:
        get_logger(name).fatal(f"Can't start: {error}")
        return 1
    finally:
        rclpy.shutdown()


def _run(name: str, create: Callable[[Executor, Node], ManagedNode], stop: threading.Event) -> int:
    if missing := missing_internals():
        get_logger(name).warning(f"Running on plain rclpy: {'; '.join(missing)}.")
    failed = threading.Event()

    def on_failure() -> None:
        failed.set()
        stop.set()

    cameras_name = f"{name}_cameras"
    camera_thread = SpinThread(cameras_name, on_failure, events=True)
    main_thread = SpinThread(name, on_failure, events=True)
    # The remap overrides that of the command line, which is meant for the node `name` alone.
    cameras = rclpy.create_node(
        cameras_name,
        cli_args=["--ros-args", "-r", f"__node:={cameras_name}"],
        start_parameter_services=False,  # entities that the executor would wait on at each frame
    )
    node = create(main_thread.executor, cameras)
    camera_thread.executor.add_node(cameras)
    main_thread.executor.add_node(node)
    camera_thread.start()
    main_thread.start()
    try:
        wait_until_set(stop)
    finally:
        ended = node.close()
        main_thread.stop()
        camera_thread.stop()
        node.destroy_node()
        cameras.destroy_node()
    if not ended:
        _exit_now(name, int(failed.is_set()))
    return int(failed.is_set())


def _exit_now(name: str, status: int) -> NoReturn:
    """End the process beside a thread that can't be ended, such as one that loads a model."""
    get_logger(name).info("Ending without waiting for the model.")
    rclpy.shutdown()
    sys.stdout.flush()
    os._exit(status)


def _keep_freed_memory() -> None:
    """Have glibc reuse the memory of images instead of returning it to the system.

    Returned memory costs a page fault for each page of each frame. The number of arenas is limited
    because each new engine thread would fill another one, up to eight per core.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # glibc only
    if mallopt is not None:
        for option in (_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD):
            mallopt(option, _KEPT_BYTES)
        mallopt(_M_ARENA_MAX, _ARENAS)
