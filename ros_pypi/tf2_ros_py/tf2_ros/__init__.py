# SPDX-License-Identifier: Apache-2.0
"""The part of tf2_ros that robobrain_ros uses, for ROS 2 from PyPI, which lacks it.

Names, arguments and behaviour are those of tf2_ros in Jazzy. Not here: Buffer.transform() with its
type registration, BufferClient and BufferServer.
"""

from .broadcasters import StaticTransformBroadcaster, TransformBroadcaster
from .buffer import Buffer
from .buffer_core import BufferCore
from .exceptions import (
    ConnectivityException,
    ExtrapolationException,
    InvalidArgumentException,
    LookupException,
    TimeoutException,
    TransformException,
)
from .transform_listener import TransformListener

__all__ = [
    "Buffer",
    "BufferCore",
    "ConnectivityException",
    "ExtrapolationException",
    "InvalidArgumentException",
    "LookupException",
    "StaticTransformBroadcaster",
    "TimeoutException",
    "TransformBroadcaster",
    "TransformException",
    "TransformListener",
]
