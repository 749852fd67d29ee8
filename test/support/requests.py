# SPDX-License-Identifier: Apache-2.0
"""Requests to a model, in short."""

from __future__ import annotations

from typing import Any

from robobrain_ros.core.arrays import RgbImage
from robobrain_ros.core.requests import GenerationOptions, GenerationRequest, user_message


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
