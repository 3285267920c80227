"""Labels of training records become the network's."""

import numpy as np
import tensorflow as tf

from trainer.relabelling import relabel


def input_fn(mode, params, context=None, start_step=0):
    features = {"image_id": np.array([start_step])}
    labels = {"gt_classes": np.array([[2, 1, 3, 0]], np.int32), "gt_areas": np.ones([1, 4])}
    return tf.data.Dataset.from_tensors((features, labels) if mode == "train" else features)


def test_labels_are_renumbered_in_training_alone():
    relabelled = relabel(input_fn, {1: 5, 2: 1, 3: 2})
    ((features, labels),) = relabelled("train", None, None, 7)
    assert labels["gt_classes"].numpy().tolist() == [[1, 5, 2, 0]]
    assert labels["gt_classes"].dtype == tf.int32
    assert labels["gt_areas"].shape == (1, 4)
    assert features["image_id"].numpy() == [7]
    (features,) = relabelled("eval", None)
    assert set(features) == {"image_id"}


def test_equal_labels_leave_the_input_alone():
    assert relabel(input_fn, {}) is input_fn
