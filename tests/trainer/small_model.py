"""A small Mask Scoring R-CNN with random weights in a model_dir, and pictures to call it on."""

import dataclasses
import importlib.util
import pathlib
import sys

import numpy as np
import tensorflow as tf
from PIL import Image

from data.config import DataConfig
from data.tfrecords import write_shard
from model.config import ModelConfig
from model.systems import build_network
from trainer.categories import write_categories
from trainer.config import Params
from trainer.flags import write_flagfile
from trainer.run_record import load_params

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data"))
from sample_records import make_record  # noqa: E402

CANVAS = "64x96"
DATA = DataConfig(
    canvases=("64x96", "96x64"),
    short_side=64,
    long_side=96,
    train_short_side_min=64,
    anchor_sizes=(8.0, 16.0, 32.0, 64.0, 128.0),
)
MODEL = ModelConfig(
    num_classes=3,
    backbone="resnet18",
    backbone_width=8,
    fpn_channels=16,
    head_dim=16,
    mask_size=8,
    rpn_pre_nms_test=30,
    rpn_post_nms_test=20,
    detections_per_image=6,
    score_threshold=0.0,
)
CATEGORIES = [{"label": 1, "id": 7, "name": "cat"}, {"label": 2, "id": 9, "name": "dog"}]


def make_model_dir(folder, **settings):
    params = Params(data=DATA, model=dataclasses.replace(MODEL, **settings))
    folder.mkdir()
    write_flagfile(params, str(folder / "config.flags"))
    write_categories(CATEGORIES, str(folder))
    network = build_network(params)
    if "maskiou_head" in network.head_names:
        # Of random weights all are below 0, where there is no order to see.
        network.maskiou_head.maskiou.bias.assign([0.0, 0.3, 0.6])
    checkpoint = tf.train.Checkpoint(network=network)
    tf.train.CheckpointManager(checkpoint, str(folder), 1, checkpoint_name="ckpt").save()
    return folder


def photograph(height=40, width=60, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (height // 4, width // 4, 3), np.uint8)
    return np.kron(coarse, np.ones((4, 4, 1), np.uint8))


def save(folder, name, pixels, **options):
    path = folder / name
    Image.fromarray(pixels).save(path, **options)
    return path


def write_records(path, count=4):
    records = [make_record(photograph(seed=number), image_id=number + 1) for number in range(count)]
    write_shard(str(path), records)
    return path


def export_all(model_dir, folder):
    """Exports for one canvas to folder/export, as OpenVINO models too where its packages are."""
    from trainer.export import export

    packages = all(map(importlib.util.find_spec, ("openvino", "nncf")))
    given = {
        "mode": "export",
        "output_dir": str(folder),
        "canvas": CANVAS,
        "export_formats": ("saved_model", "openvino") if packages else ("saved_model",),
        "calibration_file_pattern": str(write_records(folder / "train.tfrecord")),
    }
    export(load_params(str(model_dir), given))


def export_tflite(model_dir, folder):
    from tools.export_tflite import main

    records = write_records(folder / "train-00000.tfrecord")
    arguments = [f"--model={model_dir}", f"--output={folder}", f"--canvas={CANVAS}"]
    arguments += [f"--calibration_file_pattern={records}", "--types=float32,dynamic,int8"]
    assert main(["export_tflite.py", *arguments]) == 0
