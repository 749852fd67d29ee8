# SPDX-License-Identifier: Apache-2.0
"""Compressed images against encoders that are written here from the formats' descriptions."""

from __future__ import annotations

import struct
import tracemalloc
import zlib
from array import array

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from robobrain_ros.ros import image_codecs
from robobrain_ros.ros.image_codecs import decode_color, decode_compressed_depth

PNG_DEPTH = "16UC1; compressedDepth png"
RVL_DEPTH = "16UC1; compressedDepth rvl"
CONFIG = struct.pack("<iff", 0, 0.0, 0.0)

PICTURE = np.zeros((24, 32, 3), np.uint8)  # RGB: a red, a green, a blue and a white corner
PICTURE[:12, :16], PICTURE[:12, 16:] = (230, 20, 10), (30, 200, 40)
PICTURE[12:, :16], PICTURE[12:, 16:] = (15, 25, 220), (250, 240, 235)
DEPTH = np.array([[0, 0, 500, 501], [499, 0, 65535, 1], [0, 0, 0, 0]], np.uint16)


def encoded(extension, image, *options):
    return cv2.imencode(extension, image, options)[1].tobytes()


def jpeg(rgb=PICTURE, *options):
    return encoded(".jpg", rgb[..., ::-1], *options)


def png(rgb=PICTURE):
    return encoded(".png", rgb[..., ::-1])


def depth_png(depth=DEPTH):
    return CONFIG + encoded(".png", depth)


def chunk(name, body):
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png_with(position, piece, data=None):
    """A PNG with a chunk put at a position; 33 is behind its header."""
    data = png() if data is None else data
    return data[:position] + piece + data[position:]


def exif(orientation):
    """A TIFF directory with the one tag Orientation (0x0112, SHORT)."""
    return b"II*\0\x08\0\0\0" + struct.pack("<HHHIHHI", 1, 0x0112, 3, 1, orientation, 0, 0)


def jpeg_segment(marker, body):
    return b"\xff" + bytes([marker]) + struct.pack(">H", len(body) + 2) + body


def vle(number):
    """A number as RVL's nibbles, in hexadecimal: three bits each, the lowest first, 8 for more."""
    digits = []
    while True:
        number, low = divmod(number, 8)
        digits.append(f"{low + 8 * (number > 0):x}")
        if not number:
            return "".join(digits)


def packed(nibbles):
    """Nibbles in hexadecimal to 32-bit words in little endian, the first nibble uppermost."""
    nibbles += "0" * (-len(nibbles) % 8)
    words = [int(nibbles[i : i + 8], 16) for i in range(0, len(nibbles), 8)]
    return struct.pack(f"<{len(words)}I", *words)


def rvl_size(columns, rows):
    return CONFIG + struct.pack("<II", columns, rows)


def rvl(depth):
    """The paper's encoder: counts of zeros and of others, and zigzag differences of the others."""
    rows, columns = depth.shape
    values, nibbles, previous = depth.ravel().tolist(), "", 0
    at = 0
    while at < len(values):
        start = at
        while at < len(values) and values[at] == 0:
            at += 1
        end = at
        while end < len(values) and values[end] != 0:
            end += 1
        nibbles += vle(at - start) + vle(end - at)
        for value in values[at:end]:
            difference = value - previous
            nibbles += vle(2 * difference if difference >= 0 else -2 * difference - 1)
            previous = value
        at = end
    return rvl_size(columns, rows) + packed(nibbles)


def quantised(metres, depth_quantization=100.0, depth_max=10.0):
    """compressedDepth's inverse depth: the two parameters and the 16-bit image, 0 for a hole."""
    a = depth_quantization * (depth_quantization + 1)
    b = 1 - a / depth_max
    # A comparison with NaN is false.
    whole = [int(a / z + b) if z < depth_max else 0 for z in metres.ravel().tolist()]
    return a, b, np.array(whole, np.uint16).reshape(metres.shape)


class TestColor:
    def test_a_png_comes_back_exactly(self):
        np.testing.assert_array_equal(decode_color(png(), "rgb8; png compressed bgr8"), PICTURE)

    @pytest.mark.parametrize(
        "image_format",
        ["jpeg", "jpg", "JPEG", "png", "rgb8; jpeg compressed bgr8", "bgr8; jpeg compressed bgr8"]
        + ["bgra8; jpeg compressed bgr8", "rgb8;jpeg", "rgb8; jpeg compressed ", "mono8; jpeg"],
    )
    def test_a_jpeg_comes_back_as_rgb_whatever_its_format_is_called(self, image_format):
        image = decode_color(jpeg(), image_format)
        assert image.shape == PICTURE.shape and image.dtype == np.uint8
        corners = np.s_[4:24:12, 4:32:16]  # away from the edges between the colors
        np.testing.assert_allclose(image[corners].astype(int), PICTURE[corners], atol=6)

    def test_channels_that_the_publisher_swapped_are_swapped_back(self):
        swapped = png(PICTURE[..., ::-1])
        np.testing.assert_array_equal(decode_color(swapped, "rgb8; png compressed rgb8"), PICTURE)

    @pytest.mark.parametrize("extension", [".jpg", ".png"])
    def test_grey_becomes_rgb(self, extension):
        grey = np.full((16, 24), 77, np.uint8)
        image = decode_color(encoded(extension, grey), "mono8; jpeg compressed mono8")
        np.testing.assert_array_equal(image, np.full((16, 24, 3), 77))

    @pytest.mark.parametrize("channels", [1, 3])
    def test_sixteen_bits_are_scaled_to_eight(self, channels):
        wide = np.arange(0, 65536, 5, dtype=np.uint16)[: 65 * 200].reshape(65, 200)
        wide = wide if channels == 1 else np.dstack([wide] * 3)
        image = decode_color(encoded(".png", wide), "rgb16; png compressed bgr16")
        expected = np.rint(wide.reshape(65, 200, -1) / 257)  # 65535 = 257 * 255
        np.testing.assert_array_equal(image, np.broadcast_to(expected, (65, 200, 3)))

    def test_alpha_is_dropped(self):
        see_through = np.dstack([PICTURE[..., ::-1], np.full((24, 32), 9, np.uint8)])
        image = decode_color(encoded(".png", see_through), "rgba8; png compressed bgr8")
        np.testing.assert_array_equal(image, PICTURE)

    def test_an_exif_orientation_doesnt_move_the_pixels(self):
        data = jpeg()
        turned = data[:2] + jpeg_segment(0xE1, b"Exif\0\0" + exif(6)) + data[2:]
        assert cv2.imdecode(np.frombuffer(turned, np.uint8), cv2.IMREAD_COLOR).shape[:2] == (32, 24)
        np.testing.assert_array_equal(decode_color(turned, "jpeg"), decode_color(data, "jpeg"))
        turned_png = png_with(33, chunk(b"eXIf", exif(6)))
        np.testing.assert_array_equal(decode_color(turned_png, "png"), PICTURE)

    def test_a_progressive_jpeg_is_decoded(self):
        image = decode_color(jpeg(PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1), "jpeg")
        np.testing.assert_array_equal(image, decode_color(jpeg(), "jpeg"))

    def test_markers_without_a_segment_are_passed_over(self):
        data = jpeg()
        spaced = data[:2] + b"\xff\x01\xff\xff\xff\xd3" + data[2:]
        np.testing.assert_array_equal(decode_color(spaced, "jpeg"), decode_color(data, "jpeg"))

    def test_padding_behind_a_jpeg_is_allowed(self):
        padded = decode_color(jpeg() + bytes(100), "jpeg")
        np.testing.assert_array_equal(padded, decode_color(jpeg(), "jpeg"))

    @pytest.mark.parametrize(
        "image_format",
        ["", ";", "rgb8; ", "h264", "rgb8", "rgb8; tiff compressed ", PNG_DEPTH, RVL_DEPTH],
    )
    def test_another_format_is_refused(self, image_format):
        with pytest.raises(ValueError, match="not known: publish color"):
            decode_color(jpeg(), image_format)

    @pytest.mark.parametrize("codec", ["png", "jpeg"])
    def test_a_bayer_mosaic_is_refused(self, codec):
        mosaic = encoded(".png", np.zeros((8, 8), np.uint8))
        with pytest.raises(ValueError, match="Bayer mosaic"):
            decode_color(mosaic, f"bayer_rggb8; {codec} compressed ")
        assert decode_color(mosaic, f"bayer_rggb8; {codec} compressed mono8").shape == (8, 8, 3)


class TestDepth:
    @pytest.mark.parametrize("encoding", ["16UC1", "mono16"])
    @pytest.mark.parametrize("compression", ["", "; compressedDepth", "; compressedDepth png"])
    def test_png_comes_back_exactly(self, encoding, compression):
        depth, raw_encoding = decode_compressed_depth(depth_png(), encoding + compression)
        assert (depth.dtype, raw_encoding) == (np.uint16, "16UC1")
        np.testing.assert_array_equal(depth, DEPTH)

    def test_rvl_comes_back_exactly(self):
        depth, raw_encoding = decode_compressed_depth(rvl(DEPTH), RVL_DEPTH)
        assert (depth.dtype, raw_encoding) == (np.uint16, "16UC1")
        np.testing.assert_array_equal(depth, DEPTH)

    def test_rvl_has_the_nibbles_that_the_paper_gives_it(self):
        # Two zeros and two others: 2 2; +5 is 10 in zigzag, 010 and then 001: A 1; +1 is 2.
        data = rvl_size(2, 2) + bytes.fromhex("0020a122")
        np.testing.assert_array_equal(decode_compressed_depth(data, RVL_DEPTH)[0], [[0, 0], [5, 6]])
        assert rvl(np.array([[0, 0], [5, 6]])) == data

    @settings(max_examples=200)
    @given(
        depth=npst.arrays(
            np.uint16,
            st.tuples(st.integers(1, 12), st.integers(1, 40)),
            elements=st.just(0) | st.integers(990, 1010) | st.integers(0, 65535),
            fill=st.sampled_from([0, 1000]),
        )
    )
    def test_any_depth_comes_back_through_rvl(self, depth):
        np.testing.assert_array_equal(decode_compressed_depth(rvl(depth), RVL_DEPTH)[0], depth)

    def test_long_runs_come_back_through_rvl(self):
        depth = np.zeros((480, 640), np.uint16)
        depth[200:400] = np.arange(640) // 3 + 1
        np.testing.assert_array_equal(decode_compressed_depth(rvl(depth), RVL_DEPTH)[0], depth)

    @pytest.mark.parametrize("codec", ["png", "rvl"])
    def test_metres_come_back_to_the_publishers_precision(self, codec):
        metres = np.array([[0.3, 0.5, 1.0, 2.345], [9.99, np.nan, 10.0, np.inf]], np.float32)
        a, b, stored = quantised(metres)
        assert stored[0, 2] == 10100 - 1009  # 100 * 101 / 1 m + 1 - 10100 / 10 m
        config = struct.pack("<iff", 0, a, b)
        body = encoded(".png", stored) if codec == "png" else rvl(stored)[12:]
        depth, encoding = decode_compressed_depth(config + body, f"32FC1; compressedDepth {codec}")
        assert (depth.dtype, encoding) == (np.float32, "32FC1")
        assert np.isnan(depth).tolist() == [[False] * 4, [False, True, True, True]]
        # One step of the stored integer is z^2 / a; the publisher cuts its fraction off.
        step = metres**2 / a
        seen = np.isfinite(depth)
        assert (depth[seen] >= metres[seen] * (1 - 1e-6)).all()
        assert (depth[seen] <= (metres + 1.1 * step)[seen]).all()
        exact = [a / (int(q) - b) for q in stored[seen]]
        np.testing.assert_allclose(depth[seen], exact, rtol=1e-6)

    @pytest.mark.parametrize(
        "image_format",
        ["", "png", "jpeg", "16UC1; jpeg compressed mono8", "16UC1; png compressed ", "32FC1; png"]
        + [
            "rgb8; compressedDepth png",
            "16UC1; compressedDepth zstd",
            "bgr8; jpeg compressed bgr8",
        ],
    )
    def test_another_format_is_refused(self, image_format):
        with pytest.raises(ValueError, match="not known: use a topic"):
            decode_compressed_depth(depth_png(), image_format)

    @pytest.mark.parametrize(
        "body", [jpeg(), png(), encoded(".png", DEPTH.astype(np.uint8))], ids=["jpeg", "rgb", "8"]
    )
    def test_a_picture_isnt_depth(self, body):
        with pytest.raises(ValueError, match="16 bits and one channel"):
            decode_compressed_depth(CONFIG + body, PNG_DEPTH)

    @pytest.mark.parametrize("a", [0.0, -5.0, np.nan, np.inf])
    def test_metres_need_quantisation_parameters(self, a):
        data = struct.pack("<iff", 0, a, -1009.0) + encoded(".png", DEPTH)
        with pytest.raises(ValueError, match="quantisation"):
            decode_compressed_depth(data, "32FC1; compressedDepth png")


@pytest.mark.parametrize(
    "kind",
    [bytes, bytearray, memoryview, lambda data: array("B", data)]
    + [lambda data: memoryview(np.repeat(np.frombuffer(data, np.uint8), 2))[::2]],
    ids=["bytes", "bytearray", "memoryview", "array", "strided"],
)
def test_data_comes_in_any_container(kind):
    np.testing.assert_array_equal(decode_color(kind(png()), "png"), PICTURE)
    for image_format, data in ((PNG_DEPTH, depth_png()), (RVL_DEPTH, rvl(DEPTH))):
        depth, _ = decode_compressed_depth(kind(data), image_format)
        np.testing.assert_array_equal(depth, DEPTH)


def decode(data, image_format):
    if "Depth" in image_format:
        return decode_compressed_depth(data, image_format)[0]
    return decode_color(data, image_format)


WHOLE = [
    ("jpeg", jpeg()),
    ("rgb8; jpeg compressed bgr8", jpeg(PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)),
    ("png", png()),
    (PNG_DEPTH, depth_png()),
    (RVL_DEPTH, rvl(DEPTH)),
    ("32FC1; compressedDepth rvl", rvl(DEPTH)),
]


class TestDamage:
    @pytest.mark.parametrize(("image_format", "data"), WHOLE[:5], ids=range(5))
    def test_data_that_was_cut_off_anywhere_is_refused(self, image_format, data):
        for length in range(len(data)):
            with pytest.raises(ValueError, match=r"\w{3} .*\.$"):
                decode(data[:length], image_format)

    def test_a_cut_jpeg_is_refused_though_its_thumbnail_ends(self):
        thumbnail = jpeg_segment(0xE1, b"Exif\0\0" + exif(1) + jpeg())
        data = jpeg()[:2] + thumbnail + jpeg()[2:]
        assert decode_color(data, "jpeg").shape == PICTURE.shape
        with pytest.raises(ValueError, match="cut off"):
            decode_color(data[:-40], "jpeg")

    @pytest.mark.parametrize(("width", "height"), [(8001, 8000), (65535, 65535)])
    def test_a_huge_size_is_refused_before_anything_is_decoded(self, width, height, monkeypatch):
        def never(*_):
            raise AssertionError("decoded")

        monkeypatch.setattr(cv2, "imdecode", never)
        small = jpeg()
        size = small.index(b"\xff\xc0") + 5
        for data, image_format in (
            (small[:size] + struct.pack(">HH", height, width) + small[size + 4 :], "jpeg"),
            (png()[:16] + struct.pack(">II", width, height) + png()[24:], "png"),
            (rvl_size(width, height) + packed(vle(width * height) + vle(0)), RVL_DEPTH),
        ):
            tracemalloc.start()
            with pytest.raises(ValueError, match=rf"{width}x{height}.*64 megapixels"):
                decode(data, image_format)
            assert tracemalloc.get_traced_memory()[1] < 1e6
            tracemalloc.stop()

    def test_a_png_of_no_size_is_refused(self):
        with pytest.raises(ValueError, match="no pixels"):
            decode_color(png()[:16] + struct.pack(">II", 0, 24) + png()[24:], "png")

    def test_texts_in_a_png_are_never_unpacked(self, monkeypatch):
        text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(7_000_000)))
        given, imdecode = [], cv2.imdecode
        monkeypatch.setattr(cv2, "imdecode", lambda *a: given.append(a[0]) or imdecode(*a))
        data = png_with(33, 20 * text)
        np.testing.assert_array_equal(decode_color(data, "png"), PICTURE)
        assert b"zTXt" in data and b"zTXt" not in given[0].tobytes()

    @pytest.mark.parametrize("name", [b"IDAT", b"IEND"])
    def test_a_png_chunk_longer_than_the_data_is_refused_undecoded(self, name, monkeypatch):
        monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
        length = png().index(name) - 4
        claim = struct.pack(">I", 4_000_000_000)
        with pytest.raises(ValueError, match="cut off"):
            decode_color(png()[:length] + claim + png()[length + 4 :], "png")

    def test_a_jpeg_of_countless_scans_is_refused(self):
        data = jpeg(PICTURE, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
        scan = data[data.rindex(b"\xff\xda") : -2]
        with pytest.raises(ValueError, match="scans"):
            decode_color(data[:-2] + 100 * scan + data[-2:], "jpeg")

    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            (jpeg()[:2] + jpeg_segment(0xE5, b"") * 5000 + jpeg()[2:], "first segments"),
            (jpeg()[:2] + jpeg_segment(0xDA, b"123456") + jpeg()[2:], "no frame header"),
            (jpeg()[:2] + b"\xff\xd9" + jpeg()[2:], "no frame header"),
            (png()[:8] + png()[33:], "start with its header"),
            (png()[:-12] + chunk(b"IDAT", b"x"), "cut off"),
            (b"GIF89a" + bytes(50), "neither JPEG nor PNG"),
            (b"", "neither JPEG nor PNG"),
        ],
        ids=range(7),
    )
    def test_a_malformed_picture_is_refused(self, body, sentence):
        with pytest.raises(ValueError, match=sentence):
            decode_color(body, "jpeg")

    @pytest.mark.parametrize(
        ("body", "sentence"),
        [
            (rvl_size(4, 0) + packed("00"), "no pixels"),
            (rvl_size(4, 1), "ends before"),
            (rvl_size(4, 1) + packed("40")[:3], "can't be 4x1"),
            (rvl_size(4, 1) + bytes(40), "can't be 4x1"),
            (rvl_size(4, 1) + packed("50"), "add up"),
            (rvl_size(4, 1) + packed("05" + "22222"), "add up"),
            (rvl_size(9, 1) + packed("04" + "2222" + "60"), "add up"),
            (rvl_size(9, 1) + packed("0" + vle(9) + "22222"), "ends before"),
            (rvl_size(4, 1) + packed("00000000"), "ends before"),
            (rvl_size(4, 1) + packed("40" + "0" * 8), "more than 4x1"),
            (rvl_size(4, 1) + packed("0422a1a1" + "0" * 8), "more than 4x1"),
            (rvl_size(4, 1) + packed("f" * 10 + "1"), "too large"),
            (rvl_size(4, 1) + packed("f" * 16), "ends before"),
        ],
        ids=range(13),
    )
    def test_a_malformed_rvl_stream_is_refused(self, body, sentence):
        with pytest.raises(ValueError, match=sentence):
            decode_compressed_depth(body, RVL_DEPTH)

    def test_what_opencv_raises_becomes_a_sentence(self, monkeypatch):
        def broken(*_):
            raise cv2.error("assertion failed")

        monkeypatch.setattr(cv2, "imdecode", broken)
        with pytest.raises(ValueError, match="damaged: assertion failed"):
            decode_color(png(), "png")


OPENINGS = [b"", b"\xff\xd8\xff", png()[:33], CONFIG, depth_png()[:45], rvl_size(3, 5)]
FORMATS = [image_format for image_format, _ in WHOLE]


def is_array_or_value_error(data, image_format):
    try:
        image = decode(data, image_format)
    except ValueError:
        return
    assert image.dtype in (np.uint8, np.uint16, np.float32) and image.size <= 3 * 64e6


class TestAnything:
    @settings(max_examples=300, deadline=None)
    @given(st.sampled_from(FORMATS), st.sampled_from(OPENINGS), st.binary(max_size=300))
    def test_random_bytes_raise_nothing_but_value_error(self, image_format, opening, tail):
        is_array_or_value_error(opening + tail, image_format)

    @settings(max_examples=300, deadline=None)
    @given(
        st.sampled_from(WHOLE),
        st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(max_size=4)), max_size=4),
        st.booleans(),
    )
    def test_mutated_images_raise_nothing_but_value_error(self, whole, changes, insert):
        image_format, data = whole
        for place, piece in changes:
            at = int(place * len(data))
            data = data[:at] + piece + data[at + (0 if insert else len(piece)) :]
        is_array_or_value_error(data, image_format)

    @given(st.text(max_size=30) | st.text("16UC132F; compressedDepthjpegrvl", max_size=40))
    def test_any_format_is_known_or_refused(self, image_format):
        for decoder in (decode_color, decode_compressed_depth):
            try:
                decoder(png(), image_format)
            except ValueError as error:
                assert str(error).endswith(".")


def test_the_largest_image_is_64_megapixels():
    assert image_codecs.MAX_PIXELS == 64e6
    depth, _ = decode_compressed_depth(
        rvl_size(8000, 8000) + packed(vle(64_000_000) + vle(0)), RVL_DEPTH
    )
    assert depth.shape == (8000, 8000)
