# SPDX-License-Identifier: Apache-2.0
"""Cancellation of a request: at its deadline, or from any thread."""

from __future__ import annotations

import threading
import time

from robobrain_ros.core.errors import BrainError, ErrorCode


class StopSignal:
    """A cancellation token of one request: set at its deadline, or by `set` from any thread.

    deadline: on the clock of time.monotonic(), seconds.
    """

    def __init__(self, deadline: float) -> None:
        self.deadline = deadline
        self._lock = threading.Lock()
        self._reason: BrainError | None = None

    def set(self, reason: BrainError) -> None:
        """Stop the request; the first reason counts."""
        with self._lock:
            self._reason = self._reason or reason

    def __call__(self) -> bool:
        return self.reason() is not None

    def reason(self) -> BrainError | None:
        """Return why the request must stop, or None while it may go on."""
        if self._reason is None and time.monotonic() >= self.deadline:
            self.set(
                BrainError(
                    ErrorCode.TIMEOUT,
                    "The request's time was over before the answer was complete: raise its "
                    "timeout, turn thinking off, or lower max_new_tokens or max_pixels.",
                )
            )
        return self._reason

    def check(self) -> None:
        """Raise the reason to stop, if there is one."""
        if (reason := self.reason()) is not None:
            raise reason
