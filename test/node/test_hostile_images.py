# SPDX-License-Identifier: Apache-2.0
"""Image messages that are not what they say: refused by their code before they cost anything."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("rclpy")

from cv_bridge import CvBridge
from sensor_msgs.msg import CompressedImage, Image
from support.small_camera import K

from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.ros import conversions
from robobrain_ros.ros.acquisition import Poses
from robobrain_ros.ros.camera import Snapshot
from robobrain_ros.ros.image_codecs import MAX_PIXELS
from robobrain_ros.sim.camera_node import camera_info, color_image, depth_image
from robobrain_ros.tf_projection import LiftStatus

SIDES = st.one_of(st.integers(0, 9), st.sampled_from((64, 2**31, 2**32 - 1)))
ENCODINGS = st.one_of(
    st.sampled_from(
        ("rgb8", "bgr8", "rgba8", "mono8", "mono16", "rgb16", "bayer_rggb8", "yuv422", "8UC3",
         "16UC1", "32FC1", "8UC0", "8UC" + "9" * 30, "8UC" + "9" * 5000, "rgb8\n")
    ),
    st.text(max_size=5),
)  # fmt: skip


def raw(width, height, encoding, step, data: bytes, is_bigendian=0) -> Image:
    message = Image(width=width, height=height, encoding=encoding, step=step)
    message.is_bigendian = is_bigendian
    message.data.frombytes(data)
    return message


def refusal(message) -> str:
    with pytest.raises(BrainError) as caught:
        conversions.rgb_from(message)
    assert caught.value.code is ErrorCode.BAD_REQUEST
    return str(caught.value)


@settings(deadline=None)
@given(SIDES, SIDES, ENCODINGS, st.integers(0, 40), st.binary(max_size=300), st.booleans())
def test_any_image_is_rgb_or_a_bad_request(width, height, encoding, step, data, is_bigendian):
    try:
        rgb = conversions.rgb_from(raw(width, height, encoding, step, data, is_bigendian))
    except BrainError as error:
        assert error.code is ErrorCode.BAD_REQUEST
    else:
        assert rgb.shape == (height, width, 3) and rgb.dtype == np.uint8 and rgb.size


@settings(deadline=None)
@given(st.sampled_from(("jpeg", "png", "rgb8; png compressed bgr8", "", "webp")), st.binary())
def test_any_compressed_image_is_rgb_or_a_bad_request(name, data):
    for start in (b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"):
        message = CompressedImage(format=name)
        message.data.frombytes(start + data)
        refusal(message)


@pytest.mark.parametrize("encoding", ["rgb8", "mono8", "rgb16", "bgra8"])
@pytest.mark.parametrize(("width", "height"), [(0, 0), (0, 5), (5, 0), (0, 2**32 - 1)])
def test_an_image_without_pixels_is_refused(encoding, width, height):
    assert "no pixels" in refusal(raw(width, height, encoding, 7, bytes(35)))


def test_an_image_that_is_too_large_is_refused_before_it_is_touched():
    side = int(MAX_PIXELS**0.5) + 1
    assert "64 megapixels" in refusal(raw(side, side, "rgb8", 3 * side, b"x"))
    assert "64 megapixels" in refusal(raw(2**32 - 1, 2**32 - 1, "mono8", 2**32 - 1, b"x"))


def test_wrong_steps_and_cut_off_data_are_refused_and_padding_is_none():
    pixels = bytes(range(48))
    whole = raw(4, 4, "rgb8", 12, pixels)
    padded = b"".join(pixels[row * 12 : row * 12 + 12] + b"pad" for row in range(4))
    np.testing.assert_array_equal(
        conversions.rgb_from(raw(4, 4, "rgb8", 15, padded)), conversions.rgb_from(whole)
    )
    for step, data in (
        (11, pixels),
        (0, pixels),
        (2**32 - 1, pixels),
        (12, pixels[:-1]),
        (12, b""),
    ):
        assert "can't be decoded" in refusal(raw(4, 4, "rgb8", step, data))


@pytest.mark.parametrize("encoding", ["mono16", "rgb16"])
def test_sixteen_bits_of_either_byte_order_are_the_same_image(encoding):
    values = np.arange(0, 65536, 257, dtype=np.uint16)
    grey = np.repeat(values, 3) if encoding == "rgb16" else values
    size = len(grey) // 256 * 2
    little = raw(16, 16, encoding, 16 * size, grey.astype("<u2").tobytes())
    big = raw(16, 16, encoding, 16 * size, grey.astype(">u2").tobytes(), 1)
    np.testing.assert_array_equal(conversions.rgb_from(little), conversions.rgb_from(big))
    np.testing.assert_array_equal(conversions.rgb_from(big)[:, :, 0].ravel(), np.arange(256))


def test_large_color_of_sixteen_bits_takes_no_gigabytes():
    """In float64, 8K of it took three of them."""
    data = np.arange(4_000_000 * 3, dtype=np.uint16)
    message = raw(2000, 2000, "rgb16", 12_000, data.tobytes())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rgb = conversions.rgb_from(message)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert grown < 8 * rgb.size  # one such copy
    expected = np.rint(data.astype(np.float64) * (255 / 65535))
    np.testing.assert_array_equal(rgb.ravel(), expected)
    assert CvBridge().imgmsg_to_cv2(message, "rgb8").dtype == np.uint8


def test_an_encoding_of_a_megabyte_has_a_code():
    refusal(raw(4, 4, "x" * 1_000_000, 12, bytes(48)))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda depth, info: depth.data.pop(),
        lambda depth, info: setattr(depth, "step", 3),
        lambda depth, info: setattr(depth, "encoding", "klingon16"),
        lambda depth, info: setattr(depth, "encoding", "rgb8"),
        lambda depth, info: setattr(depth, "height", 0),
        lambda depth, info: setattr(depth, "width", 2**32 - 1),
        lambda depth, info: setattr(info, "k", [0.0] * 9),
        lambda depth, info: setattr(info, "k", [float("nan")] * 9),
        lambda depth, info: setattr(info, "d", [float("nan")] * 5),
        lambda depth, info: setattr(info, "width", 7),
    ],
)
def test_depth_that_can_t_be_used_has_its_code(spoil):
    color = color_image(np.zeros((48, 64, 3), np.uint8), "rgb8")
    depth = depth_image(np.full((48, 64), 0.5, np.float32), "32FC1", 1.0)
    info = camera_info(K, color, color)
    snapshot = Snapshot(color, info, depth, None, LiftStatus.OK)
    assert conversions.observation(snapshot, Poses("table", np.eye(4))).scene.depth is not None
    spoil(depth, info)
    with pytest.raises(BrainError) as caught:
        conversions.observation(snapshot, Poses("table", np.eye(4)))
    assert caught.value.code is ErrorCode.NO_CAMERA_INFO
