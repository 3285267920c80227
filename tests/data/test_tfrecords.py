"""TFRecord files against TensorFlow's own reader and writer."""

import pytest
import tensorflow as tf

from data.errors import UserError
from data.tfrecords import record_ends, write_shard


def test_tensorflow_reads_the_shard(tmp_path):
    path = tmp_path / "x.tfrecord"
    payloads = [b"", b"a", b"xyz" * 100_000]
    shard = write_shard(str(path), iter(payloads))
    assert list(tf.data.TFRecordDataset(str(path)).as_numpy_iterator()) == payloads
    assert (shard.num_records, shard.num_bytes) == (3, path.stat().st_size)
    tensorflows = tmp_path / "tf.tfrecord"
    with tf.io.TFRecordWriter(str(tensorflows)) as writer:
        for payload in payloads:
            writer.write(payload)
    assert path.read_bytes() == tensorflows.read_bytes()


def test_a_shard_that_fails_leaves_nothing(tmp_path):
    def records():
        yield b"a"
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        write_shard(str(tmp_path / "x.tfrecord"), records())
    assert list(tmp_path.iterdir()) == []


def test_the_ends_of_records_are_found_without_reading_them(tmp_path):
    path = str(tmp_path / "x.tfrecord")
    write_shard(path, [b"a", b"", b"xyz" * 1000])
    assert list(record_ends(path)) == [17, 33, 3049]
    with open(path, "r+b") as file:
        file.truncate(3048)
    with pytest.raises(UserError, match="x.tfrecord is truncated"):
        list(record_ends(path))
