"""The files of records that a pattern stands for: how many records they hold, and in which order.

Nothing here looks into an image; what is to be known of the images is told by the manifest, or else
read from the records.
"""

from __future__ import annotations

import collections
import itertools
import os
import sys
from typing import NamedTuple

import tensorflow as tf

from data.errors import UserError
from data.files import size as file_size
from data.manifest import Manifest, expand_pattern, find_manifest
from data.records import parse_sizes
from data.tfrecords import record_ends

# Files read at a time: enough to mix shards and to hide the latency of remote storage.
FILES_READ_AT_A_TIME = 8
# Records looked at to guess the mean size where no manifest tells it.
RECORDS_PROBED = 32
# Records whose sizes are read together.
_BLOCK = 32
# Reading less than this for the images' sizes is too quick to be announced.
_BYTES_READ_UNSAID = 1_000_000_000

Size = tuple[int, int]


class RecordFiles(NamedTuple):
    """The files of a pattern, and the manifest of their conversion if there is one."""

    paths: list[str]
    manifest: Manifest | None = None

    @classmethod
    def find(cls, pattern: str) -> RecordFiles:
        """Looks for the files.

        Raises:
            UserError: there is none, or no image in them, which an endless data set would read for
                ever.
        """
        files = cls(expand_pattern(pattern), find_manifest(pattern))
        manifest = files.manifest
        if not (manifest.num_images if manifest else any(map(file_size, files.paths))):
            raise UserError(
                f"there is no image in {files.paths[0]} and its like; convert the data set again."
            )
        return files

    def count_records(self) -> list[int]:
        """Number of records in each file."""
        shards = self.manifest.shards if self.manifest else ()
        told = {shard["name"]: shard["num_images"] for shard in shards}
        if len(told) < len(shards):  # Joined manifests that have shards of one name tell nothing.
            told = {}
        names = map(os.path.basename, self.paths)
        return [
            told[name] if name in told else sum(1 for _ in record_ends(path))
            for path, name in zip(self.paths, names, strict=True)
        ]

    def count_sizes(self) -> collections.Counter[Size]:
        """Number of images of each (height, width) in pixels."""
        told = self.manifest.image_sizes if self.manifest else None
        if told is not None:
            return told
        num_bytes = sum(map(file_size, self.paths))
        if num_bytes > _BYTES_READ_UNSAID:
            print(
                f"Reading the sizes of all images in {self.paths[0]} and its sibling shards "
                f"({num_bytes / 1e9:.1f} GB); records converted anew have them in their manifest.",
                file=sys.stderr,
            )
        records = tf.data.TFRecordDataset(self.paths, num_parallel_reads=tf.data.AUTOTUNE)
        found = records.batch(_BLOCK).map(parse_sizes, tf.data.AUTOTUNE).unbatch()
        return collections.Counter(tuple(size.tolist()) for size in found.as_numpy_iterator())

    def count_that_fit(self, megabytes: float) -> int:
        """How many records fit in that memory, at least one."""
        manifest = self.manifest
        if manifest:
            num_bytes = sum(shard["bytes"] for shard in manifest.shards)
            mean_bytes = num_bytes / max(manifest.num_images, 1)
        else:
            mean_bytes = _mean_record_bytes(self.paths[0])
        return max(1, int(megabytes * 1e6 / max(mean_bytes, 1)))

    def read(self) -> tf.data.Dataset:
        """The serialised records of several files at a time, always in the same order."""
        return read_in_turn(tf.data.Dataset.from_tensor_slices(self.paths))

    def read_share(self, num_shares: int, index: int) -> tf.data.Dataset:
        """One of several shares of the serialised records: of the files, if there are enough."""
        if len(self.paths) < num_shares:
            return self.read().shard(num_shares, index)
        paths = tf.data.Dataset.from_tensor_slices(self.paths)
        return read_in_turn(paths.shard(num_shares, index))

    def read_shuffled(self, number: tf.Tensor, seed: int, buffer_size: int) -> tf.data.Dataset:
        """The serialised records in an order that the seed and the number of the pass decide."""
        paths, order_seed = self.draw_order(number, seed)
        return read_in_turn(tf.data.Dataset.from_tensor_slices(paths)).shuffle(
            buffer_size, order_seed, reshuffle_each_iteration=False
        )

    def draw_order(self, number: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """The files in the order of a pass, and a seed to shuffle their records with."""
        # Dataset.shuffle mixes the graph's seed into its own; a constant one here keeps the order
        # free of tf.random.set_seed, which within a function concerns that function only.
        tf.random.set_seed(1)
        key = tf.random.experimental.stateless_fold_in(
            tf.constant([seed, 0], tf.int64), number, alg="philox"
        )
        order_seed = tf.random.stateless_uniform([], key, 0, 2**31 - 1, tf.int64, alg="philox")
        return tf.random.experimental.stateless_shuffle(self.paths, key, alg="philox"), order_seed


def read_in_turn(paths: tf.data.Dataset) -> tf.data.Dataset:
    """The serialised records of several files at a time, always in the same order."""
    return paths.interleave(
        tf.data.TFRecordDataset,
        cycle_length=FILES_READ_AT_A_TIME,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _mean_record_bytes(path: str) -> float:
    """Mean size of the first records of a file."""
    ends = list(itertools.islice(record_ends(path), RECORDS_PROBED))
    return ends[-1] / len(ends) if ends else 0.0
