"""Assertions on a parsed record; their messages name its image id.

Axes: N instances of one image, P polygons of one image.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from data.assertions import make_assertion
from data.polygons import count_vertices

# TensorFlow's Object Detection API tolerates corners this far outside, in sides of the image.
_SLACK = 0.1


def length_checks(parsed: dict, record: dict, num_instances: tf.Tensor) -> list:
    """Makes assertions that every instance has the features that the network needs.

    Args:
        parsed: features by key.
        record: image_id and, where masks are wanted, num_runs, as `data.records.parse_record`
            returns them.
        num_instances: int32 scalar, boxes.
    """
    found = {"class labels": tf.size(parsed["image/object/class/label"])}
    if "num_runs" in record:
        found["masks"] = tf.size(record["num_runs"])
    unlabelled = (
        "its objects have no image/object/class/label, a number from 1 on, which class/text"
    )
    has_labels = (found["class labels"] > 0) | (num_instances < 1)
    image_id = record["image_id"]
    return [
        make_assertion(has_labels, [f"{unlabelled} does not replace. Image id:", image_id]),
        *(
            make_assertion(
                tf.equal(number, num_instances),
                [f"boxes and {what} differ in number. Image id:", image_id, "numbers:",
                 num_instances, number],
            )
            for what, number in found.items()
        ),
    ]  # fmt: skip


def box_checks(boxes: tf.Tensor, image_id: tf.Tensor) -> list:
    """Makes assertions that boxes are fractions of the image's sides.

    Args:
        boxes: float32 [N, 4], [y1, x1, y2, x2].
        image_id: int64 scalar.
    """
    largest = tf.reduce_max(tf.abs(boxes - 0.5)) + 0.5  # -inf without boxes
    in_order = tf.reduce_all(boxes[:, :2] <= boxes[:, 2:])
    finite = tf.reduce_all(tf.math.is_finite(boxes))
    turned = "the max coordinate of a box is less than its min. Image id:"
    beyond = "a box reaches beyond the image; give fractions of its sides (0 to 1), not pixels"
    return [
        make_assertion(finite, ["a box is not finite. Image id:", image_id]),
        make_assertion(~finite | (largest <= 1 + _SLACK), [f"{beyond}. Image id:", image_id]),
        make_assertion(~finite | in_order, [turned, image_id]),
    ]


def polygon_checks(record: dict, most: int) -> list:
    """Makes assertions that every object has polygons with at most `most` vertices.

    Args:
        record: image_id, num_points int64 [P], num_polygons int64 [N] and is_crowd bool [N].
        most: maximum number of vertices of an object.
    """
    vertices = count_vertices(record["num_points"], record["num_polygons"])
    vertices = tf.where(record["is_crowd"], np.int64(1), vertices)
    missing = "it has objects without polygons; train with --mask_target=bitmap. Image id:"
    too_many = f"an object has more than --max_polygon_vertices={most}, raise it to"
    largest = tf.reduce_max(tf.concat([vertices, [1]], axis=0))
    return [
        make_assertion(tf.reduce_all(vertices > 0), [missing, record["image_id"]]),
        make_assertion(largest <= most, [too_many, largest, "Image id:", record["image_id"]]),
    ]
