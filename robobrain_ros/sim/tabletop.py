# SPDX-License-Identifier: Apache-2.0
"""A random tabletop with a robot arm, seen by an RGB-D camera, with ground truth."""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass

import mujoco
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim import layout
from robobrain_ros.sim.appearance import COLORS, choose_objects, paint
from robobrain_ros.sim.pool import (
    ARM_GROUP,
    FAR,
    KINDS,
    NEAR,
    VISIBLE_GROUP,
    Instance,
    Part,
    load_pool,
)
from robobrain_ros.sim.variety import SHIFTED, TRAINING, Variety
from robobrain_ros.tf_projection import Intrinsics

__all__ = [
    "ARM_CODE",
    "COLORS",
    "FAR",
    "KINDS",
    "PART_BIT",
    "SHIFTED",
    "TABLE_CODE",
    "TABLE_FRAME",
    "TRAINING",
    "Frame",
    "SceneObject",
    "Tabletop",
    "labels_of",
]

TABLE_FRAME = "table"
"""TF frame of the world."""

PART_BIT = 0x80
TABLE_CODE, ARM_CODE = 0x7E, 0x7F
"""Codes beside the objects' labels, see `Tabletop.render_rgb_codes`."""

_ARM_SHOWN = 0.85
_SHADOW_MAP = 1024
# MuJoCo's camera has y up and looks along -z; REP-103's optical frame has y down, z forward.
_OPTICAL_FROM_CAMERA = np.array([1.0, -1.0, -1.0])


@dataclass(frozen=True)
class SceneObject:
    """An object in view.

    foot (3,): the middle of its underside; radius of its footprint about it, and height: metres,
    in the table's frame.
    """

    name: str
    kind: str
    color: str | None
    foot: NDArray[np.float64]
    radius: float
    height: float

    @property
    def position(self) -> NDArray[np.float64]:
        """The middle of its bounding box (3,)."""
        return self.foot + (0, 0, self.height / 2)


@dataclass(frozen=True)
class Frame:
    """One image of the camera.

    rgb (H, W, 3) uint8. depth (H, W) float32: metres along the optical axis, FAR where nothing is.
    codes (H, W) uint8: see `Tabletop.render_rgb_codes`.
    """

    rgb: NDArray[np.uint8]
    depth: NDArray[np.float32]
    codes: NDArray[np.uint8]

    @functools.cached_property
    def labels(self) -> NDArray[np.uint8]:
        """(H, W): i + 1 where `Tabletop.objects[i]` is visible, 0 elsewhere."""
        return labels_of(self.codes)


def labels_of(codes: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The labels (as in `Frame`) of the codes that `Tabletop.render_rgb_codes` returns."""
    labels = codes & ~np.uint8(PART_BIT)
    labels[labels >= TABLE_CODE] = 0
    return labels


class Tabletop:
    """A random scene per seed: 4 to 8 objects on a table, a Panda arm, one RGB-D camera.

    The world is the frame `table`: origin in the middle of the table's top, z up, the arm on the
    -x side facing +x. It starts with the scene of seed 0. A Tabletop belongs to the thread that
    made it, because of OpenGL; call `close` when done.

    objects: what stands on the table, in the order of the labels.
    arm_shown: whether the arm is there; 15 % of the scenes have none.
    K: (3, 3) pinhole intrinsics; pixel centres are at integer coordinates.
    world_from_optical: (4, 4) camera pose; optical frame of REP-103 (x right, y down, z forward).
    gripper: (3,) metres, the point between the fingertips; in the image when arm_shown.
    """

    def __init__(
        self,
        width: int = 640,
        height: int = 480,
        *,
        shadows: bool = True,
        variety: Variety = TRAINING,
    ) -> None:
        """Raises AssetsNotFound without robosuite's meshes, NoLayout for too narrow an image."""
        pool = load_pool()
        self._variety = variety
        self.width, self.height = width, height
        self._pool = pool
        self._model = copy.copy(pool.model)
        self._data = mujoco.MjData(self._model)
        self._model.vis.global_.offwidth, self._model.vis.global_.offheight = width, height
        self._model.vis.quality.shadowsize = _SHADOW_MAP if shadows else 0
        self._open_renderer()
        self.reset(0)

    def _open_renderer(self) -> None:
        self._gl = mujoco.GLContext(self.width, self.height)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self._model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._context.readDepthMap = mujoco.mjtDepthMap.mjDEPTH_ZEROFAR
        self._viewport = mujoco.MjrRect(0, 0, self.width, self.height)
        self._view = mujoco.MjvScene(self._model, maxgeom=200)
        self._camera = mujoco.MjvCamera()
        self._camera.type, self._camera.fixedcamid = mujoco.mjtCamera.mjCAMERA_FIXED, 0
        self._option = mujoco.MjvOption()
        self._option.sitegroup[:] = 0

    @property
    def K(self) -> NDArray[np.float64]:
        """Pinhole intrinsics (3, 3), in pixels."""
        focal = self.height / 2 / np.tan(np.radians(self._model.cam_fovy[0] / 2))
        centre_u, centre_v = (self.width - 1) / 2, (self.height - 1) / 2
        return np.array([[focal, 0, centre_u], [0, focal, centre_v], [0, 0, 1]])

    @property
    def world_from_optical(self) -> NDArray[np.float64]:
        """Pose of the camera (4, 4) in the table's frame."""
        pose = np.eye(4)
        pose[:3, :3] = self._data.cam_xmat[0].reshape(3, 3) * _OPTICAL_FROM_CAMERA
        pose[:3, 3] = self._data.cam_xpos[0]
        return pose

    @property
    def gripper(self) -> NDArray[np.float64]:
        """Middle between the fingertips (3,), metres in the table's frame."""
        return self._data.site("arm/hand/grip_site").xpos.copy()

    @property
    def model(self) -> mujoco.MjModel:
        """The scene as it is posed and painted now; not to be changed."""
        return self._model

    @property
    def arm_joints(self) -> NDArray[np.float64]:
        """The arm's seven joints in radians, then the fingers' two in metres."""
        return self._data.qpos.copy()

    @property
    def instances(self) -> tuple[Instance, ...]:
        """The pool's instances on the table, in the order of `objects`."""
        return self._instances

    @property
    def intrinsics(self) -> Intrinsics:
        """The camera's intrinsics, K with the size of the image."""
        return Intrinsics(self.width, self.height, self.K, np.empty(0))

    def project(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Pixels (N, 2) as (u, v) of points (N, 3) in the table frame; NaN behind the camera."""
        pose = self.world_from_optical
        local = (points - pose[:3, 3]) @ pose[:3, :3]
        image = np.where(local[:, 2:] > 0, local, np.nan) @ self.K.T
        return image[:, :2] / image[:, 2:]

    def reset(self, seed: int) -> None:
        """Show the scene of this seed: the same one at every image size of one aspect ratio."""
        rng = np.random.default_rng(seed)
        chosen = choose_objects(self._pool, self._variety, rng)
        paint(self._model, chosen, self._variety, rng)
        self.arm_shown = bool(rng.random() < _ARM_SHOWN)
        aspect = self.width / self.height
        feet = layout.place(
            self._model,
            self._data,
            chosen,
            self._variety,
            rng,
            aspect=aspect,
            arm_shown=self.arm_shown,
        )
        self.objects: tuple[SceneObject, ...] = tuple(
            SceneObject(
                item.name, item.kind, item.color, foot, item.instance.radius, item.instance.height
            )
            for item, foot in zip(chosen, feet, strict=True)
        )
        self._instances = tuple(item.instance for item in chosen)
        self._code_of_geom = np.zeros(self._model.ngeom + 1, np.uint8)
        self._code_of_geom[:-1][self._model.geom_group == ARM_GROUP] = ARM_CODE
        self._code_of_geom[self._model.geom("table").id] = TABLE_CODE
        for label, item in enumerate(chosen, start=1):
            for geom, part in zip(item.instance.geoms, item.instance.parts, strict=True):
                self._code_of_geom[geom] = label if part is Part.REST else label | PART_BIT
        self._option.geomgroup[:] = 0
        self._option.geomgroup[VISIBLE_GROUP] = 1
        self._option.geomgroup[ARM_GROUP] = self.arm_shown
        self._update_view()

    def look_from(self, world_from_optical: NDArray[np.float64]) -> None:
        """Look at the current scene from another pose, until the next `reset` or `look_from`.

        world_from_optical: (4, 4) pose of the camera in the table's frame; optical frame of
        REP-103. Objects, arm and gripper stay; the headlight moves with the camera. An object may
        be out of view. Raises ValueError when the matrix is not a rigid transform.
        """
        pose = np.asarray(world_from_optical, np.float64)
        if pose.shape != (4, 4):
            raise ValueError(f"The camera's pose must be a 4x4 matrix, got the shape {pose.shape}.")
        rotation = pose[:3, :3]
        orthonormal = np.allclose(rotation @ rotation.T, np.eye(3), rtol=0, atol=1e-6)
        finite = np.isfinite(pose).all() and np.array_equal(pose[3], (0, 0, 0, 1))
        if not (orthonormal and finite and np.linalg.det(rotation) > 0):
            raise ValueError(
                "The camera's pose must be a rigid transform: a rotation matrix, a position in "
                f"metres and the last row 0 0 0 1, got {pose.tolist()}."
            )
        self._model.cam_pos[0] = pose[:3, 3]
        axes = np.ascontiguousarray(rotation * _OPTICAL_FROM_CAMERA)
        mujoco.mju_mat2Quat(self._model.cam_quat[0], axes.ravel())
        mujoco.mj_camlight(self._model, self._data)
        self._update_view()

    def _update_view(self) -> None:
        mujoco.mjv_updateScene(
            self._model,
            self._data,
            self._option,
            None,
            self._camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self._view,
        )

    def render(self) -> Frame:
        """Return color, depth and codes of the current scene."""
        rgb = self._render_color()
        window_depth = np.empty((self.height, self.width), np.float32)
        codes = self._render_codes(window_depth)
        # Inverse of OpenGL's perspective depth, reversed: 1 at the near plane, 0 at the far one.
        inverse = window_depth[::-1].astype(np.float64) * (1 / NEAR - 1 / FAR) + 1 / FAR
        return Frame(rgb, (1 / inverse).astype(np.float32), codes)

    def render_rgb_labels(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The rgb and labels of `render`, without the depth."""
        rgb, codes = self.render_rgb_codes()
        return rgb, labels_of(codes)

    def render_rgb_codes(self) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
        """The rgb of `render`, and more than its labels: codes (H, W) uint8.

        A code is an object's label, TABLE_CODE, ARM_CODE, or 0 elsewhere. PART_BIT is added where
        the object is to be grasped, and on the floor of a tray (`pool.Part`).
        """
        rgb = self._render_color()
        return rgb, self._render_codes(None)

    def _render_color(self) -> NDArray[np.uint8]:
        rgb = np.empty((self.height, self.width, 3), np.uint8)
        self._draw(segmented=False)
        mujoco.mjr_readPixels(rgb, None, self._viewport, self._context)
        return np.ascontiguousarray(rgb[::-1])

    def _render_codes(self, window_depth: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Codes (H, W), and the depth buffer, bottom row first, where one is given."""
        pixels = np.empty((self.height, self.width, 3), np.uint8)
        self._draw(segmented=True)
        mujoco.mjr_readPixels(pixels, window_depth, self._viewport, self._context)
        # Red and green hold the number of the drawn geom plus one; 0 is the sky.
        drawn = pixels[..., 0] + 256 * pixels[..., 1].astype(np.uint16)
        code_of_drawn = np.zeros(self._view.ngeom + 1, np.uint8)
        for geom in self._view.geoms[: self._view.ngeom]:
            if geom.segid >= 0 and geom.objtype == mujoco.mjtObj.mjOBJ_GEOM:
                code_of_drawn[geom.segid + 1] = self._code_of_geom[geom.objid]
        return code_of_drawn[drawn[::-1]]

    def _draw(self, *, segmented: bool) -> None:
        self._gl.make_current()
        flags = self._view.flags
        flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = segmented
        flags[mujoco.mjtRndFlag.mjRND_REFLECTION] = 0
        flags[mujoco.mjtRndFlag.mjRND_SHADOW] = not segmented
        mujoco.mjr_render(self._viewport, self._view, self._context)

    def close(self) -> None:
        """Free the OpenGL context; the Tabletop can't render afterwards."""
        self._context.free()
        self._gl.free()
