"""The record files that a pattern matches: their record counts and reading order.

Images are not decoded here; facts about them come from the manifest or else from the records.
"""

from __future__ import annotations

import collections
import functools
import itertools
import os
import sys
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.diagnosis import Needs
from data.errors import UserError
from data.files import size as file_size
from data.manifest import Manifest, expand_pattern, find_manifest
from data.records import is_in_fraction, parse_sizes
from data.skipped_records import SkippedRecords, find_skipped
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
    """The files of a pattern and their manifest, if there is one.

    Attributes:
        skipped: the records that are not read; None if all have to be.
        fraction: share of the other records that is read, see `data.records.is_in_fraction`.
    """

    paths: list[str]
    manifest: Manifest | None = None
    skipped: SkippedRecords | None = None
    fraction: float = 1.0

    @classmethod
    def find(cls, pattern: str, skip: Needs | None = None, fraction: float = 1.0) -> RecordFiles:
        """Finds the files, and warns of the records that are skipped.

        Args:
            pattern: as for `data.manifest.expand_pattern`.
            skip: as for `match`.
            fraction: share of the records to read.

        Raises:
            UserError: there are no files or no images in them, which an endless dataset would read
                forever.
        """
        files = cls.match(pattern, skip)._replace(fraction=fraction)
        manifest = files.manifest
        if not (manifest.num_images if manifest else any(map(file_size, files.paths))):
            raise UserError(
                f"{files.paths[0]} and its sibling shards contain no images; rerun the converter."
            )
        if skipped := files.skipped:
            skipped.warn()
            if not any(map(skipped.count_read, files.paths)):
                raise UserError(
                    f"no record of {pattern} can be used, for example "
                    f"{skipped.records[0] if skipped.records else files.paths[0]}; convert the "
                    "dataset again."
                )
        if fraction < 1 and files._are_empty():
            raise UserError(
                f"--train_fraction={fraction} of the records {pattern} are no images: give a "
                "larger one."
            )
        return files

    @classmethod
    def match(
        cls, pattern: str, skip: Needs | None = None, labels_only: bool = False
    ) -> RecordFiles:
        """Finds the files, which may be empty.

        Args:
            pattern: as for `data.manifest.expand_pattern`.
            skip: if given, records that lack some of it are skipped.
            labels_only: as for `data.skipped_records.find_skipped`.
        """
        files = cls(expand_pattern(pattern), find_manifest(pattern))
        if skip is None:
            return files
        counts = files._listed_counts()
        return files._replace(skipped=find_skipped(files.paths, counts, skip, labels_only))

    @property
    def offsets_skipped(self) -> set[tuple[str, int]] | None:
        """Paths and byte offsets of the corrupt records that are skipped; None if all are read."""
        return self.skipped.offsets if self.skipped else None

    def _are_empty(self) -> bool:
        """Whether there is no record to read; reads up to the first one."""
        with tf.init_scope():
            return next(iter(self.read()), None) is None

    def count_records(self) -> list[int]:
        """Counts the records of each file that are read."""
        if self.fraction < 1:
            with tf.init_scope():  # counted eagerly, even while a graph is being built
                files = map(tf.data.Dataset.from_tensors, self.paths)
                return [_count(file.flat_map(self.read_file)) for file in files]
        if self.skipped:
            return list(map(self.skipped.count_read, self.paths))
        told = self._listed_counts()
        return [
            told[path] if path in told else sum(1 for _ in record_ends(path)) for path in self.paths
        ]

    def _listed_counts(self) -> dict[str, int]:
        """The number of records of each file that the manifest lists."""
        shards = self.manifest.shards if self.manifest else ()
        told = {shard["name"]: shard["num_images"] for shard in shards}
        if len(told) < len(shards):  # Joined manifests with equally named shards are ambiguous.
            return {}
        names = {path: os.path.basename(path) for path in self.paths}
        return {path: told[name] for path, name in names.items() if name in told}

    def count_sizes(self) -> collections.Counter[Size]:
        """Counts the images of each (height, width) in pixels."""
        skips = self.fraction < 1 or (self.skipped is not None and self.skipped.counts)
        told = self.manifest.image_sizes if self.manifest and not skips else None
        if told is not None:
            return told
        num_bytes = sum(map(file_size, self.paths))
        if num_bytes > _BYTES_READ_UNSAID:
            advice = "" if skips else "; convert the dataset again to have them in the manifest"
            print(
                f"Reading the sizes of all images in {self.paths[0]} and its sibling shards "
                f"({num_bytes / 1e9:.1f} GB){advice}.",
                file=sys.stderr,
            )
        found = self.read().batch(_BLOCK).map(parse_sizes, tf.data.AUTOTUNE).unbatch()
        return collections.Counter(tuple(size.tolist()) for size in found.as_numpy_iterator())

    def count_that_fit(self, megabytes: float) -> int:
        """Estimates how many records, at least one, fit in that memory."""
        manifest = self.manifest
        if manifest:
            num_bytes = sum(shard["bytes"] for shard in manifest.shards)
            mean_bytes = num_bytes / max(manifest.num_images, 1)
        elif self.skipped:
            mean_bytes = sum(map(file_size, self.paths)) / max(sum(self.count_records()), 1)
        else:
            mean_bytes = _mean_record_bytes(self.paths[0])
        return max(1, int(megabytes * 1e6 / max(mean_bytes, 1)))

    def read(self) -> tf.data.Dataset:
        """Reads the serialised records of several files at a time, always in the same order."""
        return self._read_in_turn(tf.data.Dataset.from_tensor_slices(self.paths))

    def read_in_order(self) -> tf.data.Dataset:
        """Reads the serialised records one file after another."""
        return tf.data.Dataset.from_tensor_slices(self.paths).flat_map(self.read_file)

    def read_share(self, num_shares: int, index: int) -> tf.data.Dataset:
        """Reads one of several shares of the records: whole files if there are enough."""
        if len(self.paths) < num_shares:
            return self.read().shard(num_shares, index)
        paths = tf.data.Dataset.from_tensor_slices(self.paths)
        return self._read_in_turn(paths.shard(num_shares, index))

    def read_shuffled(self, number: tf.Tensor, seed: int, buffer_size: int) -> tf.data.Dataset:
        """Reads the serialised records in an order that depends on the seed and the pass."""
        paths, order_seed = self.draw_order(number, seed)
        return self._read_in_turn(tf.data.Dataset.from_tensor_slices(paths)).shuffle(
            buffer_size, order_seed, reshuffle_each_iteration=False
        )

    def read_file(self, path: tf.Tensor) -> tf.data.Dataset:
        """Reads the serialised records of one of the files: string []."""
        whole = self.skipped.read_file(path) if self.skipped else tf.data.TFRecordDataset(path)
        if self.fraction == 1:
            return whole
        return whole.filter(functools.partial(is_in_fraction, fraction=self.fraction))

    def _read_in_turn(self, paths: tf.data.Dataset) -> tf.data.Dataset:
        return paths.interleave(
            self.read_file,
            cycle_length=FILES_READ_AT_A_TIME,
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
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


def _count(records: tf.data.Dataset) -> int:
    return int(records.reduce(np.int64(0), lambda count, _: count + 1))


def _mean_record_bytes(path: str) -> float:
    """Computes the mean size of the first records of a file."""
    ends = list(itertools.islice(record_ends(path), RECORDS_PROBED))
    return ends[-1] / len(ends) if ends else 0.0
