# SPDX-License-Identifier: Apache-2.0
"""The documentation agrees with the package."""

import os
import re
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest
import yaml

from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.ros.parameters import CAMERA_PARAMETERS, SPECS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("robobrain_ros/**/*.md")])
INTERFACES = sorted(path for kind in ("msg", "srv", "action") for path in (ROOT / kind).iterdir())
OF_EVERY_NODE = {"/parameter_events", "/rosout", "~/transition_event"}
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


@pytest.mark.parametrize("page", ["interfaces", "parameters"])
def test_generated_pages_are_up_to_date(page):
    script = ROOT / "docs" / f"write_{page}.py"
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    written = subprocess.run(
        [sys.executable, script],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert written.stdout == (ROOT / "docs" / f"{page}.md").read_text(), "run `make docs`"


def test_the_interfaces_page_has_every_interface():
    headings = re.findall(r"^### (\w+)$", (ROOT / "docs" / "interfaces.md").read_text(), re.M)
    assert sorted(headings) == sorted(path.stem for path in INTERFACES)


def test_the_interfaces_page_has_the_published_topics():
    """Those of the security policy, which test_security.py compares with the running node."""
    profiles = ElementTree.parse(ROOT / "config" / "sros2_policy.xml").iter("profile")
    node = next(profile for profile in profiles if profile.get("node") == "robobrain")
    published = next(topics for topics in node.iter("topics") if topics.get("publish") == "ALLOW")
    allowed = {topic.text for topic in published} - OF_EVERY_NODE
    page = (ROOT / "docs" / "interfaces.md").read_text()
    assert set(re.findall(r"^\| `([^`]+)` \| `\w+/\w+` \|", page, re.M)) == allowed


@pytest.mark.parametrize("path", INTERFACES, ids=lambda path: path.name)
def test_every_parameter_that_an_interface_names_exists(path):
    named = re.findall(r'parameters? "?(\w+)', path.read_text())
    assert set(named) <= {spec.name for spec in SPECS}


def test_the_readme_is_short():
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 900
    assert max(map(len, text.splitlines())) <= 120


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
