# SPDX-License-Identifier: Apache-2.0
"""What no `except Exception` catches."""


class Panic(BaseException):
    """What a library in Rust raises where it gives up: no Exception."""
