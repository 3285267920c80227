"""Which names in the graph of a network are computed in 8 bits."""

import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_params

from model.quantisation import is_quantised
from model.static import Static
from model.systems import build_network


@pytest.mark.parametrize(
    "name, quantised",
    [
        ("backbone/conv_norm_1/conv_3_1/Conv2D", True),
        ("mask_head_1/conv_norm_7/conv_9/Conv2D;mask_head_1/Relu", True),
        ("backbone/conv_norm_1/group_norm_1/mul", False),
        ("rpn_head_1/outputs/conv_2/Conv2D", False),
        ("maskiou_head/outputs_1/dense/MatMul", False),
        ("proposals/fpn", False),
        ("detections/Softmax;box_head/outputs/dense_2/MatMul", False),
        ("maskiou_head/outputs/dense_6/MatMul;maskiou_head/dense_5/Relu", False),
    ],
)
def test_names(name, quantised):
    assert is_quantised(name) == quantised


def test_convolutions_are_quantised_and_the_choice_of_boxes_is_not():
    network = build_network(toy_params())
    detect = tf.function(
        lambda features: network.detect(features, static=Static.PORTABLE), autograph=False
    )
    graph = detect.get_concrete_function(toy_features(batch=1)).graph
    quantised = {"Conv2D": [], "MatMul": [], "NonMaxSuppressionV4": [], "TopKV2": [], "Exp": []}
    for operation in graph.get_operations():
        if operation.type in quantised:
            quantised[operation.type].append(is_quantised(operation.name))
    # Each level of the pyramid has two outputs of the RPN.
    assert quantised["Conv2D"].count(False) == 2 * 5
    assert quantised["MatMul"].count(False) == 2 + 1  # classes, boxes; MaskIoU
    assert all(quantised["Conv2D"][:20])
    for name in ("NonMaxSuppressionV4", "TopKV2", "Exp"):
        assert quantised[name] and not any(quantised[name]), name
