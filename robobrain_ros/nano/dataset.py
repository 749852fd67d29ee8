# SPDX-License-Identifier: Apache-2.0
"""Rendered training scenes: shards of images, what each pixel shows, and scene descriptions.

    python -m robobrain_ros.nano.dataset --out build/nano --scenes 33000 --workers 2

Seeds below `VALIDATION_SEED` train; the rest of the training range up to 1,000,000 is never
trained on and serves the figures in the training log. Evaluation uses seeds from 1,000,000.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim.pool import COLORED_KINDS, TEXTURED_KINDS
from robobrain_ros.sim.tabletop import COLORS, Tabletop

RENDER_SIZES = ((400, 300), (400, 300), (480, 270))
"""Width and height of the shards' images, by turns."""
SHARD_SCENES = 200
VALIDATION_SEED = 900_000
NAMES = tuple(f"{c} {k}" for c in COLORS for k in COLORED_KINDS) + TEXTURED_KINDS
"""Every object name that a scene can have."""


@dataclass(frozen=True)
class ObjectInfo:
    """One object of a scene, for questions about it; its label is its index + 1.

    foot: the middle of its underside, in the table's frame; radius of its footprint, and height:
    metres.
    """

    name: str
    kind: str
    color: str | None
    foot: tuple[float, float, float]
    radius: float
    height: float


@dataclass(frozen=True)
class SceneInfo:
    """Description of one rendered scene.

    gripper: (x, y, z) metres in the table's frame, None where the arm isn't shown. intrinsics:
    K (3, 3) by rows, pixel centres at integers; world_from_optical: (4, 4) by rows.
    """

    seed: int
    objects: tuple[ObjectInfo, ...]
    gripper: tuple[float, float, float] | None
    intrinsics: tuple[float, ...]
    world_from_optical: tuple[float, ...]


@dataclass(frozen=True)
class Scene:
    """One scene: rgb (H, W, 3) uint8, codes (H, W) uint8 as of `Tabletop.render_rgb_codes`."""

    rgb: NDArray[np.uint8]
    codes: NDArray[np.uint8]
    info: SceneInfo


def describe(tabletop: Tabletop, seed: int) -> SceneInfo:
    """Return the description of the tabletop's current scene, whose seed is `seed`."""
    objects = tuple(
        ObjectInfo(o.name, o.kind, o.color, tuple(o.foot.tolist()), o.radius, o.height)
        for o in tabletop.objects
    )
    return SceneInfo(
        seed,
        objects,
        tuple(tabletop.gripper.tolist()) if tabletop.arm_shown else None,
        tuple(tabletop.K.ravel().tolist()),
        tuple(tabletop.world_from_optical.ravel().tolist()),
    )


def render_scene(tabletop: Tabletop, seed: int) -> Scene:
    """Reset `tabletop` to `seed` and render it."""
    tabletop.reset(seed)
    rgb, codes = tabletop.render_rgb_codes()
    return Scene(rgb, codes, describe(tabletop, seed))


def _render_shards(directory: Path, shards: Sequence[tuple[str, int]], scenes: int) -> None:
    tabletops: dict[tuple[int, int], Tabletop] = {}
    for name, first_seed in shards:
        if (directory / f"{name}.json").exists():
            continue
        start = time.monotonic()
        width, height = RENDER_SIZES[first_seed // SHARD_SCENES % len(RENDER_SIZES)]
        if (width, height) not in tabletops:
            tabletops[width, height] = Tabletop(width, height)
        rgb = np.empty((scenes, height, width, 3), np.uint8)
        codes = np.empty((scenes, height, width), np.uint8)
        infos = []
        for index in range(scenes):
            scene = render_scene(tabletops[width, height], first_seed + index)
            rgb[index], codes[index] = scene.rgb, scene.codes
            infos.append(asdict(scene.info))
        np.save(directory / f"{name}_rgb.npy", rgb)
        np.save(directory / f"{name}_codes.npy", codes)
        # The description comes last and atomically: a reader that sees it sees a whole shard.
        partial = directory / f"{name}.json.partial"
        partial.write_text(json.dumps(infos))
        os.replace(partial, directory / f"{name}.json")
        pace = (time.monotonic() - start) / scenes * 1e3
        print(f"{name}: {scenes} scenes, {pace:.0f} ms each", flush=True)
    for tabletop in tabletops.values():
        tabletop.close()


def _scene_info(entry: dict) -> SceneInfo:
    objects = tuple(ObjectInfo(**{**o, "foot": tuple(o["foot"])}) for o in entry["objects"])
    gripper = tuple(entry["gripper"]) if entry["gripper"] else None
    matrices = (tuple(entry[key]) for key in ("intrinsics", "world_from_optical"))
    return SceneInfo(entry["seed"], objects, gripper, *matrices)


class ScenePool:
    """Random access to the shards of a directory whose names start with `prefix`.

    Args:
        directory: where `main` writes.
        prefix: "train" or "validation".
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory, self._prefix = directory, prefix
        self._shards: dict[str, tuple[NDArray, NDArray, list[SceneInfo]]] = {}
        self._by_size: dict[tuple[int, int], list[tuple[str, int]]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that were finished since the last call."""
        for path in sorted(self._directory.glob(f"{self._prefix}_*.json")):
            if path.stem in self._shards:
                continue
            rgb, codes = (
                np.load(self._directory / f"{path.stem}_{part}.npy", mmap_mode="r")
                for part in ("rgb", "codes")
            )
            infos = [_scene_info(entry) for entry in json.loads(path.read_text())]
            self._shards[path.stem] = (rgb, codes, infos)
            height, width = codes.shape[1:]
            index = self._by_size.setdefault((width, height), [])
            index += [(path.stem, i) for i in range(len(infos))]

    def sizes(self) -> list[tuple[int, int]]:
        """The sizes (width, height) of the scenes' images."""
        return sorted(self._by_size)

    def scenes(self, size: tuple[int, int]) -> int:
        """The number of scenes whose image is of this size."""
        return len(self._by_size.get(size, ()))

    def scene(self, size: tuple[int, int], number: int) -> Scene:
        """One of the scenes whose image is of this size."""
        shard, offset = self._by_size[size][number]
        rgb, codes, infos = self._shards[shard]
        return Scene(rgb[offset], codes[offset], infos[offset])


def main() -> None:
    """Render training and validation shards; finished shards are kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--first", type=int, default=0, help="seed of the first training scene")
    parser.add_argument("--scenes", type=int, default=48_000)
    parser.add_argument("--validation", type=int, default=600)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shards = [
        (f"validation_{first:06d}", first)
        for first in range(VALIDATION_SEED, VALIDATION_SEED + options.validation, SHARD_SCENES)
    ]
    shards += [
        (f"train_{first:06d}", first)
        for first in range(options.first, options.first + options.scenes, SHARD_SCENES)
    ]
    context = multiprocessing.get_context("spawn")
    workers = [
        context.Process(
            target=_render_shards,
            args=(options.out, shards[worker :: options.workers], SHARD_SCENES),
        )
        for worker in range(options.workers)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    if any(worker.exitcode for worker in workers):
        raise SystemExit("a render worker failed; its message is above")


if __name__ == "__main__":
    main()
