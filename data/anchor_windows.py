"""Finds the few anchor-box pairs that can affect anchor matching.

Comparing all A x G pairs is needless, because only anchors of a similar area nearby can reach the
IoU below which anchors are negative. Among the anchors of one shape (level, size and ratio) all
areas are equal, so the IoU grows with the intersection, the product of an overlap that depends on
the row and one that depends on the column. Both are largest in the row and the column nearest to
the box's centre, which gives

  1. each box's best IoU per shape, hence its best IoU over all anchors, in closed form;
  2. the IoU from which anchors matter to the box: the lower threshold, or the box's best IoU if
     that is less, as it is for tiny, huge and elongated boxes;
  3. per shape, the overlap in y that an anchor needs in the best column, so a window of rows, empty
     for most shapes;
  4. per row, the overlap in x that an anchor needs, so a window of columns.

The anchors in these windows are listed with their intersections. Windows are widened by more than
rounding errors amount to, so they contain every anchor that a comparison of all pairs with the same
float32 formula would pick. The formula takes the overlap of an interval inside another from its
size, not from its corners: IoUs of the anchors that contain a tiny box do not differ by rounding.

Axes: G boxes, T anchor shapes, L strips (runs of cells in a row), N pairs of a box and an anchor.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.anchors import AnchorGrid

# An anchor counts as inside a crowd if at least this fraction of its area is.
CROWD_COVERAGE = 0.7
# Slack of the windows, far above float32 rounding and far below a cell: relative, and in pixels.
RELATIVE_SLACK = 1e-5
PIXEL_SLACK = 1e-3


class AnchorShapes:
    """Constants of the T anchor shapes of a grid, level by level, size by size, ratio by ratio.

    Arrays are float32 [T]; indices stay exact, because they are below 2**24.

    Attributes:
        heights, widths: pixels.
        areas: square pixels; those of unrounded anchors from their size, so equal for all ratios.
        strides: pixels between neighbouring cells.
        last_rows, last_columns: the largest row and column.
        starts: index of the shape's anchor in cell (0, 0).
        row_steps: what one row adds to the index.
        table: [T, 7], all of these but the last rows, in this order.
        per_cell: int, what one column adds to the index.
        longest: int, the largest number of rows or columns.
    """

    def __init__(self, grid: AnchorGrid):
        if grid.num_anchors >= 2**24:
            raise ValueError(f"{grid.num_anchors} anchors: expected fewer than {2**24}.")
        self.per_cell = grid.per_cell
        self.longest = max(max(shape) for shape in grid.level_shapes)
        self.heights, self.widths = np.float32(grid.shapes.reshape(-1, 2).T)
        self.areas = np.repeat(np.float32(np.square(grid.sizes)), len(grid.ratios))
        if grid.rounded:
            self.areas = self.heights * self.widths
        self.strides = self._each_anchor(grid.strides)
        rows, columns = self._each_anchor(grid.level_shapes).T
        self.last_rows, self.last_columns = rows - 1, columns - 1
        self.starts = self._each_anchor(np.cumsum((0, *grid.level_sizes[:-1])))
        self.starts += np.tile(np.float32(range(self.per_cell)), len(grid.strides))
        self.row_steps = columns * self.per_cell
        columns = self.heights, self.widths, self.areas, self.strides, self.last_columns
        self.table = np.stack([*columns, self.starts, self.row_steps], axis=-1)

    def _each_anchor(self, values) -> np.ndarray:
        return np.repeat(np.float32(values), self.per_cell, axis=0)


class CentredBoxes(NamedTuple):
    """Boxes by centre, size and area, float32 of any one shape."""

    y: tf.Tensor
    x: tf.Tensor
    heights: tf.Tensor
    widths: tf.Tensor
    areas: tf.Tensor


class _Strips(NamedTuple):
    """Runs of cells in one row, one for each box, anchor shape and row, all [L].

    Attributes:
        lengths: int32, number of cells.
        first_anchors: int32, index of the anchor in the first cell.
        boxes: int32, box indices, ascending.
        floats: float32 [L, 8], of each strip: the overlap in y, the first column, the stride, the
            box's x, width and area, the anchor's width and area.
    """

    lengths: tf.Tensor
    first_anchors: tf.Tensor
    boxes: tf.Tensor
    floats: tf.Tensor


class Pairs(NamedTuple):
    """Pairs of an anchor and a box, by ascending box.

    Attributes:
        anchors: int32 [N], anchor indices.
        boxes: int32 [N], box indices.
        intersections: float32 [N], square pixels.
        box_areas: float32 [N], square pixels.
        anchor_areas: float32 [N], square pixels.
    """

    anchors: tf.Tensor
    boxes: tf.Tensor
    intersections: tf.Tensor
    box_areas: tf.Tensor
    anchor_areas: tf.Tensor


def pairs_with_gts(gt_boxes: tf.Tensor, shapes: AnchorShapes, lowest_iou: float) -> Pairs:
    """Lists at least all pairs whose IoU is above 0 and reaches `lowest_iou` or the box's best."""
    boxes = _centre_and_size(gt_boxes)
    overlap_y, overlap_x = _largest_overlaps(boxes, shapes)
    intersections = overlap_y * overlap_x
    total_areas = boxes.areas + shapes.areas
    best = tf.reduce_max(intersections / (total_areas - intersections), axis=1, keepdims=True)
    floor = tf.minimum(best, lowest_iou) * (1.0 - RELATIVE_SLACK)
    # IoU >= f  <=>  intersection >= f / (1 + f) * (sum of both areas).
    needed = floor / (1.0 + floor) * total_areas
    return _pairs_in(_strips_reaching(needed, boxes, overlap_x, shapes), shapes)


def anchors_inside(crowd_boxes: tf.Tensor, shapes: AnchorShapes) -> tf.Tensor:
    """Lists anchors, with repetitions, of which a box covers `CROWD_COVERAGE`: int32 [N]."""
    boxes = _centre_and_size(crowd_boxes)
    _, overlap_x = _largest_overlaps(boxes, shapes)
    needed = tf.ones_like(overlap_x) * ((1.0 - RELATIVE_SLACK) * CROWD_COVERAGE * shapes.areas)
    pairs = _pairs_in(_strips_reaching(needed, boxes, overlap_x, shapes), shapes)
    inside = pairs.intersections >= CROWD_COVERAGE * pairs.anchor_areas
    return tf.boolean_mask(pairs.anchors, inside)


def locate_anchors(anchors: tf.Tensor, shapes: AnchorShapes) -> CentredBoxes:
    """Anchors from their indices: int32 [P] -> CentredBoxes [P].

    They are computed because a table of all would add megabytes of constants to every input graph.
    """
    level_starts = shapes.starts[:: shapes.per_cell].astype(np.int32)
    level = tf.searchsorted(level_starts, anchors, side="right") - 1
    cell, place = _divmod(anchors - tf.gather(level_starts, level), shapes.per_cell)
    shape = level * shapes.per_cell + place
    height, width, area, stride, last_column, _, _ = _rows_of(shapes.table, shape)
    row, column = _divmod(cell, tf.cast(last_column, tf.int32) + 1)
    y, x = tf.cast(row, tf.float32) * stride, tf.cast(column, tf.float32) * stride
    return CentredBoxes(y, x, height, width, area)


def ious_with_all(gt_boxes: tf.Tensor, anchors: CentredBoxes) -> tf.Tensor:
    """IoUs of G boxes float32 [G, 4] with P anchors: float32 [G, P]."""
    boxes = _centre_and_size(gt_boxes)
    intersections = _overlaps(boxes.y - anchors.y, boxes.heights, anchors.heights)
    intersections *= _overlaps(boxes.x - anchors.x, boxes.widths, anchors.widths)
    return intersections / (boxes.areas + anchors.areas - intersections)


def _centre_and_size(boxes: tf.Tensor) -> CentredBoxes:
    """Boxes float32 [G, 4] -> CentredBoxes [G, 1]."""
    y1, x1, y2, x2 = tf.split(boxes, 4, axis=1)
    heights, widths = tf.maximum(y2 - y1, 0.0), tf.maximum(x2 - x1, 0.0)
    return CentredBoxes(0.5 * (y1 + y2), 0.5 * (x1 + x2), heights, widths, heights * widths)


def _overlaps(distances: tf.Tensor, sizes: tf.Tensor, other_sizes: tf.Tensor) -> tf.Tensor:
    """Lengths that intervals share, from the distances of their centres, any shape.

    An interval inside the other counts in full, regardless of the rounding of its centre.
    """
    meeting = 0.5 * (sizes + other_sizes) - tf.abs(distances)
    return tf.maximum(tf.minimum(tf.minimum(sizes, other_sizes), meeting), 0.0)


def _largest_overlaps(boxes: CentredBoxes, shapes: AnchorShapes) -> tuple[tf.Tensor, tf.Tensor]:
    """Overlaps in y with the nearest row, in x with the nearest column, each float32 [G, T]."""

    def nearest(centres, sizes, anchor_sizes, last):
        cells = tf.clip_by_value(tf.round(centres / shapes.strides), 0.0, last)
        return _overlaps(centres - cells * shapes.strides, sizes, anchor_sizes)

    return (
        nearest(boxes.y, boxes.heights, shapes.heights, shapes.last_rows),
        nearest(boxes.x, boxes.widths, shapes.widths, shapes.last_columns),
    )


def _strips_reaching(
    needed: tf.Tensor, boxes: CentredBoxes, overlap_x: tf.Tensor, shapes: AnchorShapes
) -> _Strips:
    """Finds strips that cover all anchors whose intersection with a box reaches `needed`.

    Args:
        needed: float32 [G, T], square pixels.
        boxes: the boxes.
        overlap_x: float32 [G, T], the largest overlaps in x.
        shapes: the anchor shapes.

    Returns:
        _Strips.
    """
    first_row, num_rows = _window(
        boxes.y, boxes.heights, shapes.heights, needed / overlap_x, shapes.strides, shapes.last_rows
    )
    pair, step = _repeat(tf.reshape(num_rows, [-1]), shapes.longest)
    box, shape = _divmod(pair, len(shapes.areas))
    first_row, needed = _rows_of(tf.reshape(tf.stack([first_row, needed], -1), [-1, 2]), pair)
    y, x, height, width, area = _rows_of(tf.concat(boxes, 1), box)
    anchor_height, anchor_width, anchor_area, stride, last_column, start, row_step = _rows_of(
        shapes.table, shape
    )
    row = first_row + tf.cast(step, tf.float32)
    overlap = _overlaps(y - row * stride, height, anchor_height)
    first_column, lengths = _window(x, width, anchor_width, needed / overlap, stride, last_column)
    first_anchors = start + row * row_step + first_column * shapes.per_cell
    floats = [overlap, first_column, stride, x, width, area, anchor_width, anchor_area]
    return _Strips(lengths, tf.cast(first_anchors, tf.int32), box, tf.stack(floats, axis=-1))


def _pairs_in(strips: _Strips, shapes: AnchorShapes) -> Pairs:
    """Lists the anchors of all strips."""
    strip, step = _repeat(strips.lengths, shapes.longest)
    first_anchor, box = _rows_of(tf.stack([strips.first_anchors, strips.boxes], -1), strip)
    overlap, first_column, stride, x, width, area, anchor_width, anchor_area = _rows_of(
        strips.floats, strip
    )
    column = first_column + tf.cast(step, tf.float32)
    return Pairs(
        anchors=first_anchor + step * shapes.per_cell,
        boxes=box,
        intersections=overlap * _overlaps(x - column * stride, width, anchor_width),
        box_areas=area,
        anchor_areas=anchor_area,
    )


def _window(
    centres: tf.Tensor,
    sizes: tf.Tensor,
    anchor_sizes: tf.Tensor,
    needed: tf.Tensor,
    strides: tf.Tensor,
    last: tf.Tensor,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows (or columns) whose anchors overlap an interval by at least `needed` pixels.

    Args:
        centres: float32, of the intervals.
        sizes: float32, of the intervals.
        anchor_sizes: float32, the anchors' heights (or widths).
        needed: float32, pixels; infinite or not a number where nothing can suffice.
        strides: float32, pixels between rows.
        last: float32, the largest row.

    Returns:
        The first row, float32, and the number of rows, int32, in the arguments' common shape.
    """
    reach = 0.5 * (sizes + anchor_sizes) - needed + PIXEL_SLACK
    first = tf.maximum(tf.math.ceil((centres - reach) / strides), 0.0)
    final = tf.minimum(tf.floor((centres + reach) / strides), last)
    possible = (needed <= tf.minimum(sizes, anchor_sizes)) & (first <= final)
    lengths = final - first + 1.0
    # Not a bare 0: `where` is slow where it broadcasts.
    return first, tf.cast(tf.where(possible, lengths, tf.zeros_like(lengths)), tf.int32)


def _repeat(counts: tf.Tensor, largest_count: int) -> tuple[tf.Tensor, tf.Tensor]:
    """[2, 0, 3] -> ([0, 0, 2, 2, 2], [0, 1, 0, 1, 2]): who is repeated, and which repeat it is.

    A single range operation counts the repeats in the low bits; the high bits hold the owner.
    """
    bits = largest_count.bit_length()
    starts = tf.range(tf.size(counts)) * 2**bits
    repeats = tf.ragged.range(starts, starts + counts).values
    owners = tf.bitwise.right_shift(repeats, bits)
    return owners, tf.bitwise.bitwise_and(repeats, 2**bits - 1)


def _rows_of(table: tf.Tensor | np.ndarray, rows: tf.Tensor) -> list[tf.Tensor]:
    """Columns [N] of some rows of a table; much faster than gathering column by column."""
    return tf.unstack(tf.gather(table, rows), num=table.shape[1], axis=1)


def _divmod(dividend: tf.Tensor, divisor: tf.Tensor | int) -> tuple[tf.Tensor, tf.Tensor]:
    """Quotient and remainder of int32 tensors."""
    quotient = dividend // divisor
    return quotient, dividend - quotient * divisor
