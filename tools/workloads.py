"""What `tools/benchmark.py` times of ours: for each name a repeatable piece of work.

`make_NAME(params, values)` takes the trainer's settings and the benchmark's own flags, prepares
everything that is not to be timed, and returns a function that does the work once and returns the
number of images it processed. TensorFlow is imported where it is used: some do without.

Axes: B images, G objects of an image, M side of a ground-truth mask.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np
from absl import flags

from data.errors import UserError
from tools import stand_ins, workload_data
from trainer.config import Params
from trainer.flags import write_flagfile

UNITS = {
    "input": "images/s",
    "decode": "images/s",
    "match": "ms/image",
    "convert": "images/s",
    "train": "s/step",
    "predict": "s/image",
    "backbone": "s/step",
    "evaluate": "ms/image",
    "start": "s",
}
PACKAGES = ("tensorflow", "tensorflow-cpu", "keras", "numpy", "pycocotools", "faster-coco-eval")
COCO_CLASSES = 81
MATCHED_SETS = 32
_START_TIMEOUT_SECONDS = 300.0

Workload = Callable[[], int]


def define_flags(values: flags.FlagValues) -> None:
    """Defines the flags that workloads have beside the trainer's."""
    for name, default, meaning in (
        ("image_size", 832, "Side of the square canvas, pixels."),
        ("batch_size", 2, "Images of a batch, of all replicas."),
        ("instances", 0, "Objects of an image, drawn; 0: those that are annotated, 8 in `match`."),
        ("positives", 0, "Positive RoIs of an image in `train`; 0: as many as there are."),
        ("images", 400, "Images of a timed run of `input`, `decode` and `match`."),
        ("num_shards", 8, "Shards of the records."),
        ("num_processes", os.cpu_count(), "Processes of `convert`."),
    ):
        flags.DEFINE_integer(name, default, meaning, flag_values=values)
    for name, default, meaning in (
        ("image_dir", "", "Folder of the images."),
        ("object_annotations_file", "", "COCO JSON of the images."),
        ("kind", "segm", "What `evaluate` evaluates, bbox or segm; `backbone`: forward or both."),
    ):
        flags.DEFINE_string(name, default, meaning, flag_values=values)


def make(what: str, params: Params, values: flags.FlagValues) -> Workload:
    """The workload of a name in `UNITS`, on the flags' canvas."""
    return globals()[f"make_{what}"](with_canvas(params, values), values)


def with_canvas(params: Params, values: flags.FlagValues) -> Params:
    """The settings with the flags' canvas and batch, and COCO's classes if none are told.

    Raises:
      UserError: no network can have them.
    """
    size, batch = values.image_size, values.batch_size
    try:
        data = dataclasses.replace(
            params.data,
            canvases=(f"{size}x{size}",),
            short_side=size,
            long_side=size,
            train_short_side_min=size,
            train_batch_size=batch,
            eval_batch_size=batch,
            max_instances=max(params.data.max_instances, values.instances),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    classes = params.model.num_classes or COCO_CLASSES
    model = dataclasses.replace(params.model, num_classes=classes)
    return dataclasses.replace(params, data=data, model=model)


def make_input(params: Params, values: flags.FlagValues) -> Workload:
    """Batches of the training input, as the trainer would get them."""
    from data.input_fn import input_fn

    batches = iter(input_fn("train", workload_data.with_records(params, values)))
    count = max(1, values.images // values.batch_size)

    def run() -> int:
        for _ in range(count):
            next(batches)
        return count * values.batch_size

    return run


def make_decode(params: Params, values: flags.FlagValues) -> Workload:
    """The least that an input has to do: decode JPEGs and resize them to the canvas."""
    import tensorflow as tf

    size = values.image_size
    names = [
        image["file_name"]
        for image in stand_ins.read_coco(workload_data.annotations_file(values), 0)["images"]
    ]
    encoded = [tf.io.read_file(os.path.join(values.image_dir, name)) for name in names]

    def decode(content: tf.Tensor) -> tf.Tensor:
        image = tf.image.resize(tf.io.decode_jpeg(content, channels=3), [size, size])
        return tf.cast(image, tf.uint8)

    images = iter(
        tf.data.Dataset.from_tensor_slices(encoded)
        .repeat()
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )

    def run() -> int:
        for _ in itertools.islice(images, values.images):
            pass
        return values.images

    return run


def make_match(params: Params, values: flags.FlagValues) -> Workload:
    """Anchor matching and sampling through Dataset.map, two images at a time."""
    import tensorflow as tf

    from data.anchor_matching import match_and_sample
    from data.anchors import AnchorGrid

    config = params.data
    grid = AnchorGrid.from_config(config, config.canvas_sizes[0])
    rng = np.random.default_rng(config.seed)
    boxes = [
        stand_ins.draw_boxes(rng, values.instances or 8, values.image_size)
        for _ in range(MATCHED_SETS)
    ]

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
        tf.data.Dataset.from_tensor_slices((np.stack(boxes), seeds))
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
    batches = iter(strategy.distribute_datasets_from_function(_input_of(params, values)))
    features, labels = next(batches)
    if values.positives:
        limit = int(params.model.rois_per_image * params.model.roi_positive_fraction)
        if params.train.num_logical_cpus > 1 or values.positives != limit:
            raise UserError(f"--positives can only be {limit}, or 0, and on one device.")
        stand_ins.pin_positives(network, labels["gt_boxes"].numpy())
    with strategy.scope():
        updater = Updater(network, params)
    step = TrainStep(model_fn, network, updater, strategy, params)

    def run() -> int:
        float(step(features, labels).loss)
        return values.batch_size

    return run


def make_backbone(params: Params, values: flags.FlagValues) -> Workload:
    """The convolutions of ResNet and FPN alone; with `--kind=both` their gradients too."""
    import tensorflow as tf

    strategy, network = _build(params)
    features = workload_data.noise(values, params.data.seed)
    variables = [variable.value for variable in network.fpn.trainable_variables]
    variables += [variable.value for variable in network.backbone.trainable_variables]

    @tf.function(autograph=False)
    def forward() -> tf.Tensor:
        pyramid = network.extract_features(features["image"], features["image_info"], True)
        return tf.add_n([tf.reduce_sum(tf.cast(level, tf.float32)) for level in pyramid])

    @tf.function(autograph=False)
    def both() -> list[tf.Tensor]:
        with tf.GradientTape() as tape:
            total = forward()
        # What is returned is computed, and one number of each is quick to fetch.
        return [tf.reduce_max(g) for g in tape.gradient(total, variables)]

    function = both if values.kind == "both" else forward

    def run() -> int:
        tf.nest.map_structure(lambda tensor: tensor.numpy(), function())
        return values.batch_size

    return run


def make_predict(params: Params, values: flags.FlagValues) -> Workload:
    """Detection of one batch with 100 detections an image, and their masks as COCO RLE."""
    from model.model_fn import model_fn
    from trainer.coco_metrics import CocoEvaluator
    from trainer.steps import PredictStep, split_images

    strategy, network = _build(params)
    network.box_head = stand_ins.PinnedClasses(network.box_head)
    step = PredictStep(model_fn, network, strategy, params)
    features = workload_data.noise(values, params.data.seed)

    def run() -> int:
        writer = CocoEvaluator(None, (), params.model.mask_paste)
        (predictions,) = step([features])
        for image in split_images(features, predictions):
            writer.add(image)
        return values.batch_size

    return run


def make_convert(params: Params, values: flags.FlagValues) -> Workload:
    """The converter as a command, its start-up included."""
    annotations = workload_data.annotations_file(values)
    count = len(stand_ins.read_coco(annotations, 0)["images"])
    folder = stand_ins.scratch()

    def run() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        workload_data.run_converter(values, annotations, folder)
        return count

    return run


def make_evaluate(params: Params, values: flags.FlagValues) -> Workload:
    """COCO evaluation of one kind: 30 detections an image, many of them wrong."""
    from trainer.average_precision import evaluate_results
    from trainer.coco_metrics import load_ground_truth

    ground_truth = load_ground_truth(workload_data.annotations_file(values), "")
    image_ids = [image["id"] for image in ground_truth["images"]]
    results = stand_ins.draw_results(ground_truth, np.random.default_rng(0))

    def run() -> int:
        evaluate_results(ground_truth, results, values.kind, image_ids)
        return len(image_ids)

    return run


def make_start(params: Params, values: flags.FlagValues) -> Workload:
    """The trainer's command, until its first step is done."""
    folder = stand_ins.scratch()
    flagfile = os.path.join(folder, "settings.flags")
    model_dir = os.path.join(folder, "run")
    data, train = workload_data.with_records(params, values).data, params.train
    train = dataclasses.replace(train, train_steps=1000, log_every_steps=1, model_dir=model_dir)
    write_flagfile(Params(data=data, model=params.model, train=train), flagfile)
    command = [sys.executable, "-m", "trainer.main", f"--flagfile={flagfile}", "--mode=train"]

    def run() -> int:
        shutil.rmtree(model_dir, ignore_errors=True)
        log = os.path.join(model_dir, "train.jsonl")
        trainer = subprocess.Popen(command, cwd=workload_data.ROOT, stdout=sys.stderr)
        try:
            give_up = time.monotonic() + _START_TIMEOUT_SECONDS
            while not (os.path.exists(log) and os.path.getsize(log)):
                if trainer.poll() is not None or time.monotonic() > give_up:
                    raise UserError("the trainer ended, or did not begin, before its first step.")
                time.sleep(0.02)
        finally:
            trainer.kill()
            trainer.wait()
        return values.batch_size

    return run


def _input_of(params: Params, values: flags.FlagValues):
    """The training input as `distribute_datasets_from_function` wants it."""
    from data.input_fn import input_fn

    with_records = workload_data.with_records(params, values)
    return lambda context: input_fn("train", with_records, context)


def _build(params: Params):
    from model.systems import build_network
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    strategy = make_strategy(params)
    with strategy.scope():
        return strategy, build_network(params)
