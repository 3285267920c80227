"""Which records of files are left out with `--on_corrupt_record=skip`."""

from __future__ import annotations

import functools
import itertools
import sys
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.config import InputParams
from data.diagnosis import CorruptRecord, Needs, find_corrupt_records
from data.files import size as file_size
from data.findings import SkippedImages
from data.manifest import find_manifest
from data.tfrecords import Stretch, join_frames, read_frames, read_stretches

_FILES_CHECKED_AT_A_TIME = 8
# Checking fewer bytes than this is too quick to be announced.
_BYTES_CHECKED_UNSAID = 100_000_000


def needs_of(mode: str, params: InputParams) -> Needs:
    """Returns what has to be usable in a record, for a mode of `input_fn`."""
    config = params.data
    if mode != "train":
        return Needs(exif=config.exif)
    manifest = find_manifest(config.train_file_pattern)
    include_masks = params.model.include_mask and (manifest is None or manifest.include_masks)
    include_polygons = include_masks and params.model.include_polygons
    return Needs(include_masks, config.max_polygon_vertices if include_polygons else 0, config.exif)


def skip_of(mode: str, params: InputParams) -> Needs | None:
    """Returns what records have to lack to be left out, None if the flags allow none to be."""
    return needs_of(mode, params) if params.data.on_corrupt_record == "skip" else None


class SkippedRecords(NamedTuple):
    """The records of some files that are left out.

    Attributes:
        records: the corrupt records.
        counts: number of records that are left out, by file, if there are any; more than `records`
            if the manifest lists more records than the file holds.
        stretches: the records to read of each file.
    """

    records: tuple[CorruptRecord, ...]
    counts: Mapping[str, int]
    stretches: Mapping[str, tuple[Stretch, ...]]

    @property
    def offsets(self) -> set[tuple[str, int]]:
        """Paths and byte offsets of the corrupt records."""
        return {(record.path, record.offset) for record in self.records}

    @property
    def images(self) -> SkippedImages:
        """The images that are missing."""
        ids = {record.image_id for record in self.records} - {None}
        return SkippedImages(frozenset(ids), sum(self.counts.values()) - len(ids))

    def count_read(self, path: str) -> int:
        """Counts the records of a file that are read."""
        return _total(self.stretches[path])

    def read_file(self, path: tf.Tensor) -> tf.data.Dataset:
        """Reads the serialised records of one of the files: string []."""
        rows = [(name, *row) for name, own in self.stretches.items() for row in own]
        names = [name for name, *_ in rows]
        own = [
            tf.boolean_mask(np.array([row[column] for row in rows], np.int64), names == path)
            for column in (1, 2)
        ]
        return read_stretches(path, *own)

    def warn(self) -> None:
        """Prints a warning about each file, once in the life of the program."""
        for path, count in self.counts.items():
            why = next((f", such as {each}" for each in self.records if each.path == path), "")
            _warn_once(
                f"Warning: {count} of the {count + self.count_read(path)} records of {path} are "
                f"corrupt or missing and are skipped{why}."
            )


def find_skipped(
    paths: Sequence[str], counts: Mapping[str, int], needs: Needs, labels_only: bool
) -> SkippedRecords:
    """Finds the corrupt records of files.

    A file is checked once in the life of the program, so that all its readers leave out the same
    records.

    Args:
        paths: the files.
        counts: the number of records in each of them, where it is known.
        needs: what has to be usable in a record.
        labels_only: whether to read also the records of which only the image or the masks are
            corrupt.
    """
    num_bytes = sum(map(file_size, paths))
    if num_bytes > _BYTES_CHECKED_UNSAID:
        _warn_once(
            f"Checking all records of {paths[0]} and its sibling shards ({num_bytes / 1e9:.1f} "
            "GB) because of --on_corrupt_record=skip."
        )
    with ThreadPoolExecutor(_FILES_CHECKED_AT_A_TIME) as threads:
        checks = list(threads.map(functools.partial(_check_file, needs=needs), paths))
    missing = {
        path: counts.get(path, _total(usable) + len(corrupt)) - _total(usable)
        for path, (usable, _, corrupt) in zip(paths, checks, strict=True)
    }
    return SkippedRecords(
        tuple(itertools.chain(*(check.corrupt for check in checks))),
        {path: count for path, count in missing.items() if count > 0},
        {
            path: check.labelled if labels_only else check.usable
            for path, check in zip(paths, checks, strict=True)
        },
    )


class _Check(NamedTuple):
    usable: tuple[Stretch, ...]
    labelled: tuple[Stretch, ...]  # those and the records with a corrupt image or masks
    corrupt: tuple[CorruptRecord, ...]


@functools.cache
def _check_file(path: str, needs: Needs) -> _Check:
    frames = list(read_frames(path))
    corrupt = tuple(find_corrupt_records(path, frames, needs))
    starts = {frame.start for frame in frames}
    unusable = {record.offset for record in corrupt}
    unlabelled = {record.offset for record in corrupt if not record.has_labels}
    return _Check(
        join_frames(frames, starts - unusable), join_frames(frames, starts - unlabelled), corrupt
    )


def _total(stretches: Iterable[Stretch]) -> int:
    return sum(stretch.num_records for stretch in stretches)


@functools.cache
def _warn_once(warning: str) -> None:
    print(warning, file=sys.stderr, flush=True)
