"""Work of single operations, counted by hand, and what cannot be counted."""

import pytest
import tensorflow as tf

from tools.scaling.arithmetic import count_work


def work_of(function, *shapes, dtype=tf.float32):
    specs = [tf.TensorSpec(shape, dtype) for shape in shapes]
    return count_work(tf.function(function, autograph=False).get_concrete_function(*specs).graph)


def convolve(x, w):
    with tf.name_scope("mask_head/hidden"):
        return tf.nn.conv2d(x, w, 2, "SAME")


@pytest.mark.parametrize(
    "function, shapes, multiplications, numbers",
    [
        # 3·4 cells of 7 channels, each a sum of 3·3·5 products.
        (convolve, ([2, 6, 8, 5], [3, 3, 5, 7]), 2 * 12 * 7 * 45, 2 * 240 + 315 + 2 * 84),
        # Two groups: a channel reads 2 of 4.
        (
            lambda x, w: tf.nn.conv2d(x, w, 1, "VALID"),
            ([1, 3, 3, 4], [3, 3, 2, 6]),
            6 * 18,
            36 + 108 + 6,
        ),
        (
            lambda x, w: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "VALID"),
            ([1, 3, 3, 4], [3, 3, 4, 2]),
            8 * 9,
            36 + 72 + 8,
        ),
        # Each number of the input, 6 of 3 channels, meets 2·2·5 filters.
        (
            lambda x, w: tf.nn.conv2d_transpose(x, w, [1, 4, 6, 5], 2),
            ([1, 2, 3, 3], [2, 2, 5, 3]),
            6 * 3 * 20,
            4 + 18 + 60 + 120,
        ),
        (tf.matmul, ([2, 3], [3, 5]), 30, 6 + 15 + 10),
        (lambda a, b: tf.matmul(a, b, transpose_a=True), ([3, 2], [3, 5]), 30, 31),
        (tf.matmul, ([4, 2, 3], [4, 3, 5]), 120, 24 + 60 + 40),
        (lambda a, b: tf.einsum("nij,nkj->nik", a, b), ([4, 2, 3], [4, 5, 3]), 120, 124),
        (tf.add, ([2], [2]), None, None),
    ],
)
def test_operations_count_twice_their_multiplications(function, shapes, multiplications, numbers):
    (work,) = work_of(function, *shapes)["forward"].values() or [None]
    expected = multiplications and (2 * multiplications, 4 * numbers)
    assert work == expected


def test_gradients_count_for_the_part_that_they_are_of():
    def losses(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = convolve(x, w)
        return tape.gradient(y, [x, w])

    counted = work_of(losses, [2, 6, 8, 5], [3, 3, 5, 7])
    once = 2 * 2 * 12 * 7 * 45
    assert counted["forward"]["mask_head"].flops == once
    assert counted["backward"]["mask_head"].flops == 2 * once


def test_depthwise_gradients():
    def losses(x, w):
        with tf.GradientTape() as tape:
            tape.watch([x, w])
            y = tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "VALID")
        return tape.gradient(y, [x, w])

    counted = work_of(losses, [1, 4, 4, 4], [3, 3, 4, 2])
    assert sum(work.flops for work in counted["backward"].values()) == 2 * (2 * 4 * 8 * 9)


def test_numbers_of_16_bits_are_half_as_many_bytes():
    (whole,) = work_of(tf.matmul, [2, 3], [3, 5])["forward"].values()
    (half,) = work_of(tf.matmul, [2, 3], [3, 5], dtype=tf.bfloat16)["forward"].values()
    assert half == (whole.flops, whole.bytes / 2)


def test_dynamic_shapes_are_refused():
    with pytest.raises(ValueError, match="not static"):
        work_of(tf.matmul, [None, 3], [3, 5])


def test_a_product_in_a_loop_is_refused():
    def power(a):
        return tf.while_loop(lambda b: tf.reduce_sum(b) < 9, lambda b: [b @ a], [a])

    with pytest.raises(ValueError, match="MatMul in a function"):
        work_of(power, [3, 3])
