# SPDX-License-Identifier: Apache-2.0
"""What the encoding of a sensor_msgs/Image says, and which conversions make sense."""

from __future__ import annotations

import re
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray


class CvBridgeError(TypeError):
    """An image cannot be converted."""


class Encoding(NamedTuple):
    """colour is "" where the values have no colour, as in depth images."""

    depth: str
    channels: int
    colour: str


# OpenCV's names of numpy's types.
DEPTHS = {
    "8U": "uint8",
    "8S": "int8",
    "16U": "uint16",
    "16S": "int16",
    "32S": "int32",
    "32F": "float32",
    "64F": "float64",
}
_NAMED = {
    f"{colour.lower()}{bits}": Encoding(f"{bits}U", channels, colour)
    for colour, channels in (("BGR", 3), ("RGB", 3), ("BGRA", 4), ("RGBA", 4))
    for bits in (8, 16)
}
_NAMED |= {f"mono{bits}": Encoding(f"{bits}U", 1, "GRAY") for bits in (8, 16)}
_NAMED |= {
    f"bayer_{tile}{bits}": Encoding(f"{bits}U", 1, f"Bayer {tile}")
    for tile in ("rggb", "bggr", "gbrg", "grbg")
    for bits in (8, 16)
}
_NAMED |= {name: Encoding("8U", 2, "YUV UYVY") for name in ("yuv422", "uyvy")}
_NAMED |= {name: Encoding("8U", 2, "YUV YUY2") for name in ("yuv422_yuy2", "yuyv")}
# OpenCV calls a Bayer pattern by the second pixel of its second row.
_OPENCV_BAYER = {"rggb": "BG", "bggr": "RG", "gbrg": "GR", "grbg": "GB"}


def parse(name: str) -> Encoding:
    """Raises CvBridgeError for an encoding that OpenCV cannot hold."""
    if name in _NAMED:
        return _NAMED[name]
    generic = re.fullmatch(r"(8U|8S|16U|16S|32S|32F|64F)(?:C([0-9]+))?", name)
    if generic is None:
        raise CvBridgeError(f"Unrecognized image encoding [{name}]")
    return Encoding(generic[1], int(generic[2] or 1), "")


def convert(image: NDArray, source_name: str, target_name: str) -> NDArray:
    """image from one encoding to another; 8 and 16 bits are scaled to each other's range.

    Raises CvBridgeError where that makes no sense, e.g. from a depth image to a colour.
    """
    if source_name == target_name:
        return image
    source, target = parse(source_name), parse(target_name)
    if source.colour and target.colour:
        if source.colour != target.colour:
            try:
                image = cv2.cvtColor(image, _code(source, target, source_name, target_name))
            except cv2.error as error:
                raise CvBridgeError(f"The image is not [{source_name}]: {error}") from error
        elif " " in source.colour and "YUV" not in source.colour:
            raise _unsupported(source_name, target_name)
    elif target.colour:
        raise CvBridgeError(
            f"[{source_name}] is not a color format. but [{target_name}] is. "
            "The conversion does not make sense"
        )
    elif source.channels != target.channels:
        raise CvBridgeError(
            f"[{source_name}] and [{target_name}] do not have the same number of channel"
        )
    return _with_depth(image, source.depth, target.depth)


def _code(source: Encoding, target: Encoding, source_name: str, target_name: str) -> int:
    """OpenCV's number of a conversion between colours."""
    family, _, layout = source.colour.partition(" ")
    if family == "Bayer":
        name = f"COLOR_Bayer{_OPENCV_BAYER[layout]}2{target.colour}"
    elif family == "YUV":
        name = f"COLOR_YUV2{target.colour}_{layout}"
    else:
        name = f"COLOR_{source.colour}2{target.colour}"
    # OpenCV demosaics to four channels too; cv_bridge does not offer it.
    if not hasattr(cv2, name) or (family == "Bayer" and target.channels == 4):
        raise _unsupported(source_name, target_name)
    return getattr(cv2, name)


def _with_depth(image: NDArray, source: str, target: str) -> NDArray:
    dtype = np.dtype(DEPTHS[target])
    if image.dtype == dtype:
        return image
    if (source, target) == ("16U", "8U") and image.size:
        # As below, without float64 copies of the image: of 8K colour they take 3 GB.
        rows = cv2.convertScaleAbs(image.reshape(len(image), -1), alpha=255 / 65535)
        return rows.reshape(image.shape)
    scale = {("8", "16"): 65535 / 255, ("16", "8"): 255 / 65535}.get((source[:-1], target[:-1]), 1)
    scaled = image.astype(np.float64) * scale
    if dtype.kind == "f":
        return scaled.astype(dtype)
    limits = np.iinfo(dtype)
    return np.clip(np.rint(scaled), limits.min, limits.max).astype(dtype)


def _unsupported(source_name: str, target_name: str) -> CvBridgeError:
    return CvBridgeError(f"Unsupported conversion from [{source_name}] to [{target_name}]")
