"""Reordering tensors, with numbers that can be followed by hand."""

import numpy as np
import tensorflow as tf

from model.importers import layouts


def test_kernels_go_from_outputs_first_to_outputs_last():
    kernel = np.arange(2 * 3 * 1 * 2).reshape(2, 3, 1, 2)
    moved = layouts.conv(kernel)
    assert moved.shape == (1, 2, 3, 2)
    assert moved[0, 1, 2, 1] == kernel[1, 2, 0, 1]
    np.testing.assert_array_equal(layouts.conv(np.arange(4)), np.arange(4))


def test_blue_green_red_become_red_green_blue():
    kernel = np.array([0.0, 10.0, 20.0]).reshape(1, 1, 3, 1)
    np.testing.assert_array_equal(layouts.swap_colours(kernel)[0, 0, :, 0], [20, 10, 0])


def test_transposed_convolutions_have_inputs_first():
    kernel = np.arange(2 * 3 * 2 * 2).reshape(2, 3, 2, 2)
    moved = layouts.deconv(kernel)
    assert moved.shape == (2, 2, 2, 3)
    assert moved[1, 0, 1, 2] == kernel[1, 2, 1, 0]


def test_flattened_features_give_the_same_product_in_either_order():
    rng = np.random.default_rng(0)
    features = rng.standard_normal((2, 7, 7, 3)).astype(np.float32)
    matrix = rng.standard_normal((5, 3 * 49)).astype(np.float32)
    theirs = features.transpose(0, 3, 1, 2).reshape(2, -1) @ matrix.T
    ours = tf.matmul(features.reshape(2, -1), layouts.flat_dense(matrix))
    np.testing.assert_allclose(ours, theirs, atol=1e-4)
    # Features without cells, such as those after a pooling, are a plain matrix.
    np.testing.assert_array_equal(layouts.flat_dense(np.ones((2, 3))), np.ones((3, 2)))


def test_the_background_moves_to_the_front():
    logits = np.array([[1.0], [2.0], [9.0]])  # two classes and the background, one input
    dense = layouts.dense
    np.testing.assert_array_equal(layouts.background_last(dense)(logits), [[9, 1, 2]])
    np.testing.assert_array_equal(layouts.background_first(dense)(logits), [[1, 2, 9]])
    np.testing.assert_array_equal(layouts.background_absent(dense)(logits), [[0, 1, 2, 9]])
    np.testing.assert_array_equal(layouts.background_last(dense)(logits[:, 0]), [9, 1, 2])


def test_deltas_are_y_x_h_w_within_each_class():
    deltas = np.array([1.0, 2, 3, 4, 10, 20, 30, 40])  # x y w h of two classes
    absent = layouts.background_absent(layouts.dense, 4)(deltas)
    np.testing.assert_array_equal(absent, [0, 0, 0, 0, 2, 1, 4, 3, 20, 10, 40, 30])
    kernel = deltas.reshape(8, 1, 1, 1)
    np.testing.assert_array_equal(
        layouts.anchor_deltas(kernel).ravel(), [2, 1, 4, 3, 20, 10, 40, 30]
    )
