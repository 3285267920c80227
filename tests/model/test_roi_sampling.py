"""Random choice of RoIs: who may be chosen, and how evenly."""

import numpy as np
import pytest
import tensorflow as tf
from greedy_nms import iou_matrix

from model.proposals import Proposals
from model.roi_sampling import draw_uniform, sample_rois


def make_case(batch=2, num_proposals=60, slots=4, seed=0):
    """Proposals around three ground truths an image (one slot is padding), the last 5 invalid."""
    rng = np.random.default_rng(seed)
    gt_boxes = np.zeros((batch, slots, 4), np.float32)
    gt_classes = np.zeros((batch, slots), np.int32)
    corner = rng.uniform(0, 100, (batch, slots - 1, 2))
    gt_boxes[:, 1:] = np.concatenate([corner, corner + rng.uniform(20, 60, corner.shape)], -1)
    gt_classes[:, 1:] = rng.integers(1, 7, (batch, slots - 1))
    around = gt_boxes[:, rng.integers(1, slots, num_proposals)]
    boxes = (around + rng.normal(0, 8, around.shape)).astype(np.float32)
    valid = np.tile(np.arange(num_proposals) < num_proposals - 5, (batch, 1))
    proposals = Proposals(tf.constant(boxes), tf.zeros([batch, num_proposals]), tf.constant(valid))
    seeds = tf.constant(rng.integers(0, 2**31 - 1, (batch, 2)), tf.int32)
    return proposals, tf.constant(gt_boxes), tf.constant(gt_classes), seeds


def run(proposals, gt_boxes, gt_classes, seeds, num_rois=32, fraction=0.25, iou=0.5):
    return sample_rois(
        proposals,
        gt_boxes,
        gt_classes,
        seeds,
        num_rois=num_rois,
        positive_fraction=fraction,
        positive_iou=iou,
    )


def candidates_of(case, image):
    """Usable candidates of an image with their class and match, in NumPy."""
    proposals, gt_boxes, gt_classes, _ = (
        tf.nest.map_structure(lambda x: x[image].numpy(), part) for part in case
    )
    real = gt_classes > 0
    boxes = np.concatenate([proposals.boxes[proposals.valid], gt_boxes[real]])
    overlap = np.where(real[None], iou_matrix(boxes, gt_boxes), -1)
    matches = overlap.argmax(1)
    return boxes, np.where(overlap.max(1) >= 0.5, gt_classes[matches], 0), matches


@pytest.mark.parametrize("seed", range(4))
def test_classes_and_matches(seed):
    case = make_case(seed=seed)
    rois = run(*case)
    for image in range(2):
        boxes, classes, matches = candidates_of(case, image)
        expected = {tuple(b): (c, m) for b, c, m in zip(boxes, classes, matches, strict=True)}
        assert len(expected) == len(boxes)
        valid = rois.valid[image].numpy()
        chosen = [tuple(box) for box in rois.boxes[image].numpy()[valid]]
        assert len(set(chosen)) == len(chosen)
        for index, box in enumerate(chosen):
            cls, match = expected[box]
            assert rois.classes[image, index] == cls
            assert rois.matches[image, index] == match


@pytest.mark.parametrize(
    "num_rois, fraction", [(32, 0.25), (32, 0.1), (16, 0.5), (8, 1.0), (20, 0.0)]
)
def test_numbers(num_rois, fraction):
    case = make_case()
    rois = run(*case, num_rois=num_rois, fraction=fraction)
    assert rois.boxes.shape == (2, num_rois, 4)
    for image in range(2):
        _, classes, _ = candidates_of(case, image)
        positives = min(int(num_rois * fraction), (classes > 0).sum())
        negatives = min(num_rois - positives, (classes == 0).sum())
        flags = rois.positive[image].numpy()
        assert flags.sum() == positives
        assert flags[:positives].all()
        valid = rois.valid[image].numpy()
        assert valid.sum() == positives + negatives
        assert valid[: positives + negatives].all()


def test_fewer_candidates_than_rois():
    proposals, *rest = make_case(num_proposals=8)
    rois = run(proposals, *rest, num_rois=100, fraction=1.0)
    assert rois.boxes.shape == (2, 12, 4)
    # 8 proposals, 5 of them invalid, and 3 ground truths.
    np.testing.assert_array_equal(rois.valid.numpy().sum(1), [6, 6])


def test_ground_truths_are_candidates_and_padding_is_not():
    proposals, gt_boxes, gt_classes, seeds = make_case()
    nothing = Proposals(*(tf.zeros_like(values) for values in proposals))
    rois = run(nothing, gt_boxes, gt_classes, seeds, fraction=1.0)
    np.testing.assert_array_equal(rois.valid.numpy().sum(1), [3, 3])
    for image in range(2):
        assert set(rois.matches[image, :3].numpy()) == {1, 2, 3}
        for box, match, cls in zip(
            rois.boxes[image, :3], rois.matches[image, :3], rois.classes[image, :3], strict=True
        ):
            np.testing.assert_array_equal(box, gt_boxes[image, match])
            assert cls == gt_classes[image, match]


def test_padding_is_never_matched_even_where_its_box_fits():
    box = [[[0.0, 0.0, 10.0, 10.0]]]
    proposals = Proposals(tf.constant(box), tf.zeros([1, 1]), tf.constant([[True]]))
    gt_boxes = tf.constant([[[0.0, 0.0, 10.0, 10.0], [0.0, 0.0, 10.0, 16.0]]])
    rois = run(proposals, gt_boxes, tf.constant([[0, 5]]), tf.constant([[1, 2]]), fraction=1.0)
    np.testing.assert_array_equal(rois.valid, [[True, True, False]])
    np.testing.assert_array_equal(rois.matches[:, :2], [[1, 1]])
    np.testing.assert_array_equal(rois.classes[:, :2], [[5, 5]])


@pytest.mark.parametrize("width, positive", [(10.0, True), (10.001, False)])
def test_iou_equal_to_the_threshold_is_positive(width, positive):
    proposals = Proposals(
        tf.constant([[[0.0, 0.0, 10.0, width]]]), tf.zeros([1, 1]), tf.constant([[True]])
    )
    rois = run(
        proposals,
        tf.constant([[[0.0, 0.0, 10.0, 5.0]]]),
        tf.constant([[3]]),
        tf.constant([[1, 2]]),
        fraction=1.0,
    )
    assert sorted(rois.classes[0].numpy().tolist()) == ([3, 3] if positive else [0, 3])


def test_image_without_ground_truth_gives_negatives():
    proposals, gt_boxes, gt_classes, seeds = make_case()
    rois = run(proposals, tf.zeros_like(gt_boxes), tf.zeros_like(gt_classes), seeds)
    assert not rois.positive.numpy().any()
    assert rois.valid.numpy().all()
    np.testing.assert_array_equal(rois.classes, np.zeros((2, 32)))


def test_draw_depends_on_the_seed_alone():
    proposals, gt_boxes, gt_classes, seeds = make_case()
    first, again = (
        run(proposals, gt_boxes, gt_classes, seeds),
        run(proposals, gt_boxes, gt_classes, seeds),
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    other = run(proposals, gt_boxes, gt_classes, seeds + 1)
    assert np.any(first.boxes.numpy() != other.boxes.numpy())


def test_draw_does_not_depend_on_the_company():
    case = make_case(batch=3)
    together = run(*case)
    backwards = run(*tf.nest.map_structure(lambda x: x[::-1], case))
    for image in range(3):
        alone = run(*tf.nest.map_structure(lambda x, i=image: x[i : i + 1], case))
        for a, b, c in zip(together, alone, backwards, strict=True):
            np.testing.assert_array_equal(a[image], b[0])
            np.testing.assert_array_equal(a[image], c[2 - image])


def test_equal_images_with_equal_seeds_are_sampled_equally():
    case = tf.nest.map_structure(lambda x: tf.repeat(x[:1], 2, axis=0), make_case())
    rois = run(*case)
    np.testing.assert_array_equal(rois.boxes[0], rois.boxes[1])


def test_every_candidate_has_the_same_chance():
    proposals, gt_boxes, gt_classes, _ = make_case(batch=1, num_proposals=40)
    _, classes, _ = candidates_of((proposals, gt_boxes, gt_classes, gt_boxes), 0)
    num_positive, num_negative = (classes > 0).sum(), (classes == 0).sum()
    draws, num_rois, fraction = 1000, 12, 0.5
    assert num_positive > 6 and num_negative > 6

    @tf.function
    def draw(seed):
        rois = run(proposals, gt_boxes, gt_classes, seed[None], num_rois, fraction)
        return rois.boxes[0], rois.positive[0]

    seeds = tf.stack([tf.range(draws), tf.ones(draws, tf.int32)], 1)
    boxes, positive = tf.map_fn(draw, seeds, fn_output_signature=(tf.float32, tf.bool))
    for flag, group in ((True, num_positive), (False, num_negative)):
        chosen = boxes.numpy()[positive.numpy() == flag]
        _, counts = np.unique(chosen, axis=0, return_counts=True)
        assert len(counts) == group
        share = 6 / group
        deviation = np.sqrt(draws * share * (1 - share))
        assert np.abs(counts - draws * share).max() < 4.5 * deviation


def test_uniform_fills_the_unit_interval():
    draws = draw_uniform(tf.constant([3, 4]), 20_000).numpy()
    assert draws.min() >= 0 and draws.max() < 1
    counts, _ = np.histogram(draws, bins=10, range=(0, 1))
    assert np.abs(counts - 2000).max() < 4.5 * np.sqrt(1800)


def test_same_draw_under_xla():
    case = make_case()
    plain = run(*case)
    compiled = tf.function(lambda: run(*case), jit_compile=True)()
    for a, b in zip(plain, compiled, strict=True):
        np.testing.assert_array_equal(a, b)
