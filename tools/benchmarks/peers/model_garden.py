"""TF Model Garden's Mask R-CNN with ResNet-50 and FPN, as in its COCO recipe.

It always trains on 128 masks per image, so positives need not be fixed.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import numpy as np

from data.files import whole_file
from tools.benchmarks import synthetic
from tools.benchmarks.peers import CLASSES, PeerSettings, expect_detections
from tools.benchmarks.stages import Workload, stream

if TYPE_CHECKING:
    import tensorflow as tf

PACKAGES = (
    *("tf-models-official", "tensorflow", "tensorflow-cpu", "tf_keras", "numpy"),
    "ai-edge-litert",
)
# With its own 10,000, the buffer would dominate the memory.
_SHUFFLED_RECORDS = 100
# ImageNet's, of its `preprocess_ops`.
_PIXEL_MEAN, _PIXEL_DEVIATION = np.float32([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])


def make_convert(settings: PeerSettings) -> Workload:
    """Makes a run of the converter as a command, start-up included."""
    folder = synthetic.scratch()
    coco = synthetic.read_coco(settings)
    annotations_file = synthetic.write_coco(coco)

    def run() -> int:
        shutil.rmtree(folder, ignore_errors=True)
        _convert(settings, annotations_file, folder)
        return len(coco["images"])

    return run


def make_input(settings: PeerSettings) -> Workload:
    """Makes batches of the training input, from records made by its converter."""
    data = _experiment(settings).task
    data.train_data.input_path = _make_records(settings)
    data.train_data.shuffle_buffer_size = _SHUFFLED_RECORDS
    batches = iter(_task(data).build_inputs(data.train_data))
    return stream(batches, settings.images, settings.batch_size)


def make_match(settings: PeerSettings) -> Workload:
    """Makes anchor labels by Dataset.map, two images at a time."""
    import tensorflow as tf
    from official.vision.ops import anchor

    task, size = _experiment(settings).task, settings.image_size
    model, parser = task.model, task.train_data.parser
    make_anchors = anchor.build_anchor_generator(
        model.min_level,
        model.max_level,
        model.anchor.num_scales,
        model.anchor.aspect_ratios,
        model.anchor.anchor_size,
    )
    labeler = anchor.RpnAnchorLabeler(
        parser.rpn_match_threshold,
        parser.rpn_unmatched_threshold,
        parser.rpn_batch_size_per_im,
        parser.rpn_fg_fraction,
    )
    boxes = synthetic.draw_box_sets(settings.instances, size, settings.seed)

    def match(gt_boxes: tf.Tensor):
        # G is unknown, as in the real pipeline.
        gt_boxes = tf.boolean_mask(gt_boxes, tf.ones_like(gt_boxes[:, 0], tf.bool))
        anchors = make_anchors((size, size))
        return labeler.label_anchors(anchors, gt_boxes, tf.ones_like(gt_boxes[:, :1]))

    labels = iter(
        tf.data.Dataset.from_tensor_slices(boxes)
        .repeat()
        .map(match, num_parallel_calls=2)
        .prefetch(2)
    )

    return stream(labels, settings.images)


def make_train(settings: PeerSettings) -> Workload:
    """Makes training steps on one batch of its training input, optimizer included."""
    import tensorflow as tf

    experiment = _experiment(settings)
    config = experiment.task
    config.train_data.input_path = _make_records(settings, 8 * settings.batch_size)
    config.train_data.shuffle_buffer_size = 1
    task = _task(config)
    model = task.build_model()
    optimizer = task.create_optimizer(experiment.trainer.optimizer_config, experiment.runtime)
    metrics = task.build_metrics(training=True)
    batch = next(iter(task.build_inputs(config.train_data)))

    @tf.function
    def step(inputs) -> tf.Tensor:
        return task.train_step(inputs, model, optimizer, metrics)["loss"]

    def run() -> int:
        float(step(batch))
        return settings.batch_size

    return run


def make_predict(settings: PeerSettings) -> Workload:
    """Makes its serving graph, with 100 detections per image; masks are 28 x 28, not pasted."""
    import tensorflow as tf
    from official.vision.serving import detection

    size = [settings.image_size] * 2
    module = detection.DetectionModule(
        params=_experiment(settings),
        batch_size=settings.batch_size,
        input_image_size=size,
        input_type="image_tensor",
    )
    rng = np.random.default_rng(settings.seed)
    images = tf.constant(rng.integers(0, 256, (settings.batch_size, *size, 3), np.uint8))
    _spread_logits(module, images)
    serve = tf.function(module.serve)

    def run() -> int:
        found = {name: value.numpy() for name, value in serve(images).items()}
        expect_detections(found["num_detections"].tolist())
        return settings.batch_size

    return run


def make_export(settings: PeerSettings) -> Workload:
    """Makes the detection of one image by a LiteRT file of `write_exports`."""
    from ai_edge_litert.interpreter import Interpreter

    threads = len(os.sched_getaffinity(0))
    detect = Interpreter(settings.exports, num_threads=threads).get_signature_runner()
    image = synthetic.draw_image(settings.image_size)

    def run() -> int:
        # Its exporter leaves the normalisation to the program.
        pixels = (image / np.float32(255.0) - _PIXEL_MEAN) / _PIXEL_DEVIATION
        expect_detections(detect(inputs=pixels)["num_detections"].tolist())
        return 1

    return run


def write_exports(settings: PeerSettings, folder: str) -> None:
    """Writes float32.tflite and dynamic.tflite by its own exporter and converter."""
    import tensorflow as tf
    from official.vision.serving import detection, export_saved_model_lib, export_tflite_lib

    experiment, saved_model = _experiment(settings), synthetic.scratch()
    shape = {"batch_size": 1, "input_image_size": [settings.image_size] * 2}
    module = detection.DetectionModule(params=experiment, input_type="tflite", **shape)
    _spread_logits(module, tf.constant(synthetic.draw_image(settings.image_size)))
    export_saved_model_lib.export_inference_graph(
        input_type="tflite",
        params=experiment,
        checkpoint_path=None,
        export_dir=saved_model,
        export_module=module,
        **shape,
    )
    for name, quantisation in (("float32", None), ("dynamic", "default")):
        content = export_tflite_lib.convert_tflite_model(saved_model, quant_type=quantisation)
        with whole_file(os.path.join(folder, f"{name}.tflite"), "wb") as file:
            file.write(content)


WORKLOADS = {
    "convert": make_convert,
    "input": make_input,
    "match": make_match,
    "train": make_train,
    "predict": make_predict,
    "export": make_export,
}


def number_classes(coco: dict, most: int | None) -> dict:
    """Selects the first `most` images with objects, with classes numbered from 1."""
    ids = sorted(category["id"] for category in coco["categories"])
    numbers = {category: number for number, category in enumerate(ids, 1)}
    with_objects = {entry["image_id"] for entry in coco["annotations"] if not entry["iscrowd"]}
    images = [image for image in coco["images"] if image["id"] in with_objects][:most]
    kept = {image["id"] for image in images}
    return {
        "images": images,
        "categories": [{**entry, "id": numbers[entry["id"]]} for entry in coco["categories"]],
        "annotations": [
            {**entry, "category_id": numbers[entry["category_id"]]}
            for entry in coco["annotations"]
            if entry["image_id"] in kept
        ],
    }


def _experiment(settings: PeerSettings):
    """Makes its recipe with our canvas, batch, classes and precision, without ImageNet weights."""
    import tensorflow as tf
    from official.modeling import performance
    from official.vision.configs import maskrcnn

    precision = "bfloat16" if settings.bfloat16 else "float32"
    performance.set_mixed_precision_policy(precision)
    tf.random.set_seed(settings.seed)
    experiment = maskrcnn.maskrcnn_resnetfpn_coco()
    experiment.runtime.mixed_precision_dtype = precision
    task = experiment.task
    task.init_checkpoint = None
    task.model.num_classes = CLASSES
    task.model.input_size = [settings.image_size, settings.image_size, 3]
    task.train_data.global_batch_size = settings.batch_size
    task.train_data.dtype = precision
    return experiment


def _task(config):
    from official.vision.tasks import maskrcnn

    return maskrcnn.MaskRCNNTask(config)


def _spread_logits(module, images: tf.Tensor) -> None:
    """Scales the classifier so that random weights give scores high enough for detections."""
    import tensorflow as tf

    pixels, anchors, info = module.preprocess(images)
    outputs = module.model.call(
        images=pixels, image_shape=info[:, 1, :], anchor_boxes=anchors, training=False
    )
    deviation = tf.math.reduce_std(tf.cast(outputs["cls_outputs"], tf.float32))
    (kernel,) = (
        weight
        for weight in module.model.trainable_weights
        if "detection-scores/kernel" in weight.name
    )
    kernel.assign(kernel * (synthetic.LOGIT_DEVIATION / deviation))


def _make_records(settings: PeerSettings, most: int | None = None) -> str:
    """Converts the images, or the first `most`, by its converter; returns the records' pattern."""
    coco = number_classes(synthetic.read_coco(settings), most)
    folder = synthetic.scratch()
    _convert(settings, synthetic.write_coco(coco), folder)
    return os.path.join(folder, "train-*")


def _convert(settings: PeerSettings, annotations_file: str, folder: str) -> None:
    command = [
        *(sys.executable, "-m", "official.vision.data.create_coco_tf_record"),
        "--include_masks",
        f"--image_dir={settings.image_dir}",
        f"--object_annotations_file={annotations_file}",
        f"--output_file_prefix={folder}/train",
        f"--num_shards={settings.num_shards}",
        f"--num_processes={settings.num_processes}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the converter failed: {done.stderr.strip().splitlines()[-1:]}")
