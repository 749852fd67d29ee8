# SPDX-License-Identifier: Apache-2.0
"""Engines answer prompts about images. `create_engine` makes one from a model's name."""

import os
from collections.abc import Callable
from typing import Literal

from robobrain_ros.core.extras import MissingLibrary, importing
from robobrain_ros.engines.base import Engine, LoadError

Quantization = Literal["auto", "none", "int8", "nf4"]
Device = Literal["auto", "cuda", "cpu"]
Precision = Literal["auto", "float32", "bfloat16", "float16"]

CACHE_BYTES = 256_000_000
"""Of a 3B model, what it has read of about seven images of 640x480."""


def _silent(message: str) -> None:
    del message


def create_engine(
    model: str,
    *,
    quantization: Quantization = "none",
    device: Device = "auto",
    precision: Precision = "auto",
    max_pixels: int = 0,
    family: str = "auto",
    cache_bytes: int = CACHE_BYTES,
    grammar: bool = True,
    progress: Callable[[str], None] = _silent,
) -> Engine:
    """Load a model and try it once.

    `model` is a directory, a hub id, or "nano" for the model that ships with this package. Images
    are scaled down to `max_pixels` (0 = the checkpoint's own limit). The quantization "auto" is nf4
    where there is CUDA, but for models that are small or come quantized. `precision` is of what is
    not quantized; "auto" takes bfloat16 but for small models on a CPU. `family` names an entry of
    `families.FAMILIES`; "auto" decides by the checkpoint. `cache_bytes` may be kept of images that
    were seen, for the next question about one. `grammar` holds answers to the form that a request
    gives. `progress` is called with a line per step. Raises LoadError with a sentence that says
    what to do.
    """
    # After each product OpenMP's threads wait for the next one without sleeping, by default for
    # milliseconds, while the node's other threads have an answer to send.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # torch takes seconds to import: those who only need the protocol don't wait for it.
    try:
        with importing("models"):
            from robobrain_ros.engines.local.engine import Options, load_transformers_engine
    except MissingLibrary as error:
        raise LoadError(str(error)) from error
    return load_transformers_engine(
        model,
        quantization=quantization,
        device=device,
        precision=precision,
        max_pixels=max_pixels,
        family=family,
        options=Options(grammar, cache_bytes, progress),
    )
