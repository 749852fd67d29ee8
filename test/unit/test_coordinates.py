# SPDX-License-Identifier: Apache-2.0
"""Sent sizes are fixed points of the processor's rule; points map back onto the camera image."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from robobrain_ros.core.coordinates import boxes_to_image_pixels, sent_size, to_image_pixels
from robobrain_ros.core.families import CoordinateFrame

processing = pytest.importorskip("transformers.models.qwen2_vl.image_processing_pil_qwen2_vl")

SENT = CoordinateFrame.SENT_PIXELS
sides = st.integers(1, 4096)


def smart_resize(width, height, factor, min_pixels, max_pixels):
    rows, columns = processing.smart_resize(height, width, factor, min_pixels, max_pixels)
    return columns, rows


@settings(deadline=None)
@given(
    sides,
    sides,
    st.sampled_from([28, 32]),
    st.sampled_from([3136, 65536]),
    st.integers(86_000, 13_000_000),
)
def test_sent_size_is_what_the_processor_chooses_and_keeps(
    width, height, factor, min_pixels, max_pixels
):
    limits = (factor, min_pixels, max_pixels)
    if max(width, height) > 200 * min(width, height):
        with pytest.raises(ValueError, match="too narrow"):
            sent_size(width, height, *limits)
        return
    size = sent_size(width, height, *limits)
    assert smart_resize(*size, *limits) == size
    first = smart_resize(width, height, *limits)
    if smart_resize(*first, *limits) == first:
        assert size == first
    assert size[0] % factor == size[1] % factor == 0
    assert min_pixels <= size[0] * size[1] <= max_pixels


@pytest.mark.parametrize(
    ("image", "factor", "max_pixels", "expected"),
    [
        ((640, 480), 28, 12_845_056, (644, 476)),
        ((640, 480), 32, 16_777_216, (640, 480)),
        ((1280, 720), 28, 512 * 28 * 28, (840, 448)),
        ((1280, 720), 28, 12_845_056, (1288, 728)),
        ((640, 480), 28, 86_000, (336, 252)),
        ((20, 20), 28, 12_845_056, (56, 56)),
        ((16, 3066), 28, 86_000, (28, 3052)),
    ],
)
def test_sent_size_by_hand(image, factor, max_pixels, expected):
    assert sent_size(*image, factor, 3136, max_pixels) == expected


def test_impossible_sizes_are_refused():
    with pytest.raises(ValueError, match="empty"):
        sent_size(0, 480, 28, 3136, 100_000)
    with pytest.raises(ValueError, match="allow more pixels"):
        sent_size(640, 480, 28, 100_000, 100_000)


@settings(deadline=None)
@given(
    st.tuples(sides, sides),
    st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5),
    st.sampled_from([86_000, 400_000, 12_845_056]),
)
def test_points_survive_the_way_to_the_model_and_back(image, relative, max_pixels):
    if max(image) > 200 * min(image):
        return
    sent = sent_size(*image, 28, 3136, max_pixels)
    on_camera = np.array(relative) * (np.array(image) - 1)
    answered = on_camera * np.array(sent) / np.array(image)
    pixels, inside = to_image_pixels(answered, SENT, "xy", sent, image)
    assert inside.all()
    np.testing.assert_allclose(pixels, on_camera, atol=1e-9)
    # A model says whole pixels: the error on the camera image is at most half a sent pixel.
    pixels, _ = to_image_pixels(np.round(answered), SENT, "xy", sent, image)
    half = np.array(image) / np.array(sent) / 2
    assert (np.abs(pixels - on_camera) <= half + 1e-9).all()


@pytest.mark.parametrize(
    ("frame", "answered"),
    [
        (CoordinateFrame.SENT_PIXELS, (420, 112)),
        (CoordinateFrame.RELATIVE_1000, (500, 250)),
        (CoordinateFrame.RELATIVE_100, (50, 25)),
        (CoordinateFrame.RELATIVE_1, (0.5, 0.25)),
    ],
)
def test_frames_and_axis_orders(frame, answered):
    sizes = ((840, 448), (1280, 720))
    for order, numbers in (("xy", answered), ("yx", answered[::-1])):
        pixels, inside = to_image_pixels([numbers], frame, order, *sizes)
        np.testing.assert_allclose(pixels, [[640, 180]])
        assert inside.tolist() == [True]
        box, inside = boxes_to_image_pixels([[0, 0, *numbers]], frame, order, *sizes)
        np.testing.assert_allclose(box, [[0, 0, 640, 180]])
        assert inside.tolist() == [True]


def test_edges_are_clipped_and_far_points_flagged():
    image = (640, 480)
    points = [(-2, 10), (640, 480), (645, 479), (700, 10), (10, -300)]
    pixels, inside = to_image_pixels(points, SENT, "xy", image, image)
    assert inside.tolist() == [True, True, True, False, False]
    np.testing.assert_array_equal(pixels, [(0, 10), (639, 479), (639, 479), *points[3:]])


def test_box_sides_may_lie_on_the_images_border():
    image = (426, 640)
    boxes = [(0, 193, 226, 640), (-1, -1, 428, 641), (10, 10, 500, 20)]
    pixels, inside = boxes_to_image_pixels(boxes, SENT, "xy", image, image)
    assert inside.tolist() == [True, True, False]
    np.testing.assert_array_equal(pixels[:2], [(0, 193, 226, 640), (0, 0, 426, 640)])


def test_no_points_and_no_boxes_stay_none():
    pixels, inside = to_image_pixels(np.empty((0, 2)), SENT, "xy", (28, 28), (10, 10))
    assert pixels.shape == (0, 2)
    assert inside.shape == (0,)
    boxes, inside = boxes_to_image_pixels(np.empty((0, 4)), SENT, "xy", (28, 28), (10, 10))
    assert boxes.shape == (0, 4)
    assert inside.shape == (0,)
