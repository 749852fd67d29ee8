# SPDX-License-Identifier: Apache-2.0
"""What tests share; each fixture ends what it started."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ros_domain, without_ros

TEST = Path(__file__).parent
ROOT = TEST.parent
FOLDERS = {"node": pytest.mark.node, "sim": pytest.mark.sim}

os.environ.setdefault("MUJOCO_GL", "egl")  # there may be no screen
# Without ROS the pure tests still run; `make test` runs them all.
WITH_ROS = importlib.util.find_spec("rclpy") is not None
collect_ignore = [] if WITH_ROS else ["node"]


def pytest_configure(config: pytest.Config) -> None:
    """Prepare each process that runs tests, for itself and for the processes that it will start."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # this one only hands them out
    paths = [Path(argument.partition("::")[0]).resolve() for argument in config.args]
    if all(path.is_relative_to(TEST / "unit") for path in paths):
        without_ros.refuse_ros()
    elif WITH_ROS:
        os.environ["ROS_DOMAIN_ID"] = str(ros_domain.claim_domain())
    known = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(TEST), *([known] if known else [])])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests by their folder."""
    for item in items:
        for folder, mark in FOLDERS.items():
            if item.path.is_relative_to(TEST / folder):
                item.add_marker(mark)


@pytest.fixture(scope="session")
def ros() -> Iterator[None]:
    """rclpy, in this process' own domain."""
    import rclpy

    from robobrain_ros.sim.processes import environment

    os.environ.update(environment())
    rclpy.init()
    yield
    rclpy.try_shutdown()


@pytest.fixture(params=["1", "0"], ids=["patched", "plain"])
def patched(request, monkeypatch) -> bool:
    """With the patches of rclpy and without, in this process and those that it starts."""
    from robobrain_ros.ros.rclpy_patches import SWITCH

    monkeypatch.setenv(SWITCH, request.param)
    return request.param == "1"


@pytest.fixture(scope="module")
def brain(request: pytest.FixtureRequest, ros: None) -> Iterator[object]:
    """A client of a node started as the module's constant BRAIN says: see `running_brain`."""
    from support.running_brain import running_brain

    with running_brain(**getattr(request.module, "BRAIN", {})) as brain:
        yield brain


@pytest.fixture(scope="module", params=["qwen2_5_vl", "qwen3_vl"])
def checkpoint(request, tmp_path_factory) -> Path:
    """The directory of a model with random weights, of each architecture."""
    from support import tiny_checkpoints

    return tiny_checkpoints.save(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def engine(checkpoint):
    """An engine with random weights, of each architecture."""
    from robobrain_ros.engines.config import EngineConfig
    from robobrain_ros.engines.local.engine import load_local_engine

    engine = load_local_engine(EngineConfig(str(checkpoint), device="cpu"))
    yield engine
    engine.close()


@pytest.fixture(scope="session")
def qwen_tokenizer():
    """Qwen2.5-VL's tokenizer, with its real vocabulary."""
    from support import qwen_vocabulary

    try:
        return qwen_vocabulary.qwen_tokenizer()
    except qwen_vocabulary.VocabularyMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def still_cameras(ros):
    """Where tests publish camera topics from: see `cameras.StillCameras`."""
    from support.cameras import StillCameras

    with StillCameras() as cameras:
        yield cameras


@pytest.fixture(scope="module")
def camera(still_cameras, scene):
    """The scene, published as the topics of `camera`."""
    with still_cameras.publishing("camera", scene):
        yield scene


@pytest.fixture(scope="module")
def own_node(ros):
    """A node of the tests' own, spun on a thread."""
    import rclpy

    from robobrain_ros.ros.executors import spinning

    with spinning(rclpy.create_node("own_node")) as node:
        yield node


@pytest.fixture(scope="session")
def scene():
    """One simulated scene with its ground truth, seen by no training."""
    from robobrain_ros.sim.tabletop import Tabletop
    from robobrain_ros.sim.truth import Truth

    table = Tabletop()
    table.reset(Scene.seed)
    truth = Truth(table)
    pose, intrinsics = table.world_from_optical, table.K
    table.close()
    return Scene(truth, pose, intrinsics)


class Scene:
    """truth: its Truth. pose: (4, 4) table from optical frame. intrinsics: (3, 3)."""

    seed = 2_000_003

    def __init__(self, truth, pose, intrinsics) -> None:
        self.truth = truth
        self.pose = pose
        self.intrinsics = intrinsics
        names = [name for name in truth.askable() if not name.endswith("tray")]
        self.name = max(names, key=lambda name: truth.mask(name).sum())
        """The largest object that is no tray: the one that tests ask about."""


@pytest.fixture
def log_file(tmp_path: Path):
    """Where a node under test writes its output."""
    with open(tmp_path / "node.log", "w+b") as file:
        yield file
