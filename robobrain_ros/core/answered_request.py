# SPDX-License-Identifier: Apache-2.0
"""An answered request, and who is told of it: topics, markers, metrics, memory, recordings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from robobrain_ros.core.observations import Observation
from robobrain_ros.core.results import Result


@dataclass(frozen=True, eq=False)
class AnsweredRequest:
    """A result, and the request that it answers.

    id: unique in this run of the node, `<task>_<number>`. stamp_ns and camera_frame: of the image
    that was used, 0 and "" without one. target_frame: of the 3D positions. seconds: from the
    request's arrival to its response.
    """

    id: str
    text: str
    stamp_ns: int
    camera_frame: str
    target_frame: str
    result: Result
    seconds: float


class ResultListener(Protocol):
    """Is told of every answered request, after its response has left."""

    def on_result(
        self, answered: AnsweredRequest, observation: Observation | None
    ) -> Callable[[], None] | None:
        """Called on the engine's thread: no ROS here, and other requests wait meanwhile.

        Returns what is to be done on the executor's thread, such as publishing; None = nothing.
        """
        ...
