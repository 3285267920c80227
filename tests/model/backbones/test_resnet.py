"""ResNet backbones."""

import numpy as np
import pytest
import tensorflow as tf

from model.backbones.resnet import BasicBlock, Bottleneck, ResNet, ResNetTrunk, pool_stem


def rng(seed=0):
    return np.random.default_rng(seed)


def randn(*shape, seed=0):
    return tf.constant(rng(seed).standard_normal(shape), tf.float32)


def count(variables):
    return sum(int(np.prod(variable.shape)) for variable in variables)


@pytest.fixture(scope="module")
def resnet18():
    return ResNet(rng(), "resnet18", norm="frozen_bn")


@pytest.mark.parametrize(
    "name, blocks, parameters",
    [("resnet18", 8, 11_176_512), ("resnet34", 16, 21_284_672), ("resnet50", 16, 23_508_032)],
)
def test_size_is_torchvisions_without_the_classifier(name, blocks, parameters):
    network = ResNet(rng(), name, norm="bn")
    assert sum(len(stage) for stage in network.stages) == blocks
    assert count(network.trainable_variables) == parameters


def test_strides_and_channels(resnet18):
    outputs = resnet18(randn(1, 64, 96, 3))
    assert [tuple(output.shape) for output in outputs] == [
        (1, 16, 24, 64),
        (1, 8, 12, 128),
        (1, 4, 6, 256),
        (1, 2, 3, 512),
    ]
    assert resnet18.out_channels == (64, 128, 256, 512)


def test_bottleneck_widens_four_times_and_strides_in_its_3x3():
    kwargs = {"norm": "frozen_bn", "dtype": "float32"}
    block = Bottleneck(rng(), 16, 8, 2, **kwargs)
    assert (block.conv1.conv.stride, block.conv2.conv.stride, block.conv3.conv.stride) == (1, 2, 1)
    assert [block.conv1.conv.kernel.shape[0], block.conv2.conv.kernel.shape[0]] == [1, 3]
    assert block(randn(1, 6, 6, 16)).shape == (1, 3, 3, 32)


def test_caffe_s_bottleneck_strides_in_its_first_1x1():
    network = ResNet(rng(), "resnet50", width=8, stride_in_1x1=True, norm="frozen_bn")
    strides = [
        [conv.conv.stride for conv in (block.conv1, block.conv2, block.conv3)]
        for block in network.stages[1]
    ]
    assert strides == [[2, 1, 1]] + [[1, 1, 1]] * 3
    assert network.out_channels == (32, 64, 128, 256)
    assert network.stem.conv.kernel.shape == (7, 7, 3, 8)
    shapes = [tuple(output.shape) for output in network(randn(1, 64, 96, 3))]
    assert shapes == [(1, 16, 24, 32), (1, 8, 12, 64), (1, 4, 6, 128), (1, 2, 3, 256)]


def test_shortcut_is_a_convolution_only_where_shapes_change():
    kwargs = {"norm": "frozen_bn", "dtype": "float32"}
    assert BasicBlock(rng(), 8, 8, 1, **kwargs).shortcut is None
    assert BasicBlock(rng(), 8, 8, 2, **kwargs).shortcut.conv.stride == 2
    bottleneck = Bottleneck(rng(), 8, 8, 1, **kwargs)
    assert bottleneck.shortcut.conv.kernel.shape == (1, 1, 8, 32)


@pytest.mark.parametrize("block, width, last", [(BasicBlock, 8, "conv2"), (Bottleneck, 2, "conv3")])
def test_block_whose_branch_is_silent_is_a_relu(block, width, last):
    layer = block(rng(), 8, width, 1, norm="frozen_bn", dtype="float32")
    kernel = getattr(layer, last).conv.kernel
    kernel.assign(tf.zeros(kernel.shape))
    x = randn(1, 4, 4, 8)
    np.testing.assert_array_equal(layer(x), tf.nn.relu(x))


def test_basic_block_by_hand():
    layer = BasicBlock(rng(), 1, 1, 1, norm="frozen_bn", dtype="float32")
    for conv, centre in ((layer.conv1.conv, 2.0), (layer.conv2.conv, -3.0)):
        kernel = np.zeros((3, 3, 1, 1), np.float32)
        kernel[1, 1] = centre
        conv.kernel.assign(kernel)
    layer.conv2.norm.moving_variance.assign([1 - 1e-5])
    layer.conv1.norm.moving_variance.assign([1 - 1e-5])
    layer.conv2.norm.beta.assign([20.0])
    y = layer(tf.constant([[-1.0, 2.0], [3.0, 10.0]])[None, :, :, None])
    # relu(x - 3 relu(2 x) + 20)
    np.testing.assert_allclose(y[0, :, :, 0], [[19, 10], [5, 0]], rtol=1e-5)


@pytest.mark.parametrize("freeze_at", range(6))
def test_frozen_stages_have_no_trainable_variables(freeze_at):
    network = ResNet(rng(), "resnet18", norm="gn", freeze_at=freeze_at)
    stages = [[network.stem], *network.stages]
    for index, layers in enumerate(stages, start=1):
        trainable = [v for layer in layers for v in layer.trainable_variables]
        assert bool(trainable) == (index > freeze_at)
    assert count(network.variables) == 11_176_512  # group norm has as many as batch norm trains


@pytest.mark.parametrize("freeze_at", [1, 2, 4])
def test_gradients_stop_at_frozen_stages(freeze_at):
    network = ResNet(rng(), "resnet18", norm="frozen_bn", freeze_at=freeze_at)
    x = randn(1, 32, 32, 3)
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = sum(tf.reduce_sum(output) for output in network(x, training=True))
    frozen = [
        v for layer in [[network.stem], *network.stages][:freeze_at][-1] for v in layer.variables
    ]
    sources = [v.value for v in [*network.trainable_variables, *frozen]]
    gradients = tape.gradient(loss, [*sources, x])
    trained = gradients[: len(network.trainable_variables)]
    assert all(gradient is not None for gradient in trained)
    assert all(np.any(gradient) for gradient in trained)
    if freeze_at >= 2:
        assert gradients[len(trained) :] == [None] * (len(frozen) + 1)


def test_frozen_batch_norm_never_moves_and_batch_norm_moves_where_it_trains():
    network = ResNet(rng(), "resnet18", norm="bn", freeze_at=2)
    network(randn(2, 32, 32, 3), training=False)
    norms = [network.stem.norm, network.stages[0][0].conv1.norm, network.stages[1][0].conv1.norm]
    assert not any(np.any(norm.moving_mean) for norm in norms)
    network(randn(2, 32, 32, 3), training=True)
    assert [bool(np.any(norm.moving_mean)) for norm in norms] == [False, False, True]


def test_pool_of_the_stem_by_hand():
    x = tf.reshape(tf.range(16, dtype=tf.float32), [1, 4, 4, 1])
    # Windows centred on cells 0 and 2 of each axis.
    for static in (False, True):
        np.testing.assert_array_equal(pool_stem(x, static)[0, :, :, 0], [[5, 7], [13, 15]])


def test_static_network_computes_the_same(resnet18):
    x = randn(1, 32, 64, 3)
    for a, b in zip(resnet18(x), resnet18(x, static=True), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_mixed_precision_outputs_bfloat16(resnet18):
    network = ResNet(rng(), "resnet18", norm="frozen_bn", dtype="mixed_bfloat16")
    x = randn(1, 32, 32, 3)
    for mixed, full in zip(network(x), resnet18(x), strict=True):
        assert mixed.dtype == tf.bfloat16
        error = np.abs(tf.cast(mixed, tf.float32) - full)
        assert error.mean() < 0.03 * np.abs(full).mean()


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Torchvision's without the classifier of 1000 classes.
    [("resnext50_32x4d", 25_028_904), ("resnext101_64x4d", 83_455_272)],
)
def test_size_of_resnexts_is_torchvisions(name, parameters):
    network = ResNet(rng(), name, norm="bn")
    assert count(network.trainable_variables) == parameters - 2048 * 1000 - 1000
    kernel = network.stages[0][0].conv2.conv.kernel
    groups, group_width = {"resnext50_32x4d": (32, 4), "resnext101_64x4d": (64, 4)}[name]
    assert tuple(kernel.shape) == (3, 3, group_width, groups * group_width)


def test_a_grouped_convolution_keeps_the_groups_apart():
    block = Bottleneck(rng(), 8, 64, 1, groups=4, group_width=2, norm="none", dtype="float32")
    x = randn(1, 5, 5, 8)
    y = block.conv2(x)
    for group in range(4):
        span = slice(2 * group, 2 * group + 2)
        alone = tf.nn.conv2d(x[..., span], block.conv2.conv.kernel[..., span], 1, "SAME")
        np.testing.assert_allclose(y[..., span], alone, atol=1e-5)


def test_the_trunk_is_res5_with_stride_1():
    network = ResNet(rng(), "resnet18", width=8, norm="frozen_bn")
    trunk = ResNetTrunk(rng(), "resnet18", width=8, norm="frozen_bn")
    for ours, theirs in zip(trunk.variables, network.stages[3].variables, strict=True):
        ours.assign(theirs)
    # On a map whose cells are all equal, the stride makes no difference far from the border.
    x = y = tf.ones([1, 32, 32, 1]) * randn(1, 1, 1, 32)
    for block in network.stages[3]:
        x = block(x)
    for block in trunk.blocks:
        y = block(y)
    assert (x.shape[1], y.shape[1]) == (16, 32)
    np.testing.assert_allclose(x[:, 8, 8], y[:, 16, 16], rtol=1e-4, atol=1e-5)
    rois = randn(2, 7, 7, 32)
    y = rois
    for block in trunk.blocks:
        y = block(y)
    np.testing.assert_allclose(trunk(rois), tf.reduce_mean(y, [1, 2]), rtol=1e-5)
