# SPDX-License-Identifier: Apache-2.0
"""Rendered training scenes: shards of images, object labels and scene descriptions on disk.

    python -m robobrain_ros.nano.dataset --out build/nano --scenes 16000 --workers 2

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

from robobrain_ros.sim.pool import COLOURED_KINDS, TEXTURED_KINDS
from robobrain_ros.sim.tabletop import COLOURS, Tabletop

RENDER_WIDTH, RENDER_HEIGHT = 400, 300
SHARD_SCENES = 200
VALIDATION_SEED = 900_000
NAMES = tuple(f"{c} {k}" for c in COLOURS for k in COLOURED_KINDS) + TEXTURED_KINDS
"""Every object name that a scene can have."""


@dataclass(frozen=True)
class ObjectInfo:
    """What the questions need to know about one object; its label is its index + 1."""

    name: str
    kind: str
    colour: str | None


@dataclass(frozen=True)
class SceneInfo:
    """Description of one rendered scene; `gripper` is its pixel (u, v), None outside the view."""

    seed: int
    objects: tuple[ObjectInfo, ...]
    gripper: tuple[float, float] | None


@dataclass(frozen=True)
class Scene:
    """One scene: rgb (H, W, 3) uint8, labels (H, W) uint8 (0 background, i + 1 = objects[i])."""

    rgb: NDArray[np.uint8]
    labels: NDArray[np.uint8]
    info: SceneInfo


def describe(tabletop: Tabletop, seed: int) -> SceneInfo:
    """What questions need to know about the tabletop's present scene, whose seed is `seed`."""
    gripper = None
    if tabletop.arm_shown:
        u, v = tabletop.project(tabletop.gripper[None])[0]
        if 0 <= u < tabletop.width and 0 <= v < tabletop.height:
            gripper = (float(u), float(v))
    objects = tuple(ObjectInfo(o.name, o.kind, o.colour) for o in tabletop.objects)
    return SceneInfo(seed, objects, gripper)


def render_scene(tabletop: Tabletop, seed: int) -> Scene:
    """Reset `tabletop` to `seed` and render it."""
    tabletop.reset(seed)
    rgb, labels = tabletop.render_rgb_labels()
    return Scene(rgb, labels, describe(tabletop, seed))


def _render_shards(directory: Path, shards: Sequence[tuple[str, int]], scenes: int) -> None:
    tabletop = Tabletop(RENDER_WIDTH, RENDER_HEIGHT)
    for name, first_seed in shards:
        if (directory / f"{name}.json").exists():
            continue
        start = time.monotonic()
        rgb = np.empty((scenes, RENDER_HEIGHT, RENDER_WIDTH, 3), np.uint8)
        labels = np.empty((scenes, RENDER_HEIGHT, RENDER_WIDTH), np.uint8)
        infos = []
        for index in range(scenes):
            scene = render_scene(tabletop, first_seed + index)
            rgb[index], labels[index] = scene.rgb, scene.labels
            infos.append(asdict(scene.info))
        np.save(directory / f"{name}_rgb.npy", rgb)
        np.save(directory / f"{name}_labels.npy", labels)
        # The description comes last and atomically: a reader that sees it sees a whole shard.
        partial = directory / f"{name}.json.partial"
        partial.write_text(json.dumps(infos))
        os.replace(partial, directory / f"{name}.json")
        pace = (time.monotonic() - start) / scenes * 1e3
        print(f"{name}: {scenes} scenes, {pace:.0f} ms each", flush=True)
    tabletop.close()


class ScenePool:
    """Random access to the shards of a directory whose names start with `prefix`.

    Args:
        directory: where `main` writes.
        prefix: "train" or "validation".
    """

    def __init__(self, directory: Path, prefix: str) -> None:
        self._directory, self._prefix = directory, prefix
        self._shards: dict[str, tuple[NDArray, NDArray, list[SceneInfo]]] = {}
        self._index: list[tuple[str, int]] = []
        self.refresh()

    def refresh(self) -> None:
        """Take in the shards that were finished since the last call."""
        for path in sorted(self._directory.glob(f"{self._prefix}_*.json")):
            if path.stem in self._shards:
                continue
            rgb, labels = (
                np.load(self._directory / f"{path.stem}_{part}.npy", mmap_mode="r")
                for part in ("rgb", "labels")
            )
            infos = [
                SceneInfo(
                    entry["seed"],
                    tuple(ObjectInfo(**o) for o in entry["objects"]),
                    tuple(entry["gripper"]) if entry["gripper"] else None,
                )
                for entry in json.loads(path.read_text())
            ]
            self._shards[path.stem] = (rgb, labels, infos)
            self._index += [(path.stem, i) for i in range(len(infos))]

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Scene:
        shard, offset = self._index[index]
        rgb, labels, infos = self._shards[shard]
        return Scene(rgb[offset], labels[offset], infos[offset])


def main() -> None:
    """Render training and validation shards; finished shards are kept."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/nano"))
    parser.add_argument("--scenes", type=int, default=16_000)
    parser.add_argument("--validation", type=int, default=200)
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    shards = [
        (f"validation_{first:06d}", first)
        for first in range(VALIDATION_SEED, VALIDATION_SEED + options.validation, SHARD_SCENES)
    ]
    shards += [(f"train_{first:06d}", first) for first in range(0, options.scenes, SHARD_SCENES)]
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
