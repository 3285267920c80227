"""Elementwise losses, and losses of several replicas."""

import pathlib
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from model.losses import global_sum, num_replicas, smooth_l1


def test_smooth_l1_by_hand():
    error = tf.constant([-3.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0])
    np.testing.assert_allclose(smooth_l1(error, 1.0), [2.5, 0.5, 0.125, 0, 0.125, 0.5, 1.5])
    np.testing.assert_allclose(smooth_l1(error, 0.0), [3, 1, 0.5, 0, 0.5, 1, 2])
    # 0.5 x² / 2 up to 2, |x| - 1 beyond
    np.testing.assert_allclose(smooth_l1(error, 2.0), [2, 0.25, 0.0625, 0, 0.0625, 0.25, 1])


@pytest.mark.parametrize("beta", [1 / 9, 0.5, 1.0])
def test_smooth_l1_gradient_is_clipped_error(beta):
    error = tf.linspace(-2.0, 2.0, 41)
    with tf.GradientTape() as tape:
        tape.watch(error)
        loss = tf.reduce_sum(smooth_l1(error, beta))
    expected = np.clip(error / beta, -1.0, 1.0)
    np.testing.assert_allclose(tape.gradient(loss, error), expected, atol=1e-5)


def test_plain_l1_has_no_gradient_where_there_is_no_error():
    error = tf.constant([-1.0, 0.0, 1.0])
    with tf.GradientTape() as tape:
        tape.watch(error)
        loss = tf.reduce_sum(smooth_l1(error, 0.0))
    np.testing.assert_array_equal(tape.gradient(loss, error), [-1, 0, 1])


def test_one_replica_counts_for_itself():
    assert num_replicas() == 1
    count = global_sum(tf.constant(7))
    assert count.dtype == tf.float32
    assert float(count) == 7.0
    x = tf.constant(2.0)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = global_sum(x) * 1.0
    assert tape.gradient(loss, x) is None


TWO_REPLICAS = """
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

from model.box_head import BoxOutputs, box_losses
from model.mask_head import mask_loss
from model.maskiou_head import maskiou_loss
from model.roi_sampling import SampledRoIs
from model.proposals import RPNOutputs
from model.rpn import rpn_losses

rng = np.random.default_rng(0)
f = lambda *shape: tf.constant(rng.normal(size=shape), tf.float32)
B, R, K, A, S = 2, 6, 3, 20, 5
corner = rng.uniform(0, 20, (B, R, 2))
boxes = np.concatenate([corner, corner + rng.uniform(5, 30, (B, R, 2))], -1)
boxes = tf.constant(boxes, tf.float32)
inputs = dict(
    logits=f(B, A), deltas=f(B, A, 4), class_logits=f(B, R, K), box_deltas=f(B, R, K, 4),
    rpn_indices=tf.constant(rng.integers(0, A, (B, S)), tf.int32),
    rpn_labels=tf.constant([[1, 1, 0, 0, 0], [1, 0, -1, -1, -1]]), rpn_deltas=f(B, S, 4),
    boxes=boxes, gt_boxes=boxes[:, :3] + 1.0,
    classes=tf.constant([[1, 2, 2, 0, 0, 0], [1, 0, 0, 0, 0, 0]]),
    matches=tf.constant(rng.integers(0, 3, (B, R)), tf.int32),
    valid=tf.constant([[True] * 6, [True] * 3 + [False] * 3]),
    mask_logits=f(B, R, 4, 4), mask_targets=tf.cast(f(B, R, 4, 4) > 0, tf.float32),
    maskiou_pred=f(B, R), maskiou_targets=tf.sigmoid(f(B, R)),
)

def losses(x):
    flat = lambda name: tf.reshape(x[name], [-1, *x[name].shape[2:]])
    rois = SampledRoIs(x["boxes"], x["classes"], x["matches"], x["valid"])
    found = rpn_losses(RPNOutputs(x["logits"], x["deltas"]), x, 0.0)
    sampled = rpn_losses(RPNOutputs(x["logits"], x["deltas"]), x, 0.0, "sampled")
    found |= {f"sampled_{name}": loss for name, loss in sampled.items()}
    outputs = BoxOutputs(flat("class_logits"), flat("box_deltas"))
    found |= box_losses(outputs, rois, x["gt_boxes"], 1.0)
    positive = tf.reshape(rois.positive, [-1])
    found["mask"] = mask_loss(flat("mask_logits"), flat("mask_targets"), positive)
    found["maskiou"] = maskiou_loss(flat("maskiou_pred"), flat("maskiou_targets"), positive)
    return found

whole = losses(inputs)
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
pick = lambda context: {
    key: value[context.replica_id_in_sync_group :][:1] for key, value in inputs.items()
}
shards = strategy.experimental_distribute_values_from_function(pick)
shares = tf.function(lambda: strategy.run(losses, args=(shards,)))()
for name, expected in whole.items():
    parts = [float(part) for part in strategy.experimental_local_results(shares[name])]
    assert len(parts) == 2 and parts[0] != parts[1] and float(expected) > 0, name
    assert abs(sum(parts) - float(expected)) < 1e-5 * float(expected), (name, parts, expected)
print("equal:", *sorted(whole))
"""


def test_losses_of_two_replicas_add_up_to_that_of_the_whole_batch():
    root = pathlib.Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", TWO_REPLICAS], cwd=root, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr[-2000:]
    names = (
        "box_loss class_loss mask maskiou rpn_box_loss rpn_objectness_loss "
        "sampled_rpn_box_loss sampled_rpn_objectness_loss"
    )
    assert result.stdout.split() == ["equal:", *names.split()]
