"""Finds out what records without a manifest contain by reading their labels.

This reads every byte of the files but decodes no images, so it is as fast as the disk.

Axes: I instances of one image.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.annotations import NARROW
from data.diagnosis import Needs, name_broken_record, require_unique_ids
from data.findings import Warnings
from data.polygons import count_vertices
from data.record_files import RecordFiles
from data.records import parse_record

# Number of records read to see whether a dataset has masks; it takes no noticeable time.
PEEK = 32
_RECORDS_COUNTED_AT_A_TIME = 256


class Survey(NamedTuple):
    """Facts about the records that were read."""

    num_images: int
    names: dict[int, str]  # names by label; "" if the records have none
    max_instances_per_image: int  # without crowds
    images_with_masks: int  # those in which every instance has one
    images_without_masks: int  # those in which some instance has none
    images_without_polygons: int  # those in which some instance, except crowds, has none
    max_polygon_vertices: int  # of one instance, each polygon's first point counted twice
    warnings: list[dict]  # entries of data.findings.Warnings

    @property
    def largest_label(self) -> int:
        """The largest label, 0 if there are none."""
        return max(self.names, default=0)

    @property
    def include_masks(self) -> bool:
        """Whether there are instances and all have masks."""
        return not self.images_without_masks

    @property
    def include_polygons(self) -> bool:
        """Whether there are instances and all have polygons."""
        return not self.images_without_polygons


def survey_records(file_pattern: str, limit: int = -1, skip: Needs | None = None) -> Survey:
    """Reads labels, their names and the presence of masks and polygons, and checks the records.

    Boxes, labels and image ids are checked in all records that are read. Masks have to be decoded
    for a check, so those of the first `PEEK` are checked here, the others when they are used.

    Args:
        file_pattern: as for `data.manifest.expand_pattern`.
        limit: number of records to read, in order of the files; -1 for all.
        skip: records of which the labels cannot be read are left out if given; as for
            `data.record_files.RecordFiles.match`.

    Raises:
        UserError: nothing matches, a record cannot be read or used, or two have the same image id.
    """
    files = RecordFiles.match(file_pattern, skip, labels_only=True)
    records = files.read() if limit < 0 else files.read_in_order().take(limit)
    facts = records.map(_look_at, tf.data.AUTOTUNE).ragged_batch(_RECORDS_COUNTED_AT_A_TIME)
    names: dict[int, str] = {}
    images = most = with_masks = without_masks = without_polygons = vertices = narrow = 0
    image_ids: list[int] = []
    try:
        for batch in facts:
            pairs = zip(batch["labels"].flat_values.numpy(), batch["texts"].flat_values.numpy(),
                        strict=True)  # fmt: skip
            for label, text in set(pairs):
                names[int(label)] = max(names.get(int(label), ""), text.decode(errors="replace"))
            images += int(tf.size(batch["num_instances"]))
            most = max(most, int(tf.reduce_max(batch["num_instances"])))
            with_masks += int(tf.math.count_nonzero(batch["has_masks"]))
            without_masks += int(tf.math.count_nonzero(batch["lacks_masks"]))
            without_polygons += int(tf.math.count_nonzero(batch["lacks_polygons"]))
            vertices = max(vertices, int(tf.reduce_max(batch["num_vertices"])))
            narrow += int(tf.reduce_sum(batch["num_narrow"]))
            image_ids += batch["image_id"].numpy().tolist()
    except tf.errors.OpError as error:
        raise name_broken_record(error, file_pattern, False, files.offsets_skipped) from None
    require_unique_ids(image_ids, file_pattern)
    warnings = Warnings()
    if narrow:
        warnings.add(f"{narrow} objects of {file_pattern}: {NARROW}")
    if with_masks and (empty := _count_empty_masks(files, file_pattern)):
        warnings.add(f"{empty} masks in the first {PEEK} records of {file_pattern} have no pixels")
    return Survey(
        images,
        dict(sorted(names.items())),
        most,
        with_masks,
        without_masks,
        without_polygons,
        vertices,
        warnings.entries,
    )


def _count_empty_masks(files: RecordFiles, file_pattern: str) -> int:
    """Decodes and checks the masks of the first records, and counts the empty ones."""

    @tf.autograph.experimental.do_not_convert
    def count(serialized: tf.Tensor) -> tf.Tensor:
        record = parse_record(serialized, include_masks=True)
        return tf.math.count_nonzero(~record["is_crowd"] & (record["num_runs"] < 2))

    complete = files.read_in_order().take(PEEK).filter(_has_masks)
    try:
        return sum(map(int, complete.map(count, tf.data.AUTOTUNE).as_numpy_iterator()))
    except tf.errors.OpError as error:
        raise name_broken_record(error, file_pattern, True, files.offsets_skipped) from None


@tf.autograph.experimental.do_not_convert
def _has_masks(serialized: tf.Tensor) -> tf.Tensor:
    """Whether a record is not without the masks of its objects: bool []."""
    return ~_look_at(serialized)["lacks_masks"]


@tf.autograph.experimental.do_not_convert
def _look_at(serialized: tf.Tensor) -> dict[str, tf.Tensor]:
    """Checks one record and returns labels int64 [I], texts string [I] and scalars."""
    record = parse_record(serialized, include_masks=False)
    any_length = functools.partial(tf.io.FixedLenSequenceFeature, [], allow_missing=True)
    keys = {"class/label": tf.int64, "class/text": tf.string, "is_crowd": tf.int64,
            "mask": tf.string, "mask/num_counts": tf.int64, "mask/num_polygons": tf.int64,
            "mask/num_points": tf.int64}  # fmt: skip
    spec = {f"image/object/{key}": any_length(dtype) for key, dtype in keys.items()}
    parsed = tf.io.parse_single_example(serialized, spec)
    labels, texts, crowds, pngs, runs, polygons, points = (
        parsed[f"image/object/{key}"] for key in keys
    )
    count = tf.size(labels)
    nothing = tf.zeros([count], tf.int64)
    crowds = tf.concat([crowds, nothing], axis=0)[:count] > 0
    polygons = tf.concat([polygons, nothing], axis=0)[:count]
    vertices = tf.where(crowds, np.int64(0), count_vertices(points, polygons))
    complete = tf.maximum(tf.size(pngs), tf.size(runs)) >= count
    sides = tf.reduce_min(record["boxes"][:, 2:] - record["boxes"][:, :2], axis=1)
    return {
        "image_id": record["image_id"],
        "num_narrow": tf.math.count_nonzero(~crowds & (sides < 1)),
        "labels": labels,
        "texts": tf.concat([texts, tf.fill([count], "")], axis=0)[:count],
        "num_instances": count - tf.math.count_nonzero(crowds, dtype=tf.int32),
        "has_masks": complete & (count > 0),
        "lacks_masks": ~complete,
        "lacks_polygons": tf.reduce_any(~crowds & (polygons == 0)),
        "num_vertices": tf.reduce_max(tf.concat([vertices, [0]], axis=0)),
    }
