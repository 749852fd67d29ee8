# SPDX-License-Identifier: Apache-2.0
"""tf_projection is the only module through which code outside lifting/ uses lifting.

The layers below it are a contract of import-linter, which doesn't see bench/ and examples/.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "robobrain_ros"
LIFTING, FACADE = "robobrain_ros.lifting", "robobrain_ros.tf_projection"


def imported(source: str) -> Iterator[str]:
    """Names of the modules, and of what may be modules, that a source imports."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, "a relative import"
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports_of(path: Path) -> frozenset[str]:
    return frozenset(imported(path.read_text()))


def users_of(module: str, folder: Path) -> list[str]:
    """Files (relative paths) below a folder that import a module or a submodule of it."""
    return [
        str(path.relative_to(ROOT))
        for path in sorted(folder.rglob("*.py"))
        if any(f"{name}.".startswith(f"{module}.") for name in imports_of(path))
    ]


@pytest.mark.parametrize(
    "source",
    [
        "import robobrain_ros.lifting.lift",
        "from robobrain_ros import lifting",
        "from robobrain_ros.lifting import lift",
        "def f():\n    from robobrain_ros.lifting.lift import lift_points as g",
    ],
)
def test_every_form_of_import_is_recognized(source, tmp_path, monkeypatch):
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "user.py").write_text(source)
    assert users_of(LIFTING, tmp_path) == ["user.py"]
    assert users_of(FACADE, tmp_path) == []


def test_the_package_uses_lifting_through_the_facade_only():
    users = users_of(LIFTING, PACKAGE)
    outside = [path for path in users if not path.startswith("robobrain_ros/lifting/")]
    assert outside == ["robobrain_ros/tf_projection.py"]


@pytest.mark.parametrize("folder", ["bench", "examples"])
def test_benches_and_examples_use_lifting_through_the_facade_only(folder):
    assert users_of("robobrain_ros", ROOT / folder), "no file was read"
    assert users_of(LIFTING, ROOT / folder) == []
