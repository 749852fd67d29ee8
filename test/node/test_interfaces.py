# SPDX-License-Identifier: Apache-2.0
"""The contract that planners rely on, and that the interfaces of ros_pypi/ are the real ones."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.core.tasks import TASKS, AnswerType
from robobrain_ros.tf_projection import LiftStatus

pytest.importorskip("robobrain_ros.msg", reason="needs a ROS 2 shell: run `make test`")

from ament_index_python.packages import get_package_share_directory

import robobrain_ros.msg as messages
import robobrain_ros.srv as services
from robobrain_ros.action import Infer

ROOT = Path(__file__).parents[2]
FILES = sorted(path for kind in ("msg", "srv", "action") for path in (ROOT / kind).iterdir())
SERVICES = tuple(task.interface for task in TASKS.values())
COMMON_REQUEST = {
    "camera": "string",
    "target_frame": "string",
    "stamp": "builtin_interfaces/Time",
    "timeout": "builtin_interfaces/Duration",
    "think": "uint8",
    "image": "sensor_msgs/Image",
}
COMMON_RESPONSE = {
    "success": "boolean",
    "error_code": "uint16",
    "error_msg": "string",
    "header": "std_msgs/Header",
    "answer": "string",
    "thinking": "string",
    "timing": "robobrain_ros/Timing",
}
# From ros-perception/vision_msgs 4.1.1 and ros2/geometry2 0.36.4: peers refuse other types.
REAL_HASHES = {
    "vision_msgs/msg/Point2D": "eab0e83f44ab4de92ceaf76dd7d0e7638f2bdd1d16ffbe16c7a136c48e407247",
    "vision_msgs/msg/BoundingBox2D": (
        "008eacbb0cf8f26e83795547bed013eec3675485ef386ec056d80eaaf1c1ce2f"
    ),
    "vision_msgs/msg/BoundingBox3D": (
        "bbb73a65c163d7f9bb29009c7bde9f7faa576bd2d23299c4511d19230dab4698"
    ),
    "vision_msgs/msg/Detection2DArray": (
        "214274120007f4a683866481336b70310268cfa107aebe9d594a6acf75bda968"
    ),
    "vision_msgs/msg/Detection3DArray": (
        "793f5eab9595ac1c0da07873cc859db42eae51f0ee76056db8562515d830e018"
    ),
    "tf2_msgs/msg/TFMessage": "e369d0f05a23ae52508854b66f6aa0437f3449d652e8cbf22d5abe85d020f087",
    "tf2_msgs/srv/FrameGraph": "0d1fbc6222c018ba5f33822904a2fdd4063705289956d3fdde07cd8c50fe8067",
    "tf2_msgs/action/LookupTransform": (
        "0b8adf6bc0b5958879e3265b41a457e03558fe523890a81252c70eba97a82c5d"
    ),
}


@pytest.mark.parametrize("name", REAL_HASHES)
def test_type_hashes_are_the_real_ones(name):
    package, path = name.split("/", 1)
    description = json.loads(
        Path(get_package_share_directory(package), path).with_suffix(".json").read_text()
    )
    hashes = {entry["type_name"]: entry["hash_string"] for entry in description["type_hashes"]}
    assert hashes[name] == f"RIHS01_{REAL_HASHES[name]}"


def types(message: type) -> dict[str, str]:
    return message.get_fields_and_field_types()


@pytest.mark.parametrize("name", SERVICES)
def test_every_service_has_the_common_fields(name):
    service = getattr(services, name)
    assert COMMON_REQUEST.items() <= types(service.Request).items()
    assert COMMON_RESPONSE.items() <= types(service.Response).items()
    assert types(service.Request).get("query", types(service.Request).get("task")) == "string"


def test_the_fields_of_each_task():
    def extra(message, common):
        return {name: kind for name, kind in types(message).items() if name not in common}

    def both(service):
        return extra(service.Request, COMMON_REQUEST), extra(service.Response, COMMON_RESPONSE)

    points, regions = "sequence<robobrain_ros/LiftedPoint>", "sequence<robobrain_ros/LiftedRegion>"
    assert both(services.PointTo) == (
        {"query": "string", "max_points": "uint32"},
        {"points": points},
    )
    assert both(services.GetAffordance) == ({"task": "string"}, {"regions": regions})
    assert both(services.PredictTrajectory) == (
        {"task": "string", "max_points": "uint32"},
        {"waypoints": points, "path": "nav_msgs/Path"},
    )
    assert both(services.GroundObject) == ({"query": "string"}, {"regions": regions})
    asked = {"query": "string", "images": "sequence<sensor_msgs/Image>", "window_s": "float"}
    assert both(services.Ask) == (asked, {"truncated": "boolean"})
    assert extra(Infer.Goal, COMMON_REQUEST) == asked | {"task": "uint8", "max_points": "uint32"}
    assert extra(Infer.Result, COMMON_RESPONSE) == {
        "points": points,
        "regions": regions,
        "path": "nav_msgs/Path",
        "truncated": "boolean",
    }
    assert types(Infer.Feedback) == {"stage": "uint8", "text": "string", "tokens": "uint32"}


@pytest.mark.parametrize("task", TASKS.values(), ids=lambda task: task.interface)
def test_requests_and_responses_have_the_fields_of_their_task(task):
    service = getattr(services, task.interface)
    assert set(task.fields.values()) <= types(service.Request).keys()
    if task.answer is AnswerType.DATA:
        assert task.schema["properties"].keys() <= types(service.Response).keys()


def test_thinking_has_the_same_values_everywhere():
    for request in (*(getattr(services, name).Request for name in SERVICES), Infer.Goal):
        assert (request.THINK_DEFAULT, request.THINK_OFF, request.THINK_ON) == (0, 1, 2)


def test_error_codes_are_those_of_the_modules_without_ros():
    for code in ErrorCode:
        assert getattr(messages.ErrorCode, code.name) == code


@pytest.mark.parametrize("message", ["LiftedPoint", "LiftedRegion"])
def test_statuses_are_those_of_the_modules_without_ros(message):
    for status in LiftStatus:
        assert getattr(getattr(messages, message), status.name) == status


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_field_has_a_comment(path):
    """On its line, or above it or above the constants that belong to it."""
    commented = False
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            commented = True
        elif not line.strip():
            commented = False
        elif not re.match(r"---|.*=", line):
            assert commented or "#" in line, line
