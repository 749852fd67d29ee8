# SPDX-License-Identifier: Apache-2.0
"""Why a transform cannot be had."""


class TransformException(Exception):
    """Any of the reasons below."""


class ConnectivityException(TransformException):
    """Both frames are known, but in different trees."""


class LookupException(TransformException):
    """A frame is unknown, or the tree has a loop."""


class ExtrapolationException(TransformException):
    """The time lies outside of what is held."""


class InvalidArgumentException(TransformException):
    """A frame name is empty or starts with a slash."""


class TimeoutException(TransformException):
    """A wait took too long."""
