"""A corrupt record stops a real run with its place, or is skipped and counted."""

import pathlib
import sys

import pytest

from data.conversion import convert
from data.tfrecords import read_frames
from trainer.main import main

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data"))
from coco_files import settings_of  # noqa: E402

SMALL = (
    "--backbone=resnet18", "--backbone_width=8", "--fpn_channels=16", "--head_dim=16",
    "--canvases=64x96", "--short_side=64", "--long_side=96", "--train_short_side_min=64",
    "--rpn_post_nms_train=16", "--rpn_post_nms_test=16", "--rois_per_image=8",
    "--train_batch_size=1", "--eval_batch_size=2", "--train_steps=1", "--num_eval_images_shown=0",
)  # fmt: skip


@pytest.fixture
def run(tmp_path, capsys):
    """Runs a mode on four records of which the second is corrupt, and returns what it prints."""
    settings = settings_of(tmp_path, num_shards=1)
    convert(settings)
    (path,) = tmp_path.glob("out/*.tfrecord")
    start = [frame.start for frame in read_frames(str(path))][1]
    content = bytearray(path.read_bytes())
    content[start + 40] ^= 1
    path.write_bytes(content)

    def run_mode(mode, *flags):
        records = [
            f"--{kind}_file_pattern={settings.output_prefix}-*" for kind in ("train", "eval")
        ]
        truth = f"--eval_annotation_file={settings.annotations_file}"
        folder = f"--model_dir={tmp_path}/m"
        status = main(["main", f"--mode={mode}", *SMALL, *records, truth, folder, *flags])
        return status, *capsys.readouterr()

    return run_mode, f"record 2 of {path} (byte {start})"


def test_a_corrupt_record_stops_the_run_or_is_skipped(run):
    run_mode, place = run
    status, _, errors = run_mode("train")
    assert status == 1
    assert f"error: cannot use {place} (its data do not agree with their checksum); " in errors
    status, output, errors = run_mode("train_and_eval", "--on_corrupt_record=skip")
    assert status == 0
    assert errors.count("Warning: 1 of the 4 records of ") == errors.count(place) == 1
    assert "1 of the 4 images of the ground truth count as images without detections" in output
    status, _, errors = run_mode("eval", "--on_corrupt_record=error")
    assert status == 1
    assert f"error: cannot use {place} " in errors and "Traceback" not in errors
