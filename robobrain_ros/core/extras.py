# SPDX-License-Identifier: Apache-2.0
"""Optional libraries of the package, by purpose: each has a file requirements-<purpose>.txt."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Purpose = Literal["models", "sim", "view"]

# robosuite's meshes are used and its Python code isn't: neither its import nor its dependencies.
_UNIMPORTED = {"sim": ("robosuite",)}
_WITHOUT_DEPENDENCIES = {"sim": " && pip install --no-deps robosuite==1.5.2"}


class MissingLibrary(ImportError):
    """A library of a purpose is not installed; the message says how to install it."""


@contextmanager
def importing(purpose: Purpose) -> Iterator[None]:
    """Import what needs the libraries of `purpose`; raises MissingLibrary in their absence."""
    try:
        yield
        for module in _UNIMPORTED.get(purpose, ()):
            if importlib.util.find_spec(module) is None:
                raise ModuleNotFoundError(name=module)
    except ModuleNotFoundError as error:
        if (error.name or "robobrain_ros").partition(".")[0] == "robobrain_ros":
            raise
        raise MissingLibrary(
            f"The Python module {error.name} is missing: run `pip install -r "
            f"requirements-{purpose}.txt{_WITHOUT_DEPENDENCIES.get(purpose, '')}` in the source "
            "folder of robobrain_ros, in the Python environment that starts this program."
        ) from error


@contextmanager
def starting_with(purpose: Purpose) -> Iterator[None]:
    """As `importing`, for the module of an executable: ends the process with the sentence."""
    try:
        with importing(purpose):
            yield
    except MissingLibrary as error:
        raise SystemExit(str(error)) from None
