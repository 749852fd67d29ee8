# SPDX-License-Identifier: Apache-2.0
"""An executor's thread sleeps until there is something to do."""

from __future__ import annotations

import subprocess
import sys

import pytest

# In a process of its own, which can be ended when a thread doesn't let go of the interpreter.
_BEGINNING = """
import threading, time, rclpy
from robobrain_ros.ros.executors import SpinThread

rclpy.init()
node, spinner = rclpy.create_node("spun"), SpinThread("spun", events={events})
spinner.executor.add_node(node)
spinner.start()
"""
_WAKING = """
for _ in range(3):
    done = threading.Event()
    time.sleep(0.3)  # it sleeps meanwhile
    spinner.executor.create_task(done.set)
    assert done.wait(20.0)
spinner.stop()
node.destroy_node()
rclpy.shutdown()
print("ended")
"""


_SHUTTING_DOWN = """
rclpy.shutdown()
time.sleep(0.3)
spinner.stop()
print("ended")
"""


def outcome(program: str) -> tuple[str, str]:
    """What a program prints to stdout and stderr."""
    command = [sys.executable, "-c", program]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return ran.stdout, ran.stderr


@pytest.mark.parametrize("events", [False, True])
def test_a_spin_thread_that_sleeps_is_woken_by_a_task_and_ends(ros, events):
    assert outcome(_BEGINNING.format(events=events) + _WAKING) == ("ended\n", "")


@pytest.mark.parametrize("events", [False, True])
def test_shutting_rclpy_down_ends_a_spin_thread_without_a_complaint(ros, events):
    assert outcome(_BEGINNING.format(events=events) + _SHUTTING_DOWN) == ("ended\n", "")
