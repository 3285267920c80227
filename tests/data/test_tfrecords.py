"""TFRecord files against TensorFlow's own reader and writer."""

import numpy as np
import pytest
import tensorflow as tf

from data.errors import UserError
from data.tfrecords import (
    Frame,
    join_frames,
    read_frames,
    read_stretches,
    record_ends,
    write_shard,
)


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


RECORDS = [b"one", bytes(40), b"three" * 50, b"four"]
STARTS = [0, 19, 75, 341]  # 16 bytes each and the data before


def _damage(tmp_path, *places):
    """A file of four records in which bits are flipped at the places."""
    path = tmp_path / "x.tfrecord"
    write_shard(str(path), RECORDS)
    content = bytearray(path.read_bytes())
    for place in places:
        content[place] ^= 4
    path.write_bytes(content)
    return str(path)


def test_the_frames_of_an_undamaged_file_are_its_records(tmp_path):
    frames = list(read_frames(_damage(tmp_path)))
    assert frames == [
        Frame(start, end, "") for start, end in zip(STARTS, [*STARTS[1:], 361], strict=True)
    ]


@pytest.mark.parametrize("place, what", [(19 + 12, "data"), (19 + 13 + 40, "data"), (19, "length"),
                                         (19 + 5, "length"), (19 + 9, "length")])  # fmt: skip
def test_one_flipped_bit_damages_one_record(tmp_path, place, what):
    frames = list(read_frames(_damage(tmp_path, place)))
    assert [(frame.start, frame.end) for frame in frames] == [
        (0, 19),
        (19, 75),
        (75, 341),
        (341, 361),
    ]
    assert [bool(frame.damage) for frame in frames] == [False, True, False, False]
    assert what in frames[1].damage


def test_a_file_that_ends_too_early_has_lost_its_end(tmp_path):
    path = _damage(tmp_path)
    for size, starts in ((360, [0, 19, 75, 341]), (100, [0, 19, 75]), (80, [0, 19, 75])):
        with open(path, "r+b") as file:
            file.truncate(size)
        frames = list(read_frames(path))
        assert [frame.start for frame in frames] == starts
        assert [bool(frame.damage) for frame in frames] == [False] * (len(starts) - 1) + [True]


def test_the_next_record_is_found_across_blocks(tmp_path):
    path = tmp_path / "x.tfrecord"
    write_shard(str(path), [bytes(range(256)) * 12288, b"behind three blocks of 1 MiB"])
    path.write_bytes(b"\xff" + path.read_bytes()[1:])
    damaged, sound = read_frames(str(path))
    assert damaged.damage and not sound.damage
    assert damaged.end == sound.start == 16 + 3 * 2**20


def test_stretches_are_read_between_damaged_records(tmp_path):
    path = _damage(tmp_path, 19, 341)
    frames = list(read_frames(path))
    stretches = join_frames(frames, {0, 75})
    assert stretches == ((0, 1), (75, 1))
    assert join_frames(frames, {0, 19, 341}) == ((0, 2), (341, 1))
    starts, counts = np.transpose(np.array(stretches, np.int64))
    records = read_stretches(path, starts, counts)
    assert list(records.as_numpy_iterator()) == [RECORDS[0], RECORDS[2]]
    with pytest.raises(tf.errors.DataLossError):
        list(read_stretches(path, starts, counts + 1))
