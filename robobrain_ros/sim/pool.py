# SPDX-License-Identifier: Apache-2.0
"""The MuJoCo model behind the tabletop: table, Panda arm and a pool of objects, compiled once.

A scene shows some of the pool's objects; the others are in a hidden geom group. Nothing but
kinematics is simulated.
"""

from __future__ import annotations

import enum
import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray

from robobrain_ros.sim import meshes, panda
from robobrain_ros.sim.assets import robosuite_assets
from robobrain_ros.sim.variety import SHIFTED, TRAINING

VISIBLE_GROUP, ARM_GROUP, HIDDEN_GROUP = 0, 1, 5

TRAY = "tray"
COLORED_KINDS = ("mug", "bowl", "bottle", "can", "cube", "ball", "box", "cone", TRAY)
TEXTURED_KINDS = ("soda can", "milk carton", "bread", "cereal box", "lemon")
KINDS = COLORED_KINDS + TEXTURED_KINDS

# How often the textures that are not shown once repeat on the table.
_TABLE_REPEATS = {
    "wood-tiles": 2.6,
    "wood-varnished-panels": 2,
    "gray-woodgrain": 2,
    "light-gray-floor-tile": 2,
    "gray-felt": 2,
}
NEAR, FAR = 0.05, 12.0  # clip planes of the camera, metres
TABLE_HALF_SIZE = (0.74, 0.60, 0.02)
FLOOR_HEIGHT = -0.75
_FINISHES = {"matte": (0.05, 0.1), "satin": (0.3, 0.4), "gloss": (0.7, 0.8)}  # specular, shininess
FINISHES = tuple(_FINISHES)

_METAL = (0.78, 0.79, 0.80, 1.0)
_CAP = (0.86, 0.86, 0.84, 1.0)


def plural(kind: str) -> str:
    """Return the plural of a kind's name."""
    return f"{kind}es" if kind.endswith("x") else f"{kind}s"


class Part(enum.Enum):
    """Function of a piece of an object.

    GRASP: a gripper holds the object there. SUPPORT: other objects can stand on it.
    """

    REST = "rest"
    GRASP = "grasp"
    SUPPORT = "support"


@dataclass(frozen=True)
class _Shape:
    """Scale factors and taper of an instance of a kind: see `Mesh.shaped`."""

    factors: tuple[float, float, float]
    taper: float = 0.0


def _round(across: float, up: float, taper: float = 0.0) -> _Shape:
    return _Shape((across, across, up), taper)


_SHAPES = (
    _round(1.0, 1.0),
    _round(0.84, 0.84),
    _round(1.18, 1.18),
    _round(1.1, 0.88),
    _round(0.9, 1.12, 1.5),
)
_NEW_SHAPES = (_round(1.05, 1.1, -2.0), _round(0.95, 0.92, 3.0))
_TEXTURED_SHAPES = (_round(1.0, 1.0), _round(0.88, 0.88), _Shape((1.1, 1.05, 1.08)))
_NEW_TEXTURED_SHAPES = (_Shape((1.08, 0.98, 0.92)), _Shape((0.92, 1.02, 1.1)))


@dataclass(frozen=True)
class Instance:
    """One object of the pool.

    vertices (N, 3): in the body's frame, metres, standing upright on z = 0 at the origin.
    painted: the geoms that take the object's color; none for textured kinds. parts: what each of
    `geoms` is for. new: whether it is kept from scenes to train on.
    """

    kind: str
    body: int
    geoms: tuple[int, ...]
    painted: tuple[int, ...]
    parts: tuple[Part, ...]
    new: bool
    vertices: NDArray[np.float64]

    @functools.cached_property
    def radius(self) -> float:
        """Radius of the footprint about the body's z axis, in metres."""
        return float(np.hypot(self.vertices[:, 0], self.vertices[:, 1]).max())

    @functools.cached_property
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
    """robosuite's mesh and texture of a kind, and the scale that makes the mesh life-sized."""

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


@dataclass(frozen=True)
class _Piece:
    """A mesh of a kind. color: its own, or None where it takes the object's."""

    mesh: meshes.Mesh
    part: Part = Part.REST
    color: tuple[float, float, float, float] | None = None


_PIECES: Mapping[str, tuple[_Piece, ...]] = {
    "mug": (_Piece(meshes.mug()), _Piece(meshes.mug_handle(), Part.GRASP)),
    "bowl": (_Piece(meshes.bowl()), _Piece(meshes.bowl_rim(), Part.GRASP)),
    "bottle": (
        _Piece(meshes.bottle()),
        _Piece(meshes.bottle_neck(), Part.GRASP),
        _Piece(meshes.bottle_cap(), Part.GRASP, _CAP),
    ),
    "can": (_Piece(meshes.can(), Part.GRASP), _Piece(meshes.can_rims(), color=_METAL)),
    "cube": (_Piece(meshes.cuboid(0.052, 0.052, 0.052), Part.GRASP),),
    "ball": (_Piece(meshes.ball(), Part.GRASP),),
    "box": (_Piece(meshes.cuboid(0.115, 0.070, 0.045), Part.GRASP),),
    "cone": (_Piece(meshes.cone()), _Piece(meshes.cone_tip(), Part.GRASP)),
    TRAY: (_Piece(meshes.tray_floor(), Part.SUPPORT), _Piece(meshes.tray_border())),
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
    _add_arm(spec)
    for geom in spec.geoms:
        geom.contype = geom.conaffinity = 0
    model = spec.compile()
    return Pool(model, _instances(model))


def _add_surroundings(spec: mujoco.MjSpec, assets: Path) -> None:
    world = spec.worldbody
    for name in TRAINING.textures + SHIFTED.textures:
        material = _add_texture(spec, name, assets / "textures" / f"{name}.png")
        repeat = _TABLE_REPEATS.get(name, 1)
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
    """Add a 2-D texture and a material of the same name; returns the material."""
    spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D, file=str(file))
    material = spec.add_material(name=name, specular=0.2)
    material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = name
    return material


def _add_objects(spec: mujoco.MjSpec, assets: Path) -> None:
    shell = mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL
    for kind, pieces in _PIECES.items():
        for index, shape in enumerate(_SHAPES + _NEW_SHAPES):
            body = spec.worldbody.add_body(name=f"{kind}/{index}")
            for number, piece in enumerate(pieces):
                paint = "fixed" if piece.color else "painted"
                name = f"{body.name}/{number}/{paint}/{piece.part.value}"
                _add_mesh(spec, name, piece.mesh.shaped(*_shape_of(kind, shape)), inertia=shell)
                geom = _add_mesh_geom(body, name, name)
                geom.material = FINISHES[1]
                if piece.color:
                    geom.rgba = piece.color
    for kind, source in _TEXTURED.items():
        texture = assets / "textures" / source.texture
        _add_texture(spec, kind, texture).emission = source.emission
        file = assets / "objects" / "meshes" / source.mesh
        for index, shape in enumerate(_TEXTURED_SHAPES + _NEW_TEXTURED_SHAPES):
            body = spec.worldbody.add_body(name=f"{kind}/{index}")
            scale = np.multiply(source.scale, shape.factors)
            spec.add_mesh(name=body.name, file=str(file), scale=scale, inertia=shell)
            name = f"{body.name}/0/fixed/{Part.GRASP.value}"
            _add_mesh_geom(body, name, body.name).material = kind


def _shape_of(kind: str, shape: _Shape) -> tuple[tuple[float, float, float], float]:
    """Return factors and taper for a kind; trays differ in length and width only."""
    across, _, up = shape.factors
    return ((across, up, 1.0), 0.0) if kind == TRAY else (shape.factors, shape.taper)


def _add_mesh(spec: mujoco.MjSpec, name: str, mesh: meshes.Mesh, **options: object) -> None:
    spec.add_mesh(name=name, uservert=mesh.vertices.ravel(), userface=mesh.faces.ravel(), **options)


def _add_mesh_geom(body: mujoco.MjsBody, name: str, mesh: str) -> mujoco.MjsGeom:
    geom = body.add_geom(name=name, type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh)
    geom.group = HIDDEN_GROUP
    return geom


# The arm's dense meshes (12,516 and 7,078 triangles) and the cells that thin them out, in metres.
_THINNED = {"link1": 0.010, "hand_vis": 0.004}


def _add_arm(spec: mujoco.MjSpec) -> None:
    """Add a Panda with its hand in light meshes: the detailed ones cost 60 ms per frame."""
    arm = panda.load_arm(panda.is_collision_geom)
    hand = panda.load_hand(lambda geom: geom.name.endswith("_visual"))
    for part in (arm, hand):
        for geom in part.geoms:
            geom.group = ARM_GROUP
        for mesh in part.meshes:
            if mesh.name in _THINNED:
                file = Path(part.modelfiledir) / mesh.file
                thin = meshes.clustered(meshes.read_stl(file), _THINNED[mesh.name])
                mesh.file = ""
                mesh.uservert, mesh.userface = thin.vertices.ravel(), thin.faces.ravel()
    panda.attach(spec, arm, hand)


def _instances(model: mujoco.MjModel) -> dict[str, tuple[Instance, ...]]:
    found: dict[str, list[Instance]] = {kind: [] for kind in KINDS}
    for body in range(model.nbody):
        kind, _, index = model.body(body).name.partition("/")
        if kind in found:
            shapes = _SHAPES if kind in COLORED_KINDS else _TEXTURED_SHAPES
            found[kind].append(_instance(model, body, kind, new=int(index) >= len(shapes)))
    return {kind: tuple(instances) for kind, instances in found.items()}


def _instance(model: mujoco.MjModel, body: int, kind: str, *, new: bool) -> Instance:
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
    names = [model.geom(geom).name.split("/") for geom in geoms]
    painted = tuple(geom for geom, name in zip(geoms, names, strict=True) if name[3] == "painted")
    parts = tuple(Part(name[4]) for name in names)
    return Instance(kind, body, geoms, painted, parts, new, vertices)


def _geom_vertices(model: mujoco.MjModel, geom: int) -> NDArray[np.float64]:
    """Vertices of a mesh geom in its body's frame, (N, 3)."""
    mesh = model.mesh(model.geom_dataid[geom])
    start, count = int(mesh.vertadr[0]), int(mesh.vertnum[0])
    rotation = np.empty(9)
    mujoco.mju_quat2Mat(rotation, model.geom_quat[geom])
    local = model.mesh_vert[start : start + count].astype(np.float64)
    return local @ rotation.reshape(3, 3).T + model.geom_pos[geom]
