"""Files of records: what they and their manifest say of their number, size and images."""

import dataclasses
import os

import numpy as np
import pytest
from sample_records import make_record

from data.errors import UserError
from data.manifest import Manifest, manifest_name, write_manifest
from data.record_files import RecordFiles
from data.records import parse_record
from data.tfrecords import write_shard


def test_records_are_counted_by_manifests_or_from_the_files(tmp_path):
    files = [str(tmp_path / folder / "a-00000-of-00001.tfrecord") for folder in "pq"]
    manifest = Manifest(9, 0, 0, 0, True, (), {}, ({"name": "a-00000-of-00001.tfrecord",
                        "num_images": 9, "bytes": 1, "sha256": ""},))  # fmt: skip
    for path, count in zip(files, (3, 4), strict=True):
        os.makedirs(os.path.dirname(path))
        write_shard(path, [b"record"] * count)
        write_manifest(manifest_name(path.partition("-0")[0]), manifest)
    assert RecordFiles(files[:1], manifest).count_records() == [9]
    assert RecordFiles(files).count_records() == [3, 4]
    joined = dataclasses.replace(manifest, shards=manifest.shards * 2)
    assert RecordFiles(files, joined).count_records() == [3, 4]


def test_without_a_manifest_the_first_records_tell_the_size(tmp_path):
    path = str(tmp_path / "plain.record")
    write_shard(path, [b"x" * 984, b"y" * 1984] * 100)
    assert RecordFiles([path]).count_that_fit(megabytes=3) == 2000


def test_with_a_manifest_the_files_are_not_read():
    shards = ({"name": "a-00000-of-00001.tfrecord", "num_images": 4, "bytes": 4000},)
    manifest = Manifest(4, 4, 0, 1, False, (), {}, shards)
    assert RecordFiles(["unread"], manifest).count_that_fit(megabytes=3) == 3000


def test_sizes_come_from_the_manifest_where_it_tells_them():
    shards = ({"sizes": {"20x40": 2, "40x20": 1}}, {"sizes": {"20x40": 5}})
    manifest = Manifest(8, 0, 0, 0, True, (), {}, shards)
    assert RecordFiles(["unread"], manifest).count_sizes() == {(20, 40): 7, (40, 20): 1}


def ids_read(files):
    return [
        int(parse_record(serialized, include_masks=False)["image_id"])
        for serialized in files.read()
    ]


def test_fractions_are_nested_and_counted(tmp_path):
    for number in range(2):
        records = [
            make_record(np.zeros((20 + number, 40, 3), np.uint8), image_id=1 + 2 * index + number)
            for index in range(150)
        ]
        write_shard(str(tmp_path / f"{number}.record"), records)
    pattern = f"{tmp_path}/*.record"
    fractions = (0.01, 0.1, 0.5, 1.0)
    found = [RecordFiles.find(pattern, fraction=fraction) for fraction in fractions]
    ids = [ids_read(files) for files in found]
    assert len(ids[-1]) == 300
    for fraction, files, own, larger in zip(fractions, found, ids, ids[1:] + ids[-1:], strict=True):
        assert set(own) <= set(larger) and len(set(own)) == len(own)
        # Within four standard deviations of a binomial distribution.
        assert abs(len(own) - 300 * fraction) <= 4 * (300 * fraction * (1 - fraction)) ** 0.5
        odd = sum(image_id % 2 for image_id in own)
        assert files.count_records() == [odd, len(own) - odd]
        assert sum(files.count_sizes().values()) == len(own)
        assert files.count_sizes()[20, 40] == odd


def test_the_choice_depends_on_the_id_alone(tmp_path):
    """The ids are written out, because earlier runs chose them too."""
    records = [make_record(np.zeros((20, 40, 3), np.uint8), image_id=id) for id in range(20, 0, -1)]
    write_shard(str(tmp_path / "a.record"), records)
    files = RecordFiles.find(f"{tmp_path}/a.record", fraction=0.3)
    assert sorted(ids_read(files)) == [1, 4, 9, 11, 13, 16, 18]


def test_a_fraction_without_images_is_refused(tmp_path):
    write_shard(str(tmp_path / "a.record"), [make_record(np.zeros((20, 40, 3), np.uint8))])
    with pytest.raises(UserError, match="--train_fraction=1e-06 of the records .* give a larger"):
        RecordFiles.find(f"{tmp_path}/a.record", fraction=1e-6)
