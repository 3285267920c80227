"""R-CNN's head: softmax before, SVMs and box regressions after they are fitted."""

import numpy as np
import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_labels, toy_params, toy_proposals

from model.systems import build_network


@pytest.fixture(scope="module")
def network():
    return build_network(
        toy_params(
            system="rcnn",
            backbone_width=8,
            score_threshold=0.0,
            rois_per_image=8,
            nms_iou=0.9,
            detections_per_image=30,
        )  # fmt: skip
    )


@pytest.fixture(scope="module")
def features():
    return toy_features(batch=1) | toy_proposals(toy_labels(batch=1))


def test_only_softmax_and_the_backbone_are_trained(network):
    labels = toy_labels()
    both = toy_features() | toy_proposals(labels)
    with tf.GradientTape() as tape:
        losses, _ = network.compute_losses(both, labels)
    assert losses.keys() == {"class_loss"}
    variables = network.trainable_variables
    gradients = tape.gradient(losses["class_loss"], [v.value for v in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None and np.isfinite(gradient).all(), variable.path
    head = network.box_head
    fixed = {id(v) for layer in (head.svms, head.regressions, head.fitted) for v in layer.variables}
    assert not fixed & {id(v) for v in variables}


def test_before_the_fit_boxes_are_the_proposals(network, features):
    found = network.detect(features)
    count = int(found["num_detections"][0])
    proposals = {tuple(box) for box in features["proposals"][0].numpy().round(3).tolist()}
    height, width = features["image_info"][0][:2].numpy()
    for box in found["detection_boxes"][0][:count].numpy():
        assert any(
            np.allclose(box, np.clip(p, 0, [height, width] * 2), atol=1e-2) for p in proposals
        )
    assert (found["box_scores"].numpy() <= 1).all() and count > 0


def test_after_the_fit_scores_and_boxes_are_the_fitted_ones(network, features):
    head = network.box_head
    saved = [variable.numpy() for variable in head.variables]
    try:
        view, _, proposals = network.propose(features, training=False)
        vectors, pooled = head.compute_features(view, proposals.boxes)
        kernel = np.zeros(head.svms.kernel.shape, np.float32)
        kernel[3, 1] = 2.0  # only class 2, by one feature
        head.svms.kernel.assign(kernel)
        head.svms.bias.assign([-50.0, -0.5, -50.0])
        bias = np.zeros(head.regressions.bias.shape, np.float32)
        bias[4:8] = [0.1, 0.0, 0.0, np.log(0.5)]
        head.regressions.bias.assign(bias)
        head.fitted.steps.assign(7.0)
        found = network.detect(features)
        scores = 1 / (1 + np.exp(0.5 - 2.0 * vectors.numpy()[:5, 3]))
        order = np.argsort(-scores, kind="stable")
        boxes = features["proposals"][0].numpy()[:5][order]
        height, width = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
        y = (boxes[:, 0] + boxes[:, 2]) / 2 + 0.1 * height
        x = (boxes[:, 1] + boxes[:, 3]) / 2
        expected = np.stack([y - height / 2, x - width / 4, y + height / 2, x + width / 4], 1)
        classes = found["detection_classes"][0].numpy()
        mine = found["detection_boxes"][0].numpy()[classes == 2]
        np.testing.assert_allclose(
            found["box_scores"][0].numpy()[classes == 2], scores[order], atol=1e-5
        )
        limits = features["image_info"][0][:2].numpy()
        np.testing.assert_allclose(mine, np.clip(expected, 0, np.tile(limits, 2)), atol=1e-3)
    finally:
        for variable, value in zip(head.variables, saved, strict=True):
            variable.assign(value)
