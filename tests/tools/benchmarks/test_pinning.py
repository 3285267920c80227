"""A network whose work is pinned does all that it may."""

import dataclasses
import pathlib
import sys
import types

import numpy as np
import pytest
import tensorflow as tf

from data import boxes as box_ops
from model.proposals import Proposals
from model.roi_sampling import sample_rois
from model.systems import build_network
from tools.benchmarks.pinning import pin_positives, spread_logits
from tools.benchmarks.synthetic import draw_features
from trainer.config import Params

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "trainer"))
from small_model import DATA, MODEL  # noqa: E402


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


def test_spread_logits_have_the_deviation_and_the_objects_that_they_should():
    # 3 classes have scores of about a third without it, above every threshold; 40 have not.
    model = dataclasses.replace(MODEL, num_classes=40, score_threshold=0.05)
    network, features = build_network(Params(data=DATA, model=model)), draw_features(64)
    assert int(network.detect(features)["num_detections"][0]) == 0
    classify = network.box_head.call
    spread_logits(network, features)
    assert network.box_head.call == classify
    assert int(network.detect(features)["num_detections"][0]) == model.detections_per_image
    logits = []
    network.box_head.call = lambda pooled: logits.append(classify(pooled)) or logits[0]
    network.detect(features)
    assert np.std(logits[0].class_logits) == pytest.approx(3.0, rel=1e-4)
