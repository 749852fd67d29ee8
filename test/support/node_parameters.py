# SPDX-License-Identifier: Apache-2.0
"""Parameters of a running node, set as `ros2 param set` does."""

from __future__ import annotations

from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.parameter import Parameter

from robobrain_ros.client import BrainClient


def set_parameter(
    client: BrainClient, name: str, value: Any, node: str = "robobrain"
) -> SetParametersResult:
    message = Parameter(name, value=value).to_parameter_msg()
    request = SetParameters.Request(parameters=[message])
    return client.call(SetParameters, f"{node}/set_parameters", request, 30.0).results[0]
