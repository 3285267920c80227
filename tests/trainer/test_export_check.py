"""What an export is refused for when it is compared with TensorFlow."""

import numpy as np
import pytest

from data.errors import UserError
from trainer.export_check import compare

BOXES = np.float32([[[0, 0, 10, 10], [20, 20, 30, 40], [0, 0, 0, 0]]])
EXPECTED = {
    "num_detections": np.int32([2]),
    "boxes": BOXES,
    "classes": np.int32([[1, 2, 0]]),
    "box_scores": np.float32([[0.9, 0.5, 0.0]]),
}


def refused(precision, **changes):
    with pytest.raises(UserError) as error:
        compare(EXPECTED | changes, EXPECTED, precision, "the file")
    return str(error.value)


def test_equal_outputs_pass():
    assert compare(EXPECTED, EXPECTED, "float32", "").startswith("it finds 100% of")


def test_the_order_does_not_matter_to_the_boxes():
    swapped = {"boxes": BOXES[:, [1, 0, 2]], "classes": np.int32([[2, 1, 0]])}
    assert "100%" in compare(EXPECTED | swapped, EXPECTED, "float32", "")


def test_finding_nothing_is_refused():
    empty = {"num_detections": np.int32([0]), "boxes": 0 * BOXES, "classes": np.int32([[0, 0, 0]])}
    assert "finds nothing where TensorFlow finds something" in refused("int8", **empty)


def test_boxes_elsewhere_are_refused_at_any_precision():
    assert "finds only 0% of the boxes" in refused("int8", boxes=BOXES + 50)
    assert "finds only 50% of the boxes" in refused("float16", classes=np.int32([[1, 1, 0]]))


def test_scores_are_refused_where_weights_are_whole():
    scores = {"box_scores": EXPECTED["box_scores"] + np.float32(0.05)}
    assert "scores that differ from TensorFlow's by 0.05" in refused("float32", **scores)
    assert "at most 0.05" in compare(EXPECTED | scores, EXPECTED, "int8", "")


def test_a_missing_output_is_named():
    outputs = {name: value for name, value in EXPECTED.items() if name != "box_scores"}
    with pytest.raises(UserError, match="the file lacks the outputs box_scores"):
        compare(outputs, EXPECTED, "int8", "the file")
