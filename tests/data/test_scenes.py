"""Ground truths of a scene: the largest where there is no room for all."""

import numpy as np
import tensorflow as tf

from data.scenes import _largest


def test_the_largest_stay_in_the_order_of_the_record():
    sizes, kept = tf.constant([3.0, 9, 1, 9, 5, 9]), tf.cast([1, 1, 1, 0, 1, 1], tf.bool)
    np.testing.assert_array_equal(_largest(sizes, kept, 3), [1, 4, 5])
    np.testing.assert_array_equal(_largest(sizes, kept, 2), [1, 5])
    np.testing.assert_array_equal(_largest(sizes, kept, 9), [0, 1, 2, 4, 5])
    assert _largest(sizes[:0], kept[:0], 3).shape == (0,)
