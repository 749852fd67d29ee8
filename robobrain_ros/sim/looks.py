# SPDX-License-Identifier: Apache-2.0
"""Copying of the appearance of a compiled MuJoCo model into the specification of another."""

from __future__ import annotations

import mujoco
import numpy as np

_RGB = mujoco.mjtTextureRole.mjTEXROLE_RGB


def copy_surroundings(spec: mujoco.MjSpec, model: mujoco.MjModel) -> None:
    """Lights, camera and clip planes of a tabletop's model."""
    spec.stat.center, spec.stat.extent = model.stat.center, model.stat.extent
    spec.visual.map.znear, spec.visual.map.zfar = model.vis.map.znear, model.vis.map.zfar
    for part in ("ambient", "diffuse", "specular"):
        setattr(spec.visual.headlight, part, getattr(model.vis.headlight, part))
    for light in range(model.nlight):
        spec.worldbody.add_light(
            name=model.light(light).name,
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            pos=model.light_pos[light],
            dir=model.light_dir[light],
            castshadow=bool(model.light_castshadow[light]),
            ambient=model.light_ambient[light],
            diffuse=model.light_diffuse[light],
            specular=model.light_specular[light],
        )
    pose = {"pos": model.cam_pos[0], "quat": model.cam_quat[0]}
    spec.worldbody.add_camera(name="camera", fovy=model.cam_fovy[0], **pose)


def copy_geom(body: mujoco.MjsBody, spec: mujoco.MjSpec, model: mujoco.MjModel, geom: int) -> None:
    """Show a geom of `model` at the same place of another body. It weighs and touches nothing."""
    shown = body.add_geom(
        type=mujoco.mjtGeom(int(model.geom_type[geom])),
        size=model.geom_size[geom],
        pos=model.geom_pos[geom],
        quat=model.geom_quat[geom],
        rgba=model.geom_rgba[geom],
        contype=0,
        conaffinity=0,
        mass=0.0,
    )
    if model.geom_type[geom] == mujoco.mjtGeom.mjGEOM_MESH:
        shown.size = (0, 0, 0)
        shown.meshname = f"shown/{model.mesh(model.geom_dataid[geom]).name}"
        _copy_mesh(spec, model, int(model.geom_dataid[geom]), shown.meshname)
    if model.geom_matid[geom] >= 0:
        shown.material = _copied_material(spec, model, int(model.geom_matid[geom]))


def _copy_mesh(spec: mujoco.MjSpec, model: mujoco.MjModel, mesh: int, name: str) -> None:
    def of(array: np.ndarray, starts: np.ndarray, counts: np.ndarray) -> np.ndarray:
        return array[starts[mesh] : starts[mesh] + counts[mesh]].ravel()

    copied = spec.add_mesh(name=name, inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL)
    copied.uservert = of(model.mesh_vert, model.mesh_vertadr, model.mesh_vertnum)
    copied.userface = of(model.mesh_face, model.mesh_faceadr, model.mesh_facenum)
    copied.usernormal = of(model.mesh_normal, model.mesh_normaladr, model.mesh_normalnum)
    copied.userfacenormal = of(model.mesh_facenormal, model.mesh_faceadr, model.mesh_facenum)
    if model.mesh_texcoordadr[mesh] >= 0:
        copied.usertexcoord = of(
            model.mesh_texcoord, model.mesh_texcoordadr, model.mesh_texcoordnum
        )
        copied.userfacetexcoord = of(
            model.mesh_facetexcoord, model.mesh_faceadr, model.mesh_facenum
        )


def _copied_material(spec: mujoco.MjSpec, model: mujoco.MjModel, index: int) -> str:
    """Name of the material in `spec`, where it is added once."""
    name = model.material(index).name
    if spec.material(name) is not None:
        return name
    material = spec.add_material(
        name=name,
        specular=model.mat_specular[index],
        shininess=model.mat_shininess[index],
        emission=model.mat_emission[index],
        rgba=model.mat_rgba[index],
        texrepeat=model.mat_texrepeat[index],
    )
    texture = int(model.mat_texid[index, _RGB])
    if texture >= 0:
        height, width = int(model.tex_height[texture]), int(model.tex_width[texture])
        start, channels = int(model.tex_adr[texture]), int(model.tex_nchannel[texture])
        pixels = model.tex_data[start : start + height * width * channels]
        copied = spec.add_texture(name=name, type=mujoco.mjtTexture.mjTEXTURE_2D)
        copied.height, copied.width, copied.nchannel = height, width, channels
        copied.data = pixels.tobytes()
        material.textures[_RGB] = name
    return name
