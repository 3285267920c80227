"""Rebuilds the evaluation's ground truth from the records, in COCO's format."""

from __future__ import annotations

import array
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

from data import records
from data.annotations import complete_annotations
from data.diagnosis import Needs, name_broken_record, require_unique_ids
from data.findings import SkippedItems, warn_of_left_out
from data.record_files import RecordFiles
from data.survey import survey_records


def ground_truth_from_records(file_pattern: str, skip: Needs | None = None) -> dict:
    """Rebuilds the COCO annotations that the records were made from.

    Boxes and areas come back in single precision, masks exactly. Images and annotations keep their
    ids; where annotation ids are absent or not unique, all are numbered anew from 1.

    Args:
        file_pattern: as for `data.manifest.expand_pattern`.
        skip: as for `data.survey.survey_records`.

    Returns:
        A dict that `json.dump` writes as a COCO file. "images": id, file_name, height, width.
        "annotations": crowds included, bbox as x, y, width, height in pixels, segmentation as
        compressed RLE unless some of the records hold no masks. "categories": the manifest's, or
        without one, the labels found, which are then the ids, named as in the records or else by
        the label.

    Raises:
        UserError: nothing matches, or a record cannot be parsed.
    """
    files = RecordFiles.match(file_pattern, skip, labels_only=True)
    facts = files.manifest or survey_records(file_pattern, skip=skip)
    try:
        images, annotations = _read_records(files, facts.include_masks)
    except tf.errors.OpError as error:
        raise name_broken_record(
            error, file_pattern, facts.include_masks, files.offsets_skipped
        ) from None
    require_unique_ids([image["id"] for image in images], file_pattern)
    _ensure_usable_ids(annotations)
    categories = (
        files.manifest.categories
        if files.manifest
        else [
            {"label": label, "id": label, "name": name or str(label)}
            for label, name in facts.names.items()
        ]
    )
    category_ids = {category["label"]: category["id"] for category in categories}
    for annotation in annotations:
        annotation["category_id"] = category_ids[annotation["category_id"]]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": entry["id"], "name": entry["name"]} for entry in categories],
    }


def read_file_names(file_pattern: str, skip: Needs | None = None) -> dict[int, str]:
    """Reads the file names of the records' images, by image id; "" where a record has none.

    Every byte is read but nothing is decoded, so it is as fast as the disk.

    Args:
        file_pattern, skip: as for `ground_truth_from_records`.

    Raises:
        UserError: nothing matches, or a record cannot be parsed.
    """

    @tf.autograph.experimental.do_not_convert
    def parse(serialized):
        return records.parse_image_id(serialized), _parse_file_name(serialized)

    files = RecordFiles.match(file_pattern, skip, labels_only=True)
    parsed = files.read().map(parse, num_parallel_calls=tf.data.AUTOTUNE, deterministic=False)
    try:
        return {
            int(image_id): name.decode(errors="replace")
            for image_id, name in parsed.as_numpy_iterator()
        }
    except tf.errors.OpError as error:
        raise name_broken_record(error, file_pattern, False, files.offsets_skipped) from None


def _parse_file_name(serialized: tf.Tensor) -> tf.Tensor:
    """Parses the image's file name, or the record's id if that is a name: string []."""
    keys = ("image/filename", "image/source_id")
    spec = {key: tf.io.FixedLenFeature([], tf.string, "") for key in keys}
    name, source_id = tf.io.parse_single_example(serialized, spec).values()
    is_number = tf.strings.regex_full_match(source_id, "[0-9]*")
    return tf.where(tf.equal(name, "") & ~is_number, source_id, name)


def _ensure_usable_ids(annotations: list[dict]) -> None:
    ids = {annotation["id"] for annotation in annotations}
    # pycocotools takes an annotation id of 0 for "no match".
    if len(ids) < len(annotations) or 0 in ids or -1 in ids:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number


def _read_records(files: RecordFiles, include_masks: bool) -> tuple[list[dict], list[dict]]:
    """Returns the images and the annotations, those with labels as category ids."""

    @tf.autograph.experimental.do_not_convert
    def parse(serialized):
        record = records.parse_record(serialized, include_masks)
        record["file_name"] = _parse_file_name(serialized)
        del record["encoded"]
        return record

    images, annotations = [], []
    skipped = SkippedItems(tolerate=True)
    parsed = files.read_in_order().map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    for record in parsed.as_numpy_iterator():
        images.append(
            {
                "id": int(record["image_id"]),
                "file_name": record["file_name"].decode(errors="replace"),
                "height": int(record["height"]),
                "width": int(record["width"]),
            }
        )
        size = images[-1]["height"], images[-1]["width"]
        annotations.extend(complete_annotations(_annotations(record), *size, skipped))
    warn_of_left_out(skipped.items, "the records")
    return images, annotations


def _annotations(record: dict) -> Iterator[dict]:
    """Yields the annotations of one image, with the keys that the record has."""
    y1, x1, y2, x2 = record["boxes"].astype(np.float64).T
    boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
    for index, segmentation in enumerate(_segmentations(record)):
        area = float(record["areas"][index])
        yield {
            "id": int(record["annotation_ids"][index]),
            "image_id": int(record["image_id"]),
            "category_id": int(record["classes"][index]),
            "bbox": boxes[index].tolist(),
            "iscrowd": int(record["is_crowd"][index]),
            **({} if np.isnan(area) else {"area": area}),
            **segmentation,
        }


def _segmentations(record: dict) -> list[dict]:
    """Returns the key segmentation of each instance, if there are masks."""
    if "run_lengths" not in record:
        return [{}] * len(record["boxes"])
    size = [int(record["height"]), int(record["width"])]
    runs = np.split(record["run_lengths"], np.cumsum(record["num_runs"])[:-1])
    return [
        {"segmentation": {"size": size, "counts": array.array("q", counts)}}
        for counts in runs[: len(record["boxes"])]
    ]
