"""Non-maximum suppression, in both variants and soft, against greedy loops."""

import numpy as np
import pytest
import tensorflow as tf
from greedy_nms import greedy_nms_by_class, soft_nms_by_class

from model.nms import suppress
from model.static import Static

every_way = pytest.mark.parametrize("static", list(Static), ids=lambda static: static.name)


def run(boxes, scores, *, static=False, iou=0.5, score=0.0, most=10, sigma=0.0):
    return suppress(
        tf.constant(boxes, tf.float32),
        tf.constant(scores, tf.float32),
        iou_threshold=iou,
        score_threshold=score,
        max_output=most,
        static=static,
        soft_sigma=sigma,
    )


def assert_found(kept, image, expected):
    """The survivors of an image are the (score, class, box) expected, and then come zeros."""
    valid = kept.valid[image].numpy()
    np.testing.assert_array_equal(valid, np.arange(len(valid)) < len(expected))
    for name, column in (("scores", 0), ("classes", 1), ("boxes", 2)):
        ours = getattr(kept, name)[image].numpy()
        np.testing.assert_allclose(
            ours[valid], [entry[column] for entry in expected], rtol=1e-5, err_msg=name
        )
        assert not ours[~valid].any()


def random_case(batch=2, num_boxes=60, columns=1, classes=1, seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (batch, num_boxes, columns, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(5, 40, corner.shape)], -1)
    ranks = rng.permuted(np.arange(batch * num_boxes * classes)) / (batch * num_boxes * classes)
    return boxes.astype(np.float32), ranks.reshape(batch, num_boxes, classes).astype(np.float32)


@every_way
def test_by_hand(static):
    boxes = [[0, 0, 10, 10], [0, 0, 10, 8], [0, 5, 10, 15], [20, 20, 30, 30]]
    # IoU of box 0 with box 1 is 0.8, with box 2 it is 1/3.
    kept = run(
        np.reshape(boxes, (1, 4, 1, 4)), [[[0.9], [0.8], [0.7], [0.95]]], static=static, most=5
    )
    np.testing.assert_allclose(kept.scores, [[0.95, 0.9, 0.7, 0, 0]])
    np.testing.assert_array_equal(kept.valid, [[True, True, True, False, False]])
    expected = [boxes[3], boxes[0], boxes[2], [0] * 4, [0] * 4]
    np.testing.assert_array_equal(kept.boxes, [expected])
    np.testing.assert_array_equal(kept.classes, np.zeros((1, 5)))
    assert (kept.classes.dtype, kept.valid.dtype) == (tf.int32, tf.bool)


@every_way
def test_iou_equal_to_the_threshold_stays(static):
    boxes = np.reshape([[0, 0, 10, 10], [0, 0, 10, 5]], (1, 2, 1, 4))  # IoU exactly 0.5
    scores = [[[0.9], [0.8]]]
    assert run(boxes, scores, static=static, iou=0.5).valid.numpy().sum() == 2
    assert run(boxes, scores, static=static, iou=0.499).valid.numpy().sum() == 1


@every_way
def test_score_equal_to_the_threshold_goes(static):
    boxes = np.reshape([[0, 0, 1, 1], [5, 5, 6, 6], [9, 9, 10, 10]], (1, 3, 1, 4))
    kept = run(boxes, [[[0.75], [0.5], [0.25]]], static=static, score=0.5, most=3)
    np.testing.assert_array_equal(kept.valid, [[True, False, False]])
    np.testing.assert_allclose(kept.scores, [[0.75, 0, 0]])
    np.testing.assert_array_equal(kept.boxes[0, 1:], np.zeros((2, 4)))


@every_way
def test_classes_do_not_suppress_each_other(static):
    boxes = np.tile(np.float32([0, 0, 10, 10]), (1, 2, 1, 1))
    scores = [[[0.9, 0.6, 0.0], [0.8, 0.7, 0.3]]]
    kept = run(boxes, scores, static=static, score=0.1, most=4)
    np.testing.assert_allclose(kept.scores, [[0.9, 0.7, 0.3, 0.0]], rtol=1e-6)
    np.testing.assert_array_equal(kept.classes, [[0, 1, 2, 0]])
    np.testing.assert_array_equal(kept.valid, [[True, True, True, False]])


@every_way
def test_box_without_area_is_a_box(static):
    # What lies outside the image is clipped to a point, [0, 0, 0, 0] among others.
    boxes = np.reshape([[0, 0, 0, 0], [0, 0, 10, 10]], (1, 2, 1, 4))
    kept = run(boxes, [[[0.9], [0.8]]], static=static, most=2)
    np.testing.assert_allclose(kept.scores, [[0.9, 0.8]])


@every_way
def test_of_equal_scores_the_lower_index_wins(static):
    # Six places, and in each a second box moved by 2: IoU 8 / 12.
    places = np.float32([[20 * i, 0, 20 * i + 10, 10] for i in range(6)])
    boxes = np.concatenate([places, places + [0, 2, 0, 2]]).reshape(1, 12, 1, 4)
    kept = run(boxes, np.full((1, 12, 1), 0.8), static=static, most=8)
    np.testing.assert_array_equal(kept.valid.numpy().sum(1), [6])
    np.testing.assert_array_equal(kept.boxes[0, :6], places)


@every_way
def test_equal_scores_of_classes_come_by_box_then_class(static):
    boxes = np.reshape([[0, 0, 10, 10], [20, 0, 30, 10], [40, 0, 50, 10]], (1, 3, 1, 4))
    kept = run(boxes, np.full((1, 3, 2), 0.5), static=static, most=4)
    np.testing.assert_array_equal(kept.boxes[0, :, 0], [0, 0, 20, 20])
    np.testing.assert_array_equal(kept.classes, [[0, 1, 0, 1]])


@every_way
def test_scores_may_be_negative(static):
    boxes = np.reshape(
        [[0, 0, 10, 10], [0, 0, 10, 8], [0, 5, 10, 15], [20, 0, 30, 10]], (1, 4, 1, 4)
    )
    scores = [[[-3.0], [-2.0], [-7.0], [-9.0]]]
    kept = run(boxes, scores, static=static, score=-8.0, most=3)
    np.testing.assert_array_equal(kept.scores, [[-2, -7, 0]])
    np.testing.assert_array_equal(kept.boxes[0], [boxes[0, 1, 0], boxes[0, 2, 0], [0] * 4])


@every_way
def test_each_image_keeps_its_own(static):
    # The ranks run over the batch: the second image's best is worse than all of the first's.
    boxes = np.tile(np.reshape([[0, 0, 10, 10], [20, 0, 30, 10]], (1, 2, 1, 4)), (2, 1, 1, 1))
    scores = [[[0.9], [0.8]], [[0.1], [0.7]]]
    kept = run(boxes, scores, static=static, most=2)
    np.testing.assert_allclose(kept.scores, [[0.9, 0.8], [0.7, 0.1]])
    np.testing.assert_array_equal(kept.boxes[1, :, 0], [20, 0])


@every_way
def test_nothing_survives(static):
    boxes, scores = random_case(num_boxes=5)
    kept = run(boxes, np.zeros_like(scores), static=static, most=3)
    assert not kept.valid.numpy().any()
    assert not any(np.any(values) for values in kept)


@every_way
@pytest.mark.parametrize(
    "columns, classes, iou, score, most",
    [(1, 1, 0.7, 0.0, 7), (1, 1, 0.5, 0.05, 100), (1, 4, 0.3, 0.6, 12), (4, 4, 0.5, 0.05, 100)],
)
def test_equals_the_greedy_loop(static, columns, classes, iou, score, most):
    boxes, scores = random_case(columns=columns, classes=classes, seed=most)
    kept = run(boxes, scores, static=static, iou=iou, score=score, most=most)
    assert kept.boxes.shape == (2, most, 4)
    for image in range(2):
        expected = greedy_nms_by_class(
            boxes[image], scores[image], iou_threshold=iou, score_threshold=score, most=most
        )
        assert_found(kept, image, expected)


@pytest.mark.parametrize("seed", range(3))
def test_variants_agree_also_off_the_canvas(seed):
    boxes, scores = random_case(batch=3, columns=3, classes=3, seed=seed)
    boxes = boxes - 40.0
    combined, static = (run(boxes, scores, static=s, score=0.2, most=20) for s in (False, True))
    for name in combined._fields:
        a, b = getattr(combined, name), getattr(static, name)
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_static_compiles_to_the_same():
    boxes, scores = random_case(columns=2, classes=2)

    def suppressed():
        return run(boxes, scores, static=True, score=0.3, most=9)

    for plain, compiled in zip(
        suppressed(), tf.function(suppressed, jit_compile=True)(), strict=True
    ):
        np.testing.assert_array_equal(plain, compiled)


@pytest.mark.parametrize("classes", [1, 3])
def test_static_shapes_lose_nothing_in_a_crowd(classes):
    """Objects side by side, each found forty times: far more candidates than survivors."""
    rng = np.random.default_rng(0)
    corner = np.stack(np.divmod(np.arange(25), 5), -1)[:, None] * 20.0
    corner = (corner + rng.uniform(0, 1, (25, 40, 2))).reshape(1, -1, 1, 2)
    boxes = np.concatenate([corner, corner + 15], -1)
    scores = rng.permutation(1000 * classes).reshape(1, 1000, classes) / 1000 + 0.1
    kept = [run(boxes, scores, static=static, most=30 * classes) for static in (False, True)]
    assert kept[0].valid.numpy().sum() == 25 * classes
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_static_shapes_are_exact_for_many_classes():
    """Boxes of 1,203 classes, moved apart, would be known to a quarter of a pixel only."""
    rng = np.random.default_rng(0)
    corner = rng.uniform(0, 1000, (2, 40, 1, 2))
    boxes = np.concatenate([corner, corner + 40], -1)
    boxes[:, 20:] = boxes[:, :20] + [0, 0, 20.02, 0]  # IoU just above 2/3
    scores = rng.permuted(np.arange(2 * 40 * 1203)).reshape(2, 40, 1203) / 1e5
    kept = [run(boxes, scores, static=static, iou=40 / 60, most=300) for static in (False, True)]
    for ours, theirs in zip(*kept, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_soft_by_hand():
    # The third box is one half of the second and the first the other; the fourth is the first.
    boxes = [[0, 0, 10, 10], [0, 0, 10, 20], [0, 10, 10, 20], [0, 0, 10, 10]]
    scores = np.reshape([0.9, 0.8, 0.6, 0.7], (1, 4, 1))
    kept = run(np.reshape(boxes, (1, 4, 1, 4)), scores, sigma=0.5, score=0.09, most=4)
    half = np.exp(-(0.5**2) / 0.5)
    np.testing.assert_allclose(kept.scores, [[0.9, 0.6, 0.8 * half * half, 0]], rtol=1e-6)
    np.testing.assert_array_equal(kept.boxes[0], [boxes[0], boxes[2], boxes[1], [0] * 4])
    assert 0.7 * np.exp(-2) > 0.09 > 0.7 * np.exp(-2) * half


def test_soft_takes_equal_scores_by_box_then_class():
    places = np.float32([[0, 0, 10, 10], [0, 5, 10, 15], [20, 0, 30, 10]]).reshape(1, 3, 1, 4)
    kept = run(places, np.full((1, 3, 2), 0.5), sigma=0.5, most=6)
    np.testing.assert_array_equal(kept.boxes[0, :, 1], [0, 0, 0, 0, 5, 5])
    np.testing.assert_array_equal(kept.boxes[0, :, 0], [0, 0, 20, 20, 0, 0])
    np.testing.assert_array_equal(kept.classes, [[0, 1] * 3])
    fallen = 0.5 * np.exp(-((1 / 3) ** 2) / 0.5)
    np.testing.assert_allclose(kept.scores, [[0.5] * 4 + [fallen] * 2], rtol=1e-6)


@every_way
@pytest.mark.parametrize(
    "columns, classes, sigma, score, most",
    [(1, 1, 0.5, 0.0, 60), (1, 1, 0.5, 0.3, 100), (1, 4, 0.1, 0.05, 40), (4, 4, 0.5, 0.001, 100)],
)
def test_soft_equals_the_papers_loop(static, columns, classes, sigma, score, most):
    boxes, scores = random_case(columns=columns, classes=classes, seed=most)
    kept = run(boxes, scores, static=static, sigma=sigma, score=score, most=most)
    for image in range(2):
        expected = soft_nms_by_class(
            boxes[image], scores[image], sigma=sigma, score_threshold=score, most=most
        )
        assert_found(kept, image, expected)


def test_soft_compiles_to_the_same():
    boxes, scores = random_case(columns=3, classes=3)

    def suppressed():
        return run(boxes, scores, static=True, sigma=0.5, score=0.01, most=30)

    compiled = tf.function(suppressed, jit_compile=True)()
    for ours, theirs in zip(suppressed(), compiled, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6)
