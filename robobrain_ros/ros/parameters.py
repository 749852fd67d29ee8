# SPDX-License-Identifier: Apache-2.0
"""Parameters of the nodes: defaults, descriptions and valid values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor
from rclpy.node import Node
from rclpy.parameter import Parameter

from robobrain_ros.core.families import FAMILIES

_LONG = 2**31 - 1


@dataclass(frozen=True)
class Spec:
    """One parameter: default, description, and range or list of choices."""

    name: str
    default: Any
    description: str
    choices: tuple[str, ...] = ()
    range: tuple[float, float] | None = None
    load_time: bool = False
    """Read when the model is loaded or the cameras are subscribed, so fixed while configured."""

    def descriptor(self) -> ParameterDescriptor:
        descriptor = ParameterDescriptor(description=self.description)
        if self.choices:
            descriptor.additional_constraints = "one of: " + ", ".join(self.choices)
        if self.range is not None and isinstance(self.default, int):
            low, high = map(int, self.range)
            descriptor.integer_range = [IntegerRange(from_value=low, to_value=high, step=0)]
        elif self.range is not None:
            low, high = map(float, self.range)
            descriptor.floating_point_range = [
                FloatingPointRange(from_value=low, to_value=high, step=0.0)
            ]
        return descriptor


AUTOSTART = Spec(
    "autostart",
    False,
    "Configure and activate at start, for use without a lifecycle manager.",
    load_time=True,
)

SPECS = (
    Spec(
        "model",
        "nano",
        "Model to load: `nano` (ships with the package), a directory, or a hub id such as "
        "BAAI/RoboBrain2.0-3B.",
        load_time=True,
    ),
    Spec(
        "family",
        "auto",
        "Prompts and coordinate frame of the model; `auto` decides by the checkpoint.",
        choices=("auto", *FAMILIES),
        load_time=True,
    ),
    Spec(
        "quantization",
        "auto",
        "Quantization of the language model's weights by bitsandbytes: none, 8 bit or 4 bit; "
        "`auto` is nf4 on a GPU, except for small models.",
        choices=("auto", "none", "int8", "nf4"),
        load_time=True,
    ),
    Spec(
        "device",
        "auto",
        "Device that runs the model; `auto` is CUDA if there is a GPU.",
        choices=("auto", "cuda", "cpu"),
        load_time=True,
    ),
    Spec(
        "max_pixels",
        0,
        "Larger images are scaled down to this many pixels for the model; 0 = the checkpoint's "
        "own limit.",
        range=(0, _LONG),
        load_time=True,
    ),
    Spec(
        "image_cache",
        256,
        "Size of the prefix cache, which speeds up further questions about the same image, "
        "megabytes; 0 = no cache.",
        range=(0, 1_000_000),
        load_time=True,
    ),
    Spec(
        "grammar",
        True,
        "Constrained decoding: answers follow the grammar of their task, so they can be parsed, "
        "lie in the image and take fewer steps. Off = free text.",
        load_time=True,
    ),
    Spec(
        "max_new_tokens",
        768,
        "Maximum length of an answer including thinking, tokens.",
        range=(1, 32768),
    ),
    Spec(
        "cameras",
        ["camera"],
        "Camera names; the first is the default. Each has <name>.color_topic, .info_topic, "
        ".depth_topic and .depth_info_topic.",
        load_time=True,
    ),
    Spec(
        "target_frame",
        "",
        "Default TF frame of 3D results; empty = the camera's optical frame.",
    ),
    Spec(
        "request_timeout",
        30.0,
        "Default timeout of a request, seconds.",
        range=(0.01, 3600.0),
    ),
    Spec(
        "image_timeout",
        2.0,
        "Maximum time to wait for a new image before NO_IMAGE or IMAGE_STALE, seconds.",
        range=(0.0, 60.0),
    ),
    Spec(
        "max_image_age",
        1.0,
        "Maximum age of the newest image before IMAGE_STALE, seconds.",
        range=(0.01, 3600.0),
    ),
    Spec(
        "sync_tolerance",
        0.02,
        "Maximum difference between the stamps of paired color and depth images, seconds.",
        range=(0.0, 1.0),
    ),
    Spec(
        "tf_timeout",
        0.5,
        "Maximum time to wait for the transform at the image's stamp, seconds.",
        range=(0.0, 10.0),
    ),
    Spec("min_depth", 0.1, "Minimum depth, metres; less is OUT_OF_RANGE.", range=(0.0, 100.0)),
    Spec("max_depth", 10.0, "Maximum depth, metres; more is OUT_OF_RANGE.", range=(0.0, 1000.0)),
    Spec(
        "fixed_frame",
        "",
        "TF frame that is fixed in the world while the cameras move, such as odom, map, or an "
        "arm's base. Depth and color of different stamps or cameras are joined through it; "
        "empty = target_frame.",
    ),
    Spec(
        "depth_noise",
        0.0025,
        "Standard deviation of depth at one metre, growing with the square of the depth, metres; "
        "for stereo: disparity error / (focal length * baseline). Default: RealSense D435.",
        range=(0.0, 1.0),
    ),
    Spec(
        "depth_noise_floor",
        0.0005,
        "Minimum standard deviation of depth, metres.",
        range=(0.00001, 1.0),
    ),
    Spec(
        "pixel_noise",
        0.5,
        "Standard deviation of the position of a result in the image, depth pixels.",
        range=(0.0, 100.0),
    ),
    Spec(
        "path_height",
        "interpolate",
        "Depth of a trajectory's waypoints: `surface` = measured at each pixel, `interpolate` = "
        "interpolated from the first to the last one's, `lift` = path_clearance above the surface.",
        choices=("interpolate", "surface", "lift"),
    ),
    Spec(
        "path_clearance",
        0.05,
        "Distance from the surface with path_height `lift`, metres.",
        range=(0.0, 10.0),
    ),
    Spec(
        "max_batch",
        8,
        "Maximum number of requests that are decoded as one batch.",
        range=(1, 64),
        load_time=True,
    ),
    Spec(
        "max_pending",
        8,
        "Maximum number of requests that wait beside those; one more is answered BUSY.",
        range=(1, 1024),
        load_time=True,
    ),
    AUTOSTART,
)

CAMERA_PARAMETERS: dict[str, tuple[str | bool, str]] = {
    "color_topic": (
        "{name}/color/image_raw",
        "Color image of the camera {name}; a name that ends in /compressed carries compressed "
        "images.",
    ),
    "info_topic": ("{name}/color/camera_info", "Intrinsics of the color image of {name}."),
    "depth_topic": (
        "{name}/aligned_depth_to_color/image_raw",
        "Depth of {name} (16UC1 mm or 32FC1 m; a name that ends in /compressedDepth carries "
        "compressed images); empty = no depth.",
    ),
    "depth_info_topic": (
        "",
        "Intrinsics of the depth of {name}, where it comes from another camera than color: TF "
        "then joins the two; empty = the depth is registered to color, and has its intrinsics.",
    ),
    "rectified": (
        False,
        "The images of {name} are rectified: their intrinsics are P of the camera info, without "
        "distortion.",
    ),
}


def declare(node: Node, specs: Sequence[Spec]) -> None:
    """Declare parameters on `node`."""
    for spec in specs:
        node.declare_parameter(spec.name, spec.default, spec.descriptor())


def declare_camera(node: Node, name: str) -> None:
    """Declare the parameters of the camera `name`, unless they are declared already."""
    for key, (default, description) in CAMERA_PARAMETERS.items():
        if not node.has_parameter(f"{name}.{key}"):
            descriptor = ParameterDescriptor(description=description.format(name=name))
            value = default.format(name=name) if isinstance(default, str) else default
            node.declare_parameter(f"{name}.{key}", value, descriptor)


def refuse(specs: Sequence[Spec], new: Sequence[Parameter], configured: bool) -> str:
    """Return why new values of a node's parameters can't be taken, or an empty string.

    configured: parameters with `load_time` are fixed until cleanup.
    """
    load_time = {spec.name for spec in specs if spec.load_time}
    for parameter in new:
        if configured and parameter.name in load_time:
            return _fixed(parameter.name)
    return not_a_choice(specs, new)


def refuse_brain(node: Node, new: Sequence[Parameter], configured: bool) -> str:
    """`refuse`, and what else holds for the parameters of the brain node."""
    for parameter in new:
        name, value = parameter.name, parameter.value
        if configured and name.rpartition(".")[2] in CAMERA_PARAMETERS:
            return _fixed(name)
        if name == "cameras" and (not value or "" in value or len(set(value)) != len(value)):
            return "cameras needs at least one name, each of them different and not empty."
    values = {parameter.name: parameter.value for parameter in new}
    limits = [values.get(name, _value(node, name)) for name in ("min_depth", "max_depth")]
    if None not in limits and limits[0] >= limits[1]:
        return f"min_depth {limits[0]} m must be below max_depth {limits[1]} m."
    return refuse(SPECS, new, configured)


def _fixed(name: str) -> str:
    return f"{name} is fixed while the node is configured: clean it up first."


def _value(node: Node, name: str) -> Any:
    """Return a parameter's value, or None before it is declared."""
    return node.get_parameter(name).value if node.has_parameter(name) else None


def not_a_choice(specs: Sequence[Spec], parameters: Sequence[Parameter]) -> str:
    """Return which value is none of its spec's choices, or an empty string."""
    choices = {spec.name: spec.choices for spec in specs if spec.choices}
    for parameter in parameters:
        allowed = choices.get(parameter.name, (parameter.value,))
        if parameter.value not in allowed:
            return f"{parameter.name} is one of {', '.join(allowed)}, not {parameter.value}."
    return ""
