# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a simulated camera and the node as two ROS processes, five questions, one picture.

With --image a photo of yours goes through the same node instead (pixels only).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from numpy.typing import NDArray
from sensor_msgs.msg import Image
from vision_msgs.msg import BoundingBox2D

from robobrain_ros.client import BrainClient
from robobrain_ros.core.extras import starting_with
from robobrain_ros.sim.processes import NodeProcess, environment

with starting_with("sim"):
    from robobrain_ros.sim.tabletop import Tabletop
    from robobrain_ros.sim.truth import Truth, box_iou

SEED = 2_000_023
"""Never seen in training: training seeds are below a million."""

FRAME = "table"
MAX_DISTANCE_MM = 10.0
MIN_IOU = 0.5


@dataclass(frozen=True)
class Asked:
    """One question, its response, and how it compares with the truth."""

    question: str
    response: Any
    pixel: tuple[float, float]
    position: tuple[float, float, float] | None
    error_mm: float
    correct: bool
    seconds: float


def main() -> int:
    """Run the demo; returns the exit status: 0 when every service answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, help="a photo to ask about instead of the simulation")
    parser.add_argument("--query", default="the red can", help="what to point to in the photo")
    parser.add_argument("--model", default="nano", help="nano, a directory or a hub id")
    parser.add_argument("--seed", type=int, default=SEED, help="which simulated scene")
    parser.add_argument("--output", type=Path, default=Path("build/demo.png"))
    options = parser.parse_args()
    if options.image and not options.image.is_file():
        parser.error(f"there is no file {options.image}")
    camera = None if options.image else {"seed": options.seed}
    with ExitStack() as stack:
        brain = running(stack, "demo", options.model, camera)
        if brain is None:
            return 1
        if options.image:
            return ask_photo(brain, options.image, options.query, options.output)
        return ask_scene(brain, options.seed, options.output)


def running(
    stack: ExitStack, purpose: str, model: str, camera: Mapping[str, object] | None
) -> BrainClient | None:
    """A client of the active node, which `stack` ends; None, with its log printed, if it fails.

    purpose: in the log's name. camera: parameters of the simulated camera, None for no camera.
    """
    os.environ.update(environment())
    os.environ.setdefault("ROS_DOMAIN_ID", str(1 + os.getpid() % 100))
    prefix = f"robobrain_{purpose}_"
    log = stack.enter_context(
        tempfile.NamedTemporaryFile(prefix=prefix, suffix=".log", delete=False)  # noqa: SIM115
    )
    say(f"Starting the nodes (their log: {log.name}) …")
    stack.enter_context(NodeProcess("robobrain_ros.brain_node", {"model": model}, output=log))
    if camera is not None:
        stack.enter_context(NodeProcess("robobrain_ros.sim.camera_node", camera, output=log))
    rclpy.init()
    stack.callback(rclpy.try_shutdown)
    brain = stack.enter_context(BrainClient())
    if start(brain):
        return brain
    print(Path(log.name).read_text(), file=sys.stderr)
    return None


def start(brain: BrainClient) -> bool:
    """Drive the lifecycle to active."""
    brain.wait_for_node(60.0)
    say("Configuring: loading the model …")
    if not brain.configure():
        say("The model could not be loaded; the node's log:")
        return False
    say("Activating: subscribing to the camera …")
    return brain.activate()


def ask_scene(brain: BrainClient, seed: int, output: Path) -> int:
    """Ask five questions about the simulated table, print a table and draw a picture."""
    table = Tabletop()
    table.reset(seed)
    truth = Truth(table)
    table.close()
    say(f"On the table: {', '.join(item.name for item in truth.objects)}.\n")
    print(f"  {'question':34} {'pixel':>11} {'position in the table, m':>24} "
          f"{'error':>9} {'time':>8}")  # fmt: skip
    asked = []
    for number, name in enumerate(five_names(truth), start=1):
        result = point(brain, truth, name) if number <= 3 else ground(brain, truth, name)
        asked.append(result)
        print(row(number, result), flush=True)
    answered = [one for one in asked if one.response.success]
    correct = sum(one.correct for one in asked)
    errors = [one.error_mm for one in answered if one.position is not None]
    median = round(float(np.median(errors)), 2) if errors else None
    output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), picture(truth, asked)[:, :, ::-1])
    say(f"\nPicture: {output}")
    figures = {"answered": len(answered), "correct": correct, "median_error_mm": median}
    print("RESULT " + json.dumps(figures))
    return 0 if len(answered) == len(asked) else 1


def five_names(truth: Truth) -> list[str]:
    """Return five objects to ask about, the largest first, each again when there are fewer."""
    names = sorted(truth.askable(), key=lambda name: -truth.mask(name).sum())
    return [names[index % len(names)] for index in range(5)]


def point(brain: BrainClient, truth: Truth, name: str) -> Asked:
    """PointTo: right when the pixel lies on the object and the position on its surface."""
    question = f"Point to the {name}"
    started = time.monotonic()
    response = brain.point_to(question, target_frame=FRAME)
    seconds = time.monotonic() - started
    if not response.success:
        return failed(question, response, seconds)
    lifted = response.points[0]
    pixel = (lifted.pixel.x, lifted.pixel.y)
    position, error = measured(truth, name, lifted)
    correct = truth.contains(name, pixel) and error <= MAX_DISTANCE_MM
    return Asked(question, response, pixel, position, error, correct, seconds)


def ground(brain: BrainClient, truth: Truth, name: str) -> Asked:
    """GroundObject: right when the box overlaps the object's and the centre is on its surface."""
    question = f"the {name}"
    started = time.monotonic()
    response = brain.ground_object(question, target_frame=FRAME)
    seconds = time.monotonic() - started
    if not response.success:
        return failed(question, response, seconds)
    region = response.regions[0]
    centre = region.box.center.position
    position, error = measured(truth, name, region)
    correct = box_iou(corners(region.box), truth.box(name)) >= MIN_IOU and error <= MAX_DISTANCE_MM
    return Asked(
        f"Box of the {name}", response, (centre.x, centre.y), position, error, correct, seconds
    )


def corners(box: BoundingBox2D) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 in pixels."""
    centre, half_x, half_y = box.center.position, box.size_x / 2, box.size_y / 2
    return centre.x - half_x, centre.y - half_y, centre.x + half_x, centre.y + half_y


def measured(truth: Truth, name: str, lifted: Any) -> tuple[tuple | None, float]:
    """Return the position in the table's frame and its distance to the object in mm."""
    if lifted.status != lifted.OK:
        return None, float("nan")
    at = lifted.pose.pose.position
    return (at.x, at.y, at.z), truth.distance_mm(name, (at.x, at.y, at.z))


def failed(question: str, response: Any, seconds: float) -> Asked:
    """Return the row of a request that was not answered."""
    nan = float("nan")
    return Asked(question, response, (nan, nan), None, nan, False, seconds)


def row(number: int, asked: Asked) -> str:
    """Return one line of the table."""
    start = f"{number} {asked.question:34}"
    if not asked.response.success:
        return f"{start} failed: {asked.response.error_msg}"
    u, v = asked.pixel
    where = "(no 3D)"
    if asked.position is not None:
        where = "({:.3f}, {:.3f}, {:.3f})".format(*asked.position)
    mark = "" if asked.correct else "  ✗"
    return (
        f"{start} {f'({u:.0f}, {v:.0f})':>11} {where:>24} "
        f"{asked.error_mm:6.1f} mm {asked.seconds * 1000:5.0f} ms{mark}"
    )


def picture(truth: Truth, asked: list[Asked]) -> NDArray[np.uint8]:
    """Return the camera image with the answers, beside the table from above with the 3D points."""
    image = truth.frame.rgb.copy()
    for number, one in enumerate(asked, start=1):
        for region in getattr(one.response, "regions", ()):
            x1, y1, x2, y2 = (round(side) for side in corners(region.box))
            cv2.rectangle(image, (x1, y1), (x2, y2), (255, 150, 30), 2, cv2.LINE_AA)
        if np.isfinite(one.pixel).all():
            pin(image, one.pixel, number)
    return np.hstack([image, top_view(truth, asked, image.shape[0])])


def top_view(truth: Truth, asked: list[Asked], side: int) -> NDArray[np.uint8]:
    """Return the objects' visible surfaces from above: x up, y left, 1 m across."""
    view = np.full((side, side, 3), 245, np.uint8)

    def pixels(points: NDArray[np.float64]) -> NDArray[np.int64]:
        return np.round(side / 2 - np.asarray(points)[:, 1::-1] * side).astype(int)

    for step in range(1, 10):
        at = step * side // 10
        cv2.line(view, (at, 0), (at, side), (228, 228, 228), 1)
        cv2.line(view, (0, at), (side, at), (228, 228, 228), 1)
    for item in truth.objects:
        colors = truth.frame.rgb[truth.mask(item.name)]
        for (u, v), color in zip(pixels(truth.surface(item.name)), colors, strict=True):
            cv2.circle(view, (int(u), int(v)), 1, color.tolist(), -1)
    for number, one in enumerate(asked, start=1):
        if one.position is not None:
            pin(view, tuple(pixels(np.array([one.position]))[0]), number)
    cv2.putText(view, "from above, 10 cm grid: 3D answers on the true objects", (10, side - 12),
                cv2.FONT_HERSHEY_SIMPLEX, 0.45, (70, 70, 70), 1, cv2.LINE_AA)  # fmt: skip
    return view


def pin(image: NDArray[np.uint8], pixel: tuple[float, float], number: int) -> None:
    """Draw a numbered dot."""
    u, v = round(float(pixel[0])), round(float(pixel[1]))
    cv2.circle(image, (u, v), 6, (255, 255, 255), -1, cv2.LINE_AA)
    cv2.circle(image, (u, v), 4, (20, 160, 60), -1, cv2.LINE_AA)
    for color, width in (((255, 255, 255), 3), ((0, 0, 0), 1)):
        cv2.putText(image, str(number), (u + 8, v - 6), cv2.FONT_HERSHEY_SIMPLEX, 0.5, color, width,
                    cv2.LINE_AA)  # fmt: skip


def ask_photo(brain: BrainClient, path: Path, query: str, output: Path) -> int:
    """Point to `query` in a photo and draw the answer."""
    pixels = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if pixels is None:
        say(f"{path} is not an image that OpenCV can read.")
        return 1
    height, width = pixels.shape[:2]
    message = Image(height=height, width=width, encoding="bgr8", step=3 * width)
    message.data.frombytes(pixels.tobytes())
    response = brain.point_to(query, image=message)
    if not response.success:
        say(f"{query}: {response.error_msg}")
    for lifted in response.points:
        say(f"{query}: pixel ({lifted.pixel.x:.0f}, {lifted.pixel.y:.0f})")
        cv2.circle(pixels, (round(lifted.pixel.x), round(lifted.pixel.y)),
                   max(4, width // 120), (60, 220, 90), -1, cv2.LINE_AA)  # fmt: skip
    output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(output), pixels)
    say(f"Picture: {output}")
    figures = {"answered": int(response.success), "correct": None, "median_error_mm": None}
    print("RESULT " + json.dumps(figures))
    return 0 if response.success else 1


def say(text: str) -> None:
    """Print at once: progress is for people who wait."""
    print(text, flush=True)


if __name__ == "__main__":
    sys.exit(main())
