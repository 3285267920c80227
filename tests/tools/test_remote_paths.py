"""From a drawn dataset to sample pictures on a file system that only TensorFlow knows."""

import io
import json
import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "model" / "importers"))
from resnet_tensors import WIDTH, resnet18_tensors  # noqa: E402

from data import files
from tools import create_coco_tfrecord, draw_shapes, import_weights, write_samples
from trainer.main import main

ROOT = "ram://remote"
SMALL = [
    "--backbone=resnet18",
    f"--backbone_width={WIDTH}",
    "--fpn_channels=8",
    "--head_dim=8",
    "--short_side=96",
    "--train_short_side_min=96",
    "--canvases=96x96",
    "--rois_per_image=16",
    "--rpn_post_nms_train=40",
    "--rpn_post_nms_test=20",
    "--detections_per_image=5",
]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty working folder, which stays empty: no path is taken for a local one."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not list(tmp_path.iterdir())


def write_weights(path):
    buffer = io.BytesIO()
    np.savez(buffer, **resnet18_tensors())
    with files.open_file(path, "wb") as file:
        file.write(buffer.getvalue())


def convert(split):
    pictures = f"--image_dir={ROOT}/shapes/{split}"
    annotations = f"--object_annotations_file={ROOT}/shapes/annotations/{split}.json"
    prefix = f"--output_file_prefix={ROOT}/records/{split}"
    flags = [pictures, annotations, prefix, "--num_shards=2", "--num_processes=0"]
    assert create_coco_tfrecord.run(["create", *flags]) == 0


def train(mode, **flags):
    flags = {
        "mode": mode,
        "model_dir": f"{ROOT}/model",
        "train_file_pattern": f"{ROOT}/records/train-*",
        "eval_file_pattern": f"{ROOT}/records/val-*",
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "train_steps": 2,
        "log_every_steps": 1,
        **flags,
    }
    return main(["main", *SMALL, *(f"--{name}={value}" for name, value in flags.items())])


@pytest.mark.timeout(600)
def test_a_run_from_start_to_end():
    draw_shapes.draw_data_set(f"{ROOT}/shapes", 4, 2, seed=0, sides=(96, 96))
    convert("train")
    convert("val")
    assert train("train_and_eval") == 0
    model = f"{ROOT}/model"
    with files.open_file(f"{model}/train.jsonl") as file:
        assert [json.loads(line)["step"] for line in file] == [1, 2]
    with files.open_file(f"{model}/eval/metrics.json") as file:
        assert json.load(file)["step"] == 2
    for path in ("config.flags", "ckpt-2.index", "summaries/train/*", "summaries/eval/*"):
        assert files.glob(f"{model}/{path}"), path

    write_weights(f"{ROOT}/resnet18.npz")
    weights = f"{ROOT}/weights/resnet18"
    flags = [f"--source={ROOT}/resnet18.npz", f"--output={weights}", "--num_classes=7"]
    import_weights.run(["import", *flags, *SMALL, "--norm=frozen_bn"])
    other = {"model_dir": f"{ROOT}/other", "init_checkpoint": weights, "norm": "frozen_bn"}
    assert train("predict", **other) == 0
    assert files.exists(f"{ROOT}/other/predictions/bbox.json")

    samples = [f"--results_dir={model}/eval", f"--image_dir={ROOT}/shapes/val"]
    samples += [f"--object_annotations_file={ROOT}/shapes/annotations/val.json"]
    assert write_samples.main([*samples, f"--output_dir={ROOT}/samples"]) == 0
    assert len(files.glob(f"{ROOT}/samples/*.png")) == 2
