"""This project's work that `tools/benchmark.py` times, one function for each stage.

Each takes the trainer's settings and those of the benchmark, prepares everything that is not timed,
and returns the workload. TensorFlow is imported where it is used, because some stages do not need
it.

Axes: B images, G objects of an image, M side of a ground-truth mask.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from data.errors import UserError
from tools.benchmarks import pinning, records, synthetic
from tools.benchmarks.stages import Settings, Workload, stream
from trainer.config import Params
from trainer.flags import parse_flags_with, write_flagfile

PACKAGES = (
    *("tensorflow", "tensorflow-cpu", "keras", "numpy", "pycocotools", "faster-coco-eval"),
    *("ai-edge-litert", "openvino"),
)
COCO_CLASSES = 81
_START_TIMEOUT_SECONDS = 300.0


def with_canvas(params: Params, settings: Settings) -> Params:
    """Completes the settings with the flags' canvas and batch size, and by default COCO's classes.

    Raises:
        UserError: the settings are invalid for a network.
    """
    size, batch = settings.image_size, settings.batch_size
    try:
        data = dataclasses.replace(
            params.data,
            canvases=(f"{size}x{size}",),
            short_side=size,
            long_side=size,
            train_short_side_min=size,
            train_batch_size=batch,
            eval_batch_size=batch,
            max_instances=max(params.data.max_instances, settings.instances),
        )
    except ValueError as error:
        raise UserError(str(error)) from None
    classes = params.model.num_classes or COCO_CLASSES
    model = dataclasses.replace(params.model, num_classes=classes)
    return dataclasses.replace(params, data=data, model=model)


def make_input(params: Params, settings: Settings) -> Workload:
    """Makes batches of the training input, as the trainer gets them."""
    from data.input_fn import input_fn

    batches = iter(input_fn("train", records.with_records(params, settings)))
    return stream(batches, settings.images, settings.batch_size)


def make_decode(params: Params, settings: Settings) -> Workload:
    """Makes the minimal work of an input: decoding JPEGs and resizing them to the canvas."""
    import tensorflow as tf

    size = settings.image_size
    names = [image["file_name"] for image in synthetic.read_coco(settings)["images"]]
    encoded = [tf.io.read_file(os.path.join(settings.image_dir, name)) for name in names]

    def decode(content: tf.Tensor) -> tf.Tensor:
        image = tf.image.resize(tf.io.decode_jpeg(content, channels=3), [size, size])
        return tf.cast(image, tf.uint8)

    images = iter(
        tf.data.Dataset.from_tensor_slices(encoded)
        .repeat()
        .map(decode, num_parallel_calls=tf.data.AUTOTUNE)
        .prefetch(tf.data.AUTOTUNE)
    )

    return stream(images, settings.images)


def make_match(params: Params, settings: Settings) -> Workload:
    """Makes anchor matching and sampling by Dataset.map, two images at a time."""
    import tensorflow as tf

    from data.anchor_matching import match_and_sample
    from data.anchors import AnchorGrid

    config = params.data
    grid = AnchorGrid.from_config(config, config.canvas_sizes[0])
    boxes = synthetic.draw_box_sets(settings.instances, settings.image_size, config.seed)

    def match(gt_boxes: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        targets = match_and_sample(
            # G is unknown, as in the real pipeline.
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

    seeds = np.stack([np.arange(len(boxes)), np.zeros(len(boxes))], -1).astype(np.int32)
    labels = iter(
        tf.data.Dataset.from_tensor_slices((boxes, seeds))
        .repeat()
        .map(match, num_parallel_calls=2)
        .prefetch(2)
    )

    return stream(labels, settings.images)


def make_train(params: Params, settings: Settings) -> Workload:
    """Makes training steps on one batch, optimizer included."""
    from model.model_fn import model_fn
    from trainer.optimizer import Updater
    from trainer.steps import TrainStep

    strategy, network = _build(params)
    batches = iter(strategy.distribute_datasets_from_function(_input_of(params, settings)))
    features, labels = next(batches)
    if settings.positives:
        limit = int(params.model.rois_per_image * params.model.roi_positive_fraction)
        if params.train.num_logical_cpus > 1 or settings.positives != limit:
            raise UserError(f"--positives must be {limit} or 0, and needs a single device.")
        pinning.pin_positives(network, labels["gt_boxes"].numpy())
    with strategy.scope():
        updater = Updater(network, params)
    step = TrainStep(model_fn, network, updater, strategy, params)

    def run() -> int:
        float(step(features, labels).loss)
        return settings.batch_size

    return run


def make_backbone(params: Params, settings: Settings) -> Workload:
    """Makes only the convolutions of ResNet and FPN; with `--kind=both` also their gradients."""
    import tensorflow as tf

    strategy, network = _build(params)
    features = records.noise(settings, params.data.seed)
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
        # Returned tensors are computed, and one number of each is quick to fetch.
        return [tf.reduce_max(g) for g in tape.gradient(total, variables)]

    function = both if settings.kind == "both" else forward

    def run() -> int:
        tf.nest.map_structure(lambda tensor: tensor.numpy(), function())
        return settings.batch_size

    return run


def make_predict(params: Params, settings: Settings) -> Workload:
    """Makes the detection of one batch, 100 detections per image, with masks as COCO RLE."""
    from model.model_fn import model_fn
    from trainer.coco_results import CocoResults
    from trainer.steps import PredictStep, split_images

    strategy, network = _build(params)
    pinning.pin_classes(network)
    step = PredictStep(model_fn, network, strategy, params)
    features = records.noise(settings, params.data.seed)

    def run() -> int:
        results = CocoResults((), params.model.mask_paste)
        (predictions,) = step([features])
        for image in split_images(features, predictions):
            results.add(image)
        return settings.batch_size

    return run


def make_export(params: Params, settings: Settings) -> Workload:
    """Makes the detection of one image by an exported model, in the runtime that it is for.

    Raises:
        UserError: it cannot be opened, is for another canvas, or finds less than it can.
    """
    from trainer.runtimes import open_export

    exported, size = open_export(settings.exports), settings.image_size
    (canvas,) = exported.params.data.canvas_sizes
    if canvas != (size, size):
        raise UserError(
            f"{settings.exports} takes images of {canvas[0]}x{canvas[1]} pixels: set --image_size, "
            f"or export with --canvas={size}x{size}."
        )
    features = synthetic.draw_features(size)

    def detect() -> dict[str, np.ndarray]:
        return {name: np.asarray(value) for name, value in exported.detect(features).items()}

    found, limit = int(detect()["num_detections"][0]), exported.params.model.detections_per_image
    if found < limit:
        raise UserError(
            f"{settings.exports} finds {found} of {limit} objects in noise, so it does less work "
            "than it may: export a network of tools/benchmarks/write_networks.py."
        )

    def run() -> int:
        detect()
        return 1

    return run


def make_convert(params: Params, settings: Settings) -> Workload:
    """Makes a run of the converter as a command, start-up included."""
    annotations = records.annotations_file(settings)
    count = len(synthetic.read_coco(settings)["images"])
    folder = synthetic.scratch()

    def run() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        records.run_converter(settings, annotations, folder)
        return count

    return run


def make_evaluate(params: Params, settings: Settings) -> Workload:
    """Makes the COCO evaluation of one kind: 30 detections per image, many of them wrong.

    Raises:
        UserError: the kind is for `backbone`.
    """
    if settings.kind not in ("bbox", "segm"):
        raise UserError(f"--kind={settings.kind}: `evaluate` has bbox and segm.")
    from trainer.average_precision import evaluate_results
    from trainer.coco_ground_truth import load_ground_truth

    ground_truth = load_ground_truth(records.annotations_file(settings), "")
    image_ids = [image["id"] for image in ground_truth["images"]]
    results = synthetic.draw_results(ground_truth, np.random.default_rng(0))

    def run() -> int:
        evaluate_results(ground_truth, results, settings.kind, image_ids)
        return len(image_ids)

    return run


def make_start(params: Params, settings: Settings) -> Workload:
    """Makes a run of the trainer's command until its first step is done."""
    folder = synthetic.scratch()
    flagfile = os.path.join(folder, "settings.flags")
    model_dir = os.path.join(folder, "run")
    data, train = records.with_records(params, settings).data, params.train
    train = dataclasses.replace(train, train_steps=1000, log_every_steps=1, model_dir=model_dir)
    write_flagfile(Params(data=data, model=params.model, train=train), flagfile)
    command = [sys.executable, "-m", "trainer.main", f"--flagfile={flagfile}", "--mode=train"]

    def run() -> int:
        shutil.rmtree(model_dir, ignore_errors=True)
        log = os.path.join(model_dir, "train.jsonl")
        trainer = subprocess.Popen(command, cwd=records.ROOT, stdout=sys.stderr)
        try:
            give_up = time.monotonic() + _START_TIMEOUT_SECONDS
            while not (os.path.exists(log) and os.path.getsize(log)):
                if trainer.poll() is not None or time.monotonic() > give_up:
                    raise UserError("the trainer ended or timed out before its first step.")
                time.sleep(0.02)
        finally:
            trainer.kill()
            trainer.wait()
        return settings.batch_size

    return run


WORKLOADS = {
    "convert": make_convert,
    "decode": make_decode,
    "match": make_match,
    "input": make_input,
    "backbone": make_backbone,
    "train": make_train,
    "predict": make_predict,
    "export": make_export,
    "evaluate": make_evaluate,
    "start": make_start,
}


def define_flags(values: flags.FlagValues) -> None:
    """Defines a flag for each of `Settings`, next to the trainer's."""
    for field in dataclasses.fields(Settings):
        define = flags.DEFINE_integer if field.type == "int" else flags.DEFINE_string
        define(field.name, field.default, field.metadata["help"], flag_values=values)


def read_settings(values: flags.FlagValues) -> Settings:
    """Reads the settings from the flags of `define_flags`."""
    return Settings.from_dict(values.flag_values_dict())


def parse_settings(argv: Sequence[str]) -> tuple[Params, Settings]:
    """Parses a command line, whose first entry is the program."""
    params, values = parse_flags_with(argv, "", define_flags)
    return params, read_settings(values)


def make(stage: str, params: Params, settings: Settings) -> Workload:
    """Makes the workload of a stage, on the canvas of `settings`."""
    return WORKLOADS[stage](with_canvas(params, settings), settings)


def _input_of(params: Params, settings: Settings):
    """Returns the training input as a function for `distribute_datasets_from_function`."""
    from data.input_fn import input_fn

    with_records = records.with_records(params, settings)
    return lambda context: input_fn("train", with_records, context)


def _build(params: Params):
    from model.systems import build_network
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    strategy = make_strategy(params)
    with strategy.scope():
        return strategy, build_network(params)
