# SPDX-License-Identifier: Apache-2.0
"""A film of a physics scene, as the scene's own camera sees it: a contact sheet and a GIF."""

from __future__ import annotations

from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from robobrain_ros.sim.physics import LOOKS_GROUP, TIME_STEP, PhysicsScene

_PERIOD_S = 0.1
_SIZE = (480, 360)
_SHEET = (2, 4)  # rows, columns
_GIF_SIZE, _GIF_COLORS = (320, 240), 64


class Film:
    """Takes a picture every tenth of a simulated second. Use as a context manager, for OpenGL."""

    def __init__(self, scene: PhysicsScene) -> None:
        self._scene = scene
        self._every = round(_PERIOD_S / TIME_STEP)
        self._steps = 0
        width, height = _SIZE
        self._renderer = mujoco.Renderer(scene.model, height, width)
        self._option = mujoco.MjvOption()
        self._option.geomgroup[:] = 0
        self._option.geomgroup[LOOKS_GROUP] = 1
        self._option.sitegroup[:] = 0
        self.frames: list[NDArray[np.uint8]] = []

    def __enter__(self) -> Film:
        return self

    def __exit__(self, *_: object) -> None:
        self._renderer.close()

    def watch(self) -> None:
        """Take a picture when one is due; to be called after every step."""
        if self._steps % self._every == 0:
            self._renderer.update_scene(self._scene.data, "camera", self._option)
            self.frames.append(self._renderer.render())
        self._steps += 1

    def save(self, sheet: Path) -> Path:
        """Write the contact sheet, evenly over the film, and beside it the GIF, whose path is
        returned.
        """
        rows, columns = _SHEET
        chosen = np.linspace(0, len(self.frames) - 1, rows * columns).round().astype(int)
        grid = [self.frames[index] for index in chosen]
        lines = [np.hstack(grid[row * columns : (row + 1) * columns]) for row in range(rows)]
        sheet.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.vstack(lines)).save(sheet)
        pictures = [Image.fromarray(frame).resize(_GIF_SIZE) for frame in self.frames]
        # One palette and no dithering: what stands still then costs nothing.
        palette = pictures[-1].quantize(_GIF_COLORS)
        first, *others = [
            picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures
        ]
        gif = sheet.with_suffix(".gif")
        first.save(
            gif, save_all=True, append_images=others, duration=round(1000 * _PERIOD_S), loop=0
        )
        return gif
