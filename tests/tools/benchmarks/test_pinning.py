"""A network whose work is pinned does all that it may."""

import types

import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from model.proposals import Proposals
from model.roi_sampling import sample_rois
from tools.benchmarks.pinning import pin_positives


def test_pinned_proposals_give_all_positives_there_may_be():
    gt_boxes = np.zeros([2, 5, 4], np.float32)
    gt_boxes[:, :3] = [[10, 10, 60, 50], [70, 20, 120, 90], [5, 80, 65, 125]]
    far = np.tile(np.float32([[[0, 0, 4, 4]]]), [2, 300, 1])
    proposals = Proposals(tf.constant(far), tf.zeros([2, 300]), tf.ones([2, 300], tf.bool))
    network = types.SimpleNamespace(propose=lambda: ([], None, proposals))
    pin_positives(network, gt_boxes)
    pinned = network.propose()[2]
    assert pinned.boxes.shape == (2, 300, 4)
    overlaps = box_ops.pairwise_iou(pinned.boxes[0, :200], tf.constant(gt_boxes[0, :3]))
    assert float(tf.reduce_min(tf.reduce_max(overlaps, axis=1))) > 0.7
    rois = sample_rois(
        pinned,
        tf.constant(gt_boxes),
        tf.constant([[1, 2, 3, 0, 0]] * 2),
        tf.zeros([2, 2], tf.int32),
        num_rois=256,
        positive_fraction=0.25,
        positive_iou=0.5,
    )
    assert np.count_nonzero(rois.positive, axis=1).tolist() == [64, 64]
