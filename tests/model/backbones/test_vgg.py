"""VGG-16."""

import numpy as np
import pytest

from model.backbones import Options, make_backbone, make_trunk
from model.backbones.vgg import VGG


def rng(seed=0):
    return np.random.default_rng(seed)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


def test_size_is_the_published_one():
    # Table 2 has 138 M parameters; torchvision has 138,357,544, of which the last layer has
    # 4096 * 1000 + 1000.
    options = Options("none")
    backbone = make_backbone(rng(), "vgg16", options)
    trunk = make_trunk(rng(), "vgg16", options)
    assert count(backbone.variables) + count(trunk.variables) == 138_357_544 - 4_097_000


def test_norms_replace_biases():
    names = {variable.name for variable in VGG(rng(), width=8, norm="none").variables}
    assert names == {"kernel", "bias"}
    names = {variable.name for variable in VGG(rng(), width=8, norm="gn").variables}
    assert names == {"kernel", "gamma", "beta"}


@pytest.mark.parametrize(("freeze_at", "frozen"), [(0, 0), (1, 2), (2, 4), (3, 7), (5, 13)])
def test_convolutions_freeze_by_groups(freeze_at, frozen):
    network = VGG(rng(), width=8, norm="none", freeze_at=freeze_at)
    assert len(network.trainable_variables) == 2 * (13 - frozen)
