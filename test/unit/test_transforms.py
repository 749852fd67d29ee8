# SPDX-License-Identifier: Apache-2.0
"""Transforms as matrices, and the failures of a look-up."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation
from support.analytic_scene import rigid

from robobrain_ros.tf_projection import (
    TransformLookup,
    TransformUnavailable,
    matrix_from_transform,
    quaternion_from_matrix,
)


def transform(x=1.0, y=2.0, z=3.0, qz=0.5**0.5, qw=0.5**0.5):
    return SimpleNamespace(
        translation=SimpleNamespace(x=x, y=y, z=z),
        rotation=SimpleNamespace(x=0.0, y=0.0, z=qz, w=qw),
    )


class Missing(Exception):
    pass


class Buffer:
    """What TransformLookup uses of a tf2_ros.Buffer."""

    def __init__(self, answer):
        self.answer = answer
        self.asked = []

    def lookup_transform(self, target_frame, source_frame, time):
        self.asked.append((target_frame, source_frame, time))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


class TestTransforms:
    def test_a_message_becomes_a_matrix(self):
        expected = [[0, -1, 0, 1], [1, 0, 0, 2], [0, 0, 1, 3], [0, 0, 0, 1]]
        for message in (transform(), SimpleNamespace(transform=transform())):
            np.testing.assert_allclose(matrix_from_transform(message), expected, atol=1e-12)

    @pytest.mark.parametrize("wrong", [{"qz": 0.0, "qw": 0.0}, {"x": np.nan}])
    def test_a_message_that_is_no_transform_is_refused(self, wrong):
        with pytest.raises(ValueError):
            matrix_from_transform(transform(**wrong))

    def test_the_buffer_is_asked_at_the_stamp(self):
        buffer = Buffer(SimpleNamespace(transform=transform()))
        matrix = TransformLookup(buffer, (Missing,)).try_lookup("map", "camera", 42)
        assert buffer.asked == [("map", "camera", 42)]
        np.testing.assert_allclose(matrix[:3, 3], [1, 2, 3])

    def test_a_frame_is_at_itself_without_tf(self):
        lookup = TransformLookup(Buffer(Missing("no such frame")), (Missing,))
        np.testing.assert_array_equal(lookup.try_lookup("camera", "camera", 0), np.eye(4))

    @pytest.mark.parametrize("answer", [Missing("too old"), transform(qz=0.0, qw=0.0)])
    def test_no_transform_says_which(self, answer):
        with pytest.raises(TransformUnavailable, match=r"'camera' to 'map'.*(too old|zero)"):
            TransformLookup(Buffer(answer), (Missing,)).try_lookup("map", "camera", 0)

    def test_another_error_isnt_hidden(self):
        with pytest.raises(KeyError):
            TransformLookup(Buffer(KeyError("bug")), (Missing,)).try_lookup("map", "camera", 0)


@given(vector=st.tuples(*[st.floats(-3, 3)] * 3))
def test_quaternions_are_those_of_the_matrix(vector):
    matrix = rigid(Rotation.from_rotvec(vector), (1, 2, 3))
    for form in (matrix, matrix[:3, :3]):
        x, y, z, w = quaternion_from_matrix(form)
        assert w >= 0
        np.testing.assert_allclose(
            Rotation.from_quat([x, y, z, w]).as_matrix(), matrix[:3, :3], atol=1e-9
        )
