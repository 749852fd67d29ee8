# SPDX-License-Identifier: Apache-2.0
"""Print docs/interfaces.md from the comments of msg/, srv/ and action/.

python docs/write_interfaces.py > docs/interfaces.md
"""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PARTS = {2: ("Request", "Response"), 3: ("Goal", "Result", "Feedback")}

HEAD = """\
<!-- Written by docs/write_interfaces.py from msg/, srv/ and action/: edit those, `make docs`. -->
# Interfaces

Names are relative to the node, which is called `robobrain`: `~/point_to` is `/robobrain/point_to`,
and in the namespace `/robot1` it is `/robot1/robobrain/point_to`. The topics that the node
subscribes to are in [cameras](cameras.md), the meaning of poses and statuses is in
[frames](frames.md), and what to do about an error code in [errors](errors.md).

| service | type | |
|---|---|---|
{services}

| action | type | |
|---|---|---|
{action}

| published topic | type | |
|---|---|---|
| `~/detections` | `vision_msgs/Detection2DArray` | points and boxes in the image |
| `~/detections_3d` | `vision_msgs/Detection3DArray` | points and boxes in the target frame |
| `~/poses` | `geometry_msgs/PoseArray` | all results that have a position |
| `~/path` | `nav_msgs/Path` | waypoints of a trajectory that have a position |
| `~/markers` | `visualization_msgs/MarkerArray` | all results, for [RViz](rviz.md) |
| `~/annotated_image` | `sensor_msgs/Image` | the image with the results drawn on it |
| `/tf` | `tf2_msgs/TFMessage` | a frame per result: `robobrain/point_0`, … |
| `/diagnostics` | `diagnostic_msgs/DiagnosticArray` | [state, latency, errors](performance.md) |

The node is a managed (lifecycle) node with the usual `~/change_state` and `~/get_state`. In Python,
`robobrain_ros.client` has a blocking `BrainClient`, and an `AsyncBrainClient` for callbacks."""


@dataclass
class Entry:
    """A field or constant: `uint8 think` or `uint8 THINK_OFF=1`, with its comment.

    block: the number of empty lines before it, the same for a field and its constants.
    """

    kind: str
    name: str
    value: str
    comment: str
    block: int = field(compare=False)


@dataclass
class Part:
    """A message, or the part of a service or an action between two `---`."""

    description: str = ""
    entries: list[Entry] = field(default_factory=list)


def parse(text: str) -> list[Part]:
    """The parts of an interface file; a comment belongs to the field and constants below it."""
    parts = [Part()]
    comment: list[str] = []
    block = 0
    for line in text.splitlines():
        if line.startswith("#"):
            if "SPDX" not in line:
                comment.append(line.lstrip("# "))
        elif line == "---":
            parts.append(Part())
            comment = []
        elif not line:
            if comment and not parts[0].description:
                parts[0].description = " ".join(comment)
            comment = []
            block += 1
        else:
            declaration, _, remark = line.partition("#")
            kind, name = declaration.strip().split(" ", 1)
            name, _, value = name.partition("=")
            said = remark.strip() if value else " ".join([*comment, remark.strip()]).strip()
            parts[-1].entries.append(Entry(kind, name, value, said, block))
    return parts


def page() -> str:
    """The text of docs/interfaces.md."""
    services, messages = (
        {path.stem: parse(path.read_text()) for path in sorted((ROOT / kind).iterdir())}
        for kind in ("srv", "msg")
    )
    action = parse((ROOT / "action/Infer.action").read_text())
    common = [_shared([parts[half] for parts in services.values()]) for half in (0, 1)]
    lines = [
        HEAD.format(
            services="\n".join(
                f"| `~/{_topic(name)}` | [{name}](#{name.lower()}) | {parts[0].description} |"
                for name, parts in services.items()
            ),
            action=f"| `~/infer` | [Infer](#infer) | {action[0].description} |",
        )
    ]
    lines += ["\n## Fields of every request\n", *_listed(common[0])]
    lines += ["\n## Fields of every response\n", *_listed(common[1])]
    lines += ["\n## Services\n", "Beside the fields of every request and response:"]
    for name, parts in services.items():
        lines += _section(name, parts, common)
    lines += ["\n## Action\n", "Beside the fields of every request (goal) and response (result):"]
    lines += _section("Infer", action, common)
    lines += ["\n## Messages"]
    for name, parts in messages.items():
        lines += _section(name, parts, [])
    return "\n".join(lines)


def _shared(parts: list[Part]) -> list[Entry]:
    """The fields and constants that all parts have, in the order of the first."""
    first, *others = parts
    return [entry for entry in first.entries if all(entry in part.entries for part in others)]


def _section(name: str, parts: list[Part], common: list[list[Entry]]) -> list[str]:
    lines = [f"\n### {name}\n", _wrapped(parts[0].description)]
    for number, part in enumerate(parts):
        known = common[number] if number < len(common) else []
        entries = [entry for entry in part.entries if entry not in known]
        if entries:
            title = [f"\n{PARTS[len(parts)][number]}:"] if len(parts) > 1 else []
            lines += [*title, "", *_listed(entries)]
    return lines


def _listed(entries: list[Entry]) -> list[str]:
    """Fields as a list, each followed by its constants."""
    fields = {entry.block for entry in entries if not entry.value}
    lines = []
    for entry in sorted(entries, key=lambda entry: (entry.block, bool(entry.value))):
        title = (
            f"`{entry.name}` = {entry.value}" if entry.value else f"`{entry.name}` (`{entry.kind}`)"
        )
        text = f"{title}: {entry.comment}" if entry.comment else title
        text = re.sub(r'parameter "(\w+)"', r"parameter `\1`", text)
        indent = "  " if entry.value and entry.block in fields else ""
        lines.append(_wrapped(f"{indent}- {text}", f"{indent}  "))
    return lines


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(text, 120, subsequent_indent=indent, break_long_words=False)


def _topic(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


if __name__ == "__main__":
    print(page())
