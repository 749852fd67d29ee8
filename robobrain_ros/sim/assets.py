# SPDX-License-Identifier: Apache-2.0
"""Location of the third-party meshes and textures of the simulated tabletop."""

from __future__ import annotations

import importlib.util
from pathlib import Path


class AssetsNotFound(RuntimeError):
    """robosuite's assets are not installed; the message says how to install them."""


def robosuite_assets() -> Path:
    """Return robosuite's directory (MIT licence) of objects, textures, robots and grippers.

    The package is located without importing it, because its import needs numba and much else.

    Raises:
        AssetsNotFound: robosuite is not installed, or its wheel lacks the assets.
    """
    spec = importlib.util.find_spec("robosuite")
    if spec is None or spec.origin is None:
        raise AssetsNotFound(
            "The simulated tabletop needs robosuite's meshes and textures: "
            "run `pip install --no-deps robosuite==1.5.2` in this Python environment."
        )
    assets = Path(spec.origin).parent / "models" / "assets"
    if not (assets / "robots" / "panda" / "robot.xml").is_file():
        raise AssetsNotFound(
            f"{assets} has no Panda model: this robosuite is not the one that the simulated "
            "tabletop needs; run `pip install --no-deps --force-reinstall robosuite==1.5.2`."
        )
    return assets
