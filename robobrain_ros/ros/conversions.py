# SPDX-License-Identifier: Apache-2.0
"""Conversion of ROS messages to observations, and of results to ROS messages."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import cv2
import numpy as np
from builtin_interfaces.msg import Duration, Time
from cv_bridge import CvBridge, CvBridgeError
from geometry_msgs.msg import Point, Pose, PoseArray, PoseStamped, Quaternion, TransformStamped
from nav_msgs.msg import Path
from numpy.typing import NDArray
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header
from vision_msgs.msg import (
    BoundingBox2D,
    BoundingBox3D,
    Detection2D,
    Detection2DArray,
    Detection3D,
    Detection3DArray,
    ObjectHypothesisWithPose,
    Point2D,
)

from robobrain_ros.core.answered_request import AnsweredRequest
from robobrain_ros.core.errors import BrainError, ErrorCode
from robobrain_ros.core.input_text import object_name
from robobrain_ros.core.observations import Observation
from robobrain_ros.core.requests import Generation
from robobrain_ros.core.results import Lifted, Result
from robobrain_ros.msg import LiftedPoint as LiftedPointMsg
from robobrain_ros.msg import LiftedRegion as LiftedRegionMsg
from robobrain_ros.msg import Timing
from robobrain_ros.ros.acquisition import Poses
from robobrain_ros.ros.camera import Snapshot
from robobrain_ros.ros.image_codecs import MAX_PIXELS, decode_color, decode_compressed_depth
from robobrain_ros.tf_projection import (
    DepthImage,
    DepthScene,
    Intrinsics,
    LiftedPoint,
    LiftedRegion,
    LiftOptions,
    LiftStatus,
)

_BRIDGE = CvBridge()


def rgb_from(message: Image | CompressedImage) -> NDArray[np.uint8]:
    """Decode a color or grey image of any encoding that cv_bridge knows to (H, W, 3) uint8 RGB.

    Raises BrainError BAD_REQUEST for an image that can't be decoded, has no pixels or more than
    image_codecs.MAX_PIXELS.
    """
    try:
        _check_size(message)
        if isinstance(message, CompressedImage):
            return decode_color(message.data, message.format)
        if message.encoding == "rgb8" and message.step == 3 * message.width:
            return _as_it_is(message, np.uint8, 3)
        return np.ascontiguousarray(_BRIDGE.imgmsg_to_cv2(message, desired_encoding="rgb8"))
    except (CvBridgeError, cv2.error, ValueError, TypeError, KeyError) as error:
        raise BrainError(
            ErrorCode.BAD_REQUEST,
            f"The image ({_described(message)}) can't be decoded: {error}. "
            "Send rgb8, bgr8, rgba8 or mono8, or these compressed as JPEG or PNG.",
        ) from error


def _check_size(message: Image | CompressedImage) -> None:
    """Raise ValueError for a raw image that nothing can be seen in, or that is too large."""
    if isinstance(message, CompressedImage):
        return  # image_codecs.py does it
    pixels = message.width * message.height
    if not pixels:
        raise ValueError("it has no pixels")
    if pixels > MAX_PIXELS:
        raise ValueError(f"it has more than {MAX_PIXELS / 1e6:g} megapixels")


def _as_it_is(message: Image, kind: type, *channels: int) -> NDArray:
    """Look at a message's pixels without copying them; (H, W, *channels), not to be written to."""
    pixels = np.frombuffer(message.data, kind).reshape(message.height, message.width, *channels)
    pixels.flags.writeable = False
    return pixels


def _described(message: Image | CompressedImage) -> str:
    if isinstance(message, CompressedImage):
        return f"format '{message.format}', {len(message.data)} bytes"
    size = f"{message.width}x{message.height}"
    return f"{size}, encoding '{message.encoding}', {len(message.data)} bytes"


def image_from(rgb: NDArray[np.uint8], header: Header) -> Image:
    """rgb: (H, W, 3) uint8."""
    return _BRIDGE.cv2_to_imgmsg(rgb, encoding="rgb8", header=header)


def observation(
    snapshot: Snapshot, poses: Poses, options: LiftOptions | None = None
) -> Observation:
    """Decode a snapshot. Raw depth stays as it came: only patches of it are ever converted.

    Raises BrainError NO_CAMERA_INFO when there is depth but no usable intrinsics.
    """
    rgb = rgb_from(snapshot.color)
    options = options or LiftOptions()
    if snapshot.depth is None:
        return Observation(rgb, DepthScene(depth_status=snapshot.depth_status, options=options))
    if snapshot.info is None:
        raise BrainError(
            ErrorCode.NO_CAMERA_INFO,
            "There is depth but no camera info of the color image yet: check that the driver "
            "publishes it, or set the camera's info_topic.",
        )
    frames = [message.header.frame_id for message in (snapshot.color, snapshot.depth)]
    if snapshot.depth_info is None and frames[0] != frames[1]:
        raise BrainError(
            ErrorCode.NO_CAMERA_INFO,
            f"The depth is of the frame '{frames[1]}' and color of '{frames[0]}': set the "
            "camera's depth_info_topic, or use a depth topic that is registered to color "
            "(aligned_depth_to_color, depth_registered).",
        )
    try:
        height, width = rgb.shape[:2]
        intrinsics = Intrinsics.from_camera_info(snapshot.info, snapshot.rectified)
        intrinsics = intrinsics.fitted(width, height)
        own = snapshot.depth_info
        own = own and Intrinsics.from_camera_info(own, snapshot.rectified)
        depth = DepthImage(*_depth_from(snapshot.depth), own, poses.color_from_depth)
    except (CvBridgeError, ValueError, TypeError, KeyError) as error:
        raise BrainError(ErrorCode.NO_CAMERA_INFO, f"The depth can't be used: {error}") from error
    scene = DepthScene(depth, intrinsics, poses.target_from_camera, LiftStatus.OK, options)
    return Observation(rgb, scene)


def _depth_from(message: Image | CompressedImage) -> tuple[NDArray[np.generic], str]:
    """Return the array as it came and its encoding."""
    _check_size(message)
    if isinstance(message, CompressedImage):
        return decode_compressed_depth(message.data, message.format)
    in_order = message.is_bigendian == (sys.byteorder == "big")
    if message.encoding == "16UC1" and message.step == 2 * message.width and in_order:
        return _as_it_is(message, np.uint16), message.encoding
    return _BRIDGE.imgmsg_to_cv2(message, desired_encoding="passthrough"), message.encoding


def lifted_point(point: LiftedPoint, header: Header) -> LiftedPointMsg:
    """header: the target frame and the image's stamp."""
    message = LiftedPointMsg(pixel=Point2D(x=float(point.pixel[0]), y=float(point.pixel[1])))
    message.interpolated = point.interpolated
    _fill_quality(message, point, header)
    return message


def lifted_region(region: LiftedRegion, header: Header) -> LiftedRegionMsg:
    """header: the target frame and the image's stamp."""
    message = LiftedRegionMsg(box=box_2d(region.box))
    _fill_quality(message, region, header)
    if region.position is not None:
        message.box3d = box_3d(region)
    return message


def _fill_quality(
    message: LiftedPointMsg | LiftedRegionMsg, lifted: Lifted, header: Header
) -> None:
    message.status = int(lifted.status)
    message.has_normal = bool(lifted.has_normal)
    message.pose = PoseStamped(header=header, pose=pose_of(lifted))
    message.depth = float(lifted.depth)
    message.valid_fraction = float(lifted.valid_fraction)
    message.spread = float(lifted.spread)
    message.covariance = np.asarray(lifted.covariance, dtype=np.float64).ravel()


def pose_of(lifted: Lifted) -> Pose:
    """Return the pose in the target frame; zero position where there is none."""
    if lifted.position is None:
        return Pose()
    return Pose(
        position=point_message(lifted.position), orientation=_quaternion(lifted.orientation)
    )


def box_2d(box: NDArray[np.float64]) -> BoundingBox2D:
    """box: x1, y1, x2, y2 in pixels."""
    message = BoundingBox2D(size_x=float(box[2] - box[0]), size_y=float(box[3] - box[1]))
    message.center.position.x = float(box[0] + box[2]) / 2
    message.center.position.y = float(box[1] + box[3]) / 2
    return message


def box_3d(region: LiftedRegion) -> BoundingBox3D:
    """Return the box of the region's visible part, in the target frame."""
    message = BoundingBox3D()
    message.center.position = point_message(region.centre)
    message.center.orientation = _quaternion(region.box_orientation)
    message.size.x, message.size.y, message.size.z = map(float, region.size)
    return message


def timing(generation: Generation, lift_s: float, total_s: float, waited_s: float = 0.0) -> Timing:
    """Put the seconds and tokens of one request together.

    waited_s: before it went to the model. What is in no other stage is waiting, too.
    """
    busy = generation.preprocess_s + generation.prefill_s + generation.decode_s + lift_s
    return Timing(
        wait=max(waited_s, total_s - busy),
        preprocess=generation.preprocess_s,
        prefill=generation.prefill_s,
        decode=generation.decode_s,
        lift=lift_s,
        total=total_s,
        tokens_in=generation.tokens_in,
        tokens_out=generation.tokens_out,
        cached_tokens=generation.cached_tokens,
    )


def path(points: Sequence[LiftedPoint], header: Header) -> Path:
    """Put the waypoints that have a position into a path, in order."""
    lifted = [PoseStamped(header=header, pose=pose_of(p)) for p in points if p.position is not None]
    return Path(header=header, poses=lifted)


def poses(result: Result, header: Header) -> PoseArray:
    """Return every pose of a result, in the target frame."""
    return PoseArray(header=header, poses=[pose_of(lifted) for lifted in _with_position(result)])


def detections_2d(answered: AnsweredRequest, header: Header) -> Detection2DArray:
    """Boxes and points (as boxes of size zero) in camera pixels; header: the image's own."""
    result = answered.result
    boxes = [box_2d(region.box) for region in result.regions]
    boxes += [box_2d(np.tile(point.pixel, 2)) for point in result.points]
    detections = [
        Detection2D(header=header, bbox=box, results=[_hypothesis(answered)], id=_id(answered, n))
        for n, box in enumerate(boxes)
    ]
    return Detection2DArray(header=header, detections=detections)


def detections_3d(answered: AnsweredRequest, header: Header) -> Detection3DArray:
    """Boxes and points (as boxes of size zero) in the target frame.

    Ids are those of `detections_2d`; covariances are of the positions, 0 = unknown.
    """
    message = Detection3DArray(header=header)
    result = answered.result
    for number, lifted in enumerate((*result.regions, *result.points)):
        if lifted.position is None:
            continue
        is_region = isinstance(lifted, LiftedRegion)
        box = box_3d(lifted) if is_region else BoundingBox3D(center=pose_of(lifted))
        hypothesis = _hypothesis(answered)
        hypothesis.pose.pose = pose_of(lifted)
        covariance = np.zeros((6, 6))
        covariance[:3, :3] = lifted.covariance
        hypothesis.pose.covariance = covariance.ravel()
        message.detections.append(
            Detection3D(header=header, bbox=box, results=[hypothesis], id=_id(answered, number))
        )
    return message


def transforms(result: Result, prefix: str, header: Header) -> list[TransformStamped]:
    """Return one frame per lifted result: `<prefix>_0`, `<prefix>_1`, …"""
    frames = []
    for index, lifted in enumerate(_with_position(result)):
        frame = TransformStamped(header=header, child_frame_id=f"{prefix}_{index}")
        pose = pose_of(lifted)
        frame.transform.translation.x = pose.position.x
        frame.transform.translation.y = pose.position.y
        frame.transform.translation.z = pose.position.z
        frame.transform.rotation = pose.orientation
        frames.append(frame)
    return frames


def image_header(answered: AnsweredRequest) -> Header:
    """Stamp and optical frame of the image that an answer is about."""
    return Header(stamp=_time(answered.stamp_ns), frame_id=answered.camera_frame)


def target_header(answered: AnsweredRequest) -> Header:
    """Stamp of the image that an answer is about, and frame of its 3D positions."""
    return Header(stamp=_time(answered.stamp_ns), frame_id=answered.target_frame)


def _time(nanoseconds: int) -> Time:
    return Time(sec=nanoseconds // 10**9, nanosec=nanoseconds % 10**9)


def is_zero(stamp: Time | Duration) -> bool:
    """Whether a request left this field at its default."""
    return stamp.sec == 0 and stamp.nanosec == 0


def _with_position(result: Result) -> list[Lifted]:
    return [lifted for lifted in (*result.points, *result.regions) if lifted.position is not None]


def _hypothesis(answered: AnsweredRequest) -> ObjectHypothesisWithPose:
    # The model gives no confidence and none is invented: NaN can be mistaken for nothing else.
    message = ObjectHypothesisWithPose()
    message.hypothesis.class_id = object_name(answered.text)
    message.hypothesis.score = float("nan")
    return message


def _id(answered: AnsweredRequest, number: int) -> str:
    return f"{answered.id}_{number}"


def point_message(xyz: NDArray[np.float64]) -> Point:
    """xyz: (3,) metres."""
    return Point(x=float(xyz[0]), y=float(xyz[1]), z=float(xyz[2]))


def _quaternion(xyzw: NDArray[np.float64]) -> Quaternion:
    x, y, z, w = map(float, xyzw)
    return Quaternion(x=x, y=y, z=z, w=w)
