"""Convolution, dense and normalisation layers."""

import functools

import keras
import numpy as np
import pytest
import tensorflow as tf

from model.layers import (
    Conv,
    ConvTranspose,
    Dense,
    SeparableConv,
    interleave,
    kaiming_normal,
    kaiming_uniform,
    normal,
)
from model.norms import (
    BATCH_NORM_EPSILON,
    GROUP_NORM_EPSILON,
    BatchNorm,
    ConvNorm,
    FrozenBatchNorm,
    GroupNorm,
    make_norm,
)


def rng(seed=0):
    return np.random.default_rng(seed)


def randn(*shape, seed=0):
    return tf.constant(rng(seed).standard_normal(shape), tf.float32)


def random_statistics(layer, seed=0):
    """Gives a batch norm other statistics than those it starts with."""
    draw = rng(seed)
    channels = layer.gamma.shape[0]
    for variable in (layer.gamma, layer.moving_variance):
        variable.assign(draw.uniform(0.5, 2.0, channels).astype(np.float32))
    for variable in (layer.beta, layer.moving_mean):
        variable.assign(draw.normal(size=channels).astype(np.float32))


def test_strided_convolution_pads_both_sides():
    conv = Conv(rng(), 1, 1, 3, stride=2)
    conv.kernel.assign(np.ones((3, 3, 1, 1), np.float32))
    x = tf.reshape(tf.range(16, dtype=tf.float32), [1, 4, 4, 1])
    # Windows centred on cells 0 and 2 of each axis; "SAME" would centre them on 1 and 3.
    np.testing.assert_array_equal(conv(x)[0, :, :, 0], [[10, 24], [51, 90]])


@pytest.mark.parametrize("norm", ["none", "frozen_bn", "gn"])
@pytest.mark.parametrize("stride", [1, 2])
def test_separable_convolution_equals_tensorflows(norm, stride):
    layer = ConvNorm(rng(), 3, 8, 3, stride=stride, norm=norm, separable=True)
    if norm == "frozen_bn":
        random_statistics(layer.norm)
    x = randn(2, 11, 8, 3)
    kernels = layer.conv.depthwise.kernel, layer.conv.pointwise.kernel
    expected = tf.nn.separable_conv2d(x, *kernels, [1, stride, stride, 1], "SAME")
    if norm == "frozen_bn":
        scale, offset = layer.norm.affine()
        expected = expected * scale + offset
    elif norm == "gn":
        expected = layer.norm(expected)
    np.testing.assert_allclose(layer(x), expected, rtol=1e-4, atol=1e-5)


def test_separable_convolution_preserves_the_variance_before_a_relu():
    layer = SeparableConv(rng(), 256, 256, 3)
    y = tf.nn.relu(layer(tf.nn.relu(randn(1, 32, 32, 256))))
    assert 0.3 < float(tf.reduce_mean(y**2)) < 0.7  # of the input it is one half


@pytest.mark.parametrize("size, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolution_equals_explicit_padding(size, stride):
    conv = Conv(rng(), 3, 5, size, stride=stride)
    conv.bias.assign(np.arange(5, dtype=np.float32))
    x = randn(2, 11, 8, 3)
    p = size // 2
    padded = tf.pad(x, [[0, 0], [p, p], [p, p], [0, 0]])
    expected = tf.nn.conv2d(padded, conv.kernel, stride, "VALID") + conv.bias
    assert conv(x).shape == (2, -(-11 // stride), 8 // stride, 5)
    np.testing.assert_allclose(conv(x), expected, atol=1e-5)


def test_convolution_without_bias_has_none():
    conv = Conv(rng(), 2, 3, 1, bias=False)
    assert conv.bias is None
    assert len(conv.variables) == 1
    np.testing.assert_array_equal(conv(tf.zeros([1, 2, 2, 2])), np.zeros([1, 2, 2, 3]))


def test_scale_and_offset_replace_bias():
    conv = Conv(rng(), 2, 3, 3)
    conv.bias.assign([7.0, 7.0, 7.0])
    x, scale, offset = randn(1, 4, 4, 2), tf.constant([2.0, -1, 0.5]), tf.constant([1.0, 2, 3])
    expected = (conv(x) - 7.0) * scale + offset
    np.testing.assert_allclose(conv(x, scale=scale, offset=offset), expected, atol=1e-5)


@pytest.mark.parametrize("channels, groups", [(256, 32), (64, 32), (48, 24), (33, 11), (8, 8)])
def test_group_norm_takes_most_groups_that_divide(channels, groups):
    assert GroupNorm(channels).groups == groups


def keras_group_norm(layer, x):
    oracle = keras.layers.GroupNormalization(layer.groups, epsilon=GROUP_NORM_EPSILON)
    oracle.build(x.shape)
    oracle.gamma.assign(layer.gamma.numpy())
    oracle.beta.assign(layer.beta.numpy())
    return oracle


def outputs_and_gradients(layer, x, weights):
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = layer(x)
        loss = tf.reduce_sum(tf.cast(y, tf.float32) * weights)
    gradients = tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])
    return [tf.cast(tensor, tf.float32).numpy() for tensor in (y, *gradients)]


def group_norm_case(dtype="float32"):
    layer = GroupNorm(64, dtype=dtype)
    layer.gamma.assign(rng(1).normal(1, 0.5, 64).astype(np.float32))
    layer.beta.assign(rng(2).normal(0, 1, 64).astype(np.float32))
    x = randn(3, 5, 4, 64, seed=3) * 2 + 1
    return layer, keras_group_norm(layer, x), x, randn(3, 5, 4, 64, seed=4)


def test_group_norm_equals_keras():
    layer, oracle, x, weights = group_norm_case()
    ours = outputs_and_gradients(layer, x, weights)
    theirs = outputs_and_gradients(oracle, x, weights)
    for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4, err_msg=name)


def test_group_norm_in_bfloat16_is_close_to_float32():
    layer, oracle, x, weights = group_norm_case("mixed_bfloat16")
    x = tf.cast(tf.cast(x, tf.bfloat16), tf.float32)
    assert layer(tf.cast(x, tf.bfloat16)).dtype == tf.bfloat16
    ours = outputs_and_gradients(layer, tf.cast(x, tf.bfloat16), weights)
    theirs = outputs_and_gradients(oracle, x, weights)
    for name, a, b in zip(("y", "dx", "dgamma", "dbeta"), ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, atol=0.02 * np.abs(b).max(), err_msg=name)


def test_group_norm_survives_a_large_mean():
    layer = GroupNorm(32)
    x = randn(1, 8, 8, 32)
    np.testing.assert_allclose(layer(x + 4096.0), layer(x), atol=2e-3)


def test_group_norm_keeps_images_apart():
    layer = GroupNorm(32)
    x = randn(2, 4, 4, 32)
    changed = tf.concat([x[:1], 100.0 * x[1:]], 0)
    np.testing.assert_array_equal(layer(changed)[0], layer(x)[0])


def test_frozen_batch_norm_folds_to_keras_inference():
    ours = ConvNorm(rng(), 3, 6, 3, stride=2, norm="frozen_bn")
    random_statistics(ours.norm)
    keras_norm = keras.layers.BatchNormalization(epsilon=BATCH_NORM_EPSILON)
    keras_norm.build((None, None, None, 6))
    random_statistics(keras_norm)
    x = randn(2, 7, 9, 3)
    for training in (False, True):
        expected = keras_norm(ours.conv(x), training=False)
        np.testing.assert_allclose(ours(x, training=training), expected, atol=1e-5)


def test_frozen_batch_norm_by_hand():
    norm = FrozenBatchNorm(1)
    norm.gamma.assign([3.0])
    norm.beta.assign([1.0])
    norm.moving_mean.assign([2.0])
    norm.moving_variance.assign([4.0 - BATCH_NORM_EPSILON])
    scale, offset = norm.affine()
    np.testing.assert_allclose(scale, [1.5], rtol=1e-6)
    np.testing.assert_allclose(offset, [-2.0], rtol=1e-6)
    assert norm.trainable_variables == []


def test_frozen_batch_norm_is_folded_in_float32():
    norm = ConvNorm(rng(), 4, 4, 1, norm="frozen_bn", dtype="mixed_bfloat16")
    norm.norm.moving_variance.assign([1e-4, 1.0, 100.0, 0.0])
    scales = []
    convolve = norm.conv.call

    def spy(x, scale, offset):
        scales.append(scale)
        return convolve(x, scale=scale, offset=offset)

    norm.conv.call = spy
    assert norm(randn(1, 2, 2, 4)).dtype == tf.bfloat16
    expected = 1 / np.sqrt(np.array([1e-4, 1.0, 100.0, 0.0]) + 1e-5)
    assert scales[0].dtype == tf.float32
    np.testing.assert_allclose(scales[0], expected, rtol=1e-5)


def test_batch_norm_moves_its_statistics_in_training_only():
    layer = ConvNorm(rng(), 2, 4, 1, norm="bn")
    x = randn(4, 6, 6, 2) + 5.0
    layer(x, training=False)
    np.testing.assert_array_equal(layer.norm.moving_mean, np.zeros(4))
    mean = tf.reduce_mean(layer.conv(x), [0, 1, 2])
    y = layer(x, training=True)
    np.testing.assert_allclose(layer.norm.moving_mean, 0.1 * mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(tf.reduce_mean(y, [0, 1, 2]), np.zeros(4), atol=1e-4)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_batch_norm_equals_keras(jit_compile):
    ours = BatchNorm(4)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5)
    theirs.build((None, None, None, 4))
    ours.gamma.assign([1.0, 0.5, -2.0, 3.0])
    theirs.gamma.assign(ours.gamma)
    x, weights = randn(3, 5, 4, 4) * 3.0 + 20.0, randn(3, 5, 4, 4, seed=1)

    def run(layer, **options):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x, **options)
            loss = tf.reduce_sum(y * weights)
        return y, tape.gradient(loss, [x, layer.gamma.value, layer.beta.value])

    y, gradients = tf.function(functools.partial(run, ours), jit_compile=jit_compile)()
    expected, expected_gradients = run(theirs, training=True)
    np.testing.assert_allclose(y, expected, atol=1e-4)
    for ours_, theirs_ in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(ours_, theirs_, atol=1e-4 * np.abs(theirs_).max())
    for ours_, theirs_ in zip(ours.variables, theirs.variables, strict=True):
        np.testing.assert_allclose(ours_, theirs_, rtol=1e-5)


@pytest.mark.parametrize(
    "norm, kind, synchronised",
    [
        ("frozen_bn", FrozenBatchNorm, None),
        ("gn", GroupNorm, None),
        ("bn", BatchNorm, False),
        ("sync_bn", BatchNorm, True),
    ],
)
def test_make_norm(norm, kind, synchronised):
    layer = make_norm(norm, 16, "float32")
    assert type(layer) is kind
    assert getattr(layer, "synchronised", None) == synchronised
    assert all(variable.shape == (16,) for variable in layer.variables)


def test_transposed_convolution_equals_tensorflow():
    layer = ConvTranspose(rng(), 3, 5)
    layer.bias.assign(np.arange(5, dtype=np.float32))
    x = randn(2, 3, 4, 3)
    kernel = tf.transpose(layer.kernel, [0, 1, 3, 2])
    expected = tf.nn.conv2d_transpose(x, kernel, [2, 6, 8, 5], 2) + layer.bias
    y = layer(x)
    assert y.shape == (2, 4 * 12, 5)
    for channel in range(5):
        placed = interleave(y[:, :, channel], 3, 4)
        np.testing.assert_allclose(placed, expected[..., channel], atol=1e-5)


def test_interleave_by_hand():
    x = tf.reshape(tf.range(8), [1, 8])  # one row of two cells, four values each
    np.testing.assert_array_equal(interleave(x, 1, 2), [[[0, 1, 4, 5], [2, 3, 6, 7]]])


def test_transposed_convolution_of_nothing():
    layer = ConvTranspose(rng(), 3, 5)
    assert layer(tf.zeros([0, 2, 2, 3])).shape == (0, 16, 5)


def test_dense_by_hand():
    layer = Dense(rng(), 2, 3)
    layer.kernel.assign([[1.0, 2, 3], [4, 5, 6]])
    layer.bias.assign([0.0, 10, 0])
    np.testing.assert_array_equal(layer(tf.constant([[1.0, -1.0]])), [[-3, 7, -3]])


def test_initialisers_have_the_stated_spread():
    shape = (3, 3, 64, 128)
    drawn = kaiming_normal(rng(), shape)
    assert drawn.dtype == np.float32
    assert abs(drawn.mean()) < 1e-3
    assert drawn.std() == pytest.approx(np.sqrt(2 / (9 * 128)), rel=0.01)

    drawn = kaiming_uniform(rng(), shape)
    bound = np.sqrt(3 / (9 * 64))
    assert drawn.dtype == np.float32
    assert np.abs(drawn).max() <= bound * (1 + 1e-6)
    assert drawn.min() < -0.99 * bound and drawn.max() > 0.99 * bound
    assert drawn.std() == pytest.approx(bound / np.sqrt(3), rel=0.01)

    drawn = normal(0.01)(rng(), (500, 200))
    assert drawn.std() == pytest.approx(0.01, rel=0.02)
    # A dense kernel [in, out] has fans of its two sides.
    assert kaiming_uniform(rng(), (400, 100)).std() == pytest.approx(1 / np.sqrt(400), rel=0.02)
    assert kaiming_normal(rng(), (400, 100)).std() == pytest.approx(np.sqrt(2 / 100), rel=0.02)


def test_biases_start_at_zero():
    for layer in (Conv(rng(), 2, 3, 3), ConvTranspose(rng(), 2, 3), Dense(rng(), 2, 3)):
        np.testing.assert_array_equal(layer.bias, np.zeros(3))


LAYERS = {
    "conv": (lambda draw, dtype: Conv(draw, 8, 8, 3, stride=2, dtype=dtype), (2, 6, 6, 8)),
    "conv_transpose": (lambda draw, dtype: ConvTranspose(draw, 8, 8, dtype=dtype), (2, 3, 3, 8)),
    "dense": (lambda draw, dtype: Dense(draw, 8, 4, dtype=dtype), (3, 8)),
    "group_norm": (lambda draw, dtype: GroupNorm(8, dtype=dtype), (2, 4, 4, 8)),
    "conv_frozen_bn": (
        lambda draw, dtype: ConvNorm(draw, 8, 8, 3, norm="frozen_bn", dtype=dtype),
        (2, 4, 4, 8),
    ),
    "conv_without_norm": (
        lambda draw, dtype: ConvNorm(draw, 8, 8, 3, norm="none", dtype=dtype),
        (2, 4, 4, 8),
    ),
    "conv_bn": (lambda draw, dtype: ConvNorm(draw, 8, 8, 3, norm="bn", dtype=dtype), (2, 4, 4, 8)),
    "conv_gn": (lambda draw, dtype: ConvNorm(draw, 8, 8, 3, norm="gn", dtype=dtype), (2, 4, 4, 8)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_same_result_in_graph_under_xla_and_roughly_in_bfloat16(name):
    make, shape = LAYERS[name]
    layer, x = make(rng(), "float32"), randn(*shape)
    eager = layer(x)
    np.testing.assert_allclose(tf.function(layer)(x), eager, atol=1e-5)
    np.testing.assert_allclose(tf.function(layer, jit_compile=True)(x), eager, atol=1e-5)

    mixed = make(rng(), "mixed_bfloat16")
    assert {variable.dtype for variable in mixed.variables} == {"float32"}
    y = mixed(tf.cast(x, tf.bfloat16))
    assert y.dtype == tf.bfloat16
    np.testing.assert_allclose(tf.cast(y, tf.float32), eager, atol=0.03 * np.abs(eager).max())


@pytest.mark.parametrize("name", LAYERS)
def test_weights_depend_on_the_seed_alone(name):
    make, _ = LAYERS[name]
    first, second, other = (make(rng(seed), "float32") for seed in (5, 5, 6))
    for a, b in zip(first.variables, second.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    if name != "group_norm":
        assert np.any(first.variables[0].numpy() != other.variables[0].numpy())


@pytest.mark.parametrize("name", LAYERS)
def test_checkpoint_restores_every_variable(name, tmp_path):
    make, shape = LAYERS[name]
    saved, restored, x = make(rng(1), "float32"), make(rng(2), "float32"), randn(*shape)
    for index, variable in enumerate(saved.variables):
        variable.assign(rng(index).uniform(0.5, 1.5, variable.shape).astype(np.float32))
    path = tf.train.Checkpoint(layer=saved).write(str(tmp_path / "layer"))
    status = tf.train.Checkpoint(layer=restored).read(path)
    status.assert_existing_objects_matched()
    np.testing.assert_array_equal(restored(x), saved(x))


@pytest.mark.parametrize(("groups", "width"), [(2, 3), (32, 4), (3, 40), (2, 70)])
def test_groups_are_convolved_on_their_own(groups, width):
    channels = groups * width
    conv = Conv(rng(), channels, 2 * channels, 3, stride=2, groups=groups)
    assert tuple(conv.kernel.shape) == (3, 3, width, 2 * channels)
    x = tf.constant(rng(1).normal(size=(2, 5, 6, channels)), tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = conv(x)
    gradients = tape.gradient(y, [x, conv.kernel.value], y)
    for group in range(groups):
        inputs = slice(group * width, (group + 1) * width)
        outputs = slice(2 * group * width, 2 * (group + 1) * width)
        alone = Conv(rng(), width, 2 * width, 3, stride=2)
        alone.kernel.assign(conv.kernel[..., outputs])
        part = x[..., inputs]
        with tf.GradientTape() as tape:
            tape.watch(part)
            expected = alone(part)
        by_input, by_kernel = tape.gradient(expected, [part, alone.kernel.value], expected)
        close = {"rtol": 1e-4, "atol": 1e-4}
        np.testing.assert_allclose(y[..., outputs], expected, **close)
        np.testing.assert_allclose(gradients[0][..., inputs], by_input, **close)
        np.testing.assert_allclose(gradients[1][..., outputs], by_kernel, **close)
