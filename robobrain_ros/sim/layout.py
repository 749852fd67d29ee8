# SPDX-License-Identifier: Apache-2.0
"""Placement of the objects, the arm and the camera of a random tabletop scene."""

from __future__ import annotations

from collections.abc import Sequence

import mujoco
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim.appearance import Chosen, direction
from robobrain_ros.sim.meshes import TRAY_THICKNESS
from robobrain_ros.sim.pool import ARM_GROUP, TRAY, VISIBLE_GROUP
from robobrain_ros.sim.variety import Variety, draw

REGION_CENTRE = np.array([0.03, 0.0, 0.03])
REGION_SIZE = np.array([0.45, 0.55])
# The camera looks a little above and behind the objects, so that the gripper fits in.
_TARGET = np.array([-0.02, 0.0, 0.07])

# Least clear table between two objects' footprints, in metres.
_GAP = 0.015
_MOST_ON_TRAY = 2
# The field of view for which a variety's distances are meant.
_USUAL_FOVY_DEG = 42.0
_IMAGE_MARGIN = 0.02
_LEAST_VISIBLE = 0.45
_RAYS_PER_OBJECT = 24
_RAY_LENGTH = 10.0
_ATTEMPTS = 80

# The Panda's ready pose, bent a little lower; radians.
_HOME = np.array([0.0, -0.60, 0.0, -2.60, 0.0, 0.0, 0.785])
_HOME_SPREAD = np.array([0.60, 0.55, 0.20, 0.35, 0.20, 0.35, 0.60])
_FINGER_TRAVEL = 0.04


class NoLayout(ValueError):
    """The objects of a scene can't all be in an image of this shape."""


def place(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    chosen: Sequence[Chosen],
    variety: Variety,
    rng: np.random.Generator,
    *,
    aspect: float,
    arm_shown: bool,
) -> NDArray[np.float64]:
    """Pose objects, arm and camera so that every object can be seen.

    Layouts are drawn until one shows all objects; if none of many does, the best one is kept.
    aspect: image width / height. Returns where the objects stand, (N, 3) metres: the middles of
    their feet.

    Raises:
        NoLayout: none fits into an image so narrow.
    """
    camera = (model.cam_pos, model.cam_quat, model.cam_fovy)
    posed = (model.body_pos, model.body_quat, *camera, data.qpos)
    best_score, best = -np.inf, []
    for _ in range(_ATTEMPTS):
        if not _stand(model, chosen, rng):
            continue
        _look(model, variety, rng)
        if not _in_image(model, _hulls(model, chosen), aspect):
            continue
        if not _pose_arm(model, data, rng, aspect if arm_shown else np.inf):
            continue
        score = _least_visible_fraction(model, data, chosen, arm_shown)
        if score > best_score:
            best_score, best = score, [array.copy() for array in posed]
        if score >= _LEAST_VISIBLE:
            break
    if not best:
        raise NoLayout(
            f"No layout of {len(chosen)} objects fits into an image {aspect:.2f} times as wide as "
            "high: make it wider, such as 640x480."
        )
    for array, value in zip(posed, best, strict=True):
        array[:] = value
    mujoco.mj_kinematics(model, data)
    mujoco.mj_camlight(model, data)
    return model.body_pos[[item.instance.body for item in chosen]].copy()


def _stand(model: mujoco.MjModel, chosen: Sequence[Chosen], rng: np.random.Generator) -> bool:
    """Stand the objects upright with random yaw; False where the last ones found no room.

    Some of them stand on the tray, if there is one (it comes first).
    """
    low, high = REGION_CENTRE[:2] - REGION_SIZE / 2, REGION_CENTRE[:2] + REGION_SIZE / 2
    standing: list[tuple[NDArray[np.float64], float]] = []
    has_tray = chosen[0].kind == TRAY
    on_tray = int(rng.integers(_MOST_ON_TRAY + 1)) if has_tray else 0
    for number, item in enumerate(chosen):
        radius = item.instance.radius
        spots, others, floor = rng.uniform(low, high, (30, 2)), standing, 0.0
        if has_tray and 0 < number <= on_tray:
            spots, others = _spots_on_tray(model, chosen[0], radius, rng), standing[1:]
            floor = TRAY_THICKNESS
        for spot in spots:
            if all(np.hypot(*(spot - p)) > radius + r + _GAP for p, r in others):
                break
        else:
            return False
        standing.append((spot, radius))
        half_yaw = rng.uniform(0, np.pi)
        body = item.instance.body
        model.body_pos[body] = (*spot, floor)
        model.body_quat[body] = (np.cos(half_yaw), 0, 0, np.sin(half_yaw))
    return True


def _spots_on_tray(
    model: mujoco.MjModel, tray: Chosen, radius: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Places (N, 2) on the tray for a footprint of this radius; none where it is too large."""
    half = tray.instance.vertices[:, :2].max(0) - radius - 0.01
    if (half < 0).any():
        return np.empty((0, 2))
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.body_quat[tray.instance.body])
    local = rng.uniform(-half, half, (30, 2))
    return local @ rotation.reshape(3, 3)[:2, :2].T + model.body_pos[tray.instance.body, :2]


def _look(model: mujoco.MjModel, variety: Variety, rng: np.random.Generator) -> None:
    """Point the camera at the objects, from opposite the arm or, less often, from its side."""
    azimuth = rng.uniform(-40, 40)
    if rng.random() < 0.35:
        azimuth = rng.choice((-1, 1)) * rng.uniform(40, 100)
    outwards = direction(np.radians(azimuth), np.radians(draw(variety.elevation, rng)))
    target = _TARGET + rng.uniform(-0.03, 0.03, 3)
    level = np.cross((0, 0, 1), outwards)
    level /= np.linalg.norm(level)
    roll = np.radians(draw(variety.roll, rng))
    right = np.cos(roll) * level + np.sin(roll) * np.cross(outwards, level)
    rotation = np.stack([right, np.cross(outwards, right), outwards], 1)
    fovy = draw(variety.field_of_view, rng)
    nearer = np.tan(np.radians(_USUAL_FOVY_DEG / 2)) / np.tan(np.radians(fovy / 2))
    model.cam_fovy[0] = fovy
    model.cam_pos[0] = target + draw(variety.distance, rng) * nearer * outwards
    mujoco.mju_mat2Quat(model.cam_quat[0], rotation.ravel())


def _in_image(model: mujoco.MjModel, points: NDArray[np.float64], aspect: float) -> bool:
    """Whether all points (N, 3) of the world are well inside the image."""
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.cam_quat[0])
    local = (points - model.cam_pos[0]) @ rotation.reshape(3, 3)
    limit = np.tan(np.radians(model.cam_fovy[0] / 2)) * (1 - 2 * _IMAGE_MARGIN) * -local[:, 2]
    return bool((np.abs(local[:, :2]) < limit[:, None] * (aspect, 1)).all())


def _hulls(model: mujoco.MjModel, chosen: Sequence[Chosen]) -> NDArray[np.float64]:
    """Points (N, 3) of the world on the upright cylinders around all objects."""
    angle = np.arange(8) * np.pi / 4
    ring = np.stack([np.cos(angle), np.sin(angle), np.zeros(8)], -1)
    points = []
    for item in chosen:
        foot = model.body_pos[item.instance.body] + item.instance.radius * ring
        points += [foot, foot + (0, 0, item.instance.height)]
    return np.concatenate(points)


def _pose_arm(
    model: mujoco.MjModel, data: mujoco.MjData, rng: np.random.Generator, aspect: float
) -> bool:
    """Bring the arm into a home-like pose with the gripper in view and clear of the objects.

    Returns False if there is none. With an infinite aspect the gripper may be out of view.
    """
    region_start = REGION_CENTRE[0] - REGION_SIZE[0] / 2
    for spread in rng.uniform(-1, 1, (30, len(_HOME))):
        joints = _HOME + _HOME_SPREAD * spread
        # The gripper points straight down where joint 6 makes up for joints 2 and 4.
        joints[5] += joints[1] - joints[3]
        opening = rng.uniform(0, _FINGER_TRAVEL)
        data.qpos[:] = (*joints, opening, -opening)
        mujoco.mj_kinematics(model, data)
        tip = data.site("arm/hand/grip_site").xpos
        clear = tip[2] > 0.26 or (tip[0] < region_start - 0.03 and tip[2] > 0.08)
        if clear and (np.isinf(aspect) or _in_image(model, tip[None], aspect)):
            return True
    return False


def _least_visible_fraction(
    model: mujoco.MjModel, data: mujoco.MjData, chosen: Sequence[Chosen], arm_shown: bool
) -> float:
    """Of the object that is hidden most: the fraction of rays towards it that meet it first."""
    points = []
    for item in chosen:
        vertices = item.instance.vertices
        sample = vertices[np.linspace(0, len(vertices) - 1, _RAYS_PER_OBJECT).astype(int)]
        centre = (0, 0, item.instance.height / 2)
        # Just below the surface, so that rays do not slip past the silhouette.
        inner = 0.9 * (sample - centre) + centre
        body = item.instance.body
        points.append(inner @ data.xmat[body].reshape(3, 3).T + data.xpos[body])
    rays = np.concatenate(points) - model.cam_pos[0]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    groups = np.zeros(mujoco.mjNGROUP, np.uint8)
    groups[VISIBLE_GROUP], groups[ARM_GROUP] = 1, arm_shown
    hit, distance = np.empty(len(rays), np.int32), np.empty(len(rays))
    among = groups, True, -1  # with static bodies, excluding none
    found = hit, distance, None  # no normals
    mujoco.mj_multiRay(
        model, data, model.cam_pos[0], rays.ravel(), *among, *found, len(rays), _RAY_LENGTH
    )
    hit_body = np.where(hit >= 0, model.geom_bodyid[hit], -1).reshape(len(chosen), -1)
    own = np.array([item.instance.body for item in chosen])[:, None]
    return float((hit_body == own).mean(1).min())
