"""The cascade of box heads: what each stage learns from, and what is detected."""

import numpy as np
import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_labels, toy_params

from data import boxes as box_ops
from model.box_head import BoxOutputs, box_losses
from model.roi_sampling import SampledRoIs, label_rois
from model.systems import build_network

SYSTEM = "cascade_mask_scoring_rcnn"


@pytest.fixture(scope="module")
def network():
    return build_network(toy_params(system=SYSTEM, score_threshold=0.0))


def test_rois_are_labelled_again_by_hand():
    boxes = tf.constant(
        [[[0, 0, 10, 10], [0, 0, 10, 5], [20, 20, 30, 30], [5, 5, 5, 9]]], tf.float32
    )
    gt_boxes = tf.constant([[[0, 0, 10, 10], [21, 20, 31, 30], [0, 0, 0, 0]]], tf.float32)
    gt_classes = tf.constant([[3, 2, 0]])
    valid = tf.constant([[True, True, False, True]])
    found = label_rois(boxes, valid, gt_boxes, gt_classes, 0.6)
    # IoUs 1, 0.5, 9/11 and 0; the third slot is empty, and the last has no area.
    assert found.classes.numpy().tolist() == [[3, 0, 2, 0]]
    assert found.matches.numpy().tolist()[0][:3] == [0, 0, 1]
    assert found.valid.numpy().tolist() == [[True, True, False, False]]
    assert found.positive.numpy().tolist() == [[True, False, False, False]]


def test_deltas_that_do_not_depend_on_the_class():
    boxes = tf.constant([[[10, 10, 30, 30], [40, 40, 50, 60]]], tf.float32)
    gt_boxes = boxes[:, :1] + [1.0, 2.0, 3.0, 4.0]
    rois = SampledRoIs(
        boxes, tf.constant([[2, 0]]), tf.constant([[0, 0]]), tf.constant([[True, True]])
    )
    weights = (20.0, 20.0, 10.0, 10.0)
    deltas = tf.constant([[[0.5, 0.5, 0.5, 0.5]], [[9.0, 9.0, 9.0, 9.0]]])
    losses = box_losses(BoxOutputs(tf.zeros([2, 4]), deltas), rois, gt_boxes, 0.0, weights)
    targets = box_ops.encode(gt_boxes, boxes[:, :1], weights).numpy()
    assert float(losses["box_loss"]) == pytest.approx(np.abs(0.5 - targets).sum() / 2, rel=1e-5)


def test_each_stage_learns_from_the_boxes_of_the_one_before(network):
    features, labels = toy_features(), toy_labels()
    with tf.GradientTape() as tape:
        losses, _ = network.compute_losses(features, labels)
        loss = tf.add_n(list(losses.values()))
    names = {f"{name}_{stage}" for name in ("class_loss", "box_loss") for stage in (1, 2, 3)}
    assert names < losses.keys()
    variables = network.trainable_variables
    for variable, gradient in zip(
        variables, tape.gradient(loss, [v.value for v in variables]), strict=True
    ):
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.path
    # If the first stage moves boxes onto their objects, the later ones have more positives.
    head = network.box_head
    view, _, proposals = network.propose(features, training=True)
    rois = network.sampler(
        proposals, labels["gt_boxes"], labels["gt_classes"], labels["sample_seeds"]
    )
    perfect = box_ops.encode(
        tf.gather(labels["gt_boxes"], rois.matches, batch_dims=1),
        rois.boxes,
        (10.0, 10.0, 5.0, 5.0),
    )
    seen = []
    originals = [stage.classify for stage in head.stages]
    try:
        for number, stage in enumerate(head.stages):

            def classify(view, boxes, gradient_share=1.0, number=number):
                seen.append(boxes)
                outputs = originals[number](view, boxes)
                deltas = perfect if number == 0 else tf.zeros_like(perfect)
                return outputs._replace(box_deltas=tf.reshape(deltas, [-1, 1, 4]))

            stage.classify = classify
        head.compute_losses(view, rois, labels)
    finally:
        for stage, original in zip(head.stages, originals, strict=True):
            stage.classify = original
    np.testing.assert_array_equal(seen[0], rois.boxes)
    positive = rois.positive.numpy()
    targets = tf.gather(labels["gt_boxes"], rois.matches, batch_dims=1).numpy()
    np.testing.assert_allclose(seen[1].numpy()[positive], targets[positive], atol=0.01)
    np.testing.assert_allclose(seen[2], seen[1], atol=1e-3)


def test_the_gradient_to_the_map_is_shared(network):
    features = toy_features()
    view, _, proposals = network.propose(features, training=True)
    stage = network.box_head.stages[0]

    def gradient(share):
        with tf.GradientTape() as tape:
            tape.watch(view.maps)
            outputs = stage.classify(view, proposals.boxes, gradient_share=share)
            loss = tf.reduce_sum(outputs.class_logits)
        return tape.gradient(loss, [view.maps[0], stage.classes.kernel.value])

    whole, part = gradient(1.0), gradient(0.25)
    np.testing.assert_allclose(part[0], 0.25 * whole[0], rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(part[1], whole[1], rtol=1e-4, atol=1e-6)


def test_scores_are_the_mean_of_the_stages_and_boxes_those_of_the_last(network):
    head = network.box_head
    view, _, proposals = network.propose(toy_features(), training=False)
    boxes, probabilities = proposals.boxes, []
    for stage in head.stages:
        outputs = stage.classify(view, boxes)
        probabilities.append(tf.nn.softmax(outputs.class_logits))
        deltas = tf.reshape(outputs.box_deltas, boxes.shape)
        boxes = box_ops.decode(deltas, boxes, stage.delta_weights)
        boxes = box_ops.clip(boxes, view.image_info[:, None, 0], view.image_info[:, None, 1])
    candidates = head.find_candidates(view, proposals)
    valid = proposals.valid.numpy() & (box_ops.area(boxes).numpy() > 0)
    mean = np.mean(probabilities, axis=0).reshape(*valid.shape, -1)[:, :, 1:]
    np.testing.assert_allclose(candidates.scores, mean * valid[..., None], atol=1e-6)
    for label in range(mean.shape[2]):
        np.testing.assert_allclose(candidates.boxes[:, :, label], boxes, atol=1e-4)


def test_static_shapes_detect_the_same(network):
    found = network.detect(toy_features())
    compiled = tf.function(lambda: network.detect(toy_features(), static=True), jit_compile=True)()
    assert (found["num_detections"].numpy() > 0).all()
    for key, value in found.items():
        np.testing.assert_allclose(compiled[key], value, atol=1e-3)
