# SPDX-License-Identifier: Apache-2.0
"""The MuJoCo model behind the tabletop: table, Panda arm and a pool of objects, compiled once.

A scene shows some of the pool's objects; the others are in a hidden geom group. Nothing but
kinematics is simulated.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim import meshes
from robobrain_ros.sim.assets import robosuite_assets

VISIBLE_GROUP, ARM_GROUP, HIDDEN_GROUP = 0, 1, 5

COLOURED_KINDS = ("mug", "bowl", "bottle", "can", "cube", "ball", "box", "cone")
TEXTURED_KINDS = ("soda can", "milk carton", "bread", "cereal box", "lemon")
KINDS = COLOURED_KINDS + TEXTURED_KINDS

# How often each texture fits on the table.
_TABLE_REPEATS = {
    "light-wood": 1,
    "dark-wood": 1,
    "wood-tiles": 2.6,
    "wood-varnished-panels": 2,
    "gray-woodgrain": 2,
    "light-gray-floor-tile": 2,
    "gray-felt": 2,
    "gray-plaster": 1,
    "cream-plaster": 1,
    "yellow-plaster": 1,
    "white-plaster": 1,
    "steel-brushed": 1,
}
TABLE_TEXTURES = tuple(_TABLE_REPEATS)
NEAR, FAR = 0.05, 12.0  # clip planes of the camera, metres
TABLE_HALF_SIZE = (0.74, 0.60, 0.02)
FLOOR_HEIGHT = -0.75
ARM_BASE = (-0.62, 0.0, 0.0)
_FINISHES = {"matte": (0.05, 0.1), "satin": (0.3, 0.4), "gloss": (0.7, 0.8)}  # specular, shininess
FINISHES = tuple(_FINISHES)

_SCALES = (1.0, 0.92, 1.08)
_METAL = (0.78, 0.79, 0.80, 1.0)
_CAP = (0.86, 0.86, 0.84, 1.0)


@dataclass(frozen=True)
class Instance:
    """One object of the pool.

    vertices (N, 3): in the body's frame, metres, standing upright on z = 0 at the origin.
    painted: the geoms that take the object's colour; none for textured kinds.
    """

    kind: str
    body: int
    geoms: tuple[int, ...]
    painted: tuple[int, ...]
    vertices: NDArray[np.float64]

    @property
    def radius(self) -> float:
        """Radius of the footprint about the body's z axis, in metres."""
        return float(np.hypot(self.vertices[:, 0], self.vertices[:, 1]).max())

    @property
    def height(self) -> float:
        """Height over the table, in metres."""
        return float(self.vertices[:, 2].max())


@dataclass(frozen=True)
class Pool:
    """The compiled model, which all scenes share: copy it to change it. And its objects by kind."""

    model: mujoco.MjModel
    instances: Mapping[str, tuple[Instance, ...]]


@dataclass(frozen=True)
class _Textured:
    """robosuite's mesh and texture of a kind, and what makes the mesh life-sized."""

    mesh: str
    texture: str
    scale: tuple[float, float, float]
    emission: float = 0.0


_TEXTURED: Mapping[str, _Textured] = {
    "soda can": _Textured("can.msh", "soda.png", (1.35, 1.35, 1.4)),
    "milk carton": _Textured("milk.msh", "ceramic.png", (1.3, 1.3, 1.1), 0.1),
    "bread": _Textured("bread.msh", "bread.png", (1.8, 1.6, 1.5), 0.3),
    "cereal box": _Textured("cereal.msh", "cereal.png", (1.1, 1.3, 1.15)),
    "lemon": _Textured("lemon.msh", "lemon.png", (1.9, 1.4, 1.4)),
}

# Each kind's parts: the mesh and its fixed colour, or None where it takes the object's colour.
_PARTS = {
    "mug": ((meshes.mug(), None),),
    "bowl": ((meshes.bowl(), None),),
    "bottle": ((meshes.bottle(), None), (meshes.bottle_cap(), _CAP)),
    "can": ((meshes.can(), None), (meshes.can_rims(), _METAL)),
    "cube": ((meshes.cuboid(0.052, 0.052, 0.052), None),),
    "ball": ((meshes.ball(), None),),
    "box": ((meshes.cuboid(0.115, 0.070, 0.045), None),),
    "cone": ((meshes.cone(), None),),
}


@functools.lru_cache(maxsize=1)
def load_pool() -> Pool:
    """Build and compile the model (about a second; cached).

    Raises:
        AssetsNotFound: robosuite's meshes and textures are not installed.
    """
    assets = robosuite_assets()
    spec = mujoco.MjSpec()
    spec.stat.center, spec.stat.extent = (0, 0, 0.1), 1.0
    spec.visual.map.znear, spec.visual.map.zfar = NEAR / spec.stat.extent, FAR / spec.stat.extent
    _add_surroundings(spec, assets)
    _add_objects(spec, assets)
    _add_arm(spec, assets)
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    model = spec.compile()
    return Pool(model, _instances(model))


def _add_surroundings(spec: mujoco.MjSpec, assets: Path) -> None:
    world = spec.worldbody
    for name, repeat in _TABLE_REPEATS.items():
        material = _add_texture(spec, name, assets / "textures" / f"{name}.png")
        material.texrepeat = (repeat, repeat)
    for name, (specular, shininess) in _FINISHES.items():
        spec.add_material(name=name, specular=specular, shininess=shininess)
    spec.add_texture(
        name="sky",
        type=mujoco.mjtTexture.mjTEXTURE_SKYBOX,
        builtin=mujoco.mjtBuiltin.mjBUILTIN_GRADIENT,
        rgb1=(0.6, 0.65, 0.7),
        rgb2=(0.3, 0.32, 0.35),
        width=64,
        height=384,
    )
    box, plane = mujoco.mjtGeom.mjGEOM_BOX, mujoco.mjtGeom.mjGEOM_PLANE
    top = (0, 0, -TABLE_HALF_SIZE[2])
    world.add_geom(name="table", type=box, size=TABLE_HALF_SIZE, pos=top)
    floor = world.add_geom(name="floor", type=plane, size=(8, 8, 0.1), pos=(0, 0, FLOOR_HEIGHT))
    floor.material = "matte"
    directional = mujoco.mjtLightType.mjLIGHT_DIRECTIONAL
    world.add_light(name="key", type=directional, pos=(0, 0, 2), dir=(0, 0, -1), castshadow=True)
    world.add_light(name="fill", type=directional, pos=(0, 0, 2), dir=(0, 0, -1), castshadow=False)
    world.add_camera(name="camera", pos=(1, 0, 1))


def _add_texture(spec: mujoco.MjSpec, name: str, file: Path) -> mujoco.MjsMaterial:
    """A 2-D texture, and the material of the same name that shows it."""
    spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=str(file))
    material = spec.add_material(name=name, specular=0.2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    return material


def _add_objects(spec: mujoco.MjSpec, assets: Path) -> None:
    shell = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    for kind, parts in _PARTS.items():
        for index, scale in enumerate(_SCALES):
            body = spec.worldbody.add_body(name=f"{kind}/{index}")
            for number, (mesh, colour) in enumerate(parts):
                name = f"{body.name}/{'fixed' if colour else 'painted'}/{number}"
                _add_mesh(spec, name, mesh.scaled(scale), inertia=shell)
                geom = _add_mesh_geom(body, name)
                geom.material = FINISHES[1]
                if colour:
                    geom.rgba = colour
    for kind, source in _TEXTURED.items():
        texture = assets / "textures" / source.texture
        _add_texture(spec, kind, texture).emission = source.emission
        file = assets / "objects" / "meshes" / source.mesh
        spec.add_mesh(name=kind, file=str(file), scale=source.scale, inertia=shell)
        body = spec.worldbody.add_body(name=f"{kind}/0")
        _add_mesh_geom(body, kind).material = kind


def _add_mesh(spec: mujoco.MjSpec, name: str, mesh: meshes.Mesh, **options: object) -> None:
    spec.add_mesh(name=name, uservert=mesh.vertices.ravel(), userface=mesh.faces.ravel(), **options)


def _add_mesh_geom(body: mujoco.MjsBody, mesh: str) -> mujoco.MjsGeom:
    geom = body.add_geom(name=mesh, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh)
    geom.group = HIDDEN_GROUP
    return geom


# The arm's dense meshes (12,516 and 7,078 triangles) and the cells that thin them out, in metres.
_THINNED = {"link1": 0.010, "hand_vis": 0.004}
_FINGER_COLOUR = (0.25, 0.25, 0.26, 1.0)
_LINK_COLOUR = (0.93, 0.94, 0.95, 1.0)


def _add_arm(spec: mujoco.MjSpec, assets: Path) -> None:
    """Franka Panda with its hand, shown by light meshes: the detailed ones cost 60 ms a frame."""
    arm = mujoco.MjSpec.from_file(str(assets / "robots" / "panda" / "robot.xml"))
    hand = mujoco.MjSpec.from_file(str(assets / "grippers" / "panda_gripper.xml"))
    _reduce_to_looks(arm, lambda geom: geom.name.endswith("_collision"))
    _reduce_to_looks(hand, lambda geom: geom.name.endswith("_visual"))
    arm.attach(hand, prefix="hand/", frame=arm.body("right_hand").add_frame())
    spec.attach(arm, prefix="arm/", frame=spec.worldbody.add_frame(pos=ARM_BASE))


def _reduce_to_looks(part: mujoco.MjSpec, keep: Callable[[mujoco.MjsGeom], bool]) -> None:
    """Strip a robot's part of all but its kinematics and the geoms to keep, in our colours."""
    for elements in (part.actuators, part.sensors, part.cameras):
        for element in list(elements):
            part.delete(element)
    for geom in list(part.geoms):
        if keep(geom):
            geom.group = ARM_GROUP
            geom.rgba = _FINGER_COLOUR if "finger" in geom.name else _LINK_COLOUR
        else:
            part.delete(geom)
    shown = {geom.meshname for geom in part.geoms}
    for mesh in list(part.meshes):
        if mesh.name not in shown:
            part.delete(mesh)
        elif mesh.name in _THINNED:
            file = Path(part.modelfiledir) / mesh.file
            thin = meshes.clustered(meshes.read_stl(file), _THINNED[mesh.name])
            mesh.file = ""
            mesh.uservert, mesh.userface = thin.vertices.ravel(), thin.faces.ravel()


def _instances(model: mujoco.MjModel) -> dict[str, tuple[Instance, ...]]:
    found: dict[str, list[Instance]] = {kind: [] for kind in KINDS}
    for body in range(model.nbody):
        kind = model.body(body).name.split("/")[0]
        if kind in found:
            found[kind].append(_instance(model, body, kind))
    return {kind: tuple(instances) for kind, instances in found.items()}


def _instance(model: mujoco.MjModel, body: int, kind: str) -> Instance:
    first = int(model.body_geomadr[body])
    geoms = tuple(range(first, first + int(model.body_geomnum[body])))
    vertices = np.concatenate([_geom_vertices(model, geom) for geom in geoms])
    # robosuite's meshes are not centred on their footprint: move the geoms so that this one is.
    low, high = vertices.min(0), vertices.max(0)
    shift = np.array([-(low[0] + high[0]) / 2, -(low[1] + high[1]) / 2, -low[2]])
    if kind in TEXTURED_KINDS:
        model.geom_pos[list(geoms)] += shift
        # Else kinematics takes the body's inertial frame for the geom's, as it was when compiled.
        model.geom_sameframe[list(geoms)] = mujoco.mjtSameFrame.mjSAMEFRAME_NONE
        vertices = vertices + shift
    painted = tuple(geom for geom in geoms if "/painted/" in model.geom(geom).name)
    return Instance(kind, body, geoms, painted, vertices)


def _geom_vertices(model: mujoco.MjModel, geom: int) -> NDArray[np.float64]:
    """Vertices of a mesh geom in its body's frame, (N, 3)."""
    mesh = model.mesh(model.geom_dataid[geom])
    start, count = int(mesh.vertadr[0]), int(mesh.vertnum[0])
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    local = model.mesh_vert[start : start + count].astype(np.float64)
    return local @ rotation.reshape(3, 3).T + model.geom_pos[geom]
