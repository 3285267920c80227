"""Feature pyramid."""

import numpy as np
import pytest
import tensorflow as tf

from model.fpn import FPN, _upsample


def rng():
    return np.random.default_rng(0)


@pytest.fixture
def identity_fpn():
    """One channel everywhere, laterals of 1 and outputs that copy."""
    fpn = FPN(rng(), (1, 1, 1, 1), 1)
    centre = np.zeros((3, 3, 1, 1), np.float32)
    centre[1, 1] = 1.0
    for lateral, output in zip(fpn.laterals, fpn.outputs, strict=True):
        lateral.conv.kernel.assign(np.ones((1, 1, 1, 1), np.float32))
        output.conv.kernel.assign(centre)
    return fpn


def maps(height=16, width=24):
    sizes = [(height >> level, width >> level) for level in range(4)]
    return [
        tf.constant(10.0**level * np.arange(h * w).reshape(1, h, w, 1), tf.float32)
        for level, (h, w) in enumerate(sizes)
    ]


def test_upsample_repeats_the_nearest():
    x = tf.constant([[1.0, 2.0]])[None, :, :, None]
    np.testing.assert_array_equal(_upsample(x)[0, :, :, 0], [[1, 1, 2, 2], [1, 1, 2, 2]])


def test_gradient_of_upsample_is_the_sum_of_its_copies():
    x = tf.zeros([1, 2, 3, 1])
    upstream = tf.reshape(tf.range(24, dtype=tf.float32), [1, 4, 6, 1])
    with tf.GradientTape() as tape:
        tape.watch(x)
        loss = tf.reduce_sum(_upsample(x) * upstream)
    # Rows of 6: the first cell was copied to 0, 1, 6 and 7.
    expected = [[14, 22, 30], [62, 70, 78]]
    np.testing.assert_allclose(tape.gradient(loss, x)[0, :, :, 0], expected, rtol=1e-6)


def test_levels_add_up_from_the_top(identity_fpn):
    features = maps()
    p2, p3, p4, p5, p6 = (level.numpy()[0, :, :, 0] for level in identity_fpn(features))
    c2, c3, c4, c5 = (level.numpy()[0, :, :, 0] for level in features)
    ones = np.ones((2, 2), np.float32)
    np.testing.assert_array_equal(p5, c5)
    np.testing.assert_array_equal(p4, c4 + np.kron(c5, ones))
    np.testing.assert_array_equal(p3, c3 + np.kron(p4, ones))
    np.testing.assert_array_equal(p2, c2 + np.kron(p3, ones))
    np.testing.assert_array_equal(p6, c5[::2, ::2])


def test_output_convolutions_are_outside_the_top_down_path(identity_fpn):
    before = identity_fpn(maps())
    identity_fpn.outputs[3].conv.kernel.assign(2.0 * identity_fpn.outputs[3].conv.kernel)
    after = identity_fpn(maps())
    for level in range(3):
        np.testing.assert_array_equal(after[level], before[level])
    np.testing.assert_array_equal(after[3], 2.0 * before[3])
    np.testing.assert_array_equal(after[4], 2.0 * before[4])


def test_odd_top_is_halved_upwards(identity_fpn):
    shapes = [tuple(level.shape[1:3]) for level in identity_fpn(maps(24, 40))]
    assert shapes == [(24, 40), (12, 20), (6, 10), (3, 5), (2, 3)]


@pytest.mark.parametrize(
    "dtype, computed", [("float32", tf.float32), ("mixed_bfloat16", tf.bfloat16)]
)
def test_channels_and_dtype(dtype, computed):
    fpn = FPN(rng(), (2, 4, 8, 16), 6, dtype=dtype)
    features = [tf.ones([2, 32 >> i, 32 >> i, 2 << i], computed) for i in range(4)]
    pyramid = fpn(features)
    assert [level.shape[-1] for level in pyramid] == [6] * 5
    assert {level.dtype for level in pyramid} == {computed}
    assert [tuple(lateral.conv.kernel.shape) for lateral in fpn.laterals] == [
        (1, 1, channels, 6) for channels in (2, 4, 8, 16)
    ]


def test_finest_level_trains_every_lateral():
    fpn = FPN(rng(), (1, 1, 1, 1), 2)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(fpn(maps())[0])
    gradients = tape.gradient(loss, [lateral.conv.kernel.value for lateral in fpn.laterals])
    assert all(np.any(gradient) for gradient in gradients)


def test_norms_follow_every_convolution():
    fpn = FPN(rng(), (1, 1, 1, 1), 2, norm="frozen_bn")
    plain = [level.numpy() for level in fpn(maps())]
    for output in fpn.outputs:
        assert output.conv.bias is None
        output.norm.beta.assign([5.0, -1.0])
    for moved, level in zip(fpn(maps()), plain, strict=True):
        np.testing.assert_allclose(
            moved - level, np.broadcast_to([5.0, -1.0], level.shape), atol=1e-2
        )
