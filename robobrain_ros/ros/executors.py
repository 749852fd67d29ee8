# SPDX-License-Identifier: Apache-2.0
"""Executors on threads that can be stopped, and processes that end on signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node

from robobrain_ros.ros.rclpy_patches import create_executor

_WAIT_S = 1.0

AnyNode = TypeVar("AnyNode", bound=Node)


class SpinThread:
    """Spins a single-threaded executor until `stop`.

    One executor per thread: rclpy's MultiThreadedExecutor drops most frames under image load. The
    thread is joined before the executor is shut down: rclpy can crash when an executor is shut down
    while it waits, and when its thread still runs at exit.

    events: use rclpy's EventsExecutor where there is one (`rclpy_patches.create_executor`). No
    callback may then be a coroutine, because a waiting coroutine takes all of a core there (see
    `EventLoop`), and entities must be destroyed on this thread: it has crashed where another thread
    destroyed an action client.
    """

    def __init__(
        self, name: str, on_failure: Callable[[], None] = lambda: None, *, events: bool = False
    ) -> None:
        self.executor: Executor = create_executor() if events else SingleThreadedExecutor()
        # Without a timeout the EventsExecutor of rclpy 7.1 neither sleeps nor releases the GIL;
        # with one, the SingleThreadedExecutor creates a timer each time.
        single = isinstance(self.executor, SingleThreadedExecutor)
        self._timeout_s = None if single else _WAIT_S
        self._name = name
        self._on_failure = on_failure
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._spin, name=name)

    def start(self) -> None:
        """Start to spin; add the nodes to `executor` before or after."""
        self._thread.start()

    def stop(self) -> None:
        """End the spinning, join the thread and shut the executor down."""
        self._stopping.set()
        self.executor.create_task(lambda: None)  # work, so that a waiting spin_once returns
        if self._thread.ident is not None:
            self._thread.join()
        self.executor.shutdown()

    def _spin(self) -> None:
        try:
            while not self._stopping.is_set():
                self.executor.spin_once(self._timeout_s)
        except ExternalShutdownException:  # rclpy was shut down, which its owner knows
            self._on_failure()
        # The thread's last frame: nobody else would hear of it.
        except Exception as error:  # noqa: BLE001
            get_logger(self._name).fatal(
                f"Executor thread ended by {type(error).__name__}: {error}"
            )
            self._on_failure()


@contextmanager
def spinning(node: AnyNode) -> Iterator[AnyNode]:
    """Spin a node on a thread of its own; it is destroyed in the end."""
    spinner = SpinThread(node.get_name())
    spinner.executor.add_node(node)
    spinner.start()
    try:
        yield node
    finally:
        spinner.stop()
        node.destroy_node()


def wait_until_set(event: threading.Event) -> None:
    """Wait in the main thread for an event that a signal handler sets.

    Python runs handlers in the main thread only, and when the system gives the signal to another
    thread nothing wakes a main thread that waits without a limit.
    """
    while not event.wait(0.2):
        pass


def call_on_signals(action: Callable[[], None]) -> None:
    """Call `action` in the main thread at the first SIGINT or SIGTERM, and ignore further ones.

    A second one, as when a terminal and `ros2 launch` both send SIGINT, would kill Python while it
    exits.
    """

    def end(*_: object) -> None:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        action()

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, end)


def until_signalled() -> threading.Event:
    """Return an event that SIGINT and SIGTERM set: pass it to `wait_until_set`.

    rclpy's own handlers can lose a signal to an idle executor, so init rclpy with
    SignalHandlerOptions.NO beside this.
    """
    asked = threading.Event()
    call_on_signals(asked.set)
    return asked
