"""The comparison of a checkpoint with its exports on the same images."""

import json
import pathlib
import sys

import numpy as np
import pytest

from data.tfrecords import write_shard
from tools.evaluate_export import format_rows, main

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "trainer"), str(TESTS / "data")]
from sample_records import make_instance, make_record  # noqa: E402
from small_model import CATEGORIES, photograph  # noqa: E402


def write_labelled_records(path, names):
    """Records whose objects cover most of their pictures, where even random weights find them."""
    records = []
    for number in range(3):
        mask = np.zeros((64, 96), np.uint8)
        mask[4 : 30 + 8 * number, 6:80] = 1
        instance = make_instance(mask, label=1 + number % 2)
        instance = instance._replace(name=names[number % 2]) if names else instance
        records.append(make_record(photograph(64, 96, number), [instance], image_id=number + 1))
    write_shard(str(path), records)
    return path


def test_exports_in_float32_have_the_average_precision_of_their_checkpoint(
    small_model, small_exports, small_tflite, tmp_path
):
    names = [category["name"] for category in CATEGORIES]
    records = write_labelled_records(tmp_path / "val.tfrecord", names)
    exports = [small_exports / "saved_model", small_tflite / "model_float32.tflite"]
    arguments = [f"--model={small_model}", f"--exports={','.join(map(str, exports))}"]
    arguments += [f"--eval_file_pattern={records}", f"--json={tmp_path}/rows.json"]
    assert main(["evaluate_export.py", *arguments]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["path"] for row in rows] == [str(small_model), *map(str, exports)]
    for row in rows:
        assert row["canvas"] == "64x96"
        for kind in ("bbox", "segm", "segm_class_score"):
            assert row[kind] == pytest.approx(rows[0][kind], abs=1e-3)
        assert row["ms_per_image"] > 0 and row["peak_mb"] > 50 and row["start_seconds"] > 0
    assert rows[2]["size_mb"] == pytest.approx(exports[1].stat().st_size / 1e6)


def test_records_of_other_classes_are_refused(small_model, small_tflite, tmp_path, capsys):
    records = write_labelled_records(tmp_path / "val.tfrecord", ["zebra", "yak"])
    arguments = [f"--model={small_model}", f"--exports={small_tflite}/model_float32.tflite"]
    assert main(["", *arguments, f"--eval_file_pattern={records}"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "zebra" in error


def test_what_is_no_export_is_named(small_model, tmp_path, capsys):
    for path, message in (
        (tmp_path, "There is no exported model in"),
        (tmp_path / "none.tflite", "cannot be opened"),
    ):
        arguments = [f"--model={small_model}", f"--exports={path}", "--eval_file_pattern=x"]
        assert main(["", *arguments]) == 1
        assert message in capsys.readouterr().err


def test_the_table_leaves_out_what_a_model_has_not():
    row = {
        "path": "m", "canvas": "64x96", "bbox": 0.25, "ms_per_image": 12.3, "peak_mb": 456.7,
        "size_mb": 7.89, "start_seconds": 1.23,
    }  # fmt: skip
    last = format_rows([row]).splitlines()[-1]
    assert last == "| m | 64x96 | 0.2500 |  |  | 12 | 457 | 7.9 | 1.2 |"
