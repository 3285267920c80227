"""The examples of docs/API.md run as they stand there, on a drawn dataset and a small network."""

import pathlib
import re

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

import msrcnn
from tools import create_coco_tfrecord, draw_shapes
from trainer.flags import parse_flags

PAGE = pathlib.Path(__file__).resolve().parents[1] / "docs" / "API.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.M | re.S)
SMALL = """
--backbone=resnet18
--backbone_width=8
--fpn_channels=8
--head_dim=8
--canvases=96x96
--short_side=96
--train_short_side_min=96
--rois_per_image=16
--rpn_post_nms_test=20
--score_threshold=0
--detections_per_image=5
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the page speaks of: configs/r18.flags, records, weights and a photograph."""
    folder = tmp_path_factory.mktemp("page")
    draw_shapes.draw_data_set(str(folder / "shapes"), 4, 3, seed=0, sides=(96, 96))
    for split in ("train", "val"):
        create_coco_tfrecord.run(
            [
                "create",
                f"--image_dir={folder}/shapes/{split}",
                f"--object_annotations_file={folder}/shapes/annotations/{split}.json",
                f"--output_file_prefix={folder}/records/{split}",
                "--num_shards=1",
                "--num_processes=0",
            ]
        )
    for name in ("configs", "weights"):
        (folder / name).mkdir()
    flagfile = folder / "configs" / "r18.flags"
    flagfile.write_text(SMALL)
    settings = msrcnn.make_settings(flagfile, system="mask_rcnn", num_classes=7)
    tf.train.Checkpoint(network=msrcnn.build(settings)).write(str(folder / "weights" / "r18"))
    Image.new("RGB", (90, 60), "olive").save(folder / "street.jpg")
    return folder


def run_example(number, folder, monkeypatch):
    """Runs it with two steps in place of a thousand, and returns its names."""
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(EXAMPLES[number].replace("take(1000)", "take(2)"), names)
    return names


def test_a_loop_of_ones_own_and_what_it_saved(folder, monkeypatch, capsys):
    names = run_example(0, folder, monkeypatch)
    said = capsys.readouterr().out
    assert len(re.findall(r"^loss \d", said, re.M)) == 2 and "maskiou_loss" in said
    found = names["found"]
    assert (found.height, found.width) == (60, 90) and len(found) == 5
    assert set(found.names) <= {"disc", "ring", "box", "triangle", "star", "pair"}
    assert parse_flags(["main", "--flagfile=runs/own/config.flags"]) == names["settings"]

    trained = msrcnn.build(names["settings"], checkpoint="runs/own")
    fresh = msrcnn.build(names["settings"])
    for ours, theirs in zip(trained.variables, names["network"].variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    assert any(
        (a.numpy() != b.numpy()).any()
        for a, b in zip(trained.variables, fresh.variables, strict=True)
    )

    names = run_example(2, folder, monkeypatch)
    lines = re.findall(
        r"^(-?\d+) has 5 objects; .* \(2, 24, 24, 8\)$", capsys.readouterr().out, re.M
    )
    assert len(lines) == 4 and lines.count("-1") == 1
    assert names["boxes"].shape == (2, 5, 4)


def test_an_optimizer_of_ones_own(folder, monkeypatch, capsys):
    names = run_example(1, folder, monkeypatch)
    assert len(re.findall(r"^loss \d", capsys.readouterr().out, re.M)) == 2
    assert names["network"].head_names == ("box_head", "mask_head")
    found = msrcnn.load("runs/adamw")(np.zeros((60, 90, 3), np.uint8))
    assert found.mask_ious is None and found.masks.shape == (5, 60, 90)
