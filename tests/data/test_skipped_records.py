"""Corrupt records are left out, counted and named; the others keep their order from any step on."""

import types

import numpy as np
import pytest
import tensorflow as tf
from sample_records import make_instance, make_record

from data.config import DataConfig
from data.errors import UserError
from data.findings import SkippedImages
from data.ground_truth import ground_truth_from_records, read_file_names
from data.input_fn import input_fn
from data.record_files import RecordFiles
from data.skipped_records import skip_of
from data.survey import survey_records
from data.tfrecords import read_frames, write_shard

PIXELS = np.random.default_rng(0).integers(0, 256, (24, 40, 3), np.uint8)
MASK = np.zeros((24, 40), np.uint8)
MASK[4:20, 4:30] = 1


def _record(image_id, **changes):
    return make_record(PIXELS, [make_instance(MASK)], image_id, **changes)


def _flip(path, place):
    content = bytearray(path.read_bytes())
    content[place] ^= 16
    path.write_bytes(content)


def _starts(path):
    return [frame.start for frame in read_frames(str(path))]


@pytest.fixture
def files(tmp_path):
    """Two files of six records, ids 1 to 12; three are corrupt in the first and two in the other.

    Record 2 has a flipped bit in its data, 4 in its length, 6 an image that cannot be decoded; 9 is
    no Example, and the file ends in the middle of 12.
    """
    first, second = tmp_path / "a.record", tmp_path / "b.record"
    write_shard(str(first), [*map(_record, range(1, 6)), _record(6, encoded=b"\xff\xd8\xff")])
    write_shard(str(second), [_record(7), _record(8), b"no Example", *map(_record, (10, 11, 12))])
    starts = _starts(first)
    _flip(first, starts[1] + 100)
    _flip(first, starts[3] + 1)
    with open(second, "r+b") as file:
        file.truncate(_starts(second)[5] + 50)
    return first, second


def _params(files, **changes):
    pattern = f"{files[0].parent}/*.record"
    config = {
        "train_file_pattern": pattern,
        "eval_file_pattern": pattern,
        "train_batch_size": 2,
        "eval_batch_size": 2,
        "canvases": ("32x64",),
        "short_side": 32,
        "long_side": 64,
        "train_short_side_min": 24,
        "max_instances": 3,
        "mask_crop_size": 14,
        "rpn_samples_per_image": 16,
        "on_corrupt_record": "skip",
    }
    return types.SimpleNamespace(
        data=DataConfig(**(config | changes)),
        model=types.SimpleNamespace(include_mask=True, include_polygons=False, has_rpn=True),
    )


def _ids(batches):
    return [features["image_id"].tolist() for features in batches.as_numpy_iterator()]


def _train_ids(params, start, count):
    batches = input_fn("train", params, None, start).take(count)
    return _ids(batches.map(lambda features, labels: features))


def test_evaluation_skips_and_counts_the_corrupt_records(files, capsys):
    params = _params(files)
    for _ in range(2):
        seen = np.ravel(_ids(input_fn("eval", params)))
        assert sorted(seen[seen > 0]) == [1, 3, 5, 7, 8, 10, 11]
    first, second = files
    said = capsys.readouterr().err.splitlines()
    start = _starts(first)[1]
    assert [line for line in said if line.startswith("Warning: ")] == [
        f"Warning: 3 of the 6 records of {first} are corrupt or missing and are skipped, such as "
        f"record 2 of {first} (byte {start}) (its data do not agree with their checksum).",
        f"Warning: 2 of the 6 records of {second} are corrupt or missing and are skipped, such as "
        f"record 3 of {second} (byte {_starts(second)[2]}) (Could not parse example input, value: "
        "'no Example').",
    ]


def test_every_kind_of_damage_is_named_with_its_place(files):
    found = RecordFiles.match(f"{files[0].parent}/*.record", skip_of("eval", _params(files)))
    first, second = map(_starts, files)
    assert [(record.path, record.number, record.offset) for record in found.skipped.records] == [
        *((str(files[0]), number, first[number - 1]) for number in (2, 4, 6)),
        *((str(files[1]), number, second[number - 1]) for number in (3, 6)),
    ]
    assert [record.image_id for record in found.skipped.records] == [None, None, 6, None, None]
    assert found.count_records() == [3, 4]
    assert found.skipped.images == SkippedImages(frozenset({6}), 4)


def test_training_is_a_function_of_the_seed_and_the_step(files):
    params = _params(files)
    whole = _train_ids(params, 0, 14)
    assert sorted(np.ravel(whole).tolist()) == sorted(4 * [1, 3, 5, 7, 8, 10, 11])
    for start in (1, 3, 8):
        assert _train_ids(params, start, 4) == whole[start : start + 4]


def test_what_needs_no_image_reads_the_labels_beside_one_that_is_corrupt(files):
    pattern, skip = f"{files[0].parent}/*.record", skip_of("eval", _params(files))
    truth = ground_truth_from_records(pattern, skip)
    readable = [1, 3, 5, 6, 7, 8, 10, 11]
    assert [image["id"] for image in truth["images"]] == readable
    assert survey_records(pattern, skip=skip).num_images == len(readable)
    assert sorted(read_file_names(pattern, skip)) == readable


def test_without_skip_the_first_corrupt_record_is_refused(files):
    place = rf"cannot use record 2 of {files[0]} \(byte {_starts(files[0])[1]}\) .* "
    with pytest.raises(UserError, match=place + r".*--on_corrupt_record=skip\.$"):
        survey_records(f"{files[0].parent}/*.record")


def test_a_record_damaged_after_the_start_is_not_skipped(files):
    params = _params(files)
    assert len(_ids(input_fn("eval", params))) == 4
    _flip(files[1], _starts(files[1])[1] + 100)
    with pytest.raises(tf.errors.DataLossError):
        _ids(input_fn("eval", params))


def test_records_of_which_none_can_be_used_are_refused(tmp_path):
    path = tmp_path / "a.record"
    write_shard(str(path), [b"no Example"])
    with pytest.raises(UserError, match=rf"no record of .* can be used, .* record 1 of {path} "):
        input_fn("eval", _params([path]))


def test_undamaged_files_are_read_as_without_skip(tmp_path, capsys):
    for name, ids in (("a", range(1, 6)), ("b", range(6, 12))):
        write_shard(f"{tmp_path}/{name}.record", map(_record, ids))
    skip, error = (
        _params([tmp_path / "a.record"], on_corrupt_record=value) for value in ("skip", "error")
    )
    assert _train_ids(skip, 0, 9) == _train_ids(error, 0, 9)
    assert _ids(input_fn("eval", skip)) == _ids(input_fn("eval", error))
    assert "Warning" not in capsys.readouterr().err


def test_a_share_of_the_records_leaves_corrupt_ones_out(files):
    params = _params(files)
    pattern, needs = params.data.train_file_pattern, skip_of("train", params)
    whole = RecordFiles.find(pattern, needs)
    part = RecordFiles.find(pattern, needs, fraction=0.5)
    assert whole.count_records() == [3, 4]
    counts = part.count_records()
    assert 0 < sum(counts) < 7 and sum(part.count_sizes().values()) == sum(counts)
    assert sum(1 for _ in part.read()) == sum(counts)
