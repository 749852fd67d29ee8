# SPDX-License-Identifier: Apache-2.0
"""Errors of requests: a code for programs and a sentence that says what to do."""

from __future__ import annotations

from enum import IntEnum


class ErrorCode(IntEnum):
    """The constants of `msg/ErrorCode.msg`, for modules without ROS."""

    NONE = 0
    NOT_ACTIVE = 1
    NO_IMAGE = 2
    IMAGE_STALE = 3
    NO_CAMERA_INFO = 4
    BAD_REQUEST = 5
    TIMEOUT = 6
    CANCELLED = 7
    BUSY = 8
    ENGINE_UNAVAILABLE = 9
    OUT_OF_MEMORY = 10
    UNPARSABLE_ANSWER = 11
    EMPTY_ANSWER = 12
    TF_ERROR = 13


class BrainError(Exception):
    """A request that failed: `code` for programs, the message for people."""

    def __init__(self, code: ErrorCode, sentence: str) -> None:
        super().__init__(sentence)
        self.code = code
