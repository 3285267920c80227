"""What `tools/benchmark.py` times: for each name a function that makes a repeatable piece of work.

`make_NAME(params, values)` takes the settings and the benchmark's own flags, prepares everything
that is not to be timed, and returns a function that does the work once and returns the number of
images it processed. TensorFlow is imported where it is used: `convert` and `evaluate` do without.

Axes: B images, G objects of an image, M side of a ground-truth mask.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import os
import shutil
import tempfile
from collections.abc import Callable

import numpy as np
from absl import flags

from data.errors import UserError
from trainer.config import Params

COCO_CLASSES = 81
DETECTIONS_PER_IMAGE = 30
SCORED_CLASSES = 3
MATCHED_SETS = 32

Workload = Callable[[], int]


def make_input(params: Params, values: flags.FlagValues) -> Workload:
    """Batches of the training input, as the trainer would get them."""
    from data.input_fn import input_fn

    batches = iter(input_fn("train", params))
    count = max(1, values.images // values.batch_size)

    def run() -> int:
        for _ in range(count):
            next(batches)
        return count * values.batch_size

    return run


def make_match(params: Params, values: flags.FlagValues) -> Workload:
    """Anchor matching and sampling through Dataset.map, two images at a time."""
    import tensorflow as tf

    from data.anchor_matching import match_and_sample
    from data.anchors import AnchorGrid

    config = params.data
    grid = AnchorGrid.from_config(config, config.canvas_sizes[0])
    rng = np.random.default_rng(config.seed)
    boxes = np.stack(
        [draw_boxes(rng, values.instances, values.image_size) for _ in range(MATCHED_SETS)]
    )

    def match(gt_boxes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        targets = match_and_sample(
            # The pipeline does not know G either.
            tf.boolean_mask(gt_boxes, tf.ones_like(gt_boxes[:, 0], tf.bool)),
            tf.zeros([0, 4]),
            grid,
            seed,
            positive_iou=config.rpn_positive_iou,
            negative_iou=config.rpn_negative_iou,
            num_samples=config.rpn_samples_per_image,
            positive_fraction=config.rpn_positive_fraction,
            ignore_crowds=config.rpn_ignore_crowds,
            forced_match=config.rpn_forced_match,
        )
        return targets.labels

    seeds = np.stack([np.arange(MATCHED_SETS), np.zeros(MATCHED_SETS)], -1).astype(np.int32)
    labels = iter(
        tf.data.Dataset.from_tensor_slices((boxes, seeds))
        .repeat()
        .map(match, num_parallel_calls=2)
        .prefetch(2)
    )

    def run() -> int:
        for _ in itertools.islice(labels, values.images):
            pass
        return values.images

    return run


def make_train(params: Params, values: flags.FlagValues) -> Workload:
    """Training steps on one batch, optimizer included."""
    from model.model_fn import model_fn
    from trainer.optimizer import Updater
    from trainer.steps import TrainStep

    strategy, network = _build(params)
    with strategy.scope():
        updater = Updater(network, params)
    step = TrainStep(model_fn, network, updater, strategy, params)
    features, labels = _training_batch(params)

    def run() -> int:
        float(step(features, labels).loss)
        return values.batch_size

    return run


def make_predict(params: Params, values: flags.FlagValues) -> Workload:
    """Detection of one batch with 100 detections an image, and their masks as COCO RLE."""
    import tensorflow as tf

    from model.model_fn import model_fn
    from trainer.coco_metrics import CocoEvaluator
    from trainer.steps import PredictStep, split_images

    strategy, network = _build(params)
    network.box_head = PinnedClasses(network.box_head)
    step = PredictStep(model_fn, network, strategy, params)
    size, batch = values.image_size, values.batch_size
    rng = np.random.default_rng(params.data.seed)
    features = {
        "image": tf.constant(rng.integers(0, 256, (batch, size, size, 3)), tf.uint8),
        "image_id": tf.range(batch, dtype=tf.int64),
        "image_info": tf.constant([[size, size, 1, size, size]] * batch, tf.float32),
    }

    def run() -> int:
        writer = CocoEvaluator(None, ())
        (predictions,) = step([features])
        for image in split_images(features, predictions):
            writer.add(image)
        return batch

    return run


def make_convert(params: Params, values: flags.FlagValues) -> Workload:
    """The whole conversion of a data set in this process and its workers."""
    from data.conversion import Conversion, convert

    folder = tempfile.mkdtemp()

    def run() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        settings = Conversion(
            image_dir=values.image_dir,
            annotations_file=values.object_annotations_file,
            output_prefix=os.path.join(folder, "records"),
            num_shards=8,
            num_processes=values.num_processes,
        )
        try:
            with contextlib.redirect_stderr(io.StringIO()):
                return convert(settings).num_images
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    return run


def make_evaluate(params: Params, values: flags.FlagValues) -> Workload:
    """COCO evaluation of boxes and masks: 30 detections an image, shifted ground truths."""
    from trainer.average_precision import evaluate_results
    from trainer.coco_metrics import load_ground_truth

    if not params.train.eval_annotation_file:
        raise UserError("--eval_annotation_file is not set: name a COCO JSON file to evaluate on.")
    ground_truth = load_ground_truth(params.train.eval_annotation_file, "")
    image_ids = [image["id"] for image in ground_truth["images"]]
    results = shift_ground_truth(ground_truth, np.random.default_rng(params.data.seed))

    def run() -> int:
        for kind in ("bbox", "segm"):
            evaluate_results(ground_truth, results, kind, image_ids)
        return len(image_ids)

    return run


class PinnedClasses:
    """A box head whose scores name three classes a RoI, as a trained network roughly does.

    Random weights find nothing or everything; with three scores above the threshold each, NMS and
    the mask branch have the work that they have in earnest.
    """

    def __init__(self, head):
        self._head = head

    def __call__(self, features):
        """The head's outputs on [N, 7, 7, C], its logits replaced and its deltas damped."""
        import tensorflow as tf

        outputs = self._head(features)
        count, classes = tf.shape(outputs.class_logits)[0], outputs.class_logits.shape[1]
        shape, seed = [count, SCORED_CLASSES], [1, 2]
        chosen = tf.random.stateless_uniform(shape, seed, 1, classes, tf.int32)
        heights = tf.random.stateless_uniform(shape, seed, 4.0, 6.0)
        raised = tf.reduce_max(tf.one_hot(chosen, classes) * heights[..., None], axis=1)
        return outputs._replace(
            class_logits=outputs.class_logits * 0.0 + raised - 4.0,
            box_deltas=outputs.box_deltas * 0.01,
        )


def draw_boxes(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
    """Boxes with COCO's shares of small, medium and large ones: float32 [count, 4], pixels."""
    spans = np.array([[6.0, 32.0], [32.0, 96.0], [96.0, 330.0]]) * size / 640.0
    low, high = spans[rng.choice(3, count, p=[0.41, 0.34, 0.25])].T
    side = np.exp(rng.uniform(np.log(low), np.log(high)))
    stretch = np.exp(np.clip(rng.normal(0.0, 0.45, count), -1.0, 1.0) / 2)
    sides = np.minimum(np.stack([side / stretch, side * stretch], -1), 0.95 * size)
    corner = rng.uniform(0.0, 1.0, (count, 2)) * (size - sides)
    return np.concatenate([corner, corner + sides], -1).astype(np.float32)


def shift_ground_truth(ground_truth: dict, rng: np.random.Generator) -> list[dict]:
    """COCO results: copies of each image's annotations, their boxes moved a little."""
    by_image: dict[int, list[dict]] = {}
    for annotation in ground_truth["annotations"]:
        if not annotation["iscrowd"]:
            by_image.setdefault(annotation["image_id"], []).append(annotation)
    return [
        {
            "image_id": annotation["image_id"],
            "category_id": annotation["category_id"],
            "bbox": np.maximum(annotation["bbox"] + rng.normal(0.0, 2.0, 4), 0.5).tolist(),
            "segmentation": annotation["segmentation"],
            "score": float(rng.uniform()),
        }
        for annotations in by_image.values()
        for annotation in itertools.islice(itertools.cycle(annotations), DETECTIONS_PER_IMAGE)
    ]


def _build(params: Params):
    from model.mask_scoring_rcnn import build_network
    from trainer.strategy import make_strategy, prepare_runtime

    params = dataclasses.replace(
        params, train=dataclasses.replace(params.train, distribution="one_device")
    )
    prepare_runtime(params)
    strategy = make_strategy(params)
    with strategy.scope():
        return strategy, build_network(params)


def _training_batch(params: Params):
    """The first batch of the training input."""
    from data.input_fn import input_fn

    return next(iter(input_fn("train", params)))
