"""Polygons are closed and laid out in rows."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from data.polygons import count_vertices, lay_out_polygons

SIZES = st.lists(st.lists(st.integers(3, 6), max_size=3), min_size=1, max_size=5)


def closed_rows(sizes, points, wanted, length):
    """The same with loops."""
    vertices = np.zeros([len(wanted), length, 2], np.float32)
    parts = np.zeros([len(wanted), length], np.int32)
    polygons, start = [], 0
    for of_instance in sizes:
        ends = np.cumsum([start, *of_instance])
        polygons.append([points[a:b] for a, b in zip(ends[:-1], ends[1:], strict=True)])
        start = ends[-1]
    for row, instance in enumerate(wanted):
        column = 0
        for part, polygon in enumerate(polygons[instance], start=1):
            for point in [*polygon, polygon[0]]:
                vertices[row, column], parts[row, column] = point, part
                column += 1
    return vertices, parts


@settings(max_examples=60, deadline=None)
@given(SIZES, st.data())
def test_rows_hold_the_closed_polygons_of_the_wanted_instances(sizes, data):
    wanted = data.draw(st.lists(st.integers(0, len(sizes) - 1), max_size=6))
    flat = [size for of_instance in sizes for size in of_instance]
    points = np.random.default_rng(0).normal(size=[sum(flat), 2]).astype(np.float32)
    counts = tf.constant(flat, tf.int64), tf.constant([len(one) for one in sizes], tf.int64)
    np.testing.assert_array_equal(count_vertices(*counts), [sum(one) + len(one) for one in sizes])
    found = lay_out_polygons(tf.constant(points), *counts, tf.constant(wanted, tf.int64), 21)
    expected = closed_rows(sizes, points, wanted, 21)
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_no_polygons_at_all_inside_a_data_set():
    nothing = tf.zeros([0], tf.int64)

    def lay_out(count):
        return lay_out_polygons(
            tf.zeros([0, 2]), nothing, tf.zeros([count], tf.int64), tf.range(count), 4
        )

    for count in (0, 2):
        dataset = tf.data.Dataset.from_tensors(tf.constant(count, tf.int64)).map(lay_out)
        vertices, parts = next(dataset.as_numpy_iterator())
        assert vertices.shape == (count, 4, 2) and not vertices.any() and not parts.any()


def test_more_vertices_than_there_is_room_for_end_at_the_edge():
    points, counts = tf.ones([5, 2]), (tf.constant([5], tf.int64), tf.constant([1], tf.int64))
    vertices, parts = lay_out_polygons(points, *counts, tf.constant([0], tf.int64), 4)
    assert parts.numpy().tolist() == [[1, 1, 1, 1]] and vertices.numpy().all()
    assert count_vertices(*counts).numpy() == pytest.approx([6])
