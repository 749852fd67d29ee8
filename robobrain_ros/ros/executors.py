# SPDX-License-Identifier: Apache-2.0
"""An rclpy executor on a thread that ends when told to, and a process that ends on signals."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from rclpy.event_handler import PublisherEventCallbacks
from rclpy.executors import Executor, ExternalShutdownException, SingleThreadedExecutor
from rclpy.logging import get_logger
from rclpy.node import Node

try:
    from rclpy.experimental import EventsExecutor
except ImportError:  # older than 2025
    EventsExecutor = None

NO_EVENTS = PublisherEventCallbacks(use_default_callbacks=False)
"""For the node's publishers. rclpy's default handlers of their events, two each, are asked whenever
the executor wakes: a quarter of a millisecond of every request. They would warn of a subscriber
whose QoS doesn't match; that subscriber's own handlers warn of it, too."""

_WAIT_S = 1.0

AnyNode = TypeVar("AnyNode", bound=Node)


class SpinThread:
    """Spins a SingleThreadedExecutor until `stop`.

    One executor a thread: rclpy's MultiThreadedExecutor drops most frames under image load. The
    thread is joined before the executor goes: shutting down an executor that waits can crash, and
    so does leaving its thread running at exit.

    plain: no callback is a coroutine (`waiting.Waiting` runs those that are needed), and nothing
    of the nodes is destroyed on another thread. Then it is rclpy's EventsExecutor, where there is
    one. It needs a quarter less CPU for a camera's topics, and in the brain node a request takes
    0.7 ms less. But a coroutine that waits takes all of a core there, and it has crashed where
    another thread destroyed an action's client.
    """

    def __init__(
        self, name: str, on_failure: Callable[[], None] = lambda: None, *, plain: bool = False
    ) -> None:
        events = plain and EventsExecutor is not None
        self.executor: Executor = EventsExecutor() if events else SingleThreadedExecutor()
        # Told to wait for ever, the EventsExecutor of rclpy 7.1 never sleeps, nor lets go of the
        # interpreter's lock. A limit costs the other one a timer each time.
        self._limit = _WAIT_S if events else None
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
                self.executor.spin_once(self._limit)
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


def wait_for(event: threading.Event) -> None:
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
    """Return an event that SIGINT and SIGTERM set: `wait_for` it in the main thread.

    rclpy's own handlers can lose a signal to an idle executor, so init rclpy with
    SignalHandlerOptions.NO beside this.
    """
    asked = threading.Event()
    call_on_signals(asked.set)
    return asked
