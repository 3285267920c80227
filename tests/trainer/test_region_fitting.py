"""The features on disk, and the SVMs and regressions fitted to them."""

import numpy as np
import pytest

from data.boxes import decode
from trainer import region_fitting
from trainer.region_features import ImageFeatures
from trainer.region_fitting import _collect, _fit_regressions, _fit_svms


def image_of(rng, directions, shifts):
    """Objects of two classes, proposals around them, and background.

    A region's vector is its class's direction as far as it overlaps the object, and noise; its
    pooled features state the shift to the object.
    """
    gt_boxes, gt_classes, boxes, vectors, pooled = [], [], [], [], []
    for label in (1, 2):
        corner = rng.uniform(0, 100, 2)
        gt = np.concatenate([corner, corner + rng.uniform(20, 60, 2)])
        gt_boxes.append(gt)
        gt_classes.append(label)
        side = np.tile(gt[2:] - gt[:2], 2)
        for _ in range(4):
            shift = rng.uniform(-0.1, 0.1, 2)
            boxes.append(gt - np.tile(shift, 2) * side)
            vectors.append(directions[label] + 0.3 * rng.normal(size=8))
            pooled.append([*shift, label, *rng.normal(size=3)])
    for _ in range(30):
        corner = rng.uniform(300, 400, 2)
        boxes.append(np.concatenate([corner, corner + 30]))
        vectors.append(0.3 * rng.normal(size=8))
        pooled.append(np.zeros(6))
    for label in (1, 2):
        boxes.append(gt_boxes[label - 1])
        vectors.append(directions[label] + 0.3 * rng.normal(size=8))
        pooled.append([0, 0, label, *rng.normal(size=3)])
    near = [*range(8), 38, 39]
    return ImageFeatures(
        np.float32(boxes), np.float32(gt_boxes), np.int32(gt_classes), np.float16(vectors),
        np.int32(near), np.float16(np.array(pooled)[near]),
    )  # fmt: skip


class Features:
    """Stands in for the features on disk."""

    def __init__(self, images):
        self.read = lambda: iter(images)


@pytest.fixture(scope="module")
def fitted():
    rng = np.random.default_rng(0)
    directions = {1: np.eye(8)[0] * 3, 2: np.eye(8)[1] * 3}
    images = [image_of(rng, directions, None) for _ in range(40)]
    examples = _collect(Features(images), len(images))
    svms = _fit_svms(Features(images), examples, len(images))
    return images, examples, svms, _fit_regressions(examples)


def test_examples_are_those_of_the_paper(fitted):
    images, examples, *_ = fitted
    for label in (1, 2):
        assert examples.positives[label].shape == (40, 8)
        # Four shifted proposals and the object itself, if they overlap it enough.
        assert 40 < len(examples.pooled[label]) <= 200
        assert len(examples.pooled[label]) == len(examples.deltas[label])


def test_svms_tell_the_classes_apart_in_the_units_of_the_network(fitted):
    images, _, svms, _ = fitted
    for image in images:
        vectors = image.vectors.astype(np.float32)
        first, second = svms[1](vectors), svms[2](vectors)
        assert (first[-2] > 0) and (second[-1] > 0)
        assert (first[8:38] < 0).all() and (second[8:38] < 0).all()
        assert second[-2] < 0 and first[-1] < 0


def test_regressions_move_boxes_towards_their_objects(fitted, monkeypatch):
    monkeypatch.setattr(region_fitting, "fit_ridge", lambda x, t: real(x, t, penalty=1e-3))
    images, examples, *_ = fitted
    for label, regression in _fit_regressions(examples).items():
        for image in images[:5]:
            rows = range(4 * (label - 1), 4 * label)
            deltas = regression(image.pooled[list(rows)].astype(np.float32))
            moved = decode(deltas[None], image.boxes[list(rows)][None], (1.0,) * 4)[0].numpy()
            before = np.abs(image.boxes[list(rows)] - image.gt_boxes[label - 1]).max()
            assert np.abs(moved - image.gt_boxes[label - 1]).max() < 0.3 * before


real = region_fitting.fit_ridge
