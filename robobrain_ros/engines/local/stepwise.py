# SPDX-License-Identifier: Apache-2.0
"""The step-wise engine protocol: a loaded model on one thread, which a scheduler drives."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Protocol

from robobrain_ros.core.requests import Generation, GenerationRequest
from robobrain_ros.engines.base import Capabilities, EngineError, Memory

Outcome = tuple[Hashable, Generation | EngineError]
"""The handle of a request that `start` returned, and how it ended."""


class StepwiseEngine(Protocol):
    """A loaded model. Every call blocks, and all come from the thread that loaded it.

    Several requests may be running: `start` begins one, and each `step` advances all of them by a
    token or a few. memory_bytes: of the weights as stored. description: a line for the log. steps:
    calls of the model in `step` so far.
    """

    capabilities: Capabilities
    description: str
    memory_bytes: int
    steps: int

    def start(self, request: GenerationRequest) -> Hashable:
        """Prefill a request; returns the handle by which `step` names it.

        Raises EngineOutOfMemory (the engine stays usable, and running requests go on),
        EngineUnavailable after `close` or when the model fails, and a plain EngineError for a
        request that the model can't serve.
        """
        ...

    def step(self) -> list[Outcome]:
        """Advance the running requests; returns those that ended."""
        ...

    def memory(self) -> Memory:
        """Measure the memory usage."""
        ...

    def clear_cache(self) -> None:
        """Drop the prefix cache."""
        ...

    def close(self) -> None:
        """Free the model. May be called again."""
        ...


def generate_together(
    engine: StepwiseEngine, requests: Iterable[GenerationRequest]
) -> list[Generation | EngineError]:
    """Answer requests as one batch, while no others are running. Raises as `start` does."""
    handles = [engine.start(request) for request in requests]
    outcomes: dict[Hashable, Generation | EngineError] = {}
    while len(outcomes) < len(handles):
        outcomes |= dict(engine.step())
    return [outcomes[handle] for handle in handles]


def generate(engine: StepwiseEngine, request: GenerationRequest) -> Generation:
    """Answer one request, while no other is running. Raises EngineError."""
    (outcome,) = generate_together(engine, [request])
    if isinstance(outcome, EngineError):
        raise outcome
    return outcome


def check_length(tokens: int, request: GenerationRequest, limit: int) -> None:
    """Refuse a prompt of so many tokens that, with its answer, exceeds the model's context."""
    most = request.options.max_new_tokens
    if tokens + most > limit:
        raise EngineError(
            f"The request is {tokens} tokens long and asks for up to {most} more, and the model "
            f"can hold {limit}: shorten the text, lower max_pixels or max_new_tokens."
        )
