# SPDX-License-Identifier: Apache-2.0
"""robosuite's Franka Panda and its hand as MuJoCo specifications, reduced to what a scene needs."""

from __future__ import annotations

from collections.abc import Callable

import mujoco

from robobrain_ros.sim.assets import robosuite_assets

ARM_BASE = (-0.62, 0.0, 0.0)
"""Position of the arm's base in the frame `table`, meters."""

_FINGER_COLOR = (0.25, 0.25, 0.26, 1.0)
_LINK_COLOR = (0.93, 0.94, 0.95, 1.0)


def load_arm(keep: Callable[[mujoco.MjsGeom], bool]) -> mujoco.MjSpec:
    """Return the arm with its kinematics and the geoms to keep. Raises AssetsNotFound."""
    return _load("robots/panda/robot.xml", keep)


def load_hand(keep: Callable[[mujoco.MjsGeom], bool]) -> mujoco.MjSpec:
    """Return the hand, as `load_arm` the arm."""
    return _load("grippers/panda_gripper.xml", keep)


def attach(spec: mujoco.MjSpec, arm: mujoco.MjSpec, hand: mujoco.MjSpec) -> None:
    """Add the arm and its hand to a scene, with names that start with `arm/` and `arm/hand/`."""
    arm.attach(hand, prefix="hand/", frame=arm.body("right_hand").add_frame())
    spec.attach(arm, prefix="arm/", frame=spec.worldbody.add_frame(pos=ARM_BASE))


def is_collision_geom(geom: mujoco.MjsGeom) -> bool:
    """Whether a geom is part of the collision model, whose meshes are light."""
    return bool(geom.name.endswith("_collision"))


def _load(file: str, keep: Callable[[mujoco.MjsGeom], bool]) -> mujoco.MjSpec:
    part = mujoco.MjSpec.from_file(str(robosuite_assets() / file))
    for elements in (part.actuators, part.sensors, part.cameras, part.materials):
        for element in list(elements):
            part.delete(element)
    for geom in list(part.geoms):
        if keep(geom):
            geom.rgba = _FINGER_COLOR if "finger" in geom.name else _LINK_COLOR
        else:
            part.delete(geom)
    shown = {geom.meshname for geom in part.geoms}
    for mesh in list(part.meshes):
        if mesh.name not in shown:
            part.delete(mesh)
    return part
