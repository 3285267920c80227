"""Slots: which RoIs go through the mask branch."""

import numpy as np
import tensorflow as tf

from model.slots import choose_slots


def test_choose_slots_takes_the_wanted():
    wanted = tf.constant([[True, True, False, False], [True, False, False, False]])
    slots = choose_slots(wanted, 2, static=False)
    np.testing.assert_array_equal(slots.index, [[0, 0], [0, 1], [1, 0]])
    np.testing.assert_array_equal(slots.valid, [True] * 3)
    np.testing.assert_array_equal(slots.image, [0, 0, 1])
    values = tf.constant([[1, 2, 3, 4], [5, 6, 7, 8]])
    np.testing.assert_array_equal(slots.take(values), [1, 2, 5])

    static = choose_slots(wanted, 2, static=True)
    np.testing.assert_array_equal(static.take(values), [1, 2, 5, 6])
    np.testing.assert_array_equal(static.valid, [True, True, True, False])


def test_choose_slots_keeps_one_when_none_is_wanted():
    slots = choose_slots(tf.zeros([2, 4], tf.bool), 3, static=False)
    np.testing.assert_array_equal(slots.index, [[0, 0]])
    np.testing.assert_array_equal(slots.valid, [False])


def test_values_go_back_to_where_they_came_from():
    wanted = tf.constant([[True, False], [True, True]])
    values = tf.constant([[[1.0, 2]], [[3, 4]], [[5, 6]]])
    for static, given in (
        (False, values),
        (True, tf.concat([values[:1], -values[:1], values[1:]], 0)),
    ):
        back = choose_slots(wanted, 2, static).put(given, 2, 3)
        expected = [[[1, 2], [0, 0], [0, 0]], [[3, 4], [5, 6], [0, 0]]]
        np.testing.assert_array_equal(back[:, :, 0], expected)
