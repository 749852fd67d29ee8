# SPDX-License-Identifier: Apache-2.0
"""A view of a robot that runs: `python -m robobrain_ros.view [--record FILE.rrd] [--ros-args …]`.

It only listens. The topics are parameters (node.py) and can be remapped.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from contextlib import ExitStack

import rclpy
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.signals import SignalHandlerOptions
from rclpy.utilities import remove_ros_args

from robobrain_ros.core.extras import starting_with
from robobrain_ros.ros.executors import until_signalled

with starting_with("view"):
    from robobrain_ros.view import options as arguments
    from robobrain_ros.view.node import start
    from robobrain_ros.view.server import NoServer


def main(args: list[str] | None = None) -> int:
    """Show and record until SIGINT or SIGTERM, or for --seconds; returns the exit status."""
    args = sys.argv if args is None else args
    parser = argparse.ArgumentParser(description=__doc__)
    arguments.add_to(parser, None)
    options = parser.parse_args(remove_ros_args(args)[1:])
    if options.no_serve and not options.record:
        parser.error("--no-serve needs --record FILE.rrd")
    asked_to_end = until_signalled()
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    with ExitStack() as stack:
        stack.callback(rclpy.try_shutdown)
        try:
            start(stack, arguments.opened(stack, options))
        except (NoServer, InvalidParameterTypeException, InvalidParameterValueException) as error:
            print(error, file=sys.stderr)
            return 1
        end = time.monotonic() + (options.seconds or math.inf)
        while not asked_to_end.wait(0.2) and time.monotonic() < end:
            pass
    return 0


if __name__ == "__main__":
    sys.exit(main())
