# SPDX-License-Identifier: Apache-2.0
"""Write an executable into the given directory for each console script that setup.py names.

Run by CMakeLists.txt, so that `ros2 run` and `pip install` start the same functions.
"""

import sys
from pathlib import Path

import setuptools  # noqa: F401  provides distutils, which Python 3.12 lacks

# isort: split
from distutils.core import run_setup

# env: the interpreter of the active virtual environment, not the one that built the package.
EXECUTABLE = """#!/usr/bin/env python3
import sys

from {module} import {function}

sys.exit({function}())
"""


def main() -> None:
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    setup_py = Path(__file__).resolve().parent.parent / "setup.py"
    for script in run_setup(str(setup_py), stop_after="init").entry_points["console_scripts"]:
        name, target = (part.strip() for part in script.split("="))
        module, function = target.split(":")
        executable = directory / name
        executable.write_text(EXECUTABLE.format(module=module, function=function))
        executable.chmod(0o755)


if __name__ == "__main__":
    main()
