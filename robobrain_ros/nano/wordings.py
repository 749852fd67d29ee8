# SPDX-License-Identifier: Apache-2.0
"""Templates of questions, each with a slot for a name or a description."""

from __future__ import annotations

POINT = (
    "point to the {}",
    "locate the {}",
    "identify the {}",
    "find the {}",
    "where is the {}?",
    "the {}",
    "{}",
)
SPOTS = (
    "point to several spots on the {}",
    "locate several points on the {}",
    "several points on the {}",
)
FREE = (
    "point to a free spot {}",
    "point to the free space {}",
    "locate free space {}",
    "find an empty spot {}",
    "identify a spot within the vacant space {}",
    "a free spot {}",
    "the free space {}",
    "{}",
)
BOX = ("the {}", "the {}", "the {}", "{}")
AFFORDANCE = (
    "pick up the {}",
    "grasp the {}",
    "grab the {}",
    "lift the {}",
    "take the {}",
    "hold the {}",
)
REACH = (
    "move the gripper to the {}",
    "reach for the {}",
    "reach the {}",
    "move to the {}",
    "go to the {}",
)
GO = ("move the gripper to the free space {}", "move to the free spot {}")


def capitalised(text: str) -> str:
    """The text with a capital letter first."""
    return text[:1].upper() + text[1:]
