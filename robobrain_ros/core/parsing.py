# SPDX-License-Identifier: Apache-2.0
"""Parser of the models' answers: text in, typed Answer or typed failure out."""

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.core.families import Family
from robobrain_ros.core.tasks import TASKS, AnswerType, Task, TaskKind

MAX_ANSWER_CHARS = 4_000_000
MAX_COORDINATE = 1e6  # far beyond any image: such a number is a fault, not a place
_SHOWN_CHARS = 120


def _no_points() -> FloatArray:
    return np.empty((0, 2))


def _no_boxes() -> FloatArray:
    return np.empty((0, 4))


@dataclass(frozen=True, eq=False)
class Answer:
    """A parsed answer, its numbers in the frame and axis order in which the model answered.

    `points` (N, 2) in the order of the answer, or (N, 3) where the model estimates each one's depth
    in metres; `boxes` (M, 4) as two ordered corners (x1 < x2, y1 < y2). `text` is the answer
    without the thinking, `thinking` what was reasoned before it ("" when nothing was), `data` the
    properties of a JSON answer.
    """

    kind: TaskKind
    points: FloatArray = field(default_factory=_no_points)
    boxes: FloatArray = field(default_factory=_no_boxes)
    text: str = ""
    thinking: str = ""
    data: Mapping[str, Any] = field(default_factory=dict)


class AnswerError(Exception):
    """The model answered, but not with what the task needs; the message tells what to do.

    `answer` is what it wrote, and `generation` what that took (`requests.Generation`), where
    they are known.
    """

    answer = ""
    generation: Any = None


class UnparsableAnswer(AnswerError):
    """The answer is cut off, or not in a form that the task can use."""


class TruncatedAnswer(UnparsableAnswer):
    """The answer reached the limit of tokens before it was complete."""

    def __init__(self, tokens: int) -> None:
        super().__init__(
            f"The model's answer was cut off after {tokens} tokens: raise max_new_tokens, set "
            "max_points, or turn thinking off."
        )


class EmptyAnswer(AnswerError):
    """The model answered that there is nothing to report."""


def split_thinking(raw: str, opening: str = "") -> tuple[str, str]:
    """Split generated text into (thinking, answer), both without tags.

    `raw` is what the model generated after `opening`, the text that opened its turn. Without tags
    all of it is the answer. Raises UnparsableAnswer when the answer was cut off before the thinking
    ended.
    """
    thinking, closed, answer = (opening + raw).rpartition("</think>")
    if "<think>" in answer:
        raise UnparsableAnswer(
            "The model's thinking has no end, and so there is no answer: raise max_new_tokens, or "
            "turn thinking off."
        )
    if "<answer>" in answer:
        answer = answer.rpartition("<answer>")[2]
    answer = answer.partition("</answer>")[0]
    thinking = re.sub(r"</?(?:think|answer)>", "", thinking) if closed else ""
    return thinking.strip(), answer.strip()


def parse_answer(kind: TaskKind, raw: str, family: Family, opening: str = "") -> Answer:
    """Parse what a model generated after `opening` into an Answer with something in it.

    By its AnswerType: at least one point, at least one box, text, or a JSON object. Lists in round
    or square brackets, nested or not, amid sentences, and Qwen's JSON are understood; numbers
    without brackets are not.
    Raises EmptyAnswer when the model says that there is nothing, UnparsableAnswer for anything
    else. Takes time linear in the length of `raw`.
    """
    if len(raw) > MAX_ANSWER_CHARS:
        raise UnparsableAnswer(
            f"The model's answer is {len(raw)} characters long: lower the token limit."
        )
    thinking, text = split_thinking(raw, opening)
    if not text:
        raise EmptyAnswer(
            "The model answered nothing: rephrase the request or choose another model."
        )
    answer_type = family.answer_type(kind)
    if answer_type is AnswerType.TEXT:
        return Answer(kind, text=text, thinking=thinking)
    if answer_type is AnswerType.DATA:
        return Answer(kind, text=text, thinking=thinking, data=_data(text, TASKS[kind]))
    groups = list(_number_groups(text))
    if not groups:
        _raise_for_no_numbers(text)
    if answer_type is AnswerType.REGIONS:
        return Answer(kind, boxes=_boxes(groups, text), text=text, thinking=thinking)
    may_have_depth = family.has_depth and answer_type is AnswerType.WAYPOINTS
    points = _points(groups, text, may_have_depth)
    return Answer(kind, points=points, text=text, thinking=thinking)


def _data(text: str, task: Task) -> Mapping[str, Any]:
    """The JSON object that an answer is or holds, with the properties that the schema requires."""
    start, end = text.find("{"), text.rfind("}")
    try:
        data = json.loads(text[start : end + 1])
    except ValueError:
        data = None
    required = (task.schema or {}).get("required", ())
    if not isinstance(data, dict) or any(name not in data for name in required):
        wanted = f"a JSON object with {', '.join(required)}" if required else "a JSON object"
        raise UnparsableAnswer(
            f"The model's answer is not {wanted} ({_shown(text)}): rephrase the request, turn "
            "constrained decoding on, or choose another model."
        )
    known = (task.schema or {}).get("properties", data)
    return {name: value for name, value in data.items() if name in known}


def is_complete(answer_type: AnswerType, raw: str, opening: str = "") -> bool:
    """Whether a generation that reached the limit of tokens has all of its answer.

    Text has if the thinking before it has ended. Coordinates and data have if they are one closed
    list or object, or if other text follows the last bracket: `(1, 2), (3, 4)` without a list
    around it may have gone on.
    """
    try:
        _, text = split_thinking(raw, opening)
    except UnparsableAnswer:
        return False
    if answer_type is AnswerType.TEXT:
        return True
    depth, outermost, last = 0, 0, 0
    for bracket in _BRACKET.finditer(text):
        depth += 1 if bracket[0] in "([{" else -1
        outermost += depth == 0
        last = bracket.end()
    follows = text[last:].strip(" ,;`\t\r\n")
    return depth == 0 and (outermost == 1 or (outermost > 1 and bool(follows)))


# Innermost bracket pairs. No pattern backtracks further than to the previous bracket.
_GROUP = re.compile(r"\(([^()\[\]]*)\)|\[([^()\[\]]*)\]")
_BRACKET = re.compile(r"[()\[\]{}]")
_JSON_GROUP = re.compile(r'"(?:bbox|point)(?:_2d)?"\s*:\s*\[([^()\[\]]*)\]')
_NUMBER = re.compile(
    r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?|[+-]?(?:nan|inf(?:inity)?)",
    # Beyond ASCII, ı is an i for IGNORECASE and none for float().
    re.IGNORECASE | re.ASCII,
)
_MAX_GROUP_CHARS = 400
_NOTHING = re.compile(
    r"\W*(?:none|null|nothing|no|n/a|not (?:visible|found|present|in the image)"
    r"|(?:there (?:is|are) )?no(?:ne|t any)? [\w ,'-]{1,100})?\W*",
    re.IGNORECASE | re.ASCII,
)


def _number_groups(text: str) -> Iterator[tuple[float, ...]]:
    """Each bracketed list of two or more numbers; other brackets (asides) are passed over."""
    json_groups = _JSON_GROUP.findall(text)
    for content in json_groups or (a or b for a, b in _GROUP.findall(text)):
        if len(content) > _MAX_GROUP_CHARS:
            continue
        tokens = [token.strip() for token in content.split(",")]
        if len(tokens) > 1 and all(_NUMBER.fullmatch(token) for token in tokens):
            group = tuple(float(token) for token in tokens)
            if not all(math.isfinite(value) and abs(value) <= MAX_COORDINATE for value in group):
                raise UnparsableAnswer(
                    f"The model's answer is no place in an image ({_shown(content)}): "
                    "ask again or choose another model."
                )
            yield group


def _points(groups: list[tuple[float, ...]], text: str, may_have_depth: bool) -> FloatArray:
    """The groups as points (N, 2), or (N, 3) with depth; all of one kind."""
    sizes = {len(group) for group in groups}
    if sizes == {2} or (may_have_depth and sizes == {3}):
        return np.array(groups, dtype=np.float64)
    raise _unparsable("points", text)


def _boxes(groups: list[tuple[float, ...]], text: str) -> FloatArray:
    """The groups as boxes (M, 4) with ordered corners; two points alone are a box's corners."""
    if [len(group) for group in groups] == [2, 2]:
        groups = [groups[0] + groups[1]]
    if {len(group) for group in groups} != {4}:
        raise _unparsable("boxes", text)
    corners = np.sort(np.array(groups, dtype=np.float64).reshape(-1, 2, 2), axis=1)
    boxes = corners[(corners[:, 1] > corners[:, 0]).all(axis=1)].reshape(-1, 4)
    if not len(boxes):
        raise UnparsableAnswer(
            f"The model's box has no area ({_shown(text)}): "
            "rephrase the request or move the camera closer."
        )
    return boxes


def _raise_for_no_numbers(text: str) -> None:
    groups = [(a or b) for a, b in _GROUP.findall(text)]
    only_empty_lists = bool(groups) and not any(group.strip() for group in groups)
    if only_empty_lists or (len(text) <= 200 and _NOTHING.fullmatch(text)):
        raise EmptyAnswer(
            f"The model sees no such thing in the image ({_shown(text)}): "
            "rephrase the request or turn the camera to it."
        )
    raise _unparsable("coordinates in brackets", text)


def _unparsable(wanted: str, text: str) -> UnparsableAnswer:
    return UnparsableAnswer(
        f"The model's answer is not a list of {wanted} ({_shown(text)}): "
        "rephrase the request, check the model's family, or choose another model."
    )


def _shown(text: str) -> str:
    text = " ".join(text[: 4 * _SHOWN_CHARS].split())
    return f'"{text}"' if len(text) <= _SHOWN_CHARS else f'"{text[:_SHOWN_CHARS]}…"'
