# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the package."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.ros.parameters import CAMERA_PARAMETERS, SPECS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("robobrain_ros/**/*.md")])
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(#[^)\s]*)?\)")


def _anchors(page: Path) -> set[str]:
    """The anchors that GitHub makes of a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    kept = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {f"#{text.replace(' ', '-')}" for text in kept}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    for target, anchor in _LINK.findall(page.read_text()):
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), target
        if anchor and file.suffix == ".md":
            assert anchor in _anchors(file), f"{target}{anchor}"


def test_the_parameters_page_is_what_the_node_declares():
    script = ROOT / "docs" / "write_parameters.py"
    written = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True)
    assert written.stdout == (ROOT / "docs" / "parameters.md").read_text()


def test_every_error_code_is_explained():
    codes = {name for name in dir(ErrorCode) if name.isupper() and name != "NONE"}
    explained = set(re.findall(r"^\| `([A-Z_]+)` \|", (ROOT / "docs/errors.md").read_text(), re.M))
    assert explained == codes


def test_every_parameter_is_in_the_example_file_with_its_default():
    brain = yaml.safe_load((ROOT / "config" / "brain.yaml").read_text())["/**"]["robobrain"]
    shown = brain["ros__parameters"]
    camera = shown.pop("camera")
    assert shown == {spec.name: spec.default for spec in SPECS}
    assert camera == {
        key: default.format(name="camera") if isinstance(default, str) else default
        for key, (default, _) in CAMERA_PARAMETERS.items()
    }
