# SPDX-License-Identifier: Apache-2.0
"""Requests to a model, in short."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from robobrain_ros.core.arrays import RgbImage
from robobrain_ros.core.requests import GenerationOptions, GenerationRequest, user_message
from robobrain_ros.engines.local.stepwise import StepwiseEngine


def ask(
    prompt: str,
    image: RgbImage | None = None,
    *,
    max_new_tokens: int = 768,
    temperature: float = 0.0,
    seed: int | None = None,
    **fields: Any,
) -> GenerationRequest:
    """A question of one turn; fields: more of the request."""
    options = GenerationOptions(max_new_tokens, temperature, seed)
    return GenerationRequest(messages=(user_message(prompt, image),), options=options, **fields)


def answered_in_stagger(engine: StepwiseEngine, asked: Iterable[GenerationRequest]) -> list[Any]:
    """Start a request before each step, so that they overlap; returns their outcomes in order."""
    handles, outcomes = [], {}
    for request in asked:
        handles.append(engine.start(request))
        outcomes |= dict(engine.step())
    while len(outcomes) < len(handles):
        outcomes |= dict(engine.step())
    return [outcomes[handle] for handle in handles]
