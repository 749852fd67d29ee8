# SPDX-License-Identifier: Apache-2.0
"""A program whose optional libraries are missing says in one sentence how to install them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SIMULATION = "requirements-sim.txt && pip install --no-deps robosuite=="


def errors_of(start: str, missing: str) -> str:
    """The standard error of a program that fails to start without the module `missing`."""
    code = f"import runpy, sys; sys.argv = ['program']; sys.modules['{missing}'] = None; {start}"
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, capture_output=True, text=True)
    assert run.returncode == 1
    return run.stderr


@pytest.mark.parametrize(
    ("module", "missing", "advice"),
    [
        ("robobrain_ros.view.__main__", "rerun", "pip install -r requirements-view.txt"),
        ("robobrain_ros.view.simulated", "rerun", "pip install -r requirements-view.txt"),
        ("robobrain_ros.sim.camera_node", "mujoco", SIMULATION),
        ("robobrain_ros.sim.demo", "mujoco", SIMULATION),
        ("robobrain_ros.sim.pick", "mink", SIMULATION),
    ],
)
def test_executables_name_the_requirements(module, missing, advice):
    errors = errors_of(f"runpy.run_module('{module}', run_name='__main__')", missing)
    assert errors.count("\n") == 1
    assert missing in errors
    assert advice in errors
    (requirements,) = re.findall(r"-r (\S+\.txt)", errors)
    assert missing in (ROOT / requirements).read_text()


@pytest.mark.parametrize(
    ("name", "missing", "advice"),
    [
        ("moveit_pick", "pymoveit2", "pip install pymoveit2=="),
        ("nav2_go_to", "nav2_simple_commander", "apt install ros-jazzy-nav2-simple-commander"),
        ("py_trees_point_to", "py_trees", "apt install ros-jazzy-py-trees"),
    ],
)
def test_examples_name_the_package(name, missing, advice):
    path = ROOT / "examples" / f"{name}.py"
    errors = errors_of(f"runpy.run_path({str(path)!r}, run_name='__main__')", missing)
    assert errors.count("\n") == 1
    assert missing in errors
    assert advice in errors
