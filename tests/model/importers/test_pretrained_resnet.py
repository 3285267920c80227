"""A real ImageNet ResNet-18, some of whose kernels are lost, and what PyTorch computed with it."""

import numpy as np
import pytest
import tensorflow as tf

from data.config import DataConfig
from model.backbones.resnet import pool_stem
from model.config import ModelConfig
from model.importers.tensor_files import read_tensors
from model.importers.translate import recognise, translate
from model.systems import build_network
from model.variables import named_variables
from trainer.config import Params


@pytest.fixture(scope="module")
def folder(shared_data):
    return shared_data / "weights" / "resnet18_imagenet_partial"


def test_features_are_pytorch_s(folder):
    tensors = read_tensors(str(folder / "resnet18_imagenet_bnfolded_partial.npz"))
    config = ModelConfig(backbone="resnet18", norm="frozen_bn", num_classes=2)
    network = build_network(Params(model=config, data=DataConfig()))
    variables = named_variables(network)
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    result = translate(tensors, recognise(tensors, stride_in_1x1=False), shapes)
    assert not result.unexpected
    kernels = [path for path in result.missing if path.endswith("kernel")]
    lost = [(0, "conv1"), (0, "conv2"), (1, "conv1"), (1, "conv2")]
    assert sorted(kernels) == [f"backbone/stages/3/{b}/{conv}/conv/kernel" for b, conv in lost]
    assert {path.rpartition("/")[0] for path in result.missing if path not in kernels} == {
        f"backbone/stages/3/{block}/{conv}/norm" for block, conv in lost
    }
    for path, value in result.values.items():
        variables[path].assign(value)

    golden = np.load(folder / "golden_features_nhwc.npz")
    backbone = network.backbone
    x = tf.nn.relu(backbone.stem(tf.constant(golden["input"])))
    np.testing.assert_allclose(x, golden["stem_relu"], atol=1e-4)
    np.testing.assert_allclose(pool_stem(x), golden["pool"], atol=1e-4)
    stages = backbone(tf.constant(golden["input"]))
    for stage, name in zip(stages, ("layer1", "layer2", "layer3"), strict=False):
        np.testing.assert_allclose(stage, golden[name], atol=1e-4)
