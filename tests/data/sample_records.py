"""Small records for the tests of the input pipeline."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from data.records import Instance, encode_example


def run_lengths(mask: np.ndarray) -> np.ndarray:
    """COCO's column-major run lengths of a [h, w] mask, the first of which counts zeros."""
    pixels = np.concatenate([[0], mask.T.ravel()])
    changes = np.flatnonzero(np.diff(pixels))
    return np.diff(np.concatenate([[0], changes, [mask.size]]))


def blobs(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A uint8 [height, width] mask of several overlapping rectangles with holes."""
    mask = np.zeros((height, width), np.uint8)
    for value in (1, 1, 0, 1, 0):
        y1, y2 = sorted(rng.integers(0, height + 1, 2))
        x1, x2 = sorted(rng.integers(0, width + 1, 2))
        mask[y1:y2, x1:x2] = value
    return mask


def encode_png(pixels: np.ndarray) -> bytes:
    """The PNG file of an array of pixels."""
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def make_instance(mask, box=None, label=1, is_crowd=False) -> Instance:
    """An instance of a mask; its box is the mask's own unless given."""
    if box is None:
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        box = (rows[0], columns[0], rows[-1] + 1, columns[-1] + 1)
    return Instance(
        box=tuple(float(side) for side in box),
        label=label,
        name=f"class {label}",
        is_crowd=is_crowd,
        area=float(mask.sum()),
        category_id=label,
        annotation_id=1,
        run_lengths=run_lengths(mask),
    )


def make_record(pixels, instances=(), image_id=1, include_masks=True, **changes) -> bytes:
    """A serialised record of an image; `changes` replace arguments of `encode_example`."""
    arguments = {
        "encoded": encode_png(pixels),
        "image_format": "png",
        "height": pixels.shape[0],
        "width": pixels.shape[1],
        "file_name": f"{image_id}.png",
        "image_id": image_id,
        "instances": instances,
        "include_masks": include_masks,
    }
    return encode_example(**(arguments | changes))


def make_foreign_record(pixels, boxes=(), labels=(), **features) -> bytes:
    """A record as other converters write it.

    Args:
        pixels: the image, stored as PNG.
        boxes: [N, 4] as fractions of the image, y1, x1, y2, x2; without any there are no
            image/object/* keys at all.
        labels: N of them.
        features: further ones by name, __ for /; a list of bytes, ints or floats each.
    """
    import tensorflow as tf

    values = {
        "image/encoded": [encode_png(pixels)],
        "image/height": [pixels.shape[0]],
        "image/width": [pixels.shape[1]],
    }
    if len(boxes):
        sides = zip(("ymin", "xmin", "ymax", "xmax"), np.transpose(boxes), strict=True)
        values |= {f"image/object/bbox/{side}": side_of.tolist() for side, side_of in sides}
        values["image/object/class/label"] = list(labels)
    values |= {name.replace("__", "/"): value for name, value in features.items()}
    lists = {
        bytes: lambda value: {"bytes_list": tf.train.BytesList(value=value)},
        int: lambda value: {"int64_list": tf.train.Int64List(value=value)},
        float: lambda value: {"float_list": tf.train.FloatList(value=value)},
    }
    feature = {
        name: tf.train.Feature(**lists[type(value[0])](value)) for name, value in values.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()
