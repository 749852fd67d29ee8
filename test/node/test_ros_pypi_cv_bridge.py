# SPDX-License-Identifier: Apache-2.0
"""The stand-in for cv_bridge behaves as cv_bridge."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

pytest.importorskip("cv_bridge", reason="needs a ROS 2 shell: run `make test`")

from cv_bridge import CvBridge, CvBridgeError
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

BRIDGE = CvBridge()
COLOURS = {"rgb8": (200, 100, 50), "bgr8": (50, 100, 200), "rgba8": (200, 100, 50, 255)}


def random_image(dtype: str, channels: int, height: int = 5, width: int = 7) -> np.ndarray:
    shape = (height, width) + ((channels,) if channels > 1 else ())
    rng = np.random.default_rng(0)
    if np.dtype(dtype).kind == "f":
        return rng.normal(size=shape).astype(dtype)
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max, shape, dtype, endpoint=True)


def full(encoding: str, height: int = 4, width: int = 6) -> Image:
    """An image of one colour."""
    return BRIDGE.cv2_to_imgmsg(
        np.full((height, width, len(COLOURS[encoding])), COLOURS[encoding], np.uint8), encoding
    )


@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"),
    [
        ("mono8", "uint8", 1),
        ("mono16", "uint16", 1),
        ("rgb8", "uint8", 3),
        ("bgra16", "uint16", 4),
        ("bayer_rggb8", "uint8", 1),
        ("yuv422_yuy2", "uint8", 2),
        ("16UC1", "uint16", 1),
        ("32FC1", "float32", 1),
        ("64FC4", "float64", 4),
        ("8SC2", "int8", 2),
        ("32S", "int32", 1),
    ],
)
def test_there_and_back(encoding, dtype, channels):
    assert BRIDGE.encoding_to_dtype_with_channels(encoding) == (dtype, channels)
    image = random_image(dtype, channels)
    header = Header(frame_id="camera")
    message = BRIDGE.cv2_to_imgmsg(image, encoding, header)
    assert (message.height, message.width, message.encoding) == (5, 7, encoding)
    assert message.step == 7 * channels * np.dtype(dtype).itemsize
    assert message.header == header
    assert not message.is_bigendian
    decoded = BRIDGE.imgmsg_to_cv2(message)
    assert decoded.dtype == dtype
    np.testing.assert_array_equal(decoded, image)


def test_passthrough_names_the_type():
    assert BRIDGE.cv2_to_imgmsg(random_image("uint8", 3)).encoding == "8UC3"
    assert BRIDGE.cv2_to_imgmsg(random_image("float32", 1)).encoding == "32FC1"


@pytest.mark.parametrize("padding", [1, 3, 64])
@pytest.mark.parametrize(
    ("encoding", "dtype", "channels"), [("rgb8", "uint8", 3), ("16UC1", "uint16", 1)]
)
def test_padding_of_rows_is_skipped(encoding, dtype, channels, padding):
    image = random_image(dtype, channels)
    rows = image.view(np.uint8).reshape(5, -1)
    message = Image(height=5, width=7, encoding=encoding, step=rows.shape[1] + padding)
    message.data.frombytes(np.pad(rows, ((0, 0), (0, padding)), constant_values=77).tobytes())
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(message), image)


@pytest.mark.parametrize(("encoding", "dtype"), [("16UC1", "uint16"), ("32FC1", "float32")])
def test_big_endian_is_read_in_the_machines_order(encoding, dtype):
    image = random_image(dtype, 1)
    message = BRIDGE.cv2_to_imgmsg(image.astype(image.dtype.newbyteorder(">")), encoding)
    assert message.is_bigendian
    decoded = BRIDGE.imgmsg_to_cv2(message)
    assert decoded.dtype == np.dtype(dtype)
    np.testing.assert_array_equal(decoded, image)


def test_not_contiguous_array():
    image = random_image("uint8", 3)[:, ::-1]
    np.testing.assert_array_equal(BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(image, "rgb8")), image)


@pytest.mark.parametrize("source", COLOURS)
@pytest.mark.parametrize("target", COLOURS)
def test_order_of_colours(source, target):
    converted = BRIDGE.imgmsg_to_cv2(full(source), target)
    assert converted.shape == (4, 6, len(COLOURS[target]))
    assert tuple(converted[2, 3]) == COLOURS[target]


def test_grey_from_and_to_colour():
    grey = BRIDGE.imgmsg_to_cv2(full("rgb8"), "mono8")
    # ITU-R BT.601 luma, as OpenCV computes it.
    np.testing.assert_array_equal(
        grey, np.full((4, 6), round(0.299 * 200 + 0.587 * 100 + 0.114 * 50))
    )
    coloured = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(grey, "mono8"), "rgb8")
    np.testing.assert_array_equal(coloured, np.repeat(grey[..., None], 3, 2))


def test_depth_of_colours_is_scaled():
    deep = np.array([[0, 257, 65535]], np.uint16)
    shallow = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(deep, "mono16"), "mono8")
    np.testing.assert_array_equal(shallow, np.array([[0, 1, 255]], np.uint8))
    again = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(shallow, "mono8"), "mono16")
    np.testing.assert_array_equal(again, deep)


def test_millimetres_become_floats_unscaled():
    millimetres = np.array([[0, 1234, 65535]], np.uint16)
    message = BRIDGE.cv2_to_imgmsg(millimetres, "16UC1")
    floats = BRIDGE.imgmsg_to_cv2(message, "32FC1")
    assert floats.dtype == np.float32
    np.testing.assert_array_equal(floats, [[0, 1234, 65535]])


def test_mono16_is_also_16uc1():
    message = BRIDGE.cv2_to_imgmsg(random_image("uint16", 1), "mono16")
    np.testing.assert_array_equal(
        BRIDGE.imgmsg_to_cv2(message, "16UC1"), BRIDGE.imgmsg_to_cv2(message)
    )


@pytest.mark.parametrize("tile", ["rggb", "bggr", "gbrg", "grbg"])
def test_bayer_tiles(tile):
    red, green, blue = 200, 100, 50
    values = {"r": red, "g": green, "b": blue}
    mosaic = np.tile(np.array([values[c] for c in tile], np.uint8).reshape(2, 2), (4, 4))
    colours = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(mosaic, f"bayer_{tile}8"), "rgb8")
    np.testing.assert_array_equal(colours[2:-2, 2:-2], np.full((4, 4, 3), (red, green, blue)))


@pytest.mark.parametrize(("encoding", "luma"), [("yuv422", 1), ("yuv422_yuy2", 0)])
def test_yuv_without_colour_is_grey(encoding, luma):
    image = np.full((4, 6, 2), 128, np.uint8)
    image[..., luma] = 90
    grey = BRIDGE.imgmsg_to_cv2(BRIDGE.cv2_to_imgmsg(image, encoding), "mono8")
    np.testing.assert_array_equal(grey, np.full((4, 6), 90))


@pytest.mark.parametrize(
    ("source", "target"),
    [("16UC1", "mono8"), ("32FC1", "rgb8"), ("rgb8", "32FC1"), ("32FC1", "32FC3")],
)
def test_conversion_without_sense_is_refused(source, target):
    message = BRIDGE.cv2_to_imgmsg(
        random_image(*BRIDGE.encoding_to_dtype_with_channels(source)), source
    )
    with pytest.raises(CvBridgeError):
        BRIDGE.imgmsg_to_cv2(message, target)


@pytest.mark.parametrize(("source", "target"), [("rgb8", "bayer_rggb8"), ("bayer_rggb8", "rgba8")])
def test_conversion_that_cv_bridge_lacks_is_refused(source, target):
    message = BRIDGE.cv2_to_imgmsg(
        random_image(*BRIDGE.encoding_to_dtype_with_channels(source)), source
    )
    with pytest.raises(CvBridgeError):
        BRIDGE.imgmsg_to_cv2(message, target)


def test_unknown_encoding_is_refused():
    with pytest.raises(CvBridgeError, match="Unrecognized image encoding"):
        BRIDGE.imgmsg_to_cv2(Image(height=1, width=1, step=1, encoding="rgb9", data=[0]))


@pytest.mark.parametrize(("step", "size"), [(20, 100), (21, 104)])
def test_malformed_message_is_refused(step, size):
    message = Image(height=5, width=7, encoding="rgb8", step=step, data=bytes(size))
    with pytest.raises(TypeError):
        BRIDGE.imgmsg_to_cv2(message)


def test_wrong_type_for_an_encoding_is_refused():
    with pytest.raises(CvBridgeError):
        BRIDGE.cv2_to_imgmsg(random_image("uint8", 1), "rgb8")
    with pytest.raises(TypeError):
        BRIDGE.cv2_to_imgmsg([[1, 2], [3, 4]], "mono8")


def test_error_is_a_type_error():
    assert issubclass(CvBridgeError, TypeError)


def test_numbers_of_types_are_opencvs():
    assert BRIDGE.encoding_to_cvtype2("bgr8") == cv2.CV_8UC3
    assert BRIDGE.encoding_to_cvtype2("16UC1") == cv2.CV_16UC1
    assert BRIDGE.cvtype2_to_dtype_with_channels(cv2.CV_32FC2) == ("float32", 2)


def test_compressed_image():
    image = random_image("uint8", 3)
    message = BRIDGE.cv2_to_compressed_imgmsg(image, "png")
    assert message.format == "png"
    np.testing.assert_array_equal(BRIDGE.compressed_imgmsg_to_cv2(message), image)
    np.testing.assert_array_equal(
        BRIDGE.compressed_imgmsg_to_cv2(message, "rgb8"), image[..., ::-1]
    )


def test_compressed_rubbish_is_refused():
    with pytest.raises(CvBridgeError):
        BRIDGE.compressed_imgmsg_to_cv2(CompressedImage(format="jpg", data=[1, 2, 3]), "rgb8")
