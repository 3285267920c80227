"""The second and third training of R-CNN: an SVM and a box regression for each class.

Source: Girshick et al., CVPR 2014, section 2.3 and appendices B and C. An SVM's positives are the
ground-truth boxes of its class; its negatives are the proposals whose IoU with each of them is
below 0.3. Others are ignored. A regression learns from regions whose IoU with an object of its
class is at least 0.6.

Axes: K classes with the background, D numbers of a region's vector, P of its pooled features.
"""

from __future__ import annotations

from collections import defaultdict
from typing import NamedTuple

import numpy as np

from data import boxes as box_ops
from data.errors import UserError
from data.progress import with_progress
from model.region_head import RegionHead
from trainer.config import Params
from trainer.linear_svm import HardNegatives, Linear, fit_ridge
from trainer.region_features import REGRESSION_IOU, ImageFeatures, RegionFeatures

NEGATIVE_IOU = 0.3
# Features are scaled so that their mean norm is this, as in the authors' code.
MEAN_NORM = 20.0


def fit_region_head(estimator, params: Params, num_images: int) -> None:
    """Fits the head of an R-CNN that was trained under softmax, and saves a checkpoint.

    It counts as one more step. If it was done for the weights already, nothing happens.

    Raises:
        UserError: there is no object to learn.
    """
    network, steps = estimator.network, params.train.train_steps
    head: RegionHead = network.box_head
    if int(head.fitted.steps.numpy()) == steps == estimator.step - 1:
        return
    features = RegionFeatures(network, params, num_images)
    print(features.describe(), flush=True)
    features.write()
    examples = _collect(features, num_images)
    svms = _fit_svms(features, examples, num_images)
    _assign(head, svms, _fit_regressions(examples), steps)
    estimator.checkpoints.step.assign(steps + 1)
    estimator.checkpoints.save()
    features.remove()


class Examples(NamedTuple):
    """What is learnt from and fits in memory, by class.

    Attributes:
        positives: float32 [n, D] of the objects.
        pooled: float32 [n, P] of regions near an object.
        deltas: float32 [n, 4], from the region to the object.
    """

    positives: dict[int, np.ndarray]
    pooled: dict[int, np.ndarray]
    deltas: dict[int, np.ndarray]


def _collect(features: RegionFeatures, num_images: int) -> Examples:
    columns = [defaultdict(list) for _ in Examples._fields]
    for image in with_progress(features.read(), "Reading features", num_images):
        objects = image.vectors[len(image.boxes) - len(image.gt_boxes) :]
        for label, vector in zip(image.gt_classes.tolist(), objects, strict=True):
            columns[0][label].append(vector)
        for label, *rows in _near_objects(image):
            for column, row in zip(columns[1:], rows, strict=True):
                column[label].append(row)
    if not columns[0]:
        raise UserError("The training records have no objects, so no SVM can be fitted.")
    return Examples(
        *(
            {label: np.stack(rows).astype(np.float32) for label, rows in column.items()}
            for column in columns
        )
    )


def _scale_of(rows_by_class: dict[int, np.ndarray]) -> float:
    """Returns what features are multiplied by so that their mean norm is `MEAN_NORM`."""
    norms = [np.linalg.norm(rows, axis=1) for rows in rows_by_class.values()]
    return MEAN_NORM / max(float(np.mean(np.concatenate(norms))), 1e-12)


def _near_objects(image: ImageFeatures):
    """Yields label, pooled features and delta of each region that is near an object."""
    if not len(image.near):
        return
    ious = image.ious[image.near]
    nearest = ious.argmax(axis=1)
    boxes, objects = image.boxes[image.near], image.gt_boxes[nearest]
    deltas = box_ops.encode(objects[None], boxes[None], (1.0, 1.0, 1.0, 1.0))[0].numpy()
    for row, gt in enumerate(nearest):
        if ious[row, gt] >= REGRESSION_IOU:
            yield int(image.gt_classes[gt]), image.pooled[row], deltas[row]


def _fit_svms(features: RegionFeatures, examples: Examples, num_images: int) -> dict[int, Linear]:
    """Fits the SVMs of all classes in one pass over the negatives."""
    scale = _scale_of(examples.positives)
    mined = {label: HardNegatives(scale * rows) for label, rows in examples.positives.items()}
    for image in with_progress(features.read(), "Mining hard negatives", num_images):
        ious = image.ious
        proposals = np.arange(len(image.boxes)) < len(image.boxes) - len(image.gt_boxes)
        vectors = scale * image.vectors.astype(np.float32)
        for label, svm in mined.items():
            own = ious[:, image.gt_classes == label].max(axis=1, initial=0.0)
            svm.see(vectors[proposals & (own < NEGATIVE_IOU)])
    return {label: svm.fit().scaled(scale) for label, svm in mined.items()}


def _fit_regressions(examples: Examples) -> dict[int, Linear]:
    if not examples.pooled:
        return {}
    scale = _scale_of(examples.pooled)
    return {
        label: fit_ridge(scale * rows, examples.deltas[label]).scaled(scale)
        for label, rows in examples.pooled.items()
    }


def _assign(head: RegionHead, svms: dict, regressions: dict, steps: int) -> None:
    """Gives the fitted functions to the network; a class without objects is never detected."""
    kernel, bias = (np.zeros(v.shape, np.float32) for v in (head.svms.kernel, head.svms.bias))
    bias -= 100.0
    for label, svm in svms.items():
        kernel[:, label - 1], bias[label - 1] = svm
    head.svms.kernel.assign(kernel)
    head.svms.bias.assign(bias)
    layer = head.regressions
    kernel, bias = (np.zeros(v.shape, np.float32) for v in (layer.kernel, layer.bias))
    for label, regression in regressions.items():
        columns = slice(4 * (label - 1), 4 * label)
        kernel[:, columns], bias[columns] = regression
    layer.kernel.assign(kernel)
    layer.bias.assign(bias)
    head.fitted.steps.assign(float(steps))
