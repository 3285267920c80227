"""The model function: modes and what each of them returns."""

import numpy as np
import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_labels, toy_params

from model.detector import Detector
from model.model_fn import EVAL, PREDICT, TRAIN, model_fn

PARAMS = toy_params(norm="frozen_bn", score_threshold=0.0)


@pytest.fixture(scope="module")
def network():
    return model_fn(toy_features(), None, PREDICT, PARAMS).network


def test_training_returns_losses(network):
    spec = model_fn(toy_features(), toy_labels(), TRAIN, PARAMS, network)
    assert spec.mode == TRAIN and spec.network is network
    assert spec.predictions is None
    assert spec.loss.shape == () and spec.loss.dtype == tf.float32
    assert float(spec.loss) == pytest.approx(sum(float(x) for x in spec.losses.values()), rel=1e-5)
    assert set(spec.metrics) == {"num_positive_rois"}


@pytest.mark.parametrize("mode", [EVAL, PREDICT])
def test_other_modes_return_predictions(network, mode):
    features = toy_features()
    spec = model_fn(features, None, mode, PARAMS, network)
    assert spec.mode == mode and spec.loss is None
    assert spec.losses == {} and spec.metrics == {}
    assert set(spec.predictions) == {
        "image_id",
        "image_info",
        "num_detections",
        "detection_boxes",
        "detection_classes",
        "box_scores",
        "mask_ious",
        "mask_scores",
        "detection_masks",
    }
    np.testing.assert_array_equal(spec.predictions["image_id"], [10, 11])
    np.testing.assert_array_equal(spec.predictions["image_info"], features["image_info"])


def test_builds_the_network_when_there_is_none(network):
    assert isinstance(network, Detector)
    again = model_fn(toy_features(), None, PREDICT, PARAMS).network
    assert again is not network
    for a, b in zip(network.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)


def test_unknown_mode_is_refused(network):
    with pytest.raises(ValueError, match="mode=trian: expected train, eval or predict"):
        model_fn(toy_features(), None, "trian", PARAMS, network)


def test_runs_in_a_graph_and_updates_nothing(network):
    before = [variable.numpy() for variable in network.variables]

    @tf.function
    def step(features, labels):
        return model_fn(features, labels, TRAIN, PARAMS, network).loss

    eager = model_fn(toy_features(), toy_labels(), TRAIN, PARAMS, network).loss
    assert float(step(toy_features(), toy_labels())) == pytest.approx(float(eager), rel=1e-4)
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)
