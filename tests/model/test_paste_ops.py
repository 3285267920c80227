"""Pasting and run lengths on the graph, against the same in NumPy and pycocotools."""

import numpy as np
import pytest
import tensorflow as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from model.paste import encode_rle, paste_mask
from model.paste_ops import encode_masks, paste_masks


@pytest.mark.parametrize("rule", ["exact", "integer"])
def test_masks_are_pasted_as_in_numpy(rule):
    rng = np.random.default_rng(0)
    corners = rng.uniform(-10, 60, (40, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(-2, 50, (40, 2))], axis=1)
    boxes[0] = [5, 5, 5, 20]
    boxes[1] = [3, 4, 31, 32]
    boxes, masks = boxes.astype(np.float32), rng.random((40, 28, 28), np.float32)
    ours = paste_masks(tf.constant(masks), tf.constant(boxes), tf.constant([50, 70]), rule).numpy()
    assert ours.shape == (40, 50, 70) and ours.any()
    for mask, box, pasted in zip(masks, boxes, ours, strict=True):
        np.testing.assert_array_equal(pasted, paste_mask(mask, box, 50, 70, rule=rule))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 40), st.integers(1, 40), st.floats(0, 1))
def test_run_lengths_are_those_of_pycocotools(seed, height, width, share):
    rng = np.random.default_rng(seed)
    mask = rng.random((height, width)) < share
    (counts,) = encode_masks(tf.constant(mask[None])).numpy()
    assert counts.decode() == encode_rle(mask.astype(np.uint8))["counts"]


def test_long_runs_and_images_of_one_value():
    masks = np.zeros((4, 3000, 2000), bool)
    masks[1] = True
    masks[2, 1500:, 7] = True
    masks[3, :, 1000:] = True
    for mask, counts in zip(masks, encode_masks(tf.constant(masks)).numpy(), strict=True):
        assert counts.decode() == encode_rle(mask.astype(np.uint8))["counts"]
