# SPDX-License-Identifier: Apache-2.0
"""Hostile input, made up at random but the same for the same generator: answers of models, texts of
requests, images, camera infos, transforms and pixels. Most are nearly right: noise gets nowhere.
"""

from __future__ import annotations

from array import array
from random import Random
from typing import Any

import numpy as np
from geometry_msgs.msg import TransformStamped
from sensor_msgs.msg import CameraInfo, CompressedImage, Image

TAGS = (
    "<|im_end|>", "<|im_start|>", "<|image_pad|>", "<|vision_start|>", "<|vision_end|>",
    "<|endoftext|>", "<|video_pad|>", "<think>", "</think>", "<answer>", "</answer>", "<|x|>",
    "<tool_call>", "<|im_<|im_end|>end|>", "<<|im_end|>|", "<| im_end |>", "＜|im_end|＞",
)  # fmt: skip
_TEMPLATES = (
    "{text}", "{{ 7 * 7 }}", "{% for x in range(9999999) %}", "{# #}", "%s%n", "{0}", "$(reboot)",
    "'; DROP TABLE", "${HOME}", "\\x00", "[(1, 2)]", '{"bbox_2d": [1, 2, 3, 4]}',
)  # fmt: skip
_WORDS = ("the", "red", "can", "Point to", "left of", "mug", "système", "杯子", "чашка", "كوب")
_ODD = (
    "\0", "\x1b[31m", "\r", "\n", "\t", "\x7f", "\x85", "\u200b", "\u202e", "\u2028", "\ufeff",
    "\ud800", "\udfff", "\U0001f6d2", "\U0010ffff", "a\u0301" * 9, "e" + "\u0300" * 60, "İ", "ı",
    "ſ", "\u212a", "½", "²", "\u3000", "ﷺ", "🏴\u200d☠️", "<\u0338|",
)  # fmt: skip
_NUMBERS = (
    "nan", "NaN", "-inf", "Infinity", "ınf", "İnf", "ınfıNıty", "1e400", "-1e-400", "1e308", "1e",
    "0x10", "1_000", "--3", "1.2.3", "٣", "१२", "½", "", " ", "9" * 300, "-0", "+3", ".5", "5.",
    "1000001", "1e6", "-1e6", "999999.9999", "0" * 390, "1e-320", "None", "x1", '"7"',
)  # fmt: skip


def answer(rng: Random) -> str:
    """What a model might write."""
    shape = rng.random()
    if shape < 0.0005:
        return _repeated(rng, rng.choice((100_000, 1_000_000, 4_000_001)))
    if shape < 0.15:
        return _pieces(rng, rng.randrange(1, 40), (*TAGS, *_ODD, *_NUMBERS, *'()[]{},.:"e-+ '))
    text = _listed(rng)
    if shape < 0.4:
        return text
    if shape < 0.6:
        text = _damaged(rng, text)
    if rng.random() < 0.3:
        text = f"{_pieces(rng, 3, _WORDS + _ODD)} {text} {_pieces(rng, 3, _WORDS + TAGS)}"
    if rng.random() < 0.3:
        before = _pieces(rng, 4, (*_WORDS, *TAGS, "(1, 2)"))
        text = f"{before}</think><answer>{text}" + rng.choice(("", "</answer>", "</answer><think>"))
    return text


def request_text(rng: Random) -> str:
    """What a user, or a program that repeats what it read, might ask."""
    shape = rng.random()
    if shape < 0.01:
        return ""
    if shape < 0.015:
        return _repeated(rng, rng.choice((3_999, 4_000, 4_001, 1_000_000)))
    if shape < 0.05:
        return rng.choice((*_ODD, *TAGS, " ", ".", "...")) * rng.choice((1, 2, 50, 390))
    most = rng.choice((3, 10, 60))
    return _pieces(rng, rng.randrange(1, most), (*_WORDS, *TAGS, *_ODD, *_TEMPLATES, " ", ".", "?"))


def _pieces(rng: Random, count: int, choices: tuple[str, ...]) -> str:
    space = rng.choice(("", " "))
    return space.join(rng.choice(choices) for _ in range(count))


def _repeated(rng: Random, length: int) -> str:
    piece = rng.choice(
        ("(", "[", "(1,2)", "(12, 34), ", '"point_2d": [1, 2]', "<think>", "</think>", "no ", " ",
         "()", "[[", "1", '"point" ', "<|im_end|>", "\U0001f6d2", "[1, 2, 3, 4]", "(1, ", "\n")
    )  # fmt: skip
    return (piece * (length // len(piece) + 1))[:length]


def _listed(rng: Random) -> str:
    """A list of points or boxes, with a number now and then that isn't one."""
    numbers = rng.choice((1, 2, 2, 2, 2, 3, 4, 4, 4, 5))
    count = rng.choice((0, 1, 1, 2, 3, 10, 100))
    if rng.random() < 0.002:
        count = rng.choice((1_001, 5_000, 100_000))
    odd = rng.choice((0.0, 0.0, 0.05))
    span = rng.choice((1, 100, 1000, 1000, 100_000))
    opening, closing = rng.choice(("()", "()", "[]", "[]", "(]", "{}", ('{"bbox_2d": [', "]}")))
    if rng.random() < 0.2:
        opening, closing = '{"point_2d": [', '], "label": "cup"}'
    if count > 1_000:  # quickly
        group = f"{opening}{', '.join(['12'] * numbers)}{closing}"
        return f"[{', '.join([group] * count)}]"

    def number() -> str:
        if rng.random() < odd:
            return rng.choice(_NUMBERS)
        value = rng.uniform(-0.02, 1.02) * span
        return str(round(value)) if rng.random() < 0.7 else repr(value)

    groups = (
        f"{opening}{', '.join(number() for _ in range(numbers))}{closing}" for _ in range(count)
    )
    depth = rng.choice((0, 1, 1, 1, 2, 30))
    return "[" * depth + ", ".join(groups) + "]" * depth


def _damaged(rng: Random, text: str) -> str:
    """The text without a part, with something in it, or with a part twice."""
    start, end = sorted(rng.randrange(len(text) + 1) for _ in range(2))
    more = rng.choice(("", rng.choice(_ODD), rng.choice(TAGS), text[start:end] * 2))
    return text[:start] + more + text[rng.choice((start, end)) :]


# Images

SIDES = (1, 1, 2, 3, 7, 27, 28, 29, 64, 64, 64, 201)
_HUGE = (2**32 - 1, 2**31, 65_536, 8_193)
_ENCODINGS = {
    "rgb8": 3, "bgr8": 3, "rgba8": 4, "bgra8": 4, "mono8": 1, "rgb16": 6, "bgr16": 6, "bgra16": 8,
    "mono16": 2, "bayer_rggb8": 1, "bayer_grbg16": 2, "yuv422": 2, "yuv422_yuy2": 2, "uyvy": 2,
    "8UC1": 1, "8UC3": 3, "16UC1": 2, "32FC1": 4, "64FC4": 32, "8UC17": 17, "8UC0": 0,
    "8UC" + "9" * 30: 1, "8UC" + "9" * 5000: 1, "": 3, "klingon8": 3, "RGB8": 3, "rgb8\n": 3,
    "nv12": 1, "rgb8" * 10_000: 3, "\U0001f6d2": 3,
}  # fmt: skip
_EXTREMES = (0.0, -0.0, 1.0, -1.0, 1e-320, 1e-9, 1e9, 1e30, 1e300, float("nan"), float("inf"),
             float("-inf"))  # fmt: skip


def image(rng: Random, good: float = 0.5) -> Image:
    """A colour image; a share `good` of them are what a driver publishes."""
    if rng.random() < 0.0005:
        encoding = rng.choice(("rgb8", "bgr8", "mono8", "rgb16", "mono16"))
        width, height = 7680, 4320
    else:
        is_good = rng.random() < good
        encoding = rng.choice(("rgb8", "bgr8", "mono8")) if is_good else rng.choice([*_ENCODINGS])
        width, height = (64, 48) if is_good else (rng.choice(SIDES), rng.choice(SIDES))
        if is_good:
            return _filled(rng, width, height, encoding, _ENCODINGS[encoding])
    message = _filled(rng, width, height, encoding, _ENCODINGS[encoding])
    return _spoilt(rng, message)


def depth_image(rng: Random, good: float = 0.6) -> Image:
    """A depth image, of any numbers; a share `good` of them are whole."""
    encoding = rng.choice(("16UC1", "32FC1", "mono16"))
    width, height = rng.choice(((64, 48), (64, 48), (32, 24), (1, 1), (80, 48)))
    message = _filled(rng, width, height, encoding, _ENCODINGS[encoding])
    if encoding == "32FC1" and rng.random() < 0.8:  # else bits of any float
        values = [rng.uniform(0.2, 3.0) for _ in range(8)] + [rng.choice(_EXTREMES)]
        chosen = np.array(rng.choices(values, k=64), np.float32)
        message.data = array("B", np.resize(chosen, width * height).tobytes())
    return message if rng.random() < good else _spoilt(rng, message)


def compressed(rng: Random, depth: bool) -> CompressedImage:
    """A compressed image whose bytes are nearly, or not at all, what its format says."""
    formats = (
        ("16UC1; compressedDepth png", "16UC1; compressedDepth rvl", "32FC1; compressedDepth", "")
        if depth
        else ("jpeg", "png", "rgb8; jpeg compressed bgr8", "webp", "", "bayer_rggb8; jpeg", ";" * 9)
    )
    message = CompressedImage(format=rng.choice(formats))
    start = rng.choice((b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(12)))
    message.data.frombytes(start + rng.randbytes(rng.choice((0, 1, 30, 500))))
    return message


def _filled(rng: Random, width: int, height: int, encoding: str, size: int) -> Image:
    """A whole image of any pixels. size: bytes of one."""
    message = Image(width=width, height=height, encoding=encoding, step=width * size)
    message.is_bigendian = rng.choice((0, 0, 1, 255))
    pattern = rng.randbytes(997)
    length = width * height * size
    message.data.frombytes((pattern * (length // len(pattern) + 1))[:length])
    return message


def _spoilt(rng: Random, message: Image) -> Image:
    """With a side, the step or the data that don't belong to the rest, or as it is."""
    what = rng.randrange(8)
    if what == 0:
        message.width = rng.choice((0, 1, message.width + 1, *_HUGE))
    elif what == 1:
        message.height = rng.choice((0, 1, message.height + 1, *_HUGE))
    elif what == 2:
        message.width = message.height = 0
    elif what == 3:
        message.step = rng.choice((0, 1, max(message.step, 1) - 1, message.step + 5, 2**32 - 1))
    elif what == 4:
        del message.data[rng.randrange(len(message.data) + 1) :]
    elif what == 5:
        message.data.frombytes(bytes(rng.choice((1, 7, 4096))))
    return message


def camera_info(rng: Random, width: int, height: int, good: float = 0.4) -> CameraInfo:
    """Intrinsics of an image of this size; all but a share `good` of them with something odd."""
    info = CameraInfo(width=width, height=height, distortion_model="plumb_bob")
    k = [60.0, 0.0, width / 2, 0.0, 60.0, height / 2, 0.0, 0.0, 1.0]
    d = rng.choice(([], [0.0] * 5, [0.1, -0.05, 0.001, 0.001, 0.01]))
    p = [60.0, 0.0, width / 2, 0.0, 0.0, 60.0, height / 2, 0.0, 0.0, 0.0, 1.0, 0.0]
    if rng.random() >= good:
        for values in rng.sample((k, d, p), rng.randrange(1, 4)):
            for _ in range(rng.randrange(len(values) + 1)):
                values[rng.randrange(len(values))] = _odd_number(rng)
        what = rng.randrange(6)
        if what == 0:
            k = [0.0] * 9
        elif what == 1:
            info.width, info.height = (rng.choice((0, 1, width * 2, 2**32 - 1)) for _ in range(2))
        elif what == 2:
            d = [_odd_number(rng) for _ in range(rng.choice((1, 4, 5, 8, 12, 14, 3000)))]
            models = ("rational_polynomial", "equidistant", "fisheye", "", "\U0001f6d2", "x" * 999)
            info.distortion_model = rng.choice(models)
        elif what == 3:
            info.roi.x_offset, info.roi.y_offset, info.roi.width, info.roi.height = (
                rng.choice((0, 1, 16, 2**32 - 1)) for _ in range(4)
            )
        elif what == 4:
            info.binning_x, info.binning_y = (rng.choice((0, 1, 2, 64, 2**32 - 1)) for _ in "xy")
        elif what == 5:  # a camera, if a strange one
            k[0], k[4] = (rng.choice((-60.0, 1e-3, 1.0, 1e5)) for _ in range(2))
    info.k, info.d, info.p = k, d, p
    return info


def _odd_number(rng: Random) -> float:
    return rng.choice(_EXTREMES) if rng.random() < 0.6 else rng.gauss(0.0, 1.0)


def pixels(rng: Random, count: int, columns: int) -> list[list[float]]:
    """Rows of coordinates, most of them in or near an image of 64x48."""

    def number() -> float:
        return rng.uniform(-3, 66) if rng.random() < 0.95 else rng.choice(_EXTREMES)

    return [[number() for _ in range(columns)] for _ in range(count)]


def transform(rng: Random, good: float = 0.6, frames: str = "") -> TransformStamped:
    """Where a frame is in another one, both letters of `frames`."""
    message = TransformStamped()
    odd = 0.0 if rng.random() < good else 0.3
    for part, names in (
        (message.transform.translation, "xyz"),
        (message.transform.rotation, "xyzw"),
    ):
        for name in names:
            value = rng.choice(_EXTREMES) if rng.random() < odd else rng.gauss(0.0, 0.5)
            setattr(part, name, value)
    if odd == 0.0:
        _normalize(message.transform.rotation)
    if frames:
        message.header.frame_id, message.child_frame_id = (rng.choice(frames) for _ in range(2))
        message.header.stamp.sec = rng.choice((0, 5, 5, 6, 2**31 - 1, -1))
    return message


def _normalize(rotation: Any) -> None:
    length = sum(getattr(rotation, name) ** 2 for name in "xyzw") ** 0.5
    for name in "xyzw":
        setattr(rotation, name, getattr(rotation, name) / length)
