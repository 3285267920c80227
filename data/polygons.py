"""Closes annotated polygons and lays them out with static shapes for the device.

A record holds the points of all polygons of all its instances one after another. The labels hold
for each instance a row of vertices, polygon after polygon, each of which ends with its first point
again. So an edge goes from each vertex to the next, unless the next belongs to another polygon.

Axes: X points, P polygons and I instances in the record, N requested instances, V vertices of a
row, T vertices of all closed polygons.
"""

from __future__ import annotations

import tensorflow as tf


def count_vertices(num_points: tf.Tensor, num_polygons: tf.Tensor) -> tf.Tensor:
    """Counts the vertices of each instance's closed polygons.

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
    """Lays out the closed polygons of some instances, one row of vertices for each.

    Args:
        points: float32 [X, 2].
        num_points: int64 [P].
        num_polygons: int64 [I].
        instances: int64 [N], the requested ones.
        length: V, at least the number of vertices of each requested instance (`count_vertices`).

    Returns:
        float32 [N, V, 2], zeros after the last vertex, and int32 [N, V], for each vertex the number
        of its polygon within the instance, from 1 on; 0 after the last one.
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
    # One more row, which all missing vertices refer to.
    source = tf.where(present, starts[:, None] + column, tf.size(polygon, tf.int64))
    vertices = tf.gather(tf.pad(vertices, [[0, 1], [0, 0]]), source)
    return vertices, tf.gather(tf.pad(part, [[0, 1]]), source)
