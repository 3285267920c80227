"""Max-pooling with stride 2, by TensorFlow's op and by elementwise maxima."""

import numpy as np
import pytest
import tensorflow as tf

from model.max_pool import max_pool


def randn(*shape, seed=0):
    return tf.constant(np.random.default_rng(seed).standard_normal(shape), tf.float32)


@pytest.mark.parametrize("static", [False, True])
def test_by_hand(static):
    x = tf.reshape(tf.range(20, dtype=tf.float32), [1, 4, 5, 1])
    np.testing.assert_array_equal(max_pool(x, 2, static=static)[0, :, :, 0], [[6, 8], [16, 18]])
    np.testing.assert_array_equal(max_pool(x, 3, static=static)[0, :, :, 0], [[12, 14]])


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 9), (6, 11), (3, 4)])
def test_both_ways_and_their_gradients_are_equal(height, width, size):
    x = randn(2, height, width, 3)
    results = []
    for static in (False, True):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = max_pool(x, size, static=static)
            loss = tf.reduce_sum(y * randn(*y.shape, seed=1))
        results.append((y, tape.gradient(loss, x)))
    np.testing.assert_array_equal(results[0][0], results[1][0])
    np.testing.assert_allclose(results[0][1], results[1][1], atol=1e-6)


def test_xla_has_a_gradient():
    x = randn(1, 8, 8, 2)

    def gradient():
        with tf.GradientTape() as tape:
            tape.watch(x)
            loss = tf.reduce_sum(tf.square(max_pool(x, 3, static=True)))
        return tape.gradient(loss, x)

    compiled = tf.function(gradient, jit_compile=True)()
    np.testing.assert_allclose(compiled, gradient(), atol=1e-6)
