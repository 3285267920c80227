"""What every backbone in the table has to offer."""

import numpy as np
import pytest
import tensorflow as tf

from data.settings import SettingError
from model.backbones import BACKBONES, Options, make_backbone, make_trunk

# One of each file; the others differ in depth and width.
NAMES = ("resnet18", "resnet50", "vgg16", "alexnet", "efficientnet_lite0", "mobilenet_v3_small")


def make(name, norm="frozen_bn", **options):
    return make_backbone(np.random.default_rng(0), name, Options(norm, **options))


@pytest.fixture(scope="module", params=NAMES)
def case(request):
    return request.param, make(request.param)


def pixels(seed=0):
    return tf.constant(np.random.default_rng(seed).normal(size=(2, 64, 96, 3)), tf.float32)


def kernels(variables):
    return {id(variable) for variable in variables if len(variable.shape) >= 2}


def test_every_file_is_tried():
    assert {BACKBONES[name].file for name in NAMES} == {entry.file for entry in BACKBONES.values()}


@pytest.mark.parametrize("static", [False, True])
def test_maps_have_strides_4_to_32(case, static):
    _, backbone = case
    maps = backbone(pixels(), training=True, static=static)
    expected = [
        (2, 64 // stride, 96 // stride, channels)
        for stride, channels in zip((4, 8, 16, 32), backbone.out_channels, strict=True)
    ]
    assert [tuple(level.shape) for level in maps] == expected
    assert all(np.isfinite(level).all() and np.std(level) > 0 for level in maps)


def test_weight_decay_claims_every_kernel_that_trains_and_nothing_else(case):
    _, backbone = case
    decayed = backbone.decayed_variables
    assert {id(variable) for variable in decayed} == kernels(backbone.trainable_variables)
    assert len(decayed) == len({id(variable) for variable in decayed})


def test_weights_depend_on_the_seed_alone(case):
    name, backbone = case
    for ours, theirs in zip(backbone.variables, make(name).variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("last_stage", [2, 4])
def test_a_backbone_may_end_early(case, last_stage):
    name, whole = case
    backbone = make(name, last_stage=last_stage)
    assert backbone.out_channels == whole.out_channels[: last_stage - 1]
    assert len(backbone.variables) <= len(whole.variables)
    for ours, theirs in zip(backbone(pixels()), whole(pixels()), strict=False):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)
    assert len(backbone(pixels())) == last_stage - 1


@pytest.mark.parametrize("static", [False, True])
@pytest.mark.parametrize("freeze_at", [0, 5])
def test_a_trunk_maps_rois_to_vectors(case, freeze_at, static):
    name, backbone = case
    options = Options("frozen_bn", freeze_at=freeze_at)
    trunk = make_trunk(np.random.default_rng(0), name, options)
    shape = (3, trunk.roi_size, trunk.roi_size, backbone.out_channels[2])
    rois = tf.constant(np.random.default_rng(1).normal(size=shape), tf.float32)
    vectors = tf.function(trunk, jit_compile=static)(rois, training=True)
    assert vectors.shape == (3, trunk.out_channels) and np.std(vectors) > 0
    # One RoI does not depend on the others.
    np.testing.assert_allclose(trunk(rois[1:2]), vectors[1:2], rtol=1e-3, atol=1e-4)
    is_fc = name in ("vgg16", "alexnet")
    assert bool(trunk.trainable_variables) == (freeze_at < 5 or is_fc)
    assert {id(kernel) for kernel in trunk.decayed_variables} == kernels(trunk.trainable_variables)


@pytest.mark.parametrize("name", ["resnet18", "efficientnet_lite0", "mobilenet_v3_small"])
def test_batch_norm_of_rois_is_refused(name):
    with pytest.raises(SettingError, match="^--norm=bn: expected none, frozen_bn or gn"):
        make_trunk(np.random.default_rng(0), name, Options("bn"))


@pytest.mark.parametrize("freeze_at", [1, 3, 5])
def test_frozen_stages_neither_train_nor_pass_gradients_on(case, freeze_at):
    name, free = case
    backbone = make(name, freeze_at=freeze_at)
    x = pixels()
    with tf.GradientTape() as tape:
        tape.watch(x)
        maps = backbone(x, training=True)
        parts = [tf.reduce_sum(level) for level in maps]
    trained = [variable.value for variable in backbone.trainable_variables]
    assert len(trained) < len(free.trainable_variables)
    assert bool(trained) == (freeze_at < 5)
    gradients = tape.gradient(parts, trained)
    assert all(gradient is not None for gradient in gradients)
    assert kernels(backbone.trainable_variables) <= kernels(backbone.decayed_variables)


@pytest.mark.parametrize(
    ("name", "options", "flag"),
    [
        ("resnet18", {"stride_in_1x1": True}, "resnet_stride_in_1x1"),
        ("efficientnet_lite0", {"stride_in_1x1": True}, "resnet_stride_in_1x1"),
        ("vgg16", {"stride_in_1x1": True}, "resnet_stride_in_1x1"),
        ("alexnet", {"stride_in_1x1": True}, "resnet_stride_in_1x1"),
        ("alexnet", {"width": 15}, "backbone_width"),
        ("resnext50_32x4d", {"width": 24}, "backbone_width"),
        ("mobilenet_v3_small", {"norm": "gn"}, "norm"),
        ("mobilenet_v3_small", {"width": 16}, "backbone_width"),
    ],
)
def test_options_that_a_backbone_does_not_have_are_refused(name, options, flag):
    with pytest.raises(SettingError, match=f"^--{flag}="):
        make(name, **options)


def test_half_precision_keeps_its_variables_whole(case):
    name, _ = case
    backbone = make(name, dtype="mixed_bfloat16")
    assert {variable.dtype for variable in backbone.variables} == {"float32"}
    assert backbone(tf.cast(pixels(), tf.bfloat16))[0].dtype == tf.bfloat16
