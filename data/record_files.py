"""The record files that a pattern matches: their record counts and reading order.

Images are not decoded here; facts about them come from the manifest or else from the records.
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
# Records read to estimate the mean size if there is no manifest.
RECORDS_PROBED = 32
# Records whose sizes are read together.
_BLOCK = 32
# Reading fewer bytes than this for the images' sizes is too quick to be announced.
_BYTES_READ_UNSAID = 1_000_000_000

Size = tuple[int, int]


class RecordFiles(NamedTuple):
    """The files of a pattern and their manifest, if there is one."""

    paths: list[str]
    manifest: Manifest | None = None

    @classmethod
    def find(cls, pattern: str) -> RecordFiles:
        """Finds the files.

        Raises:
            UserError: there are no files or no images in them, which an endless dataset would read
                forever.
        """
        files = cls(expand_pattern(pattern), find_manifest(pattern))
        manifest = files.manifest
        if not (manifest.num_images if manifest else any(map(file_size, files.paths))):
            raise UserError(
                f"{files.paths[0]} and its sibling shards contain no images; rerun the converter."
            )
        return files

    def count_records(self) -> list[int]:
        """Counts the records of each file."""
        shards = self.manifest.shards if self.manifest else ()
        told = {shard["name"]: shard["num_images"] for shard in shards}
        if len(told) < len(shards):  # Joined manifests with equally named shards are ambiguous.
            told = {}
        names = map(os.path.basename, self.paths)
        return [
            told[name] if name in told else sum(1 for _ in record_ends(path))
            for path, name in zip(self.paths, names, strict=True)
        ]

    def count_sizes(self) -> collections.Counter[Size]:
        """Counts the images of each (height, width) in pixels."""
        told = self.manifest.image_sizes if self.manifest else None
        if told is not None:
            return told
        num_bytes = sum(map(file_size, self.paths))
        if num_bytes > _BYTES_READ_UNSAID:
            print(
                f"Reading the sizes of all images in {self.paths[0]} and its sibling shards "
                f"({num_bytes / 1e9:.1f} GB); convert the dataset again to have them in the "
                "manifest.",
                file=sys.stderr,
            )
        records = tf.data.TFRecordDataset(self.paths, num_parallel_reads=tf.data.AUTOTUNE)
        found = records.batch(_BLOCK).map(parse_sizes, tf.data.AUTOTUNE).unbatch()
        return collections.Counter(tuple(size.tolist()) for size in found.as_numpy_iterator())

    def count_that_fit(self, megabytes: float) -> int:
        """Estimates how many records, at least one, fit in that memory."""
        manifest = self.manifest
        if manifest:
            num_bytes = sum(shard["bytes"] for shard in manifest.shards)
            mean_bytes = num_bytes / max(manifest.num_images, 1)
        else:
            mean_bytes = _mean_record_bytes(self.paths[0])
        return max(1, int(megabytes * 1e6 / max(mean_bytes, 1)))

    def read(self) -> tf.data.Dataset:
        """Reads the serialised records of several files at a time, always in the same order."""
        return read_in_turn(tf.data.Dataset.from_tensor_slices(self.paths))

    def read_share(self, num_shares: int, index: int) -> tf.data.Dataset:
        """Reads one of several shares of the records: whole files if there are enough."""
        if len(self.paths) < num_shares:
            return self.read().shard(num_shares, index)
        paths = tf.data.Dataset.from_tensor_slices(self.paths)
        return read_in_turn(paths.shard(num_shares, index))

    def read_shuffled(self, number: tf.Tensor, seed: int, buffer_size: int) -> tf.data.Dataset:
        """Reads the serialised records in an order that depends on the seed and the pass."""
        paths, order_seed = self.draw_order(number, seed)
        return read_in_turn(tf.data.Dataset.from_tensor_slices(paths)).shuffle(
            buffer_size, order_seed, reshuffle_each_iteration=False
        )

    def draw_order(self, number: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
        """Draws the order of the files in a pass, and a seed for shuffling their records."""
        # Dataset.shuffle mixes the graph's seed into its own; a constant one makes the order
        # independent of tf.random.set_seed. Within a function, it affects only that function.
        tf.random.set_seed(1)
        key = tf.random.experimental.stateless_fold_in(
            tf.constant([seed, 0], tf.int64), number, alg="philox"
        )
        order_seed = tf.random.stateless_uniform([], key, 0, 2**31 - 1, tf.int64, alg="philox")
        return tf.random.experimental.stateless_shuffle(self.paths, key, alg="philox"), order_seed


def read_in_turn(paths: tf.data.Dataset) -> tf.data.Dataset:
    """Reads the serialised records of several files at a time, always in the same order."""
    return paths.interleave(
        tf.data.TFRecordDataset,
        cycle_length=FILES_READ_AT_A_TIME,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


def _mean_record_bytes(path: str) -> float:
    """Computes the mean size of the first records of a file."""
    ends = list(itertools.islice(record_ends(path), RECORDS_PROBED))
    return ends[-1] / len(ends) if ends else 0.0
