"""What a record's boxes and labels have to be."""

import numpy as np
import pytest
import tensorflow as tf
from sample_records import make_foreign_record

from data.record_checks import box_checks
from data.records import parse_record

_PIXELS = np.zeros((8, 10, 3), np.uint8)
_GOOD = [0.25, 0.1, 0.75, 0.9]


def _check(*boxes):
    box_checks(tf.constant(boxes, tf.float32, [len(boxes), 4]), tf.constant(4711, tf.int64))


def test_boxes_may_reach_a_tenth_beyond_the_image():
    _check()
    _check(_GOOD, [-0.1, 0, 1.1, 1], [0.5, 0.5, 0.5, 0.6])


@pytest.mark.parametrize(
    "box, reason",
    [
        ([2, 1, 6, 9], "reaches beyond the image; give fractions"),
        ([0, 0, 1.11, 1], "reaches beyond"),
        ([-0.11, 0, 1, 1], "reaches beyond"),
        ([float("nan"), 0, 1, 1], "is not finite"),
        ([0, 0, float("inf"), 1], "is not finite"),
        ([0.75, 0.1, 0.25, 0.9], "max coordinate of a box is less than its min"),
        ([0.25, 0.9, 0.75, 0.1], "max coordinate of a box is less than its min"),
    ],
)
def test_other_boxes_are_refused(box, reason):
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"(?s){reason}.*4711"):
        _check(_GOOD, box)


def test_text_does_not_replace_labels():
    text = {"image__object__class__text": [b"cat"]}
    record = make_foreign_record(_PIXELS, [_GOOD], [1], **text)
    assert parse_record(record, include_masks=False)["classes"].numpy() == [1]
    for labels, reason in (([], "no image/object/class/label"), ([1, 2], "differ in number")):
        record = make_foreign_record(_PIXELS, [_GOOD], labels or [0], **text)
        if not labels:
            example = tf.train.Example.FromString(record)
            del example.features.feature["image/object/class/label"]
            record = example.SerializeToString()
        with pytest.raises(tf.errors.InvalidArgumentError, match=reason):
            parse_record(record, include_masks=False)
