# SPDX-License-Identifier: Apache-2.0
"""Physics of a tabletop scene: rigid objects with masses and friction, an arm with servos.

A Tabletop (tabletop.py) is only rendered. Here its objects stand at the same places as dynamic
bodies, in front of the same arm; the world is the frame `table`, too.
"""

from __future__ import annotations

import mujoco
import numpy as np

from robobrain_ros.core.arrays import FloatArray
from robobrain_ros.sim import panda
from robobrain_ros.sim.looks import copy_geom, copy_surroundings
from robobrain_ros.sim.pool import TABLE_HALF_SIZE, Instance
from robobrain_ros.sim.solids import MASSES, convex_pieces
from robobrain_ros.sim.tabletop import Tabletop

ARM_JOINTS = tuple(f"arm/joint{number}" for number in range(1, 8))
GRIP_SITE = "arm/hand/grip_site"
"""Its z is the pointing direction of the hand, its x the closing direction of the fingers."""
OPEN_FINGER = 0.04  # metres that a finger is from the middle at most: 80 mm between the two
TIME_STEP = 0.002  # seconds

_FINGER_JOINTS = "arm/hand/finger_joint1", "arm/hand/finger_joint2"
# Stiffness and damping of the arm's position control, and the Panda's torque limits (N m): those
# of MuJoCo Menagerie's Panda.
_STIFFNESS = (4500, 4500, 3500, 3500, 2000, 2000, 2000)
_DAMPING = (450, 450, 350, 350, 200, 200, 200)
_TORQUES = (87, 87, 87, 87, 12, 12, 12)
_ROTOR_INERTIA = 0.1
_GRIP_FORCE = 30.0  # newtons of each finger; a Panda's hand holds with up to 70
_GRIP_STIFFNESS = 5000.0
_SQUEEZE = 0.012  # metres past the middle: a thin wall is then held by the full force, too
# Sliding, torsional (m) and rolling friction (m): plastic on wood, and a rubber pad.
_OBJECT_FRICTION = (0.6, 0.01, 0.001)
_PAD_FRICTION = (1.0, 0.02, 0.001)
# Bits of contact: the arm touches the world but not itself (its hulls overlap at the joints).
_WORLD, _ARM = 1, 2
LOOKS_GROUP, _SOLID_GROUP = 0, 3


def add_arm(spec: mujoco.MjSpec) -> None:
    """The Panda and its hand at the tabletop's place: solid, weightless by its own compensation,
    with position control of each joint.
    """
    arm, hand = (load(panda.is_collision_geom) for load in (panda.load_arm, panda.load_hand))
    for geom in (*arm.geoms, *hand.geoms):
        geom.contype, geom.conaffinity = _ARM, _WORLD
        geom.group = _SOLID_GROUP if "pad" in geom.name else LOOKS_GROUP
        if "pad" in geom.name:
            geom.friction, geom.condim = _PAD_FRICTION, 6
    for joint, stiffness, damping, torque in zip(arm.joints, _STIFFNESS, _DAMPING, _TORQUES):
        joint.armature = _ROTOR_INERTIA
        _add_servo(arm, joint.name, stiffness, damping, torque)
    for joint in hand.joints:
        _add_servo(hand, joint.name, _GRIP_STIFFNESS, 0.0, _GRIP_FORCE)
    # One motor drives both fingers of the real hand.
    coupling = hand.add_equality(type=mujoco.mjtEq.mjEQ_JOINT)
    coupling.objtype = mujoco.mjtObj.mjOBJ_JOINT
    coupling.name1, coupling.name2 = (joint.name for joint in hand.joints)
    coupling.data[:2] = 0, -1
    panda.attach(spec, arm, hand)
    for body in spec.bodies:
        if body.name.startswith("arm/"):
            body.gravcomp = 1.0


def _add_servo(
    part: mujoco.MjSpec, joint: str, stiffness: float, damping: float, limit: float
) -> None:
    servo = part.add_actuator(name=joint, target=joint, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.set_to_position(kp=stiffness, kv=damping)
    servo.forcelimited = mujoco.mjtLimited.mjLIMITED_TRUE
    servo.forcerange = (-limit, limit)


class PhysicsScene:
    """The scene that a Tabletop shows, as a dynamic one.

    model, data: MuJoCo's. names: of the objects. The Tabletop is not changed and may show other
    scenes afterwards.
    """

    def __init__(self, table: Tabletop) -> None:
        """Raises AssetsNotFound without robosuite's arm."""
        spec = mujoco.MjSpec()
        option = spec.option
        option.timestep = TIME_STEP
        option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        # Cones and a high ratio: what is held must not creep out of the fingers.
        option.cone, option.impratio = mujoco.mjtCone.mjCONE_ELLIPTIC, 10
        copy_surroundings(spec, table.model)
        _add_table(spec, table.model)
        for item, instance in zip(table.objects, table.instances, strict=True):
            _add_object(spec, table.model, item.name, instance)
        add_arm(spec)
        self.model = spec.compile()
        for item in table.objects:
            _weigh(self.model, self.model.body(item.name).id, MASSES[item.kind])
        mujoco.mj_setConst(self.model, mujoco.MjData(self.model))
        self.data = mujoco.MjData(self.model)
        self.names = tuple(item.name for item in table.objects)
        self._feet = np.array([item.foot for item in table.objects])
        self._radii = np.array([item.radius for item in table.objects])
        self._joints = [self.model.joint(name).qposadr[0] for name in ARM_JOINTS]
        self._servos = [self.model.actuator(name).id for name in ARM_JOINTS]
        self._fingers = [self.model.actuator(name).id for name in _FINGER_JOINTS]
        self.data.qpos[self._joints] = table.arm_joints[:7]
        self.command(table.arm_joints[:7])
        self.open(2 * OPEN_FINGER)
        mujoco.mj_forward(self.model, self.data)

    @property
    def arm_joints(self) -> FloatArray:
        """Angles of the arm's joints (7,) in radians."""
        return self.data.qpos[self._joints].copy()

    @property
    def opening(self) -> float:
        """Metres between the fingers."""
        left, right = (self.data.joint(name).qpos[0] for name in _FINGER_JOINTS)
        return float(left - right)

    def position(self, name: str) -> FloatArray:
        """Return an object's center of mass (3,), meters in the frame `table`."""
        return self.data.body(name).xipos.copy()

    def nearest(self, position: FloatArray) -> str:
        """Return the object whose initial footprint is nearest to a position (3,)."""
        away = np.linalg.norm(self._feet[:, :2] - position[:2], axis=1) - self._radii
        return self.names[int(np.argmin(away))]

    def command(self, joints: FloatArray) -> None:
        """Send the arm to angles (7,) in radians."""
        self.data.ctrl[self._servos] = joints

    def open(self, opening: float) -> None:
        """Send the fingers to a distance (m) between them."""
        self.data.ctrl[self._fingers] = opening / 2, -opening / 2

    def close(self) -> None:
        """Let the fingers close with all their force."""
        self.data.ctrl[self._fingers] = -_SQUEEZE, _SQUEEZE

    def step(self) -> None:
        """Simulate one TIME_STEP."""
        mujoco.mj_step(self.model, self.data)


def _add_table(spec: mujoco.MjSpec, model: mujoco.MjModel) -> None:
    for name in ("table", "floor"):
        copy_geom(spec.worldbody, spec, model, model.geom(name).id)
    solid = spec.worldbody.add_geom(type=mujoco.mjtGeom.mjGEOM_BOX, group=_SOLID_GROUP)
    solid.size, solid.pos = TABLE_HALF_SIZE, (0, 0, -TABLE_HALF_SIZE[2])
    solid.friction, solid.contype, solid.conaffinity = _OBJECT_FRICTION, _WORLD, _WORLD | _ARM


def _add_object(spec: mujoco.MjSpec, model: mujoco.MjModel, name: str, instance: Instance) -> None:
    pose = {"pos": model.body_pos[instance.body], "quat": model.body_quat[instance.body]}
    body = spec.worldbody.add_body(name=name, **pose)
    body.add_freejoint()
    for geom in instance.geoms:
        copy_geom(body, spec, model, geom)
    for number, piece in enumerate(convex_pieces(model, instance)):
        mesh = f"{name}/{number}"
        spec.add_mesh(name=mesh, uservert=piece.ravel())
        solid = body.add_geom(type=mujoco.mjtGeom.mjGEOM_MESH, meshname=mesh, group=_SOLID_GROUP)
        solid.contype, solid.conaffinity = _WORLD, _WORLD | _ARM
        solid.friction, solid.condim = _OBJECT_FRICTION, 6


def _weigh(model: mujoco.MjModel, body: int, mass: float) -> None:
    """Give a body its mass; how it is spread stays that of its volume."""
    factor = mass / model.body_mass[body]
    model.body_mass[body] *= factor
    model.body_inertia[body] *= factor
