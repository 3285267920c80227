"""tools/calibrate.py on a small model with random weights."""

import json
import pathlib
import shutil
import sys

import numpy as np
import pytest

from data.tfrecords import write_shard
from tools.calibrate import format_table, main, require_same_ap

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "trainer"), str(TESTS / "data")]
from sample_records import make_instance, make_record  # noqa: E402
from small_model import photograph  # noqa: E402


def write_records(path, count, names=("cat", "dog"), has_objects=True):
    """Pictures that are covered by their objects, which even random weights find."""
    records = []
    for number in range(count):
        mask = np.zeros((64, 96), np.uint8)
        mask[4:50, 6 : 60 + number % 30] = 1
        # Random weights find most of the second class.
        both = [make_instance(mask, label=label) for label in (1, 2)]
        named = [one._replace(name=names[one.label - 1]) for one in both]
        instances = named if has_objects else []
        records.append(make_record(photograph(64, 96, number), instances, image_id=number + 1))
    write_shard(str(path), records)
    return path


@pytest.fixture
def model_dir(small_model, tmp_path):
    return shutil.copytree(small_model, tmp_path / "run")


def calibrate(model_dir, records, *more):
    return main(["", f"--model={model_dir}", f"--eval_file_pattern={records}", *more])


def test_a_calibration_is_fitted_measured_and_written(model_dir, tmp_path, capsys):
    records = write_records(tmp_path / "val.tfrecord", 24)
    before = {path.name for path in model_dir.iterdir()}
    assert calibrate(model_dir, records) == 0
    printed = capsys.readouterr().out
    assert "Fitted to 12 images:" in printed and "12 other images, before → after" in printed
    assert {path.name for path in model_dir.iterdir()} == before | {"calibration.json"}
    content = json.loads((model_dir / "calibration.json").read_text())
    assert content["num_images"] == 12 and content["method"] == "isotonic"
    assert {"box_score", "mask_score"} <= content["maps"].keys()
    # Six detections in each image.
    assert content["maps"]["mask_score"][0]["num_detections"] == 72
    for score, numbers in content["measured"]["before"].items():
        after = content["measured"]["after"][score]
        assert after["AP"] == pytest.approx(numbers["AP"], abs=1e-3)
    after, first = content["measured"]["after"], content["measured"]["before"]
    assert after["mask_score"]["LaECE"] < first["mask_score"]["LaECE"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"count": 3}, "the records have 3 images, and a calibration needs at least 20"),
        ({"count": 20, "names": ("zebra", "yak")}, "zebra"),
        ({"count": 20, "has_objects": False}, "the records have no objects"),
    ],
)
def test_records_that_do_not_suit_are_refused(model_dir, tmp_path, capsys, content, message):
    records = write_records(tmp_path / "val.tfrecord", **content)
    assert calibrate(model_dir, records) == 1
    error = capsys.readouterr().err
    assert "error: " in error and message in error
    assert not (model_dir / "calibration.json").exists()


def test_a_folder_without_a_model_is_refused(tmp_path, capsys):
    assert calibrate(tmp_path, "val.tfrecord") == 1
    assert "There is no trained model in" in capsys.readouterr().err


def test_a_change_of_ap_is_refused():
    numbers = {"mask_score": {"LaECE": 0.2, "LaACE": 0.3, "AP": 0.5}}
    changed = {"mask_score": {**numbers["mask_score"], "AP": 0.498}}
    require_same_ap(numbers, numbers)
    with pytest.raises(Exception, match="AP by mask_score by -0.0020"):
        require_same_ap(numbers, changed)
    assert format_table(numbers, changed, 9).splitlines()[-1].split()[1:4] == [
        "0.2000",
        "→",
        "0.2000",
    ]
