"""Annotated polygons on their way to the device: closed, and laid out with static shapes.

A record holds the points of all polygons of all its instances one after another. The labels hold
for each instance a row of vertices, polygon after polygon, each of which ends with its first point
again. So an edge goes from each vertex to the next, unless the next is of another polygon.

Axes: X points in the record, P polygons in it, I instances in it, N instances wanted, V vertices
that there is room for, T vertices of all closed polygons.
"""

from __future__ import annotations

import tensorflow as tf


def count_vertices(num_points: tf.Tensor, num_polygons: tf.Tensor) -> tf.Tensor:
    """Vertices of each instance's closed polygons.

    Args:
        num_points: int64 [P], points of each polygon.
        num_polygons: int64 [I], polygons of each instance; they add up to P.

    Returns:
        int64 [I], 0 for instances without polygons.
    """
    ends = tf.concat([[0], tf.cumsum(num_points + 1)], axis=0)
    last = tf.cumsum(num_polygons)
    return tf.gather(ends, last) - tf.gather(ends, last - num_polygons)


def lay_out_polygons(
    points: tf.Tensor,
    num_points: tf.Tensor,
    num_polygons: tf.Tensor,
    instances: tf.Tensor,
    length: int,
) -> tuple[tf.Tensor, tf.Tensor]:
    """The closed polygons of some instances, a row of vertices for each.

    Args:
        points: float32 [X, 2].
        num_points: int64 [P].
        num_polygons: int64 [I].
        instances: int64 [N], those that are wanted.
        length: V, at least as much as each wanted instance has (`count_vertices`).

    Returns:
        float32 [N, V, 2], zeros after the last vertex, and int32 [N, V], the number of the polygon
        among the instance's that each vertex belongs to, from 1 on; 0 after the last one.
    """
    polygon = tf.repeat(tf.range(tf.size(num_points, tf.int64)), num_points + 1)  # [T]
    first_vertex = tf.cumsum(num_points + 1, exclusive=True)
    step = tf.range(tf.size(polygon, tf.int64)) - tf.gather(first_vertex, polygon)
    step = tf.where(step < tf.gather(num_points, polygon), step, 0)
    vertices = tf.gather(points, tf.gather(tf.cumsum(num_points, exclusive=True), polygon) + step)
    first_polygon = tf.repeat(tf.cumsum(num_polygons, exclusive=True), num_polygons)
    part = tf.cast(polygon - tf.gather(first_polygon, polygon) + 1, tf.int32)

    counts = count_vertices(num_points, num_polygons)
    starts = tf.gather(tf.cumsum(counts, exclusive=True), instances)
    column = tf.range(length, dtype=tf.int64)
    present = column < tf.gather(counts, instances)[:, None]
    # One more row, for all that is not there.
    source = tf.where(present, starts[:, None] + column, tf.size(polygon, tf.int64))
    vertices = tf.gather(tf.pad(vertices, [[0, 1], [0, 0]]), source)
    return vertices, tf.gather(tf.pad(part, [[0, 1]]), source)
