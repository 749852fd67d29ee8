# SPDX-License-Identifier: Apache-2.0
"""Print docs/parameters.md from the parameters' own declarations.

python docs/write_parameters.py > docs/parameters.md
"""

from __future__ import annotations

from robobrain_ros.ros.parameters import CAMERA_PARAMETERS, SPECS, Spec

HEAD = """\
<!-- Written by docs/write_parameters.py from robobrain_ros/ros/parameters.py: edit that. -->
# Parameters

Set them in a file such as [config/brain.yaml](../config/brain.yaml), or with
`ros2 param set /robobrain NAME VALUE`; those marked ∗ are fixed while the node is configured.

| parameter | default | values | |
|---|---|---|---|"""
CAMERA_HEAD = """
Each camera NAME in `cameras` has, all of them ∗:

| parameter | default | |
|---|---|---|"""


def rows() -> list[str]:
    """Lines of the page."""
    own = [
        f"| `{spec.name}`{' ∗' if spec.load_time else ''} | {_shown(spec.default)} "
        f"| {_values(spec)} | {spec.description} |"
        for spec in SPECS
    ]
    cameras = [
        f"| `NAME.{key}` | {_shown(default)} | {description} |".replace("{name}", "NAME")
        for key, (default, description) in CAMERA_PARAMETERS.items()
    ]
    return [line.replace("<name>", "NAME") for line in (HEAD, *own, CAMERA_HEAD, *cameras)]


def _shown(default: object) -> str:
    text = str(default).lower() if isinstance(default, bool) else str(default)
    return f"`{text}`" if text else '`""`'


def _values(spec: Spec) -> str:
    if spec.choices:
        return ", ".join(f"`{choice}`" for choice in spec.choices)
    if spec.range is None:
        return ""
    kind = int if isinstance(spec.default, int) else float
    low, high = (kind(end) for end in spec.range)
    return f"{low:g} to {high:g}" if kind is float else f"{low} to {high}"


if __name__ == "__main__":
    print("\n".join(rows()))
