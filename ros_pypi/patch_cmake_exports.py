# SPDX-License-Identifier: Apache-2.0
"""Let CMake use the ROS 2 wheels of the running virtual environment.

The wheels' CMake exports name the include directories of the machine on which they were built. This
replaces them by those of this Python and this numpy; a second run changes nothing.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILD_PYTHON = r"/opt/python/cp3\d+-cp3\d+t?"


def main() -> None:
    if sys.prefix == sys.base_prefix:
        sys.exit("Run this with the Python of a virtual environment: it changes that environment.")
    replacements = {
        BUILD_PYTHON + r"/include/python3\.\d+t?": sysconfig.get_paths()["include"],
        BUILD_PYTHON
        + r"/lib/python3\.\d+t?/site-packages/numpy/_core/include": numpy.get_include(),
    }
    changed = 0
    for export in Path(sys.prefix, "share").rglob("*.cmake"):
        old = new = export.read_text()
        for pattern, directory in replacements.items():
            new = re.sub(pattern, lambda _, directory=directory: directory, new)
        if new != old:
            export.write_text(new)
            changed += 1
    print(f"{changed} CMake exports changed in {sys.prefix}")


if __name__ == "__main__":
    main()
