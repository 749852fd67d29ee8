# SPDX-License-Identifier: Apache-2.0
"""The action `~/infer` on the real node: the shipped model, and one that thinks for minutes."""

from __future__ import annotations

import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from action_msgs.msg import GoalStatus
from builtin_interfaces.msg import Duration
from safetensors.torch import load_file, save_file
from support.action_goals import Goal, action_client
from support.polling import diagnosed, until, values
from support.running_brain import running_brain
from tokenizers import Tokenizer

from robobrain_ros.action import Infer
from robobrain_ros.core.errors import ErrorCode
from robobrain_ros.msg import LiftedPoint
from robobrain_ros.sim.camera_node import color_image

SUCCEEDED, ABORTED, CANCELED = (
    GoalStatus.STATUS_SUCCEEDED,
    GoalStatus.STATUS_ABORTED,
    GoalStatus.STATUS_CANCELED,
)
PICTURE = np.random.default_rng(0).integers(0, 255, (60, 80, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def thinker(ros, tmp_path_factory):
    """A random model that thinks until it is stopped, under the shipped one's name and topics."""
    tiny_checkpoints = pytest.importorskip("support.tiny_checkpoints")
    directory = tmp_path_factory.mktemp("models") / "thinker"
    tiny_checkpoints.save_qwen2_5_vl(directory)
    config = json.loads((directory / "config.json").read_text())
    config["text_config"]["max_position_embeddings"] = 2**20
    (directory / "config.json").write_text(json.dumps(config))
    # It must not come upon a tag or an end by chance: their scores become 0, and others are above.
    weights = load_file(directory / "model.safetensors")
    (name,) = (name for name in weights if "embed_tokens" in name)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    for text in (*tiny_checkpoints.SPECIAL_TOKENS, *tiny_checkpoints.TAGS):
        weights[name][tokenizer.token_to_id(text)] = 0.0
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    parameters = {"model": str(directory), "family": "robobrain2", "max_new_tokens": 32768}
    parameters |= {"request_timeout": 600.0, "max_batch": 3}
    with running_brain(parameters, name="/thinker/robobrain") as brain:
        yield brain


def long_thought(**fields):
    return {
        "task": Infer.Goal.TASK_POINT,
        "query": "the cup",
        "think": Infer.Goal.THINK_ON,
        "image": color_image(PICTURE, "rgb8"),
        **fields,
    }


def thinking(own_node):
    """A goal that is being answered."""
    goal = Goal(own_node, "/thinker/robobrain", **long_thought())
    goal.wait_for(Infer.Feedback.STAGE_DECODING)
    return goal


def assert_idle(thinker) -> None:
    """The model is free: a short answer comes, and nobody else is being answered."""
    picture = color_image(PICTURE, "rgb8")
    for _ in range(3):
        assert thinker.point_to("the cup", image=picture, max_points=1).error_code in (
            ErrorCode.NONE,
            ErrorCode.EMPTY_ANSWER,
        )
    assert running(thinker) == 0


def running(thinker) -> int:
    """Requests being answered, as the node's diagnostics say."""
    with diagnosed("thinker/robobrain") as seen:
        until(lambda: len(seen.get("requests", ())) >= 2)  # the first may be from before
    return int(values(seen["requests"][-1])["requests being answered"])


def test_a_goal_gives_what_the_service_gives_and_tells_its_stages(
    brain, still_cameras, scene, own_node
):
    client = action_client(own_node)  # by the time of the goal, the server knows of it
    with still_cameras.publishing("camera", scene):
        query = f"Point to the {scene.name}"
        task = Infer.Goal.TASK_POINT
        goal = Goal(own_node, client=client, task=task, query=query, target_frame="table")
        status, result = goal.outcome()
        served = brain.point_to(query, target_frame="table")
    assert status == SUCCEEDED and result.success, result.error_msg
    assert result.answer == served.answer
    assert result.points[0].pixel == served.points[0].pixel
    assert result.points[0].status == LiftedPoint.OK
    stages = [feedback.stage for feedback in goal.feedback]
    assert stages[0] == Infer.Feedback.STAGE_WAITING
    assert stages[-1] == Infer.Feedback.STAGE_LIFTING
    assert stages == sorted(stages)
    assert "".join(feedback.text for feedback in goal.feedback).strip() == result.answer
    assert goal.feedback[-1].tokens == result.timing.tokens_out


@pytest.mark.parametrize(
    ("task", "field"),
    [
        (Infer.Goal.TASK_AFFORDANCE, "regions"),
        (Infer.Goal.TASK_TRAJECTORY, "points"),
        (Infer.Goal.TASK_GROUNDING, "regions"),
    ],
)
def test_every_task_is_served(brain, still_cameras, scene, task, field, own_node):
    with still_cameras.publishing("camera", scene):
        status, result = Goal(own_node, task=task, query=scene.name).outcome()
    assert status == SUCCEEDED, result.error_msg
    assert len(getattr(result, field)) > 0
    assert bool(result.path.poses) is (task == Infer.Goal.TASK_TRAJECTORY)


@pytest.mark.parametrize(
    ("fields", "code"),
    [
        ({"task": 0, "query": "the can"}, ErrorCode.BAD_REQUEST),
        ({"task": 1, "query": " "}, ErrorCode.BAD_REQUEST),
        ({"task": 1, "query": "the can", "camera": "nobody"}, ErrorCode.BAD_REQUEST),
    ],
)
def test_a_goal_that_fails_is_aborted_with_its_code(brain, fields, code, own_node):
    status, result = Goal(own_node, **fields).outcome()
    assert status == ABORTED and not result.success
    assert ErrorCode(result.error_code) is code and result.error_msg


def test_a_cancel_stops_the_model(thinker, own_node):
    goal = thinking(own_node)
    goal.cancel()
    status, result = goal.outcome()
    assert status == CANCELED
    assert ErrorCode(result.error_code) is ErrorCode.CANCELLED
    tokens = goal.feedback[-1].tokens
    assert 0 < tokens < 32768
    assert_idle(thinker)


def test_a_cancel_ends_a_goal_that_waits_for_its_turn(thinker, own_node):
    first, second = thinking(own_node), thinking(own_node)  # one place is kept for short answers
    waiting = Goal(own_node, "/thinker/robobrain", **long_thought())
    waiting.wait_for(Infer.Feedback.STAGE_WAITING)
    waiting.cancel()
    assert waiting.outcome()[0] == CANCELED
    assert all(one.stage == Infer.Feedback.STAGE_WAITING for one in waiting.feedback)
    for goal in (first, second):
        goal.cancel()
        assert goal.outcome()[0] == CANCELED


def test_long_thoughts_do_not_hold_up_a_point(thinker, own_node):
    thoughts = [thinking(own_node), thinking(own_node)]
    picture = color_image(PICTURE, "rgb8")
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda _: thinker.point_to("the cup", image=picture, max_points=1), range(4))
        )
    assert all(answer.error_code in (ErrorCode.NONE, ErrorCode.EMPTY_ANSWER) for answer in answers)
    for thought in thoughts:
        before = len(thought.feedback)
        thought.news.clear()
        assert thought.news.wait(10.0) and len(thought.feedback) > before  # it goes on
        thought.cancel()
        assert thought.outcome()[0] == CANCELED


def test_a_deadline_stops_the_model(thinker):
    fields = {key: value for key, value in long_thought().items() if key != "task"}
    response = thinker.point_to(fields.pop("query"), timeout=Duration(sec=1), **fields)
    assert ErrorCode(response.error_code) is ErrorCode.TIMEOUT
    assert_idle(thinker)


def test_work_for_a_client_that_is_gone_stops(thinker):
    code = """
import rclpy
from support.action_goals import Goal
from robobrain_ros.ros.executors import spinning
from test_action import *

rclpy.init()
with spinning(rclpy.create_node("mortal")) as node:
    goal = Goal(node, "/thinker/robobrain", **long_thought())
    goal.wait_for(Infer.Feedback.STAGE_DECODING)
rclpy.shutdown()
"""
    here = Path(__file__).parent  # where `-c` imports this module from
    subprocess.run([sys.executable, "-c", code], cwd=here, check=True, timeout=60)
    until(lambda: running(thinker) == 0, 30.0)
    assert_idle(thinker)


def test_deactivating_ends_a_goal(thinker, own_node):
    goal = thinking(own_node)
    assert thinker.deactivate()
    status, result = goal.outcome()
    assert status == ABORTED
    assert ErrorCode(result.error_code) is ErrorCode.NOT_ACTIVE
    assert thinker.activate()
