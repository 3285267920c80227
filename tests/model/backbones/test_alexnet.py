"""AlexNet and torchvision's variant of it."""

import numpy as np
import pytest
import tensorflow as tf

from model.backbones import Options, make_backbone, make_trunk
from model.backbones.alexnet import AlexNet, normalise_responses


def rng(seed=0):
    return np.random.default_rng(seed)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Of Caffe's AlexNet and of torchvision's, with the last layer of 4096 * 1000 + 1000.
    [("alexnet", 60_965_224), ("alexnet_torchvision", 61_100_840)],
)
def test_size_is_the_published_one(name, parameters):
    backbone = make_backbone(rng(), name, Options("none"))
    trunk = make_trunk(rng(), name, Options("none"))
    assert count(backbone.variables) + count(trunk.variables) == parameters - 4_097_000


@pytest.mark.parametrize("name", ["alexnet", "alexnet_torchvision"])
def test_a_crop_of_227_pixels_has_the_published_maps(name):
    network = AlexNet(rng(), name, width=8, norm="none")
    maps = network(tf.zeros([1, 227, 227, 3]))
    assert [level.shape[1] for level in maps] == [55, 27, 13, 6]


@pytest.mark.parametrize("name", ["alexnet", "alexnet_torchvision"])
def test_canvases_have_whole_strides(name):
    network = AlexNet(rng(), name, width=8, norm="none")
    for static in (False, True):
        maps = network(tf.zeros([1, 224, 320, 3]), static=static)
        assert [level.shape[1:3] for level in maps] == [(56, 80), (28, 40), (14, 20), (7, 10)]


def test_responses_by_hand():
    x = tf.constant([[[[3.0, 0.0, 40.0, 0.0, 50.0, 100.0]]]])
    squares = [3**2 + 40**2] * 2 + [3**2 + 40**2 + 50**2, 40**2 + 50**2 + 100**2]
    squares += [40**2 + 50**2 + 100**2, 50**2 + 100**2]
    expected = np.array(x)[0, 0, 0] / (2 + 1e-4 * np.array(squares)) ** 0.75
    np.testing.assert_allclose(normalise_responses(x)[0, 0, 0], expected, rtol=1e-5)


def test_a_norm_takes_the_place_of_response_normalisation():
    x = tf.constant(rng(1).normal(size=(1, 32, 32, 3)), tf.float32)
    for norm, expected in (("none", True), ("gn", False)):
        network = AlexNet(rng(), "alexnet", width=8, norm=norm)
        with_responses = network(x)[0]
        network.normalises_responses = False
        assert np.any(with_responses != network(x)[0]) == expected


@pytest.mark.parametrize("freeze_at", range(6))
def test_convolutions_freeze_one_by_one(freeze_at):
    network = AlexNet(rng(), "alexnet", width=8, norm="none", freeze_at=freeze_at)
    assert len(network.trainable_variables) == 2 * (5 - freeze_at)
