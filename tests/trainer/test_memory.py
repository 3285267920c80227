"""The memory that a graph needs, on graphs whose memory is plain to see."""

import numpy as np
import pytest
import tensorflow as tf
from toy_model import ToyNetwork, make_train_input_fn, toy_model_fn, toy_params

from trainer.memory import Buffer, count_variables, find_buffers, peak
from trainer.optimizer import Updater
from trainer.steps import TrainStep

KB = 1000  # bytes of a float32 [250]


def peak_of(function, *shapes):
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    traced = tf.function(function, input_signature=signature, autograph=False)
    return peak(find_buffers(traced.get_concrete_function().graph))


def test_the_peak_is_the_largest_sum_of_what_lives_at_once():
    # Operation 1 reads buffer a and makes b; at 2, c is made while b is read.
    assert peak([Buffer(10, 0, 1), Buffer(20, 1, 2), Buffer(5, 2, 3)]) == 30
    assert peak([Buffer(10, 0, 3), Buffer(20, 1, 2), Buffer(5, 2, 3)]) == 35
    assert peak([]) == 0


def test_writing_over_a_buffer_needs_it_to_be_read_for_the_last_time():
    first = Buffer(10, 0, 1)
    assert peak([first, Buffer(10, 1, 2, [first])]) == 10
    first = Buffer(10, 0, 3)
    assert peak([first, Buffer(10, 1, 2, [first])]) == 20


def test_a_chain_keeps_its_input_and_one_result():
    # The caller keeps the input; cosine is not written over its input, negation is.
    assert peak_of(lambda x: tf.cos(x), [250]) == 2 * KB
    assert peak_of(lambda x: tf.cos(tf.cos(tf.cos(tf.cos(x)))), [250]) == 3 * KB
    assert peak_of(lambda x: tf.nn.relu(tf.negative(tf.cos(x))), [250]) == 2 * KB


def test_a_view_is_the_memory_of_what_it_shows():
    def transposed_twice(x):
        y = tf.reshape(tf.cos(x), [25, 10])
        return tf.identity(tf.reshape(y, [10, 25]))

    # Beside them there are the two shapes, int32 [2].
    assert peak_of(transposed_twice, [250]) == 2 * KB + 16


def test_the_backward_pass_keeps_the_results_that_it_reads():
    def gradient(count):
        def differentiate(x):
            y = x
            for _ in range(count):
                y = tf.sin(y)
            return tf.gradients(tf.reduce_sum(y), x)

        return differentiate

    few, many = (peak_of(gradient(count), [250_000]) for count in (4, 14))
    assert many - few == pytest.approx(10 * 1000 * KB, rel=1e-3)


def test_shapes_that_depend_on_the_data_are_as_large_as_can_be():
    def positives(x):
        index = tf.where(x > 0)  # int64 [250, 1], bool [250]
        return tf.cos(tf.gather_nd(x, index))

    assert peak_of(positives, [250]) == pytest.approx(KB + 2 * KB + KB, abs=50)

    def by_sign(x):
        parts = tf.dynamic_partition(tf.range(250), tf.cast(x > 0, tf.int32), 2)
        return tf.dynamic_stitch(
            parts, [tf.gather(tf.tile(x[:, None], [1, 100]), p) for p in parts]
        )

    # The tiled values, their two parts, and what is stitched of them, beside a few vectors.
    assert peak_of(by_sign, [250]) == pytest.approx(200 * KB, rel=0.05)


def test_stitched_shapes_are_not_of_their_parts(tmp_path):
    def gradient(x):  # A sum over unknown axes stitches the shape of its gradient.
        y = tf.reduce_sum(tf.gather_nd(x, tf.where(x > 0))[:, None] * tf.ones([1, 3]), axis=1)
        return tf.gradients(tf.reduce_sum(y), x)

    assert peak_of(gradient, [250]) > 5 * KB


def test_a_step_grows_by_the_same_with_each_image(tmp_path):
    peaks = []
    for size in (4, 8, 12):
        params = toy_params(tmp_path, train_batch_size=size)
        network, strategy = ToyNetwork(), tf.distribute.get_strategy()
        step = TrainStep(toy_model_fn, network, Updater(network, params), strategy, params)
        features, labels = make_train_input_fn([1.0] * 12)("train", params).element_spec
        graph = step.function.get_concrete_function(features, labels, tf.constant(0.0)).graph
        peaks.append(peak(find_buffers(graph)))
    assert peaks[2] - peaks[1] == peaks[1] - peaks[0]
    # uint8 [4, 6, 3] as integers, and as float32 before and after it is divided.
    assert (peaks[1] - peaks[0]) / 4 == pytest.approx(72 * 5 + 16, abs=40)


def test_variables_are_counted_by_their_types():
    variables = [tf.Variable(np.zeros([3, 5], np.float32)), tf.Variable(0, dtype=tf.int64)]
    assert count_variables(variables) == 68
