"""Files of records: what they and their manifest say of their number, size and images."""

import dataclasses
import os

from data.manifest import Manifest, manifest_name, write_manifest
from data.record_files import RecordFiles
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
