"""Torchvision's AlexNet, VGG-16 and ResNeXt-50 compute the same here, with weights at random.

`fixtures/torchvision_classifiers.json` has the names and shapes of their state_dict() in
torchvision 0.29.1, with the channels of AlexNet and VGG divided by 8 and for 10 classes. The .npz
beside it has what they computed in eval mode from the tensors and pixels of
`classifier_tensors.py`: some channels of the maps that C2 … C5 are here, and the outputs of fc7's
ReLU.
"""

import dataclasses
import json

import numpy as np
import pytest
import tensorflow as tf
from classifier_tensors import draw_pixels, draw_tensors

from model.backbones import Options, make_backbone, make_trunk
from model.importers import families
from model.importers.translate import recognise, translate
from model.variables import named_variables

# Name here, options, family, side of the image, step between the stored channels.
CASES = {
    "alexnet": (
        "alexnet_torchvision",
        Options("none", width=8),
        families.TORCHVISION_ALEXNET,
        227,
        8,
    ),
    "vgg16": ("vgg16", Options("none", width=8), families.TORCHVISION_VGG16, 224, 8),
    "vgg16_bn": ("vgg16", Options("frozen_bn", width=8), families.TORCHVISION_VGG16_BN, 224, 8),
    "resnext50_32x4d": (
        "resnext50_32x4d",
        Options("frozen_bn"),
        families.TORCHVISION_RESNET,
        64,
        32,
    ),
}


@pytest.fixture(scope="module")
def fixtures(repository):
    return repository / "tests" / "fixtures"


@pytest.fixture(scope="module")
def tensors_of(fixtures):
    shapes = json.loads((fixtures / "torchvision_classifiers.json").read_text())
    return lambda name: draw_tensors(shapes[name])


def make_parts(name, options, has_trunk=True):
    parts = {"backbone": make_backbone(np.random.default_rng(0), name, options)}
    if has_trunk:
        parts["box_head/trunk"] = make_trunk(np.random.default_rng(0), name, options)
    return parts


def variables_of(parts):
    return {
        f"{prefix}/{path}": variable
        for prefix, part in parts.items()
        for path, variable in named_variables(part).items()
    }


def load(parts, tensors, family):
    variables = variables_of(parts)
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    result = translate(tensors, family, shapes)
    for path, value in result.values.items():
        variables[path].assign(value)
    return result


@pytest.mark.parametrize("case", CASES)
def test_features_are_torchvision_s(case, tensors_of, fixtures):
    name, options, family, side, step = CASES[case]
    tensors = tensors_of(case)
    assert recognise(tensors, stride_in_1x1=False) is family
    has_fcs = "resnext" not in case
    parts = make_parts(name, options, has_fcs)
    result = load(parts, tensors, family)
    assert result.complete and not result.initial
    last_layer = {key for key in tensors if key.startswith(("fc.", "classifier.6."))}
    assert {key for key in result.skipped if "num_batches" not in key} == last_layer
    expected = np.load(fixtures / "torchvision_classifiers.npz")
    maps = parts["backbone"](tf.constant(draw_pixels(side, side)))
    for level, ours in enumerate(maps, start=2):
        if f"{case}/c{level}" in expected:
            theirs = expected[f"{case}/c{level}"]
            np.testing.assert_allclose(ours[0, :, :, ::step], theirs, rtol=1e-3, atol=1e-3)
    if has_fcs:
        vectors = parts["box_head/trunk"](maps[-1])
        np.testing.assert_allclose(vectors[0], expected[f"{case}/fc7"], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("case", ["alexnet", "vgg16"])
def test_without_a_trunk_the_fully_connected_layers_are_left_out(case, tensors_of):
    name, options, family, *_ = CASES[case]
    tensors = tensors_of(case)
    result = load(make_parts(name, options, has_trunk=False), tensors, family)
    assert result.complete
    assert set(result.skipped) == {key for key in tensors if key.startswith("classifier.")}


def test_res5_goes_to_the_trunk_of_a_network_that_ends_with_c4(tensors_of):
    tensors = tensors_of("resnext50_32x4d")
    options = Options("frozen_bn", last_stage=4)
    parts = make_parts("resnext50_32x4d", options)
    result = load(parts, tensors, families.TORCHVISION_RESNET)
    assert result.complete and not result.initial
    np.testing.assert_array_equal(
        parts["box_head/trunk"].blocks[2].conv2.conv.kernel,
        tensors["layer4.2.conv2.weight"].transpose(2, 3, 1, 0),
    )


def test_mmdetection_s_resnexts_have_the_same_names(tensors_of):
    tensors = {
        f"backbone.{key}": value
        for key, value in tensors_of("resnext50_32x4d").items()
        if not key.startswith("fc.")
    }
    parts = make_parts("resnext50_32x4d", Options("frozen_bn"), has_trunk=False)
    assert load(parts, tensors, families.MMDETECTION).complete


@pytest.mark.parametrize("case", ["alexnet", "vgg16"])
def test_the_colours_of_bgr_weights_are_swapped(case, tensors_of):
    name, options, family, *_ = CASES[case]
    parts = make_parts(name, options, has_trunk=False)
    tensors = tensors_of(case)
    load(parts, tensors, dataclasses.replace(family, channel_order="bgr"))
    first = parts["backbone"].convs[0] if case == "alexnet" else parts["backbone"].groups[0][0]
    np.testing.assert_array_equal(
        first.conv.kernel, tensors["features.0.weight"].transpose(2, 3, 1, 0)[:, :, ::-1]
    )
