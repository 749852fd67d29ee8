# SPDX-License-Identifier: Apache-2.0
"""Optional libraries: what is said where one is missing."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from robobrain_ros.core.extras import MissingLibrary, importing

ROOT = Path(__file__).resolve().parents[2]


def test_a_model_without_its_libraries_names_the_requirements():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "from robobrain_ros.engines.base import LoadError\n"
        "from robobrain_ros.engines.config import EngineConfig\n"
        "from robobrain_ros.engines.factory import load_engine\n"
        "try: load_engine(EngineConfig('nano'))\n"
        "except LoadError as error: print(error)"
    )
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert run.stdout.startswith("The Python module torch is missing: run `pip install -r ")
    assert "requirements-models.txt" in run.stdout


def test_a_missing_module_of_this_package_is_no_missing_library():
    with pytest.raises(ModuleNotFoundError, match="no_such"), importing("models"):
        import robobrain_ros.no_such  # noqa: F401


def test_the_simulation_needs_meshes_that_it_never_imports(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match="robosuite is missing"), importing("sim"):
        pass


def test_one_version_of_robosuite_is_named():
    files = ("Makefile", "requirements-sim.txt", "robobrain_ros/sim/assets.py")
    texts = [(ROOT / name).read_text() for name in (*files, "robobrain_ros/core/extras.py")]
    versions = [set(re.findall(r"robosuite==([\d.]+\d)", text)) for text in texts]
    assert all(versions)
    assert len(set.union(*versions)) == 1
