"""Keras' own ResNet-50, saved as its published weights are, computes the same after import."""

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf
from keras.src.legacy.saving import legacy_h5_format

from data.config import DataConfig
from model.config import ModelConfig
from model.importers.tensor_files import read_tensors
from model.importers.translate import recognise, translate
from model.systems import build_network
from model.variables import named_variables
from trainer.config import Params


@pytest.fixture(scope="module")
def keras_network():
    """Random weights, the batch norms' too, so that nothing can be mistaken for something else."""
    keras.utils.set_random_seed(3)
    network = keras.applications.ResNet50(weights=None, include_top=False, input_shape=(64, 64, 3))
    rng = np.random.default_rng(0)
    for variable in network.variables:
        if variable.path.endswith(("gamma", "moving_variance")):
            variable.assign(rng.uniform(0.5, 1.5, variable.shape))
        elif variable.path.endswith(("beta", "moving_mean", "bias")):
            variable.assign(0.1 * rng.standard_normal(variable.shape))
    return network


def test_features_are_keras(keras_network, tmp_path):
    path = tmp_path / "resnet50_notop.h5"
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, keras_network)
    tensors = read_tensors(str(path))
    config = ModelConfig(norm="frozen_bn", num_classes=2, resnet_stride_in_1x1=True)
    network = build_network(Params(model=config, data=DataConfig()))
    variables = named_variables(network)
    shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    family = recognise(tensors, stride_in_1x1=True)
    assert family.name == "Keras ResNet"
    result = translate(tensors, family, shapes)
    assert result.complete and len(result.values) == 53 * 5
    for name, value in result.values.items():
        variables[name].assign(value)

    bgr = np.random.default_rng(1).standard_normal((1, 64, 64, 3)).astype(np.float32)
    outputs = [f"conv{stage}_block{block}_out" for stage, block in ((2, 3), (3, 4), (4, 6), (5, 3))]
    features = keras.Model(
        keras_network.input, [keras_network.get_layer(name).output for name in outputs]
    )
    for ours, theirs in zip(
        network.backbone(tf.constant(bgr[..., ::-1])), features(bgr), strict=True
    ):
        scale = float(tf.reduce_max(tf.abs(theirs)))
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale)
