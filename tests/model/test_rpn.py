"""Region proposal network: the order of its outputs and its losses."""

import math

import numpy as np
import pytest
import tensorflow as tf

from data.anchors import AnchorGrid
from model.proposals import RPNOutputs
from model.rpn import RPNHead, rpn_losses


def rng(seed=0):
    return np.random.default_rng(seed)


def make_head(channels, **settings):
    """With three anchors a cell; these tests propose nothing, so it has no grid."""
    return RPNHead(rng(), channels, None, 3, **settings)


def test_outputs_follow_level_row_column_and_ratio():
    head = make_head(1)
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1.0
    head.convs[0].kernel.assign(centre)
    head.objectness.kernel.assign(np.ones((1, 1, 1, 3), np.float32))
    head.objectness.bias.assign([0.0, 0.1, 0.2])
    head.deltas.kernel.assign(np.ones((1, 1, 1, 12), np.float32))
    head.deltas.bias.assign(np.arange(12, dtype=np.float32) / 100)
    fine = tf.constant([[1.0, 2.0], [3.0, 4.0]])[None, :, :, None]
    coarse = tf.constant([[5.0]])[None, :, :, None]

    outputs = head([fine, coarse])
    cell = np.repeat([1.0, 2, 3, 4, 5], 3)
    ratio = np.tile([0, 1, 2], 5)
    np.testing.assert_allclose(outputs.logits[0], cell + ratio / 10, rtol=1e-6)
    expected = cell[:, None] + ratio[:, None] * 0.04 + np.arange(4) / 100
    np.testing.assert_allclose(outputs.deltas[0], expected, rtol=1e-6)


def test_one_output_for_every_anchor():
    grid = AnchorGrid(64, 96, 2, 6, (8, 16, 32, 64, 128), (0.5, 1, 2))
    head = make_head(4, dtype="mixed_bfloat16")
    pyramid = [tf.ones([2, *shape, 4], tf.bfloat16) for shape in grid.level_shapes]
    outputs = head(pyramid)
    assert outputs.logits.shape == (2, grid.num_anchors)
    assert outputs.deltas.shape == (2, grid.num_anchors, 4)
    assert outputs.logits.dtype == outputs.deltas.dtype == tf.float32


def test_two_scores_an_anchor_are_background_and_foreground():
    one, two = make_head(2, hidden=4), make_head(2, hidden=4, softmax=True)
    assert two.convs[0].kernel.shape == (3, 3, 2, 4)
    two.convs[0].kernel.assign(one.convs[0].kernel)
    scores = rng().normal(size=(1, 1, 4, 6)).astype(np.float32)
    two.objectness.kernel.assign(scores)
    level = tf.constant(rng(1).normal(size=(1, 3, 3, 2)), tf.float32)
    logits = two([level]).logits.numpy().reshape(9, 3)
    hidden = tf.nn.relu(one.convs[0](level)).numpy().reshape(9, 4)
    background, foreground = np.split(hidden @ scores[0, 0], 2, axis=1)
    # Softmax of the two scores.
    expected = np.exp(foreground) / (np.exp(foreground) + np.exp(background))
    np.testing.assert_allclose(tf.sigmoid(logits), expected, atol=1e-6)


def test_levels_share_their_weights():
    head = make_head(4)
    assert len(head.trainable_variables) == 6
    level = tf.constant(rng().normal(size=(1, 4, 4, 4)), tf.float32)
    logits = head([level, level]).logits
    np.testing.assert_array_equal(logits[:, :48], logits[:, 48:])


def hand_case():
    """Two images, four samples each; anchor 2 of image 0 and anchor 0 of image 1 are positive."""
    logits = tf.constant([[0.0, 1.0, 2.0], [-1.0, 0.5, 3.0]])
    deltas = tf.reshape(tf.range(24, dtype=tf.float32), [2, 3, 4]) / 10
    labels = {
        "rpn_indices": tf.constant([[2, 0, 1, 0], [0, 2, 0, 0]]),
        "rpn_labels": tf.constant([[1, 0, -1, -1], [1, 0, 0, -1]]),
        "rpn_deltas": tf.constant(
            [
                [[0.8, 0.9, 1.5, 1.1], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]],
                [[1.2, 1.3, 1.4, 3.5], [9, 9, 9, 9], [9, 9, 9, 9], [9, 9, 9, 9]],
            ]
        ),
    }
    return RPNOutputs(logits, deltas), labels


def softplus(x):
    return math.log1p(math.exp(x))


def test_losses_by_hand():
    losses = rpn_losses(*hand_case(), 0.0)
    # Positive: softplus(-x), negative: softplus(x); 2 images x 4 samples divide the sum.
    objectness = softplus(-2) + softplus(0) + softplus(1) + softplus(3) + softplus(-1)
    assert float(losses["rpn_objectness_loss"]) == pytest.approx(objectness / 8, rel=1e-5)
    # Errors: (0, 0, -0.5, 0) and (0, 0, 0, -2).
    assert float(losses["rpn_box_loss"]) == pytest.approx((0.5 + 2.0) / 8, rel=1e-5)
    smooth = rpn_losses(*hand_case(), 1.0)
    assert float(smooth["rpn_box_loss"]) == pytest.approx((0.125 + 1.5) / 8, rel=1e-5)
    assert smooth["rpn_objectness_loss"] == losses["rpn_objectness_loss"]


def test_losses_may_be_divided_by_the_sampled_anchors():
    slots, sampled = (rpn_losses(*hand_case(), 0.0, way) for way in ("slots", "sampled"))
    # 2 + 3 of the 8 slots hold an anchor.
    for key, value in slots.items():
        assert float(sampled[key]) == pytest.approx(float(value) * 8 / 5, rel=1e-6)
    outputs, labels = hand_case()
    empty = labels | {"rpn_labels": tf.fill([2, 4], -1)}
    assert all(float(v) == 0.0 for v in rpn_losses(outputs, empty, 0.0, "sampled").values())


def test_padding_and_negatives_have_no_say():
    outputs, labels = hand_case()
    changed = dict(labels)
    negative = (labels["rpn_labels"] != 1).numpy()
    changed["rpn_deltas"] = tf.where(negative[..., None], -77.0, labels["rpn_deltas"])
    padding = (labels["rpn_labels"] == -1).numpy()
    changed["rpn_indices"] = tf.where(padding, 1, labels["rpn_indices"])
    for key, value in rpn_losses(outputs, changed, 0.0).items():
        assert value == rpn_losses(outputs, labels, 0.0)[key]


def test_gradient_reaches_sampled_anchors_only():
    outputs, labels = hand_case()
    labels = {key: value[:1] for key, value in labels.items()}
    logits, deltas = outputs.logits[:1], outputs.deltas[:1]
    with tf.GradientTape() as tape:
        tape.watch([logits, deltas])
        losses = rpn_losses(RPNOutputs(logits, deltas), labels, 0.0)
        loss = tf.add_n(list(losses.values()))
    of_logits, of_deltas = (tf.convert_to_tensor(g) for g in tape.gradient(loss, [logits, deltas]))
    sigmoid_2 = 1 / (1 + math.exp(-2))
    np.testing.assert_allclose(of_logits, [[0.5 / 4, 0, (sigmoid_2 - 1) / 4]], rtol=1e-5)
    np.testing.assert_allclose(of_deltas[0, :2], np.zeros((2, 4)))
    assert float(of_deltas[0, 2, 2]) == pytest.approx(-1 / 4)


def test_repeating_the_batch_leaves_the_loss():
    outputs, labels = hand_case()
    twice = RPNOutputs(*(tf.concat([x, x], 0) for x in outputs))
    labels_twice = {key: tf.concat([x, x], 0) for key, x in labels.items()}
    for key, value in rpn_losses(outputs, labels, 0.0).items():
        assert float(rpn_losses(twice, labels_twice, 0.0)[key]) == pytest.approx(float(value))


def test_all_padding_gives_zero_and_extremes_stay_finite():
    outputs, labels = hand_case()
    padded = labels | {"rpn_labels": tf.fill([2, 4], -1)}
    assert all(float(value) == 0.0 for value in rpn_losses(outputs, padded, 0.0).values())
    extreme = RPNOutputs(outputs.logits * 1e6, outputs.deltas)
    assert all(np.isfinite(value) for value in rpn_losses(extreme, labels, 0.0).values())
