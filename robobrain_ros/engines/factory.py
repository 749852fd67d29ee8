# SPDX-License-Identifier: Apache-2.0
"""Make the engine that a configuration asks for."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

from robobrain_ros.core.extras import MissingLibrary, importing
from robobrain_ros.engines.base import (
    Engine,
    LoadError,
    Progress,
    UnsupportedArchitecture,
    silent,
)
from robobrain_ros.engines.config import EngineConfig
from robobrain_ros.engines.local.scheduler import Scheduler
from robobrain_ros.engines.local.stepwise import StepwiseEngine


def load_engine(config: EngineConfig, progress: Progress = silent) -> StepwiseEngine:
    """Load a model with the local engine, or with the reference engine where that has no support.

    Blocks; see `load_local_engine`. Raises LoadError with a sentence that says what to do.
    """
    _prepare_import()
    # Torch takes seconds to import: whoever only needs the protocol doesn't wait for it.
    try:
        with importing("models"):
            from robobrain_ros.engines.local.engine import load_local_engine
    except MissingLibrary as error:
        raise LoadError(str(error)) from error
    try:
        return load_local_engine(config, progress)
    except UnsupportedArchitecture as error:
        progress(f"falling back on transformers' generate, which is slower: {error}")
    from robobrain_ros.engines.reference import load_reference_engine

    return load_reference_engine(config, progress)


def _prepare_import() -> None:
    """Set the environment variables that torch reads when it is imported."""
    # OpenMP's threads wait busily between products, by default for milliseconds, while the node's
    # other threads have an answer to send.
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    # On a full disk no directory for temporary files is found, and torch wants one for compiled
    # kernels. Nothing is compiled here: any existing directory will do.
    try:
        tempfile.gettempdir()
    except FileNotFoundError:
        os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", os.getcwd())


def create_engine(
    config: EngineConfig,
    *,
    progress: Progress = silent,
    on_failure: Callable[[str], None] = silent,
    load: Callable[[EngineConfig, Progress], StepwiseEngine] = load_engine,
) -> Engine:
    """Return an engine at once; its model is loaded in the background (`Engine.ready`).

    progress: called on the engine's thread with a line per step of loading. on_failure: called with
    the cause, with its traceback, when the engine stops serving by itself.
    """
    return Scheduler(
        lambda: load(config, progress),
        max_pending=config.max_pending,
        max_batch=config.max_batch,
        on_failure=on_failure,
    )
