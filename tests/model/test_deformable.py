"""Deformable convolution against plain convolution, loops and finite differences."""

import numpy as np
import pytest
import tensorflow as tf

from model.backbones import Options, make_backbone
from model.deformable import DeformableConv, sample_taps
from model.layers import Conv
from model.variables import named_variables


def rng(seed=0):
    return np.random.default_rng(seed)


def picture(shape=(2, 6, 7, 3), seed=1):
    return rng(seed).normal(size=shape).astype(np.float32)


def value_at(image, y, x):
    """Bilinear interpolation, 0 outside of the cells' centres."""
    total = np.zeros(image.shape[-1])
    for row in (int(np.floor(y)), int(np.floor(y)) + 1):
        for column in (int(np.floor(x)), int(np.floor(x)) + 1):
            if 0 <= row < image.shape[0] and 0 <= column < image.shape[1]:
                total += image[row, column] * (1 - abs(y - row)) * (1 - abs(x - column))
    return total


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [6, 7])
def test_without_offsets_it_is_a_plain_convolution(stride, side):
    x = picture((2, side, 8, 3))
    deformable = DeformableConv(rng(), 3, 5, stride=stride)
    plain = Conv(rng(), 3, 5, 3, stride=stride)
    np.testing.assert_array_equal(deformable.kernel, plain.kernel)
    np.testing.assert_allclose(deformable(x), plain(x), atol=1e-5)
    scale, offset = tf.range(5.0), tf.range(5.0) - 2
    np.testing.assert_allclose(
        deformable(x, scale=scale, offset=offset), plain(x, scale=scale, offset=offset), atol=1e-5
    )


@pytest.mark.parametrize("stride", [1, 2])
def test_taps_equal_loops(stride):
    x = picture()
    rows, columns = (5 + stride) // stride, (6 + stride) // stride
    offsets = rng(2).normal(size=(2, rows, columns, 18), scale=2).astype(np.float32)
    taps = sample_taps(tf.constant(x), tf.constant(offsets), stride).numpy()
    for image in range(2):
        for row in range(rows):
            for column in range(columns):
                expected = [
                    value_at(
                        x[image],
                        row * stride + tap // 3 - 1 + offsets[image, row, column, 2 * tap],
                        column * stride + tap % 3 - 1 + offsets[image, row, column, 2 * tap + 1],
                    )
                    for tap in range(9)
                ]
                np.testing.assert_allclose(
                    taps[image, row, column], np.concatenate(expected), atol=1e-5
                )


def test_gradients_equal_finite_differences_and_xla_agrees():
    x, weights = tf.constant(picture((1, 4, 5, 2))), rng(4).normal(size=(1, 4, 5, 18))
    offsets = tf.constant(rng(3).uniform(0.1, 0.9, (1, 4, 5, 18)), tf.float32)

    def loss(x, offsets):
        return tf.reduce_sum(tf.cast(weights, tf.float32) * sample_taps(x, offsets, 1))

    def differentiate():
        with tf.GradientTape() as tape:
            tape.watch([x, offsets])
            value = loss(x, offsets)
        return tape.gradient(value, [x, offsets])

    gradients = [tf.convert_to_tensor(gradient) for gradient in differentiate()]
    for ours, theirs in zip(gradients, tf.function(differentiate, jit_compile=True)(), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-5)
    step = 1e-2
    for place, gradient in enumerate(gradients):
        direction = tf.constant(rng(5).choice([-1.0, 1.0], gradient.shape), tf.float32)
        moved = [[x, offsets], [x, offsets]]
        for sign, arguments in zip((1, -1), moved, strict=True):
            arguments[place] = arguments[place] + sign * step * direction
        slope = float(loss(*moved[0]) - loss(*moved[1])) / (2 * step)
        assert slope == pytest.approx(float(tf.reduce_sum(gradient * direction)), rel=0.02)


def test_a_backbone_has_them_from_res3_on():
    options = Options(norm="frozen_bn", width=8)
    with_them = make_backbone(rng(), "resnet50_dcn", options)
    names = named_variables(with_them)
    offsets = {name.split("/")[1] for name in names if "conv2/conv/offsets" in name}
    assert offsets == {"1", "2", "3"}  # of the stages res2 to res5
    assert sum(name.endswith("offsets/kernel") for name in names) == 4 + 6 + 3
    x = tf.constant(picture((1, 64, 96, 3)))
    shapes = [tuple(c.shape) for c in make_backbone(rng(), "resnet50", options)(x)]
    assert [tuple(c.shape) for c in with_them(x)] == shapes
