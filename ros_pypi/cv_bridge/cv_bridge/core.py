# SPDX-License-Identifier: Apache-2.0
"""Between sensor_msgs images and numpy arrays."""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from .encodings import DEPTHS, CvBridgeError, convert, parse

_DEPTH_OF_DTYPE = {dtype: depth for depth, dtype in DEPTHS.items()}


class CvBridge:
    """Arrays are (height, width) for one channel and (height, width, channels) otherwise."""

    def dtype_with_channels_to_cvtype2(self, dtype: np.dtype, n_channels: int) -> str:
        return f"{_DEPTH_OF_DTYPE[dtype.name]}C{n_channels}"

    def cvtype2_to_dtype_with_channels(self, cvtype: int) -> tuple[str, int]:
        # OpenCV keeps the depth in the lowest three bits and the channels, less one, above them.
        depths = {getattr(cv2, f"CV_{depth}"): dtype for depth, dtype in DEPTHS.items()}
        return depths[cvtype & 7], (cvtype >> 3) + 1

    def encoding_to_cvtype2(self, encoding: str) -> int:
        parsed = parse(encoding)
        return getattr(cv2, f"CV_{parsed.depth}") + ((parsed.channels - 1) << 3)

    def encoding_to_dtype_with_channels(self, encoding: str) -> tuple[str, int]:
        parsed = parse(encoding)
        return DEPTHS[parsed.depth], parsed.channels

    def imgmsg_to_cv2(self, img_msg: Image, desired_encoding: str = "passthrough") -> NDArray:
        """The pixels in the machine's byte order, without the padding of the rows.

        Raises CvBridgeError when the message is malformed or the conversion makes no sense.
        """
        dtype_name, channels = self.encoding_to_dtype_with_channels(img_msg.encoding)
        dtype = np.dtype(dtype_name).newbyteorder(">" if img_msg.is_bigendian else "<")
        row = img_msg.width * channels * dtype.itemsize
        if img_msg.step < row or len(img_msg.data) < img_msg.height * img_msg.step:
            raise CvBridgeError(
                f"Image is wrongly formed: {img_msg.width}x{img_msg.height} {img_msg.encoding} "
                f"with step {img_msg.step} and {len(img_msg.data)} bytes"
            )
        # frombuffer refuses an empty buffer, which an image of height 0 has.
        data = np.frombuffer(img_msg.data, np.uint8) if len(img_msg.data) else np.empty(0, np.uint8)
        rows = data[: img_msg.height * img_msg.step].reshape(img_msg.height, img_msg.step)
        rows = np.ascontiguousarray(rows[:, :row])
        shape = (img_msg.height, img_msg.width) + ((channels,) if channels > 1 else ())
        image = rows.view(dtype).reshape(shape).astype(dtype_name)
        if desired_encoding == "passthrough":
            return image
        return convert(image, img_msg.encoding, desired_encoding)

    def cv2_to_imgmsg(
        self, cvim: NDArray, encoding: str = "passthrough", header: Header | None = None
    ) -> Image:
        """A message with a copy of the pixels; "passthrough" names the type only, e.g. 8UC3.

        Raises CvBridgeError when the array's type is not the encoding's.
        """
        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        channels = cvim.shape[2] if cvim.ndim > 2 else 1
        cv_type = self.dtype_with_channels_to_cvtype2(cvim.dtype, channels)
        if encoding == "passthrough":
            encoding = cv_type
        elif self.encoding_to_dtype_with_channels(encoding) != (cvim.dtype.name, channels):
            raise CvBridgeError(
                f"encoding specified as {encoding}, but image has incompatible type {cv_type}"
            )
        message = Image(height=cvim.shape[0], width=cvim.shape[1], encoding=encoding)
        if header is not None:
            message.header = header
        message.is_bigendian = cvim.dtype.byteorder == ">"
        # frombytes: assigning an array to data checks it value by value, 250 ms for 720p.
        message.data.frombytes(cvim.tobytes())
        message.step = len(message.data) // message.height
        return message

    def compressed_imgmsg_to_cv2(
        self, cmprs_img_msg: CompressedImage, desired_encoding: str = "passthrough"
    ) -> NDArray:
        """The decoded pixels, taken for bgr8 if they are to be converted.

        Raises CvBridgeError when they cannot be decoded or converted.
        """
        buffer = np.frombuffer(cmprs_img_msg.data, np.uint8)
        image = cv2.imdecode(buffer, cv2.IMREAD_UNCHANGED) if buffer.size else None
        if image is None:
            raise CvBridgeError(f"Cannot decode a compressed image [{cmprs_img_msg.format}]")
        return (
            image if desired_encoding == "passthrough" else convert(image, "bgr8", desired_encoding)
        )

    def cv2_to_compressed_imgmsg(self, cvim: NDArray, dst_format: str = "jpg") -> CompressedImage:
        """Raises CvBridgeError when OpenCV cannot write the array in this format."""
        if not isinstance(cvim, np.ndarray):
            raise TypeError("Your input type is not a numpy array")
        try:
            _, encoded = cv2.imencode(f".{dst_format}", cvim)
        except cv2.error as error:
            raise CvBridgeError(f"Cannot encode as [{dst_format}]: {error}") from error
        message = CompressedImage(format=dst_format)
        message.data.frombytes(encoded.tobytes())
        return message
