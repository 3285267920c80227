"""The tool that estimates the memory of a training step."""

import pathlib
import sys

import numpy as np
import pytest

from data.tfrecords import write_shard
from tools.benchmarks.memory import current_mb
from tools.estimate_memory import Estimate, describe, find_memory, main

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "trainer"), str(TESTS / "data")]
from sample_records import make_instance, make_record  # noqa: E402
from small_model import photograph  # noqa: E402
from toy_model import toy_params  # noqa: E402

GB = 1_000_000_000
FOUND = Estimate(weights=GB, optimizer=2 * GB, others=GB, fixed=0.5 * GB, per_image=0.25 * GB)


def test_weights_and_images_add_up():
    assert FOUND.total(images=6) == 6 * GB
    assert FOUND.most_images(6.24 * GB) == 6
    assert FOUND.most_images(6.25 * GB) == 7
    assert FOUND.most_images(4 * GB) == 0


def test_the_lines_name_the_batch_and_what_fits(tmp_path):
    canvases = ("832x1344", "1344x1344", "1344x832")
    params = toy_params(tmp_path, accumulate_steps=2, train_batch_size=12, canvases=canvases)
    variables, batch, fits = describe(params, FOUND, 16 * GB, "The GPU").splitlines()
    assert variables == (
        "Weights 1.00 GB, optimizer 2.00 GB, averages and sums 1.00 GB; activations and gradients "
        "0.50 GB and 0.25 GB for each image of 1344x1344."
    )
    assert batch.endswith("--accumulate_steps=2 on one device: 6 images at a time, about 6.0 GB.")
    assert fits == "The GPU has 16.0 GB, about 46 images at a time."
    assert describe(params, FOUND, GB, "It").endswith("It has 1.0 GB, too little for one image.")


def test_main_memory_is_read_from_what_linux_says(tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal:   50000000 kB\nMemFree:  1 kB\n")
    device, memory = find_memory(str(tmp_path / "meminfo"))
    assert device == "Besides the program itself, this machine"
    assert memory == pytest.approx(51.2e9 - current_mb() * 2**20, abs=0.2e9)


def test_the_tool_counts_weights_and_traces_a_step(tmp_path, capsys):
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 8:50] = 1
    records = [make_record(photograph(64, 64), [make_instance(mask)], image_id=1)]
    write_shard(str(tmp_path / "train.tfrecord"), records)
    arguments = [
        f"--train_file_pattern={tmp_path}/train.tfrecord",
        *("--canvases=64x64", "--short_side=64", "--long_side=64", "--train_short_side_min=64"),
        *("--backbone=resnet18", "--backbone_width=8", "--fpn_channels=16", "--head_dim=1024"),
        *("--norm=gn", "--freeze_at=0", "--rpn_pre_nms_train=50", "--rpn_post_nms_train=20"),
        *("--rois_per_image=8", "--train_batch_size=2", "--system=faster_rcnn"),
        *("--memory_gb=1", "--optimizer=adamw", "--ema_decay=0.99"),
    ]
    assert main(["estimate", *arguments]) == 0
    said = capsys.readouterr().out
    # The box head's layers of 7 * 7 * 16 x 1024 and 1024 x 1024 have most of the weights.
    assert "Weights 0.01 GB, optimizer 0.02 GB, averages and sums 0.01 GB" in said
    assert "for each image of 64x64" in said and "The device has 1.0 GB" in said


def test_records_are_needed(capsys):
    with pytest.raises(SystemExit) as exited:
        main(["estimate", "--memory_gb=1"])
    assert exited.value.code == 2
    assert "--train_file_pattern is not set" in capsys.readouterr().err
