# SPDX-License-Identifier: Apache-2.0
"""Python metadata: the version is package.xml's, and CMake reads its executables here."""

from pathlib import Path
from xml.etree import ElementTree

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
MANIFEST = ElementTree.parse(ROOT / "package.xml")


def requirements() -> list[str]:
    """The pinned runtime libraries, which the Makefile installs from the same files."""
    files = (ROOT / "requirements-models.txt", ROOT / "requirements.txt")
    lines = (
        line.partition("#")[0].strip() for file in files for line in file.read_text().splitlines()
    )
    return [line for line in lines if "==" in line]


setup(
    name=MANIFEST.findtext("name"),
    version=MANIFEST.findtext("version"),
    description=MANIFEST.findtext("description"),
    license=MANIFEST.findtext("license"),
    maintainer=MANIFEST.findtext("maintainer"),
    maintainer_email=MANIFEST.find("maintainer").get("email"),
    python_requires=">=3.10",
    packages=find_packages(include=["robobrain_ros", "robobrain_ros.*"]),
    package_data={"robobrain_ros.nano": ["model/*"]},
    install_requires=requirements(),
    entry_points={
        "console_scripts": [
            "brain_node = robobrain_ros.brain_node:main",
            "sim_camera = robobrain_ros.sim.camera_node:main",
            "view = robobrain_ros.view.__main__:main",
        ],
    },
)
