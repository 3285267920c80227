"""Spoilt masks: each way to spoil one alone, by hand, and what holds for all of them."""

import numpy as np
import pytest
import tensorflow as tf

from model.mask_head import sample_masks
from model.perturbed_masks import NUMBERS, find_neighbours, perturb_masks, perturb_objects

IMAGE = (100, 120)
BOX = [30.0, 40.0, 70.0, 80.0]
# strength, drift, merge, cut, angle, offset, grow, shifts in y and x, scales in y and x, bends
UNSPOILT = [0, 0, 1, 1, 0, 0, 0.5, 0.5, 0.5, 0.5, 0.5, *[0.5] * 25]
NAMES = (
    "strength", "drift", "merge", "cut", "angle", "offset", "grow",
    "shift_y", "shift_x", "scale_y", "scale_x",
)  # fmt: skip
CELL = 1.5 * 40 / 56  # pixels of a working array's cell


def disc() -> np.ndarray:
    centre = (np.arange(112) + 0.5) / 112 - 0.5
    return (np.hypot(centre[:, None], centre[None]) < 0.5).astype(np.uint8)


def spoil(box=BOX, mask=None, neighbour=(0, 0, 1, 1), mask_size=28, **amounts):
    numbers = np.array(UNSPOILT, np.float32)
    for name, value in amounts.items():
        numbers[NAMES.index(name)] = value
    full = np.ones([1, 112, 112], np.uint8)
    boxes = tf.constant([box], tf.float32)
    found = perturb_masks(
        boxes,
        (tf.constant((disc() if mask is None else mask)[None]), boxes),
        (tf.constant(full), tf.constant([neighbour], tf.float32)),
        tf.constant(numbers[None]),
        tf.constant([IMAGE], tf.float32),
        mask_size,
    )
    return tuple(value.numpy()[0] for value in found)


def test_nothing_changes_by_amounts_of_nothing():
    assert len(UNSPOILT) == NUMBERS
    box, mask, valid = spoil()
    assert valid
    np.testing.assert_allclose(box, BOX, atol=CELL)
    expected = sample_masks(disc()[None], tf.constant([BOX]), tf.constant([BOX]), 28)[0]
    # The outline is moved by up to half a cell of the working array.
    assert np.abs(mask - expected).mean() < 0.05
    # The area in pixels is that of the disc.
    area = mask.mean() * (box[2] - box[0]) * (box[3] - box[1])
    np.testing.assert_allclose(area, np.pi * 20**2, rtol=0.03)


@pytest.mark.parametrize(
    ("amounts", "expected"),
    [
        # Half a side downwards, a quarter to the left.
        ({"drift": 1, "shift_y": 1, "shift_x": 0.25}, [50, 30, 90, 70]),
        ({"drift": 0.5, "shift_y": 1}, [40, 40, 80, 80]),
        # Half as high again, about the centre.
        ({"drift": 1, "scale_y": 1}, [50 - 20 * np.exp(0.4), 40, 50 + 20 * np.exp(0.4), 80]),
    ],
)
def test_masks_move_with_their_boxes(amounts, expected):
    box, mask, valid = spoil(**amounts)
    assert valid
    np.testing.assert_allclose(box, expected, atol=1.5 * CELL)
    np.testing.assert_allclose(mask.mean(), np.pi / 4, rtol=0.05)


def test_a_cut_mask_has_a_straight_side():
    """The line is horizontal and through the middle; what lies below it is gone."""
    box, mask, valid = spoil(cut=0)
    assert valid
    np.testing.assert_allclose(box, [30, 40, 50, 80], atol=CELL)
    # Edges are interpolated with what was cut off, over a cell of the working array.
    assert mask[-2, 1:-1].min() == 1 and mask[-1].mean() > 0.8 and mask[0].mean() < 0.5


def test_a_neighbour_is_merged():
    box, mask, _ = spoil(merge=0, neighbour=(30, 80, 70, 120))
    # A quarter of the object's side is seen of it.
    np.testing.assert_allclose(box, [30, 40, 70, 90], atol=CELL)
    assert mask[:, -4:].min() > 0.9


@pytest.mark.parametrize(("grow", "sign"), [(0, 1), (1, -1)])
def test_masks_grow_and_shrink(grow, sign):
    box, mask, _ = spoil(strength=1, grow=grow)
    area = mask.mean() * (box[2] - box[0]) * (box[3] - box[1])
    assert sign * (area - np.pi * 20**2) > 30


def test_masks_end_at_the_border_of_their_image():
    moved = {"drift": 1, "shift_x": 1}
    box, mask, valid = spoil(box=[30, 80, 70, 120], **moved)
    assert valid
    np.testing.assert_allclose(box, [30, 100, 70, 120], atol=CELL)
    # The left half of the disc, stretched over the box.
    assert mask[:, 0].mean() < 0.4 and mask[:, -1].mean() > 0.9
    assert not spoil(box=[30, 119, 70, 120], mask=disc(), **moved)[2], "less than a pixel is left"


def test_random_masks_are_tight_and_inside():
    rng = np.random.default_rng(0)
    count = 64
    corners = rng.uniform(0, 60, [count, 2])
    boxes = np.concatenate([corners, corners + rng.uniform(4, 40, [count, 2])], 1).astype("f")
    arguments = (
        tf.constant(boxes),
        (tf.constant(np.stack([disc()] * count)), tf.constant(boxes)),
        (tf.constant(np.stack([disc()] * count)), tf.constant(np.roll(boxes, 1, 0))),
        tf.constant(rng.random([count, NUMBERS]), tf.float32),
        tf.constant([IMAGE] * count, tf.float32),
    )
    found = perturb_masks(*arguments, 28)
    valid = found.valid.numpy()
    assert valid.sum() > 0.9 * count
    found_boxes, masks = found.boxes.numpy()[valid], found.masks.numpy()[valid]
    assert (found_boxes >= 0).all() and (found_boxes <= [*IMAGE, *IMAGE]).all()
    assert masks.min() >= 0 and masks.max() <= 1
    for axis in (1, 2):
        lines = masks.max(axis=3 - axis)
        assert (lines[:, 0] > 0.1).all() and (lines[:, -1] > 0.1).all()
    compiled = tf.function(perturb_masks, jit_compile=True, autograph=False)(*arguments, 28)
    for ours, theirs in zip(compiled, found, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-3)


@pytest.mark.parametrize("static", [False, True])
def test_objects_are_drawn_anew_for_other_seeds(static):
    labels = {
        "gt_boxes": tf.constant([[[10, 10, 40, 50], [50, 10, 90, 60], [0] * 4]] * 2, tf.float32),
        "gt_classes": tf.constant([[2, 1, 0], [0, 0, 0]]),
        "gt_masks": tf.constant(np.stack([np.stack([disc()] * 3)] * 2)),
        "sample_seeds": tf.constant([[1, 2], [3, 4]]),
    }
    sizes = tf.constant([IMAGE, IMAGE], tf.float32)
    found = perturb_objects(labels, sizes, 2, 28, static)
    valid = found.valid.numpy()
    assert valid.tolist() == ([True, True, False, False] if static else [True, True])
    matches = found.matches.numpy()[valid]
    assert sorted(matches.tolist()) == [[0, 0], [0, 1]]
    np.testing.assert_array_equal(found.classes.numpy()[valid], 2 - matches[:, 1])
    again = perturb_objects(labels, sizes, 2, 28, static)
    np.testing.assert_array_equal(found.given.boxes, again.given.boxes)
    labels["sample_seeds"] += 1
    other = perturb_objects(labels, sizes, 2, 28, static)
    assert np.abs(found.given.boxes - other.given.boxes)[valid].max() > 1


def test_the_nearest_neighbour():
    boxes = [[[0, 0, 10, 10], [0, 40, 10, 50], [0, 16, 10, 26], [0, 0, 0, 0]]] * 2
    classes = [[1, 2, 1, 0], [1, 0, 0, 0]]
    found = find_neighbours(tf.constant(boxes, tf.float32), tf.constant(classes)).numpy()
    assert found[0, :3].tolist() == [2, 2, 0]
    assert found[1, 0] == 0
