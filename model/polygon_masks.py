"""Mask targets drawn from polygons, equal to pycocotools' cell by cell (`rleFrPoly`, maskApi.c).

The polygons are shifted and scaled so that the RoI becomes M × M cells (Detectron2's
`rasterize_polygons_within_box`) and rounded to fifths of a cell. An edge is then a line of points:
for each column the rounded row or, if it is steep, for each row the rounded column. What matters is
where an edge steps from the middle of a column of cells, its third fifth, to the next fifth: from
that row on, the column's cells change between outside and inside.

With dx and dy the extents of an edge from its left end (xl, yl), k = 5 c + 3 - xl the fifths to
the step in column c, and floor(a / b) wherever C truncates (they differ only above the grid), the
step's upper row is, for dx >= |dy| the lesser of the two rounded rows,

    yl + floor((2 dy (k - 1) + dx) / 2 dx) if dy >= 0, yl + floor((2 dy k + dx) / 2 dx) if dy < 0,

and for steep edges, where the rounded column reaches 5 c + 3 once 2 dx t >= (2 k - 1) |dy|,

    yl + floor(((2 k - 1) dy - 1) / 2 dx)  if dy >= 0, yl + floor((2 k - 1) dy / 2 dx)  if dy < 0.

The cell whose middle fifth is the first at or below row y is floor((y + 2) / 5). All of this is one
division of integers for each edge and column. C computes with doubles instead, which round down
some numbers exactly between two integers where exact arithmetic and this module round up.

Only integers are used: no doubles are needed, and eager execution, graphs and XLA agree.

Axes: N RoIs, V vertices of an object's polygons, E = V - 1 edges, M side of a mask, W words.
"""

from __future__ import annotations

import math

import tensorflow as tf

from model.scopes import in_scope

# Fifths of a cell, as in pycocotools.
FIFTHS = 5
# Sides of RoIs are at least a tenth of a pixel, as in Detectron2.
MIN_SIDES_IN_PIXEL = 10
# Units per pixel: float32 coordinates from 1/32 pixel on have no finer resolution.
UNITS = 2.0**28
# Rows of a column in one int32, whose highest bit is not used.
ROWS_PER_WORD = 31


@in_scope("mask_targets")
def polygon_targets(
    vertices: tf.Tensor,
    parts: tf.Tensor,
    rois: tf.Tensor,
    mask_size: int,
    static: bool = False,
) -> tf.Tensor:
    """Draws the part of each object inside its RoI from polygons, on the RoI's grid.

    A cell is inside a polygon by the even-odd rule, and inside the object if it is inside one of
    its polygons.

    Args:
        vertices: float32 [N, V, 2], y and x in pixels: an object's polygons one after another, each
            with its first point repeated at its end.
        parts: int32 [N, V], the polygon that each vertex belongs to, 1, 2, ...; 0 for none.
        rois: float32 [N, 4] in pixels.
        mask_size: M.
        static: whether V must stay constant, as for XLA; otherwise the vertices that no object
            uses, usually most of them, are removed first.

    Returns:
        float32 [N, M, M], 0 or 1, without gradient.
    """
    steps = _log2_steps(parts.shape[1])
    if not static:
        used = tf.reduce_max(tf.where(parts > 0, tf.range(1, parts.shape[1] + 1), 0))
        used = tf.maximum(used, 2)  # at least one edge, so that reductions are not empty
        vertices, parts = vertices[:, :used], parts[:, :used]
    corners = _grid_corners(vertices, rois, mask_size)
    is_edge = (parts[:, 1:] == parts[:, :-1]) & (parts[:, 1:] > 0)
    rows = _step_rows(corners[:, :-1], corners[:, 1:], is_edge, mask_size)
    words = _words_from(rows, mask_size)
    words = _xor_of_each_part(words, parts[:, :-1], steps)
    return _unpack(_or_of_all(words, steps), mask_size)


def _grid_corners(vertices: tf.Tensor, rois: tf.Tensor, mask_size: int) -> tf.Tensor:
    """Rounds vertices to fifths of a cell, half up, negative ones towards zero: int64 [N, V, 2]."""

    def units(pixels: tf.Tensor) -> tf.Tensor:
        return tf.cast(pixels * UNITS, tf.int64)

    origin = units(rois[:, :2])
    # A tenth of a pixel is not a whole number of units, so both sides of the division are times
    # ten.
    sides = tf.maximum(MIN_SIDES_IN_PIXEL * (units(rois[:, 2:]) - origin), int(UNITS))[:, None]
    fifths = MIN_SIDES_IN_PIXEL * FIFTHS * mask_size * (units(vertices) - origin[:, None])
    doubled = 2 * fifths + sides
    return tf.sign(doubled) * (tf.abs(doubled) // (2 * sides))


def _step_rows(start: tf.Tensor, stop: tf.Tensor, is_edge: tf.Tensor, mask_size: int) -> tf.Tensor:
    """Finds the first cell of each column that an edge changes: int32 [N, E, M], 0..M.

    Args:
        start, stop: int64 [N, E, 2], ends of the edges, y and x in fifths of a cell.
        is_edge: bool [N, E].
        mask_size: M, also the result for columns in which the edge does not step.
    """
    backwards = (start[..., 1] > stop[..., 1])[..., None]
    left, right = tf.where(backwards, stop, start), tf.where(backwards, start, stop)
    (yl, xl), (yr, xr) = tf.unstack(left, axis=-1), tf.unstack(right, axis=-1)
    dy, dx = yr - yl, xr - xl
    down = tf.cast(dy >= 0, tf.int64)
    # The numerator over 2 dx is 2 dy k + rest.
    rest = tf.where(dx >= tf.abs(dy), dx - 2 * dy * down, -dy - down)
    # (yl + (2 dy k + rest) / 2 dx + 2) / 5 at k = 5 c + 3 - xl, as (slope c + base) / divisor.
    base = 2 * dy * (3 - xl) + rest + 2 * dx * (yl + 2)
    slope, divisor = 2 * FIFTHS * dy, tf.maximum(2 * FIFTHS * dx, 1)

    column = tf.range(mask_size, dtype=tf.int64)
    rows = (slope[..., None] * column + base[..., None]) // divisor[..., None]
    middle = FIFTHS * column + 2
    steps = is_edge[..., None] & (xl[..., None] <= middle) & (xr[..., None] > middle)
    return tf.cast(tf.where(steps, tf.clip_by_value(rows, 0, mask_size), mask_size), tf.int32)


def _words_from(rows: tf.Tensor, mask_size: int) -> tf.Tensor:
    """Packs columns of cells that are 1 from a row on to bits: [N, E, M] → int32 [N, E, M, W]."""
    first_rows = tf.range(0, mask_size, ROWS_PER_WORD)
    bits = tf.clip_by_value(rows[..., None] - first_rows, 0, ROWS_PER_WORD)
    return tf.bitwise.left_shift(tf.fill(tf.shape(bits), -1), bits)


def _log2_steps(length: int) -> range:
    """Lists the exponents of the powers of two below a length."""
    return range(math.ceil(math.log2(max(length, 1))))


def _xor_of_each_part(words: tf.Tensor, parts: tf.Tensor, steps: range) -> tf.Tensor:
    """Computes the exclusive or over each polygon's edges, at its last edge, and 0 elsewhere.

    This is a scan in log2 E steps: each doubles the number of preceding edges that a word includes.

    Args:
        words: int32 [N, E, M, W].
        parts: int32 [N, E], equal for the edges of one polygon, which come one after another.
        steps: number of steps of the scan.
    """
    count = tf.shape(parts)[1]
    for step in steps:
        shift = 2**step
        earlier = tf.pad(words, [[0, 0], [shift, 0], [0, 0], [0, 0]])[:, :count]
        earlier_parts = tf.pad(parts, [[0, 0], [shift, 0]], constant_values=-1)[:, :count]
        same = (parts == earlier_parts)[..., None, None]
        words = tf.bitwise.bitwise_xor(words, tf.where(same, earlier, 0))
    next_parts = tf.pad(parts[:, 1:], [[0, 0], [0, 1]], constant_values=-1)
    return tf.where((parts != next_parts)[..., None, None], words, 0)


def _or_of_all(words: tf.Tensor, steps: range) -> tf.Tensor:
    """Computes the or over the edges, half with half: int32 [N, E, M, W] → [N, M, W]."""
    for _ in steps:
        half = (tf.shape(words)[1] + 1) // 2
        words = tf.pad(words, [[0, 0], [0, 2 * half - tf.shape(words)[1]], [0, 0], [0, 0]])
        words = tf.bitwise.bitwise_or(words[:, :half], words[:, half:])
    return words[:, 0]


def _unpack(words: tf.Tensor, mask_size: int) -> tf.Tensor:
    """Unpacks columns of bits to rows of cells: int32 [N, M, W] → float32 [N, M, M]."""
    bits = tf.bitwise.right_shift(words[..., None], tf.range(ROWS_PER_WORD)) & 1
    # The loops over edges lose the static shape, which the losses need.
    rows = ROWS_PER_WORD * -(-mask_size // ROWS_PER_WORD)
    columns = tf.reshape(bits, [tf.shape(words)[0], mask_size, rows])[..., :mask_size]
    return tf.cast(tf.transpose(columns, [0, 2, 1]), tf.float32)
