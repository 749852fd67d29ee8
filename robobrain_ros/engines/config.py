# SPDX-License-Identifier: Apache-2.0
"""Settings of an engine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Quantization = Literal["auto", "none", "int8", "nf4"]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

CACHE_BYTES = 256_000_000
"""Of a 3B model, the prefixes of about seven images of 640x480."""


@dataclass(frozen=True)
class EngineConfig:
    """The model to load, and how to run it.

    model: a directory, a hub id, or "nano" for the model that ships with this package.
    quantization: "auto" is nf4 where there is CUDA, except for models that are small or come
    quantized. precision: of what is not quantized; "auto" is bfloat16, except for small models on a
    CPU. max_pixels: larger images are scaled down to it, 0 = the checkpoint's own limit. family: a
    name in `families.FAMILIES`; "auto" decides by the checkpoint. cache_bytes: limit of the prefix
    cache. grammar: whether answers are constrained to a request's format. max_batch: requests
    answered at the same time. max_pending: requests that may wait beside those.
    """

    model: str
    quantization: Quantization = "none"
    device: Device = "auto"
    precision: Precision = "auto"
    max_pixels: int = 0
    family: str = "auto"
    cache_bytes: int = CACHE_BYTES
    grammar: bool = True
    max_batch: int = 8
    max_pending: int = 8
