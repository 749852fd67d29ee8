# SPDX-License-Identifier: Apache-2.0
"""Responses take what fits their fields, whatever a model writes."""

from __future__ import annotations

from dataclasses import replace
from types import MappingProxyType

import pytest
from rclpy.serialization import serialize_message
from std_msgs.msg import Header
from support.sample_results import answer

from robobrain_ros.core.parsing import UnparsableAnswer
from robobrain_ros.core.requests import FinishReason
from robobrain_ros.core.tasks import TASKS, AnswerType, TaskKind
from robobrain_ros.msg import ErrorCode
from robobrain_ros.ros import responses
from robobrain_ros.srv import Ask


class Response(Ask.Response):
    """The response of a task whose answer is JSON."""

    @classmethod
    def get_fields_and_field_types(cls) -> dict[str, str]:
        extra = {"count": "uint8", "share": "float", "name": "string", "names": "sequence<string>"}
        return super().get_fields_and_field_types() | extra | {"error_code": "uint16"}

    __slots__ = ("count", "name", "names", "share")


@pytest.fixture
def data_task(monkeypatch):
    """A registry whose ASK answers with JSON."""
    task = replace(TASKS[TaskKind.ASK], answer=AnswerType.DATA, schema={"type": "object"})
    monkeypatch.setattr(responses, "TASKS", MappingProxyType({**TASKS, TaskKind.ASK: task}))


def filled(**data):
    result = answer(TaskKind.ASK, text="{}")
    response = Response()
    result = replace(result, answer=replace(result.answer, data=data))
    responses.fill_response(response, result, Header())
    return response


def test_values_that_fit_fill_the_fields_of_their_names(data_task):
    response = filled(count=3, share=1, name="cup", names=["a", "b"], unknown=1)
    assert response.success
    assert (response.count, response.share, response.name) == (3, 1.0, "cup")
    assert isinstance(response.share, float)
    assert response.names == ["a", "b"]
    assert filled(count=2.0).count == 2


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", "three"), ("count", -1), ("count", 256), ("count", 2.5), ("count", None),
        ("count", True), ("count", {}), ("share", "1"), ("share", None), ("share", 1e999),
        ("name", 3), ("names", "a"), ("names", ["a", 3]), ("names", {"a": 1}),
    ],
)  # fmt: skip
def test_values_that_do_not_fit_are_a_typed_failure(data_task, name, value):
    """They ended the process (rclpy asserts the types), or were cut to the field's bits."""
    with pytest.raises(UnparsableAnswer, match=name):
        filled(**{name: value})


def test_a_model_does_not_fill_what_every_response_has(data_task):
    response = filled(success=False, error_code=ErrorCode.BUSY, error_msg="x", answer="y", count=1)
    assert response.success and response.error_code == ErrorCode.NONE
    assert (response.error_msg, response.answer, response.count) == ("", "{}", 1)


@pytest.mark.parametrize("finish", FinishReason)
def test_text_that_is_cut_off_says_so(finish):
    result = answer(TaskKind.ASK, text="two cans and")
    result = replace(result, generation=replace(result.generation, finish=finish))
    response = Ask.Response()
    responses.fill_response(response, result, Header())
    assert response.truncated is (finish is FinishReason.LENGTH)
    assert serialize_message(response)


def test_a_task_without_built_types_says_how_to_build_them():
    task = replace(TASKS[TaskKind.ASK], interface="Nonsense")
    with pytest.raises(ImportError, match=r"Nonsense.*is not built"):
        responses.service_type(task)
