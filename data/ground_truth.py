"""Ground truth for the evaluation, rebuilt from the records in COCO's format."""

from __future__ import annotations

import numpy as np
import tensorflow as tf
from pycocotools import mask as coco_mask

from data import records
from data.errors import UserError
from data.manifest import expand_pattern, find_manifest


def ground_truth_from_records(file_pattern: str) -> dict:
    """Rebuilds the COCO annotations that records were made from.

    Boxes and areas come back in single precision, masks exactly. Images and annotations keep their
    ids; where annotation ids are absent or not unique, all are numbered anew from 1.

    Args:
      file_pattern: as for `data.manifest.expand_pattern`.

    Returns:
      A dict that `json.dump` writes as a COCO file. "images": id, height, width. "annotations":
      crowds included, bbox as x, y, width, height in pixels, segmentation as compressed RLE unless
      the records hold no masks. "categories": the manifest's, or without one those of the labels
      seen, under the label as id and name.

    Raises:
      UserError: nothing matches, or a record cannot be parsed.
    """
    manifest = find_manifest(file_pattern)
    paths = expand_pattern(file_pattern)
    try:
        include_masks = manifest.include_masks if manifest else _have_masks(paths)
        images, annotations = _read_records(paths, include_masks)
    except tf.errors.OpError as error:
        reason = error.message.rpartition("}} ")[2]  # without the names of graph nodes
        raise UserError(
            f"cannot read the records {file_pattern} ({reason}); convert them again."
        ) from None
    _ensure_usable_ids(annotations)
    labels = {annotation["category_id"] for annotation in annotations}
    categories = (
        manifest.categories
        if manifest
        else [{"label": label, "id": label, "name": str(label)} for label in sorted(labels)]
    )
    category_ids = {category["label"]: category["id"] for category in categories}
    for annotation in annotations:
        annotation["category_id"] = category_ids[annotation["category_id"]]
    return {
        "images": images,
        "annotations": annotations,
        "categories": [{"id": entry["id"], "name": entry["name"]} for entry in categories],
    }


def _ensure_usable_ids(annotations: list[dict]) -> None:
    ids = {annotation["id"] for annotation in annotations}
    # pycocotools takes an annotation id of 0 for "no match".
    if len(ids) < len(annotations) or 0 in ids or -1 in ids:
        for number, annotation in enumerate(annotations, start=1):
            annotation["id"] = number


def _have_masks(paths: list[str]) -> bool:
    """Whether any record of others' making holds run lengths."""
    key = "image/object/mask/num_counts"
    spec = {key: tf.io.FixedLenSequenceFeature([], tf.int64, allow_missing=True)}
    sizes = tf.data.TFRecordDataset(paths).map(
        lambda serialized: tf.size(tf.io.parse_single_example(serialized, spec)[key])
    )
    return any(size > 0 for size in sizes.as_numpy_iterator())


def _read_records(paths: list[str], include_masks: bool) -> tuple[list[dict], list[dict]]:
    """Returns the images and the annotations, those with labels as category ids."""

    def parse(serialized):
        record = records.parse_record(serialized, include_masks)
        del record["encoded"]
        return record

    images, annotations = [], []
    parsed = tf.data.TFRecordDataset(paths).map(parse, num_parallel_calls=tf.data.AUTOTUNE)
    for record in parsed.as_numpy_iterator():
        images.append(
            {
                "id": int(record["image_id"]),
                "height": int(record["height"]),
                "width": int(record["width"]),
            }
        )
        annotations.extend(_annotations(record))
    return images, annotations


def _annotations(record: dict):
    """Yields the annotations of one image."""
    y1, x1, y2, x2 = record["boxes"].astype(np.float64).T
    boxes = np.stack([x1, y1, x2 - x1, y2 - y1], axis=1)
    segmentations = _segmentations(record) if "run_lengths" in record else [None] * len(boxes)
    for index, segmentation in enumerate(segmentations):
        annotation = {
            "id": int(record["annotation_ids"][index]),
            "image_id": int(record["image_id"]),
            "category_id": int(record["classes"][index]),
            "bbox": boxes[index].tolist(),
            "area": float(record["areas"][index]),
            "iscrowd": int(record["is_crowd"][index]),
        }
        if segmentation is not None:
            annotation["segmentation"] = segmentation
        yield annotation


def _segmentations(record: dict) -> list[dict]:
    size = [int(record["height"]), int(record["width"])]
    runs = np.split(record["run_lengths"], np.cumsum(record["num_runs"])[:-1])
    plain = [{"size": size, "counts": counts.tolist()} for counts in runs[: len(record["boxes"])]]
    encoded = coco_mask.frPyObjects(plain, *size) if plain else []
    return [{"size": size, "counts": rle["counts"].decode("ascii")} for rle in encoded]
