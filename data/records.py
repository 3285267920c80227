"""The record schema: one image with its instances as a tf.train.Example in a TFRecord shard.

Records are written and parsed only here. Writing needs no TensorFlow, parsing uses graph operations
only. Records use the standard keys of the TF Object Detection API and in addition image/id,
image/orientation (EXIF's number for the rotation that brings the stored pixels to the orientation
that height, width and the instances refer to), image/object/{category_id,annotation_id} and the
masks as COCO run lengths (`data/segmentation.py`): image/object/mask/counts holds the runs of all
instances one after another, image/object/mask/num_counts the number of runs of each instance. In
the same way, image/object/mask/points holds the points (x, y, in pixels) of all polygons,
image/object/mask/num_points the number of points of each polygon, and
image/object/mask/num_polygons the number of polygons of each instance, 0 if it is annotated by an
RLE. Other converters store each mask as a PNG of the image's size in image/object/mask; these are
parsed into run lengths as well.

Axes: N instances of one image, R runs of one mask, T runs of all masks of one image, P polygons of
one image, X points of all of them.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from data.tf_example import bytes_feature, float_feature, int64_feature, serialize_example

_BOX_KEYS = tuple(f"image/object/bbox/{side}" for side in ("ymin", "xmin", "ymax", "xmax"))
# This means "no id": images may have any id from 0 on, and -1 marks padding.
_NO_ID = -(2**63)
# Steps in which the share of records can be chosen.
_FRACTION_STEPS = 1_000_000
_HASH_RANGE = 2**63 - 1


class Instance(NamedTuple):
    """One annotated object."""

    box: tuple[float, float, float, float]  # y1, x1, y2, x2 in pixels of the original image
    label: int  # 1..K
    name: str
    is_crowd: bool
    area: float  # the annotation's own, in pixels
    category_id: int
    annotation_id: int
    run_lengths: np.ndarray | None  # int64 [R]; None in records without masks
    polygons: Sequence[np.ndarray] = ()  # x, y in turn, in pixels; empty for an RLE

    @property
    def num_vertices(self) -> int:
        """Number of vertices of the closed polygons, whose first point is repeated at the end."""
        return sum(len(polygon) // 2 + 1 for polygon in self.polygons)


def encode_example(
    *,
    encoded: bytes,
    image_format: str,
    height: int,
    width: int,
    file_name: str,
    image_id: int,
    instances: Sequence[Instance],
    include_masks: bool,
    orientation: int = 1,
) -> bytes:
    """Serialises one image; the same arguments always give the same bytes.

    Args:
        encoded: the image file, stored unchanged.
        image_format: "jpeg" or "png".
        height, width: size in pixels, once rotated.
        file_name: as in the annotations; anything that is not Unicode is escaped.
        image_id: 0 or more.
        instances: may be empty; then the record has no image/object/* values.
        include_masks: whether to write the instances' run lengths and polygons.
        orientation: EXIF's, 1 to 8, by which readers rotate the stored pixels.

    Returns:
        A serialised tf.train.Example.
    """
    features = {
        "image/encoded": bytes_feature(encoded),
        "image/format": bytes_feature(image_format.encode()),
        "image/filename": bytes_feature(file_name.encode("utf-8", "backslashreplace")),
        "image/source_id": bytes_feature(str(image_id).encode()),
        "image/key/sha256": bytes_feature(hashlib.sha256(encoded).hexdigest().encode()),
        "image/height": int64_feature([height]),
        "image/width": int64_feature([width]),
        "image/id": int64_feature([image_id]),
        "image/orientation": int64_feature([orientation]),
    }
    if instances:
        features |= _instance_features(instances, height, width)
    if instances and include_masks:
        runs = [instance.run_lengths for instance in instances]
        features["image/object/mask/num_counts"] = int64_feature([len(entry) for entry in runs])
        features["image/object/mask/counts"] = int64_feature(np.concatenate(runs))
        features |= _polygon_features(instances)
    return serialize_example(features)


def _instance_features(instances: Sequence[Instance], height: int, width: int) -> dict[str, bytes]:
    boxes = np.array([instance.box for instance in instances]) / (height, width, height, width)
    integers = {
        "class/label": [instance.label for instance in instances],
        "is_crowd": [instance.is_crowd for instance in instances],
        "category_id": [instance.category_id for instance in instances],
        "annotation_id": [instance.annotation_id for instance in instances],
    }
    names = (instance.name.encode("utf-8", "replace") for instance in instances)
    return {
        "image/object/area": float_feature([instance.area for instance in instances]),
        "image/object/class/text": bytes_feature(*names),
        **{key: float_feature(side) for key, side in zip(_BOX_KEYS, boxes.T, strict=True)},
        **{f"image/object/{key}": int64_feature(values) for key, values in integers.items()},
    }


def _polygon_features(instances: Sequence[Instance]) -> dict[str, bytes]:
    polygons = [polygon for instance in instances for polygon in instance.polygons]
    if not polygons:
        return {}
    integers = {
        "num_polygons": [len(instance.polygons) for instance in instances],
        "num_points": [len(polygon) // 2 for polygon in polygons],
    }
    return {
        "image/object/mask/points": float_feature(np.concatenate(polygons)),
        **{f"image/object/mask/{key}": int64_feature(values) for key, values in integers.items()},
    }


def parse_record(serialized, include_masks: bool, max_polygon_vertices: int = 0) -> dict:
    """Parses one record, of this or another converter, with graph operations.

    Absent instance keys count as empty, absent crowd flags as 0, absent areas as NaN, absent
    annotation ids as -1.

    Args:
        serialized: string scalar, a serialised tf.train.Example.
        include_masks: whether to return the masks' run lengths.
        max_polygon_vertices: whether to return the polygons, if above 0. Every object except crowds
            must then have polygons and at most that many vertices, each polygon's first point
            counting twice.

    Returns:
        encoded: string scalar, the image file. image_id: int64 scalar; image/id where present, else
        image/source_id as a number, else a stable hash of it (of image/filename when it is empty).
        height, width: int64 scalars, pixels. orientation: int64 scalar, EXIF's, 0 if the record
        does not state it. boxes: float32 [N, 4], y1, x1, y2, x2 in pixels of the original image.
        classes: int32 [N]. is_crowd: bool [N]. areas: float32 [N], pixels. annotation_ids: int64
        [N]. With masks also run_lengths: int64 [T] and num_runs: int64 [N]; with polygons also
        points: float32 [X, 2], y, x in pixels of the original image, num_points: int64 [P] and
        num_polygons: int64 [N].

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on a record that lacks image, height or
            width; whose instance keys differ in length, for example because requested masks are
            missing; whose boxes are not fractions of the image's sides
            (`data.record_checks.box_checks`); whose requested polygons are missing or too long; or
            whose PNG masks cannot be used (`data.png_masks.png_run_lengths`).
    """
    import tensorflow as tf

    from data.record_checks import box_checks, length_checks, polygon_checks

    parsed = tf.io.parse_single_example(
        serialized, _parse_spec(tf, include_masks, max_polygon_vertices > 0)
    )
    height, width = parsed["image/height"], parsed["image/width"]
    sides = tf.cast(tf.stack([height, width, height, width]), tf.float32)
    relative = tf.stack([parsed[key] for key in _BOX_KEYS], axis=-1)
    boxes = relative * sides
    num_instances = tf.shape(boxes)[0]

    def per_instance(key, default):
        return tf.concat([parsed[key], default[tf.size(parsed[key]) :]], axis=0)

    no_flags = tf.zeros([num_instances], tf.int64)
    no_areas = tf.fill([num_instances], np.float32(np.nan))
    record = {
        "image_id": _image_id(tf, parsed),
        "is_crowd": per_instance("image/object/is_crowd", no_flags) > 0,
    }
    if include_masks:
        record |= _masks(parsed, boxes, record["image_id"])
    if max_polygon_vertices:
        record |= {
            "points": tf.reshape(parsed["image/object/mask/points"], [-1, 2])[:, ::-1],
            "num_points": parsed["image/object/mask/num_points"],
            "num_polygons": per_instance("image/object/mask/num_polygons", no_flags),
        }
    checks = length_checks(parsed, record, num_instances) + box_checks(relative, record["image_id"])
    if max_polygon_vertices:
        checks += polygon_checks(record, max_polygon_vertices)
    with tf.control_dependencies(checks):
        record["encoded"] = tf.identity(parsed["image/encoded"])
    return record | {
        "height": height,
        "width": width,
        "orientation": parsed["image/orientation"],
        "boxes": boxes,
        "classes": tf.cast(parsed["image/object/class/label"], tf.int32),
        "areas": per_instance("image/object/area", no_areas),
        "annotation_ids": per_instance("image/object/annotation_id", no_flags - 1),
    }


def parse_image_id(serialized):
    """Parses the image_id of `parse_record` even if the rest cannot be parsed: int64 []."""
    import tensorflow as tf

    return _image_id(tf, tf.io.parse_single_example(serialized, _image_id_spec(tf)))


def parse_sizes(serialized):
    """Parses height and width of records' images, once rotated: string [n] -> int64 [n, 2]."""
    import tensorflow as tf

    spec = {f"image/{side}": tf.io.FixedLenFeature([], tf.int64) for side in ("height", "width")}
    parsed = tf.io.parse_example(serialized, spec)
    return tf.stack([parsed["image/height"], parsed["image/width"]], axis=-1)


def is_in_fraction(serialized, fraction: float):
    """Tells whether a record is in a share of all: string [] -> bool [].

    It depends only on the image id, and shares are nested: a record in one is in every larger one.
    """
    import tensorflow as tf

    image_id = _image_id(tf, tf.io.parse_single_example(serialized, _image_id_spec(tf)))
    bucket = tf.strings.to_hash_bucket_fast(tf.strings.as_string(image_id), _FRACTION_STEPS)
    return bucket < round(fraction * _FRACTION_STEPS)


def _image_id_spec(tf) -> dict:
    return {
        "image/id": tf.io.FixedLenFeature([], tf.int64, _NO_ID),
        "image/source_id": tf.io.FixedLenFeature([], tf.string, ""),
        "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
    }


def _parse_spec(tf, include_masks: bool, include_polygons: bool) -> dict:
    """Returns the feature spec; instance keys may be absent and then parse as empty."""
    integers = ["class/label", "is_crowd", "annotation_id"]
    if include_masks:
        integers += ["mask/counts", "mask/num_counts"]
    if include_polygons:
        integers += ["mask/num_polygons", "mask/num_points"]
    any_length = functools.partial(tf.io.FixedLenSequenceFeature, [], allow_missing=True)
    pngs = {"image/object/mask": any_length(tf.string)} if include_masks else {}
    points = {"image/object/mask/points": any_length(tf.float32)} if include_polygons else {}
    return {
        **_image_id_spec(tf),
        **pngs,
        **points,
        "image/encoded": tf.io.FixedLenFeature([], tf.string),
        "image/height": tf.io.FixedLenFeature([], tf.int64),
        "image/width": tf.io.FixedLenFeature([], tf.int64),
        "image/orientation": tf.io.FixedLenFeature([], tf.int64, 0),
        "image/object/area": any_length(tf.float32),
        **{key: any_length(tf.float32) for key in _BOX_KEYS},
        **{f"image/object/{key}": any_length(tf.int64) for key in integers},
    }


def _image_id(tf, parsed: dict):
    source_id = parsed["image/source_id"]
    name = tf.where(tf.equal(source_id, ""), parsed["image/filename"], source_id)
    is_number = tf.strings.regex_full_match(source_id, r"[0-9]{1,18}")
    named_id = tf.where(
        is_number,
        tf.strings.to_number(tf.where(is_number, source_id, "0"), tf.int64),
        tf.strings.to_hash_bucket_fast(name, _HASH_RANGE),
    )
    return tf.where(tf.equal(parsed["image/id"], _NO_ID), named_id, parsed["image/id"])


def _masks(parsed: dict, boxes, image_id) -> dict:
    """Returns run lengths of all masks, from run lengths or PNGs."""
    import tensorflow as tf

    from data.png_masks import png_run_lengths

    counts, num_counts = (parsed[f"image/object/mask/{key}"] for key in ("counts", "num_counts"))
    # If there are run lengths, PNGs would only repeat them.
    pngs, boxes = (each[tf.size(num_counts) :] for each in (parsed["image/object/mask"], boxes))
    size = parsed["image/height"], parsed["image/width"]
    from_pngs = png_run_lengths(pngs, boxes, *size, image_id)
    return {
        "run_lengths": tf.concat([counts, from_pngs[0]], axis=0),
        "num_runs": tf.concat([num_counts, from_pngs[1]], axis=0),
    }
