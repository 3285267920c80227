"""Finding places for tensors: what fits, what is folded, what is refused."""

import dataclasses
import os
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from resnet_tensors import WIDTH, fold_batch_norms, resnet18_tensors

from data.config import DataConfig
from model.config import ModelConfig
from model.importers import families
from model.importers.report import explain_refusal, explain_unusable, itemise, summarise
from model.importers.translate import count_classes, recognise, translate
from model.systems import build_network
from model.variables import named_variables
from trainer.config import Params
from trainer.flags import parse_flags

ROOT = pathlib.Path(__file__).resolve().parents[3]
SMALL = {"backbone_width": WIDTH, "fpn_channels": 8, "head_dim": 8, "num_classes": 3}


def make_network(**settings):
    defaults = {"backbone": "resnet18", "norm": "frozen_bn"}
    return build_network(
        Params(model=ModelConfig(**SMALL, **(defaults | settings)), data=DataConfig())
    )


@pytest.fixture(scope="module")
def network():
    return make_network()


def shapes_of(network):
    return {path: tuple(v.shape) for path, v in named_variables(network).items()}


def load(network, tensors, family):
    result = translate(tensors, family, shapes_of(network))
    variables = named_variables(network)
    for path, value in result.values.items():
        variables[path].assign(value)
    return result


def test_a_backbone_leaves_the_heads_as_initialised(network):
    tensors = resnet18_tensors()
    family = recognise(tensors, stride_in_1x1=False)
    assert family is families.TORCHVISION_RESNET
    result = load(network, tensors, family)
    assert result.complete
    assert set(result.skipped) == {n for n in tensors if n.startswith("fc.") or "num_b" in n}
    assert {path.split("/")[0] for path in result.initial} == {
        "fpn",
        "rpn_head",
        "box_head",
        "mask_head",
        "maskiou_head",
    }
    kernel = named_variables(network)["backbone/stages/2/0/shortcut/conv/kernel"].numpy()
    np.testing.assert_array_equal(
        kernel[0, 0].T, tensors["layer3.0.downsample.0.weight"][..., 0, 0]
    )
    assert count_classes(tensors, family) is None


def test_folded_batch_norms_compute_the_same(network):
    pixels = tf.constant(np.random.default_rng(1).standard_normal((1, 64, 64, 3)), tf.float32)
    tensors = resnet18_tensors()
    assert load(network, tensors, families.TORCHVISION_RESNET).complete
    expected = [stage.numpy() for stage in network.backbone(pixels)]
    result = load(network, fold_batch_norms(tensors), families.TORCHVISION_RESNET)
    assert result.complete
    for ours, theirs in zip(network.backbone(pixels), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-3 * np.abs(theirs).max())


def test_a_folded_bias_without_its_kernel_is_left_out(network):
    tensors = fold_batch_norms(resnet18_tensors())
    del tensors["layer4.0.conv1.weight"]
    result = translate(tensors, families.TORCHVISION_RESNET, shapes_of(network))
    assert result.skipped["layer4.0.conv1.bias"] == "the kernel that it belongs to is missing"
    lost = "backbone/stages/3/0/conv1/"
    assert sorted(result.missing) == sorted(
        [f"{lost}conv/kernel"]
        + [f"{lost}norm/{n}" for n in ("gamma", "beta", "moving_mean", "moving_variance")]
    )
    sentence = explain_refusal(result, "weights.npz")
    assert "no tensors for backbone/stages/3/0/conv1/" in sentence
    assert "--allow_partial" in sentence


@pytest.mark.parametrize("epsilon", [0.0, 1e-3])
def test_another_epsilon_goes_into_the_scale(network, epsilon):
    tensors = resnet18_tensors()
    # In single precision 1e-20 + 1e-5 - 1e-5 is 0.
    tensors["bn1.running_var"][:3] = 1e-20, 1e-30, 3e-6
    family = dataclasses.replace(families.TORCHVISION_RESNET, batch_norm_epsilon=epsilon)
    assert load(network, tensors, family).complete
    scale, _ = network.backbone.stem.norm.affine()
    expected = tensors["bn1.weight"] / np.sqrt(tensors["bn1.running_var"] + epsilon)
    np.testing.assert_allclose(scale, expected, rtol=1e-6)


@pytest.mark.parametrize(
    "name, number, epsilon, reason",
    [
        ("conv1.weight", np.inf, 1e-5, "not finite"),
        ("bn1.weight", np.nan, 1e-5, "not finite"),
        ("bn1.running_var", -2e-5, 1e-5, "its smallest variance is -2e-05"),
        (
            "bn1.running_var",
            0.0,
            0.0,
            "its smallest variance is 0, and the epsilon added to it is 0",
        ),
    ],
)
def test_tensors_that_give_no_numbers_are_named(network, name, number, epsilon, reason):
    tensors = resnet18_tensors()
    tensors[name].flat[1] = number
    family = dataclasses.replace(families.TORCHVISION_RESNET, batch_norm_epsilon=epsilon)
    result = translate(tensors, family, shapes_of(network))
    assert list(result.unusable) == [name] and reason in result.unusable[name]
    assert name in explain_unusable(result, "weights.pth")


def test_tensors_that_are_left_out_may_hold_anything(network):
    tensors = resnet18_tensors()
    tensors["fc.weight"].flat[0] = np.nan
    assert not translate(tensors, families.TORCHVISION_RESNET, shapes_of(network)).unusable


def test_keras_biases_go_into_the_moving_mean(network):
    rng = np.random.default_rng(2)
    stem = {
        "conv1_conv/kernel:0": rng.standard_normal((7, 7, 3, WIDTH)),
        "conv1_conv/bias:0": rng.standard_normal(WIDTH),
        "conv1_bn/gamma:0": rng.uniform(0.5, 1.5, WIDTH),
        "conv1_bn/beta:0": rng.standard_normal(WIDTH),
        "conv1_bn/moving_mean:0": rng.standard_normal(WIDTH),
        "conv1_bn/moving_variance:0": rng.uniform(0.5, 1.5, WIDTH),
    }
    stem = {name: np.float32(value) for name, value in stem.items()}
    load(network, stem, families.KERAS_RESNET)
    bgr = np.float32(rng.standard_normal((1, 32, 32, 3)))
    # Keras: convolution with bias on blue, green, red, then batch norm.
    padded = np.pad(bgr, [[0, 0], [3, 3], [3, 3], [0, 0]])
    y = tf.nn.conv2d(padded, stem["conv1_conv/kernel:0"], 2, "VALID") + stem["conv1_conv/bias:0"]
    y = (y - stem["conv1_bn/moving_mean:0"]) / np.sqrt(
        stem["conv1_bn/moving_variance:0"] + 1.001e-5
    )
    y = y * stem["conv1_bn/gamma:0"] + stem["conv1_bn/beta:0"]
    np.testing.assert_allclose(network.backbone.stem(bgr[..., ::-1]), y, atol=1e-3)


def test_msra_s_scales_and_offsets_are_all_that_its_norms_do(network):
    stem = {
        "conv1_w": np.ones((WIDTH, 3, 7, 7), np.float32),
        "res_conv1_bn_s": np.arange(1, WIDTH + 1, dtype=np.float32),
        "res_conv1_bn_b": np.arange(WIDTH, dtype=np.float32) - 3,
    }
    result = load(network, stem, families.MSRA_RESNET)
    assert not result.unexpected
    scale, offset = network.backbone.stem.norm.affine()
    np.testing.assert_allclose(scale, stem["res_conv1_bn_s"], rtol=1e-6)
    np.testing.assert_allclose(offset, stem["res_conv1_bn_b"], rtol=1e-6)


def test_shapes_that_differ_are_unexpected_and_their_variables_missing(network):
    tensors = resnet18_tensors()
    tensors["layer1.0.conv1.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    tensors["layer1.7.conv1.weight"] = np.zeros((4, 4, 3, 3), np.float32)
    tensors["something.else"] = np.zeros(3, np.float32)
    result = translate(tensors, families.TORCHVISION_RESNET, shapes_of(network))
    path = "backbone/stages/0/0/conv1/conv/kernel"
    assert result.unexpected == {
        "layer1.0.conv1.weight": f"{path} has shape [3, 3, 8, 8] here and [3, 3, 4, 4] in the file",
        "layer1.7.conv1.weight": "no such layer here",
        "something.else": "no such layer here",
    }
    assert result.missing == [path]
    sentence = explain_refusal(result, "f.pth")
    assert (
        "layer1.0.conv1.weight (backbone/stages/0/0/conv1/conv/kernel has shape [3, 3, 8, 8]"
        in sentence
    )


def test_shapes_that_no_such_layer_has_are_unexpected(network):
    tensors = {
        "rpn.head.bbox_pred.bias": np.zeros(15, np.float32),
        "roi_heads.box_predictor.bbox_pred.bias": np.zeros(10, np.float32),
    }
    result = translate(tensors, families.TORCHVISION, shapes_of(network))
    assert result.unexpected == {
        "rpn.head.bbox_pred.bias": "[15] is not a shape of such a layer",
        "roi_heads.box_predictor.bbox_pred.bias": "[10] is not a shape of such a layer",
    }


@pytest.mark.parametrize("order, expected", [("rgb", [0, 1, 2]), ("bgr", [2, 1, 0])])
def test_the_order_of_colours(network, order, expected):
    kernel = np.zeros((WIDTH, 3, 7, 7), np.float32) + np.arange(3).reshape(1, 3, 1, 1)
    family = dataclasses.replace(families.TORCHVISION_RESNET, channel_order=order)
    result = translate({"conv1.weight": kernel}, family, shapes_of(network))
    np.testing.assert_array_equal(result.values["backbone/stem/conv/kernel"][0, 0, :, 0], expected)


def test_a_network_without_its_maskiou_head_gets_advice(network):
    tensors = {path: variable.numpy() for path, variable in named_variables(network).items()}
    tensors = {path: t for path, t in tensors.items() if not path.startswith("maskiou_head/")}
    sentence = explain_refusal(translate(tensors, families.OWN, shapes_of(network)), "f.npz")
    assert "--system=mask_rcnn" in sentence and "--allow_partial" in sentence


def test_batch_norm_does_not_become_group_norm():
    network = make_network(norm="gn")
    result = translate(resnet18_tensors(), families.TORCHVISION_RESNET, shapes_of(network))
    assert result.unexpected["bn1.weight"] == "it belongs to a batch norm, but there is none here"
    assert not [path for path in result.values if "norm" in path]


def test_own_names_are_paths(network):
    variables = named_variables(network)
    tensors = {path: variable.numpy() + 1 for path, variable in variables.items()}
    family = recognise(tensors, stride_in_1x1=False)
    assert family is families.OWN
    result = translate(tensors, family, shapes_of(network))
    assert result.complete and not result.initial and not result.reshaped
    np.testing.assert_array_equal(result.values["mask_head/logits/bias"], np.ones(3))


def test_some_classes_are_kept_in_the_order_asked_for(network):
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((6, 8)).astype(np.float32)  # the background and five classes
    deltas = rng.standard_normal((24, 8)).astype(np.float32)
    tensors = {
        "roi_heads.box_predictor.cls_score.weight": logits,
        "roi_heads.box_predictor.bbox_pred.weight": deltas,
        "rpn.head.cls_logits.bias": np.arange(3, dtype=np.float32),
    }
    family, shapes = families.TORCHVISION, shapes_of(network)
    result = translate(tensors, family, shapes, keep_classes=[4, 2])
    assert not result.unexpected
    np.testing.assert_array_equal(result.values["box_head/classes/kernel"], logits[[0, 4, 2]].T)
    kept = deltas.reshape(6, 4, 8)[[0, 4, 2]][:, [1, 0, 3, 2]]
    np.testing.assert_array_equal(result.values["box_head/deltas/kernel"], kept.reshape(12, 8).T)
    np.testing.assert_array_equal(result.values["rpn_head/objectness/bias"], [0, 1, 2])


def test_classes_cannot_be_kept_of_outputs_that_are_not_by_class(network):
    agnostic = {"roi_heads.box_predictor.bbox_pred.weight": np.zeros((8, 8), np.float32)}
    result = translate(agnostic, families.TORCHVISION, shapes_of(network), keep_classes=[4, 2])
    assert list(result.unexpected.values()) == ["[8, 8] is not a shape of such a layer"]


def test_names_tell_programs_apart():
    signatures = {family.name: family.signature for family in families.FAMILIES}
    assert len(set(signatures.values())) == len(signatures)
    for family in families.FAMILIES:
        assert recognise([family.signature], stride_in_1x1=False) is family
    mmdetection = [families.MMDETECTION.signature]
    assert recognise(mmdetection, stride_in_1x1=True) is families.MMDETECTION_CAFFE
    assert recognise(["encoder.layer.0"], stride_in_1x1=False) is None


def test_the_report_names_everything(network):
    tensors = resnet18_tensors() | {"odd": np.zeros(1, np.float32)}
    result = translate(tensors, families.TORCHVISION_RESNET, shapes_of(network))
    lines = list(itemise(result))
    assert len(lines) == len(tensors) + len(result.missing) + len(result.initial)
    assert "unexpected\todd\tno such layer here" in lines
    text = "\n".join(summarise(result, ModelConfig(pixel_std=(1.0, 1.0, 1.0)), DataConfig()))
    assert "Warning: these weights were trained with --pixel_std=58.395,57.12,57.375" in text
    assert "noresnet_stride" not in text
    assert "images in rgb order, batch norm epsilon 1e-05" in text


FLAGFILES = {
    "torchvision": families.TORCHVISION,
    "torchvision_v2": families.TORCHVISION,
    "detectron2": families.DETECTRON2,
    "mmdetection": families.MMDETECTION,
    "mmdetection_caffe": families.MMDETECTION_CAFFE,
    "authors": families.AUTHORS,
}


@pytest.mark.parametrize("name", FLAGFILES)
def test_flagfiles_have_the_settings_that_the_weights_were_trained_with(name, monkeypatch):
    monkeypatch.chdir(ROOT)
    params = parse_flags(["main", f"--flagfile={os.path.join('configs', name)}.flags"])
    settings = vars(params.model) | vars(params.data)
    expected = FLAGFILES[name].settings
    assert {key: settings[key] for key in expected} == expected
