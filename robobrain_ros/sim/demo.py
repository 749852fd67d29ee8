# SPDX-License-Identifier: Apache-2.0
"""`make demo`: a simulated camera and the node as two ROS processes, five questions, one picture.

With --query, that is asked in place of the five questions. With --image, it is asked about a photo
of yours: the same node, pixels only.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import queue
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import rclpy
from cv_bridge import CvBridge
from numpy.typing import NDArray
from rclpy.node import Node
from sensor_msgs.msg import Image

from robobrain_ros.client import BrainClient, NoAnswer
from robobrain_ros.core.extras import starting_with
from robobrain_ros.ros.executors import spinning
from robobrain_ros.visualization.style import PALETTE

with starting_with("sim"):
    from robobrain_ros.sim.launching import StartError, init_ros, say, start_nodes
    from robobrain_ros.sim.tabletop import TABLE_FRAME
    from robobrain_ros.sim.top_view import draw_top_view
    from robobrain_ros.sim.truth import Truth, box_edges, box_iou, named_object

SEED = 2_000_023
"""Never seen in training: training seeds are below a million."""

MAX_DISTANCE_MM = 10.0
MIN_IOU = 0.5

_COLUMNS = 3  # of the picture's tiles
_PICTURE_TIMEOUT_S = 10.0
_NANO_NOTE = (
    "Mind that nano knows rendered tabletops only: on a real photo its answer is a guess, however "
    "sure it looks. Choose a RoboBrain or Qwen checkpoint with ARGS='--model …'."
)


@dataclass(frozen=True, eq=False)
class Asked:
    """One question, its response, and the comparison with the ground truth.

    position: (3,) m in the table's frame, None without one. correct: None where the truth is not
    known. annotated: (H, W, 3), the node's annotated image, None where it failed.
    """

    question: str
    response: Any
    seconds: float
    annotated: NDArray[np.uint8] | None = None
    pixel: tuple[float, float] = (math.nan, math.nan)
    position: tuple[float, float, float] | None = None
    error_mm: float = math.nan
    correct: bool | None = False


def main() -> int:
    """Run the demo; returns the exit status: 0 when every service answered."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, help="a photo to ask about instead of the simulation")
    parser.add_argument("--query", help="what to point to (in a photo: the red can)")
    parser.add_argument("--model", default="nano", help="nano, a directory or a hub id")
    parser.add_argument("--seed", type=int, default=SEED, help="which simulated scene")
    parser.add_argument("--output", type=Path, default=Path("build/demo.png"))
    options = parser.parse_args()
    photo = None
    if options.image:
        if not options.image.is_file():
            parser.error(f"there is no file {options.image}")
        photo = cv2.imread(str(options.image), cv2.IMREAD_COLOR)
        if photo is None:
            parser.error(f"{options.image} is not an image that OpenCV can read")
    try:
        with ExitStack() as stack:
            init_ros(stack)
            # It subscribes before the node exists, which draws only for subscribers.
            node = stack.enter_context(spinning(rclpy.create_node("demo")))
            annotated = AnnotatedImages(node)
            camera = None if options.image else {"seed": options.seed}
            brain = start_nodes(stack, "demo", options.model, camera)
            if photo is not None:
                query = options.query or "the red can"
                asked, picture = ask_photo(brain, annotated, photo, query)
                if options.model == "nano":
                    say(_NANO_NOTE)
            else:
                asked, picture = ask_scene(brain, annotated, options.seed, options.query)
    except (StartError, NoAnswer) as error:
        print(error, file=sys.stderr)
        return 1
    options.output.parent.mkdir(parents=True, exist_ok=True)
    cv2.imwrite(str(options.output), cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    say(f"\nPicture: {options.output}")
    return report(asked)


class AnnotatedImages:
    """The node's annotated images, in the order of their requests. node: spun elsewhere."""

    def __init__(self, node: Node) -> None:
        self._images: queue.Queue[Image] = queue.Queue()
        node.create_subscription(Image, "robobrain/annotated_image", self._images.put, 10)

    def next(self) -> NDArray[np.uint8]:
        """Return the next one (H, W, 3). Raises NoAnswer when there is none in ten seconds."""
        try:
            message = self._images.get(timeout=_PICTURE_TIMEOUT_S)
        except queue.Empty:
            raise NoAnswer("No annotated image arrived: is its topic remapped?") from None
        return CvBridge().imgmsg_to_cv2(message, desired_encoding="rgb8")


def ask_scene(
    brain: BrainClient, annotated: AnnotatedImages, seed: int, query: str | None
) -> tuple[list[Asked], NDArray[np.uint8]]:
    """Ask about the simulated table and print the answers; returns them and their picture.

    query: what to point to, None for five questions.
    """
    scene = SceneQuestions(brain, annotated, Truth.of_scene(seed))
    names = [item.name for item in scene.truth.objects]
    say(f"On the table: {', '.join(names)}.\n")
    print(f"  {'question':34} {'pixel':>11} {'position in the table, m':>24} "
          f"{'error':>9} {'time':>8}")  # fmt: skip
    questions: Iterator[Asked]
    if query is None:
        questions = scene.five()
    else:
        questions = iter([scene.point(query, named_object(query, names))])
    asked = []
    for number, one in enumerate(questions, start=1):
        print(row(number, one), flush=True)
        asked.append(one)
    return asked, scene_picture(scene.truth, asked)


@dataclass(frozen=True)
class SceneQuestions:
    """Questions about a scene whose ground truth is known."""

    brain: BrainClient
    annotated: AnnotatedImages
    truth: Truth

    def five(self) -> Iterator[Asked]:
        """Ask about five objects, the largest first, each again when there are fewer."""
        names = list(itertools.islice(itertools.cycle(self.truth.largest_first()), 5))
        for name in names[:3]:
            yield self.point(f"Point to the {name}", name)
        for name in names[3:]:
            yield self.ground(name)

    def point(self, query: str, name: str | None) -> Asked:
        """PointTo: correct when the pixel lies on the object and the position on its surface.

        name: the object that the query means, None where that is not known.
        """
        asked = self._ask(self.brain.point_to, query)
        if not asked.response.success:
            return asked
        lifted = asked.response.points[0]
        pixel = (lifted.pixel.x, lifted.pixel.y)
        position, error = measured(self.truth, name, lifted)
        correct = None
        if name is not None:
            correct = self.truth.contains(name, pixel) and error <= MAX_DISTANCE_MM
        return replace(asked, pixel=pixel, position=position, error_mm=error, correct=correct)

    def ground(self, name: str) -> Asked:
        """GroundObject: correct when the box overlaps the object's and its center is on it."""
        asked = self._ask(self.brain.ground_object, f"the {name}")
        asked = replace(asked, question=f"Box of the {name}")
        if not asked.response.success:
            return asked
        region = asked.response.regions[0]
        center = region.box.center.position
        position, error = measured(self.truth, name, region)
        iou = box_iou(box_edges(region.box), self.truth.box(name))
        return replace(
            asked,
            pixel=(center.x, center.y),
            position=position,
            error_mm=error,
            correct=iou >= MIN_IOU and error <= MAX_DISTANCE_MM,
        )

    def _ask(self, service: Callable[..., Any], query: str) -> Asked:
        started = time.monotonic()
        response = service(query, target_frame=TABLE_FRAME)
        seconds = time.monotonic() - started
        return Asked(query, response, seconds, self.annotated.next() if response.success else None)


def measured(truth: Truth, name: str | None, lifted: Any) -> tuple[tuple | None, float]:
    """Return the position in the table's frame and its distance to the object in mm, or NaN."""
    if lifted.status != lifted.OK:
        return None, math.nan
    at = lifted.pose.pose.position
    position = (at.x, at.y, at.z)
    return position, math.nan if name is None else truth.distance_mm(name, position)


def row(number: int, asked: Asked) -> str:
    """Return one line of the table."""
    start = f"{number} {asked.question:34}"
    if not asked.response.success:
        return f"{start} failed: {asked.response.error_msg}"
    u, v = asked.pixel
    where = "(no 3D)"
    if asked.position is not None:
        where = "({:.3f}, {:.3f}, {:.3f})".format(*asked.position)
    error = "?" if math.isnan(asked.error_mm) else f"{asked.error_mm:.1f}"
    mark = "  ✗" if asked.correct is False else ""
    return (
        f"{start} {f'({u:.0f}, {v:.0f})':>11} {where:>24} "
        f"{error:>6} mm {asked.seconds * 1000:5.0f} ms{mark}"
    )


def scene_picture(truth: Truth, asked: list[Asked]) -> NDArray[np.uint8]:
    """Return the annotated images in rows, and the answers' positions from above."""
    # The node gives its questions the colors in this order, too.
    answered = zip((one for one in asked if one.response.success), itertools.cycle(PALETTE))
    positions = [
        (str(1 + asked.index(one)), np.array(one.position), color)
        for one, color in answered
        if one.position is not None
    ]
    height, width = truth.frame.rgb.shape[:2]
    tiles = [one.annotated for one in asked if one.annotated is not None]
    tiles.append(draw_top_view(truth, positions, (width, height)))
    columns = min(len(tiles), _COLUMNS)
    tiles += [np.full_like(tiles[-1], 255)] * (-len(tiles) % columns)
    rows = [np.hstack(tiles[i : i + columns]) for i in range(0, len(tiles), columns)]
    return np.vstack(rows)


def ask_photo(
    brain: BrainClient, annotated: AnnotatedImages, photo: NDArray[np.uint8], query: str
) -> tuple[list[Asked], NDArray[np.uint8]]:
    """Point to `query` in a photo (H, W, 3) BGR; the picture of the answer."""
    height, width = photo.shape[:2]
    message = Image(height=height, width=width, encoding="bgr8", step=3 * width)
    message.data.frombytes(photo.tobytes())
    started = time.monotonic()
    response = brain.point_to(query, image=message)
    seconds = time.monotonic() - started
    if not response.success:
        say(f"{query}: {response.error_msg}")
        return [Asked(query, response, seconds)], photo[:, :, ::-1]
    for lifted in response.points:
        say(f"{query}: pixel ({lifted.pixel.x:.0f}, {lifted.pixel.y:.0f})")
    picture = annotated.next()
    return [Asked(query, response, seconds, picture, correct=None)], picture


def report(asked: list[Asked]) -> int:
    """Print the machine-readable last line; the exit status."""
    answered = sum(one.response.success for one in asked)
    known = [one.correct for one in asked if one.correct is not None]
    errors = [one.error_mm for one in asked if not math.isnan(one.error_mm)]
    figures = {
        "answered": answered,
        "correct": sum(known) if known else None,
        "median_error_mm": round(float(np.median(errors)), 2) if errors else None,
    }
    print("RESULT " + json.dumps(figures))
    return 0 if answered == len(asked) else 1


if __name__ == "__main__":
    sys.exit(main())
