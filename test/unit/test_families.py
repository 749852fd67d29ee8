# SPDX-License-Identifier: Apache-2.0
"""The family of a checkpoint is found, or asked for; the data is complete."""

import pytest

from robobrain_ros.core.families import FAMILIES, CoordinateFrame, UnknownFamily, detect_family
from robobrain_ros.core.tasks import TaskKind, Think


@pytest.mark.parametrize(
    ("model_type", "name", "hidden_size", "family"),
    [
        ("qwen2_5_vl", "BAAI/RoboBrain2.0-3B", 2048, "robobrain2_3b"),
        ("qwen2_5_vl", "BAAI/RoboBrain2.0-3B", None, "robobrain2_3b"),
        ("qwen2_5_vl", "BAAI/RoboBrain2.0-7B", 3584, "robobrain2"),
        ("qwen2_5_vl", "BAAI/RoboBrain2.0-32B", 5120, "robobrain2"),
        ("qwen2_5_vl", "BAAI/RoboBrain2.0-32B", None, "robobrain2"),
        ("qwen2_5_vl", "/data/robobrain/weights", 2048, "robobrain2_3b"),
        ("qwen2_5_vl", "Qwen/Qwen2.5-VL-3B-Instruct", 2048, "qwen2_5_vl"),
        ("qwen2_5_vl", "/home/me/robobrain_ws/models/Qwen2.5-VL-7B", 3584, "qwen2_5_vl"),
        ("qwen2_5_vl", "/cache/models--BAAI--RoboBrain2.0-7B/snapshots/0a1b", 3584, "robobrain2"),
        ("qwen3_vl", "BAAI/RoboBrain2.5-8B-NV", 4096, "robobrain2_5"),
        ("qwen3_vl", "Qwen/Qwen3-VL-4B-Instruct", 2560, "qwen3_vl"),
    ],
)
def test_family_by_name_and_width(model_type, name, hidden_size, family):
    assert detect_family(model_type, name, hidden_size).name == family


def test_override_decides():
    assert detect_family("qwen2_5_vl", "x/y", None, "robobrain2_3b") is FAMILIES["robobrain2_3b"]
    named = detect_family("qwen2_5_vl", "BAAI/RoboBrain2.0-7B", 3584, "qwen2_5_vl")
    assert named.name == "qwen2_5_vl"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("llama", "meta/llama", 4096), "qwen2_5_vl or qwen3_vl"),
        (("qwen2_5_vl", "/models/best", 2048), "robobrain2, robobrain2_3b, qwen2_5_vl"),
        (("qwen3_vl", "/models/best", 2048), "robobrain2_5, qwen3_vl"),
        (("qwen2_5_vl", "x/y", None, "robobrain9"), "no model family"),
        (("qwen2_5_vl", "x/y", None, "robobrain2_5"), "is for models of type qwen3_vl"),
    ],
)
def test_unknown_families_name_the_choices(arguments, message):
    with pytest.raises(UnknownFamily, match=message):
        detect_family(*arguments)


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_every_family_is_complete(family):
    assert all(family.template(kind).count("{text}") == 1 for kind in TaskKind)
    assert set(family.openings) == set(Think)
    assert family.thinks == bool(family.openings[Think.ON])
    assert family.patch_factor == {"qwen2_5_vl": 28, "qwen3_vl": 32}[family.model_types[0]]


def test_thinking_opens_the_turn_as_upstream_does():
    openings = FAMILIES["robobrain2"].openings
    assert openings[Think.ON] == "<think>"
    assert openings[Think.OFF] == openings[Think.DEFAULT] == "<think></think><answer>"
    assert not any(FAMILIES["robobrain2_3b"].openings.values())


def test_coordinate_frames():
    frames = {name: family.frame for name, family in FAMILIES.items()}
    sent, relative = CoordinateFrame.SENT_PIXELS, CoordinateFrame.RELATIVE_1000
    assert frames == {
        "robobrain2": sent,
        "robobrain2_3b": sent,
        "robobrain2_5": relative,
        "qwen3_vl": relative,
        "qwen2_5_vl": sent,
    }
