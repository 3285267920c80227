"""Features of regions on disk, for R-CNN's SVMs and box regressions.

One pass over the training images computes the features of every proposal and ground-truth box, and
writes them to shards of TFRecords. A rerun computes the missing shards only; features of other
weights, images or proposals are removed.

Axes: R regions of an image, G its ground truths, D numbers of a region's vector, P of its pooled
features.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data import boxes as box_ops
from data import files
from data.input_fn import plain_examples
from data.manifest import expand_pattern
from data.progress import with_progress
from data.proposal_file import list_proposal_files
from data.tf_example import bytes_feature, serialize_example
from data.tfrecords import write_shard
from model.detector import Detector
from trainer.config import Params

IMAGES_PER_SHARD = 32
# Regions with at least this IoU with an object teach its class's box regression.
REGRESSION_IOU = 0.6
_PLAN = "plan.json"
_NAMES = ("boxes", "gt_boxes", "gt_classes", "vectors", "near", "pooled")
_DTYPES = (np.float32, np.float32, np.int32, np.float16, np.int32, np.float16)


class ImageFeatures(NamedTuple):
    """The features of an image; its ground-truth boxes are the last G of the regions."""

    boxes: np.ndarray  # float32 [R, 4], pixels of the network's input
    gt_boxes: np.ndarray  # float32 [G, 4]
    gt_classes: np.ndarray  # int32 [G]
    vectors: np.ndarray  # float16 [R, D]
    near: np.ndarray  # int32 [r], regions whose IoU with an object is REGRESSION_IOU or more
    pooled: np.ndarray  # float16 [r, P], theirs

    @property
    def ious(self) -> np.ndarray:
        """IoU of each region with each object: float32 [R, G]."""
        return box_ops.pairwise_iou(self.boxes[None], self.gt_boxes[None])[0].numpy()


class RegionFeatures:
    """The features of all training images, in the folder `features` of a model_dir.

    Args:
        network: an R-CNN.
        params: settings.
        num_images: number of training images.
    """

    def __init__(self, network: Detector, params: Params, num_images: int):
        self._network = network
        self._params = params
        self._num_images = num_images
        self._folder = os.path.join(files.expand(params.train.model_dir), "features")
        records = expand_pattern(params.data.train_file_pattern)
        inputs = [*records, *list_proposal_files(params.data.proposals_file)]
        self._plan = {
            "settings": repr((params.data, params.model)),
            "inputs": [[path, *files.state(path)] for path in inputs],
            "weights": _digest(network),
            "num_images": num_images,
        }

    def write(self) -> None:
        """Computes the features that are not on disk yet."""
        self._prepare()
        missing = list(itertools.dropwhile(files.exists, self._paths()))
        if not missing:
            return
        start = (len(self._paths()) - len(missing)) * IMAGES_PER_SHARD
        examples = iter(plain_examples(self._params, start))
        shown = with_progress(examples, "Computing features", self._num_images - start)
        for path in missing:
            with files.os_errors(path):
                write_shard(path, map(self._serialize, itertools.islice(shown, IMAGES_PER_SHARD)))
        next(shown, None)  # so that the progress ends

    def read(self) -> Iterator[ImageFeatures]:
        """Yields the features of each image."""
        for path in self._paths():
            for record in tf.data.TFRecordDataset(path):
                yield _parse(record)

    def describe(self) -> str:
        """Says how much disk space the features take at most."""
        vector = 2 * self._network.box_head.trunk.out_channels
        size = self._num_images * self._params.data.max_proposals * vector
        return (
            f"The features of {self._num_images} images with up to "
            f"{self._params.data.max_proposals} proposals each take up to {size / 1e6:,.0f} "
            f"MB in {self._folder}; those for box regression are added."
        )

    def remove(self) -> None:
        """Removes them from disk."""
        if files.exists(self._folder):
            files.remove_folder(self._folder)

    def _prepare(self) -> None:
        path = os.path.join(self._folder, _PLAN)
        if files.exists(path):
            with files.open_file(path) as file:
                if json.load(file) == self._plan:
                    return
        self.remove()
        files.make_folder(self._folder)
        with files.whole_file(path) as file:
            json.dump(self._plan, file)

    def _paths(self) -> list[str]:
        count = -(-self._num_images // IMAGES_PER_SHARD)
        return [
            os.path.join(self._folder, f"features-{index:05d}-of-{count:05d}.tfrecord")
            for index in range(count)
        ]

    def _serialize(self, example: tuple[dict, dict]) -> bytes:
        found = _select(*self._compute(*example))
        return serialize_example(
            {
                name: bytes_feature(np.ascontiguousarray(values, dtype).tobytes())
                for name, values, dtype in zip(_NAMES, found, _DTYPES, strict=True)
            }
        )

    @functools.cached_property
    def _compute(self):
        network = self._network

        @tf.function(autograph=False)
        def compute(features, labels):
            view, _, proposals = network.propose(features, training=False)
            boxes = tf.concat([proposals.boxes, labels["gt_boxes"]], axis=1)
            found = network.box_head.compute_features(view, boxes)
            return boxes[0], proposals.valid[0], labels["gt_classes"][0], *found

        return compute


def _digest(network: Detector) -> str:
    """Digests the weights that features depend on."""
    digest = hashlib.sha256()
    for part in (network.backbone, network.box_head.trunk):
        for variable in part.variables:
            digest.update(variable.numpy().tobytes())
    return digest.hexdigest()


def _select(boxes, is_proposal, gt_classes, vectors, pooled) -> ImageFeatures:
    """Leaves empty slots out, and pooled features that no regression learns from."""
    present = np.concatenate([is_proposal, gt_classes > 0])
    boxes, gt_classes = boxes.numpy()[present], gt_classes.numpy()
    gt_classes = gt_classes[gt_classes > 0]
    gt_boxes = boxes[len(boxes) - len(gt_classes) :]
    found = ImageFeatures(boxes, gt_boxes, gt_classes, vectors.numpy()[present], (), ())
    near = np.flatnonzero(found.ious.max(axis=1, initial=0.0) >= REGRESSION_IOU)
    return found._replace(near=near, pooled=pooled.numpy()[present][near])


def _parse(record: tf.Tensor) -> ImageFeatures:
    features = tf.train.Example.FromString(record.numpy()).features.feature
    boxes, gt_boxes, gt_classes, vectors, near, pooled = (
        np.frombuffer(features[name].bytes_list.value[0], dtype)
        for name, dtype in zip(_NAMES, _DTYPES, strict=True)
    )
    boxes = boxes.reshape(-1, 4)
    return ImageFeatures(
        boxes,
        gt_boxes.reshape(-1, 4),
        gt_classes,
        vectors.reshape(len(boxes), -1),
        near,
        pooled.reshape(len(near), -1) if len(near) else pooled.reshape(0, 1),
    )
