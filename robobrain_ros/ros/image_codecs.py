# SPDX-License-Identifier: Apache-2.0
"""Decoders of sensor_msgs/CompressedImage as image_transport_plugins (compressed and
compressedDepth, rolling of 2024) encode it.

Data may be truncated, damaged or hostile: decoding takes time and memory in proportion to its
length and to MAX_PIXELS at most, and returns an array or raises ValueError. Headers are checked
before OpenCV sees the data. Pillow is no substitute: `Image.open` accepts truncated images, and it
refuses valid PNGs with long texts and valid JPEGs with bare markers.
"""

from __future__ import annotations

import re
import struct
from array import array
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BytesLike = bytes | bytearray | memoryview | array

MAX_PIXELS = 64_000_000
"""Larger images are refused by the size in their header, before anything is allocated."""

# EXIF must not turn the image: the camera info describes the sensor's rows and columns.
_AS_COLOR = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
_DEPTH_CODECS = {
    "": "png",
    "compressedDepth": "png",
    "compressedDepth png": "png",
    "compressedDepth rvl": "rvl",
}
_DEPTH_ENCODINGS = {"16UC1": "16UC1", "mono16": "16UC1", "32FC1": "32FC1"}
# ConfigHeader of compressed_depth_image_transport: an enum (always 0) and two float parameters.
_CONFIG = struct.Struct("<iff")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_PNG_HEADER = struct.Struct(">8xI4sII")
_PNG_PIXEL_CHUNKS = (b"IHDR", b"PLTE", b"IDAT", b"IEND")

_JPEG_SIGNATURE = b"\xff\xd8"
_JPEG_MARKER = re.compile(rb"\xff([^\x00\xff])")
_JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF0 to SOF15
_JPEG_ENDS = {0xD8, 0xD9, 0xDA}  # SOI, EOI, SOS: there is no frame header after these
_JPEG_BARE = {0x01, *range(0xD0, 0xD8)}  # TEM, RST0 to RST7: markers without a segment
_MAX_SEGMENTS = 2000  # before the frame header; the longest ICC profile takes 255
_MAX_SCANS = 100  # each one may cost a pass over all pixels; encoders write about ten

_RVL_SIZE = struct.Struct("<II")
_RVL_MAX_NIBBLES = 10  # of one number, which then fits an int32


def decode_color(data: BytesLike, image_format: str) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG image to (H, W, 3) RGB.

    image_format: as of CompressedImage: "jpeg", "jpg", "png", or with the source's encoding before
    and the encoded channels after it ("rgb8; jpeg compressed bgr8"). Grey becomes RGB, 16 bits are
    scaled to 8, alpha is dropped, and an EXIF orientation is ignored. The codec is detected from
    the data. Raises ValueError for another format and for data that is no whole image.
    """
    encoding, _, compression = image_format.partition(";")
    words = (compression or encoding).split()
    if not words or words[0].lower() not in ("jpeg", "jpg", "png"):
        raise ValueError(
            f"The image format '{image_format}' is not known: publish color compressed as 'jpeg' "
            "or 'png'."
        )
    if encoding.startswith("bayer_") and words[-1] == "compressed":
        raise ValueError(
            f"The image format '{image_format}' is a raw Bayer mosaic: debayer the image before it "
            "is compressed (image_proc), or let the driver publish rgb8."
        )
    image = _imdecode(bytes(data), _AS_COLOR)
    if image.dtype == np.uint16:
        image = cv2.convertScaleAbs(image, alpha=255 / 65535)
    # The first publishers put RGB into an encoder that expects BGR. Those that write bgr don't.
    if "compressed rgb" not in compression:
        image = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
    return image


def decode_compressed_depth(
    data: BytesLike, image_format: str
) -> tuple[NDArray[np.uint16] | NDArray[np.float32], str]:
    """Decode compressedDepth to the array (H, W) and the encoding of the raw topic.

    image_format: "16UC1; compressedDepth png", with 32FC1 or mono16 (which is answered as 16UC1)
    instead, with "rvl" instead, or without the codec, as older publishers did. 16UC1 is uint16,
    unchanged. 32FC1 is float32 metres with NaN as the hole, quantised in inverse depth by the
    publisher. Raises ValueError for another format and for data that is no whole image.
    """
    encoding, _, compression = image_format.partition(";")
    known = _DEPTH_ENCODINGS.get(encoding.strip())
    codec = _DEPTH_CODECS.get(" ".join(compression.split()))
    if known is None or codec is None:
        raise ValueError(
            f"The depth format '{image_format}' is not known: use a topic of image_transport that "
            "ends in /compressedDepth, with 16UC1 or 32FC1 as png or rvl."
        )
    payload = bytes(data)
    if len(payload) <= _CONFIG.size:
        raise ValueError(
            f"The compressed depth has only {len(payload)} bytes: it was cut off, or the publisher "
            "failed to compress it."
        )
    _, a, b = _CONFIG.unpack_from(payload)
    stream = payload[_CONFIG.size :]
    stored = _rvl(stream) if codec == "rvl" else _depth_png(stream)
    return (_dequantised(stored, a, b) if known == "32FC1" else stored), known


def _dequantised(stored: NDArray[np.uint16], a: float, b: float) -> NDArray[np.float32]:
    """Metres a / (stored - b), in float32 as the publisher's counterpart computes it; 0 is NaN."""
    if not (np.isfinite([a, b]).all() and a > 0):
        raise ValueError(
            f"The compressed depth has the quantisation parameters {a:g} and {b:g}: 32FC1 needs "
            "finite ones, the first above 0. Use image_transport's compressedDepth publisher."
        )
    with np.errstate(divide="ignore", over="ignore"):
        metres = np.float32(a) / (np.arange(65536, dtype=np.float32) - np.float32(b))
    metres[0] = np.nan
    return metres[stored]


def _depth_png(stream: bytes) -> NDArray[np.uint16]:
    image = _imdecode(stream, cv2.IMREAD_UNCHANGED)
    if image.dtype != np.uint16 or image.ndim != 2:
        raise ValueError(
            f"The compressed depth holds an image of {image.dtype} and shape {image.shape}: depth "
            "is a PNG of 16 bits and one channel."
        )
    return image


def _imdecode(data: bytes, flags: int) -> NDArray[Any]:
    """Decode a complete JPEG or PNG with OpenCV, and nothing that its other decoders would take."""
    if data.startswith(_PNG_SIGNATURE):
        data = _checked_png(data)
    elif data.startswith(_JPEG_SIGNATURE):
        _check_jpeg(data)
    else:
        raise ValueError(
            f"The data ({len(data)} bytes, starting with '{data[:8].hex()}') is neither JPEG nor "
            "PNG: check the publisher's format."
        )
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ValueError(f"The compressed image is damaged: {error}") from error
    if image is None:
        raise ValueError("The compressed image is damaged: look for lost packets on the way.")
    return image


def _check_size(width: int, height: int) -> None:
    if not (width and height):
        raise ValueError(f"The compressed image claims to be {width}x{height}: it has no pixels.")
    if width * height > MAX_PIXELS:
        raise ValueError(
            f"The compressed image claims to be {width}x{height}: it is damaged, or larger than "
            f"the {MAX_PIXELS / 1e6:g} megapixels that are decoded."
        )


def _truncated(codec: str) -> ValueError:
    return ValueError(f"The {codec} ends before its image does: it was cut off or is damaged.")


def _checked_png(data: bytes) -> bytes:
    """Return a PNG reduced to its size, palette and pixels (PNG specification, 5 and 11.2).

    The other chunks don't change the pixels, but their compressed texts would be unpacked, in
    hundreds of megabytes if they say so.
    """
    if len(data) < 33:
        raise _truncated("PNG")
    length, name, width, height = _PNG_HEADER.unpack_from(data)
    if (length, name) != (13, b"IHDR"):
        raise ValueError("The PNG doesn't start with its header: it is damaged.")
    _check_size(width, height)
    kept = [_PNG_SIGNATURE]
    position = len(_PNG_SIGNATURE)
    while name != b"IEND":
        if position + 12 > len(data):
            raise _truncated("PNG")
        length, name = struct.unpack_from(">I4s", data, position)
        end = position + 12 + length
        if end > len(data):  # OpenCV would allocate what the chunk claims
            raise _truncated("PNG")
        if name in _PNG_PIXEL_CHUNKS:
            kept.append(data[position:end])
        position = end
    return b"".join(kept)


def _check_jpeg(data: bytes) -> None:
    """Check a JPEG's size, its number of scans and that it ends (ITU-T T.81, annex B).

    Markers are looked for as libjpeg does, so that no other header is taken for the image's.
    """
    position = len(_JPEG_SIGNATURE)
    for _ in range(_MAX_SEGMENTS):
        found = _JPEG_MARKER.search(data, position)
        if found is None or len(data) < found.end() + 7:
            raise _truncated("JPEG")
        marker, position = found[1][0], found.end()
        if marker in _JPEG_FRAMES:
            height, width = struct.unpack_from(">HH", data, position + 3)
            break
        if marker in _JPEG_ENDS:
            raise ValueError("The JPEG has no frame header: it is damaged.")
        if marker not in _JPEG_BARE:
            position += int.from_bytes(data[position : position + 2], "big")
    else:
        raise ValueError("The JPEG has no frame header among its first segments: it is damaged.")
    _check_size(width, height)
    if data.rfind(b"\xff\xd9") < max(position, data.find(b"\xff\xda", position)):
        raise _truncated("JPEG")
    if data.count(b"\xff\xda", position) > _MAX_SCANS:
        raise ValueError(
            f"The JPEG has more than {_MAX_SCANS} scans: publish baseline JPEG, or fewer scans."
        )


def _rvl(stream: bytes) -> NDArray[np.uint16]:
    """Decode columns, rows and an RVL stream, all in little endian, to (rows, columns).

    RVL is of A. D. Wilson, "Fast lossless depth image compression", 2017: (count of zeros, count of
    others, that many zigzag differences to the pixel before that isn't zero)*, in row order.
    """
    if len(stream) < _RVL_SIZE.size:
        raise _truncated("RVL stream")
    columns, rows = _RVL_SIZE.unpack_from(stream)
    _check_size(columns, rows)
    pixels = columns * rows
    words = len(stream) - _RVL_SIZE.size
    # A difference of 16 bits takes six nibbles at most, three bytes.
    if words % 4 or words > 3 * pixels + 16:
        raise ValueError(
            f"The RVL stream has {words} bytes, which can't be {columns}x{rows} pixels: it is "
            "damaged."
        )
    numbers, ends = _variable_length(stream[_RVL_SIZE.size :])
    heads, counts = _runs(numbers, pixels)
    used = heads[-1] + 2 + counts[-1]
    if used > len(numbers):
        raise _truncated("RVL stream")
    if 2 * words - ends[used - 1] >= 8:  # only the last word is padded
        raise ValueError(f"The RVL stream holds more than {columns}x{rows} pixels: it is damaged.")
    is_difference = np.ones(used, dtype=np.bool_)
    is_difference[np.add.outer(heads, [0, 1])] = False
    zigzag = numbers[:used][is_difference]
    # Differences wrap around as the publisher's uint16 does.
    differences = ((zigzag >> 1) ^ -(zigzag & 1)).astype(np.uint16)
    depth = np.zeros(pixels, dtype=np.uint16)
    is_zero = np.resize([True, False], len(counts))
    depth[~np.repeat(is_zero, counts)] = np.cumsum(differences, dtype=np.uint16)
    return depth.reshape(rows, columns)


def _variable_length(words: bytes) -> tuple[NDArray[np.int32], NDArray[np.intp]]:
    """Read all numbers of an RVL stream, and the nibble that each one ends before.

    32-bit words hold nibbles from their upper end. A nibble has three bits of a number, the lowest
    first, below a bit that says that there are more.
    """
    octets = np.frombuffer(words, dtype="<u4").astype(">u4").view(np.uint8)
    nibbles = np.column_stack([octets >> 4, octets & 15]).ravel()
    ends = np.flatnonzero(nibbles < 8) + 1
    starts = np.concatenate([[0], ends[:-1]])[: len(ends)]
    lengths = ends - starts
    if (lengths > _RVL_MAX_NIBBLES).any():
        raise ValueError("The RVL stream has a number that is too large: it is damaged.")
    bits = nibbles & 7
    numbers = bits[starts].astype(np.int32)
    longer = np.flatnonzero(lengths > 1)
    for place in range(1, _RVL_MAX_NIBBLES):
        numbers[longer] |= bits[starts[longer] + place].astype(np.int32) << 3 * place
        longer = longer[lengths[longer] > place + 1]
    return numbers, ends


def _runs(numbers: NDArray[np.int32], pixels: int) -> tuple[list[int], list[int]]:
    """Find where each pair of counts stands among the numbers; and the counts, of zeros and of
    others by turns, which add up to `pixels`.
    """
    heads: list[int] = []
    counts: list[int] = []
    position, done = 0, 0
    while done < pixels:
        if position + 1 >= len(numbers):
            raise _truncated("RVL stream")
        zeros, others = numbers.item(position), numbers.item(position + 1)
        heads.append(position)
        counts += zeros, others
        done += zeros + others
        position += 2 + others
    if done > pixels:
        raise ValueError("The RVL stream's runs don't add up to its size: it is damaged.")
    return heads, counts


__all__ = ["MAX_PIXELS", "decode_color", "decode_compressed_depth"]
