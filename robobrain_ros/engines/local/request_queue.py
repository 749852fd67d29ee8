# SPDX-License-Identifier: Apache-2.0
"""The waiting work of a scheduler, and the policy by which it is admitted."""

from __future__ import annotations

from bisect import insort
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from robobrain_ros.core.requests import GenerationRequest
from robobrain_ros.engines.base import Priority, Work


@dataclass(order=True)
class Job:
    """Work and the future of its result; sorted by priority, then by arrival.

    request: what it last asked the model, None before it has been started.
    """

    priority: Priority
    number: int
    work: Work[Any] = field(compare=False)
    stop: Callable[[], bool] = field(compare=False)
    future: Future[Any] = field(compare=False, default_factory=Future)
    request: GenerationRequest | None = field(compare=False, default=None)


class RequestQueue:
    """Jobs by priority, then by arrival; the last of several slots is reserved for PERCEPTION.

    So long answers never block short ones. Not thread-safe.
    """

    def __init__(self, slots: int) -> None:
        """slots: jobs that may run at the same time."""
        self._slots = slots
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        """Number of waiting jobs; those whose future was cancelled are dropped."""
        self._jobs = [job for job in self._jobs if not job.future.cancelled()]
        return len(self._jobs)

    def push(self, job: Job) -> None:
        """Add a job."""
        insort(self._jobs, job)

    def pop(self, running: int) -> Job | None:
        """Take the next job that may run beside `running` others, None if there is none."""
        free = self._slots - running
        if not len(self) or free <= 0:
            return None
        if self._jobs[0].priority is Priority.BACKGROUND and free == 1 and self._slots > 1:
            return None
        return self._jobs.pop(0)

    def pop_stopped(self) -> list[Job]:
        """Take the jobs whose `stop` returns True, in order."""
        stopped = [job for job in self._jobs if job.stop()]
        self._jobs = [job for job in self._jobs if job not in stopped]
        return stopped

    def drain(self) -> list[Job]:
        """Take all jobs."""
        jobs, self._jobs = self._jobs, []
        return jobs
