"""COCO instance annotations: the file's structure, boxes, and masks as exact run lengths.

A mask is held as COCO's uncompressed run-length encoding: the pixels are walked column by column,
and the runs of zeros and ones are counted in turn, zeros first (the first count may be 0). The
counts add up to height * width and lose nothing.

Axes: R runs of one mask, H W image height and width.
"""

from __future__ import annotations

import array
import json
import sys
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from pycocotools import mask as coco_mask

from data.errors import UserError
from data.files import open_file

# A compressed count holds five bits a character; seven characters hold any 32-bit difference.
_MAX_CHARACTERS = 7
# Polygons farther outside than this many image sides are a mistake, and rasterising them would
# take memory in proportion to their length.
_MAX_SIDES_OUTSIDE = 100


class InvalidAnnotation(ValueError):
    """The reason why one annotation cannot be used, as the second half of a sentence."""


class SkippedItems:
    """What a conversion leaves out: refuses it, or, when it tolerates it, writes it down."""

    def __init__(self, tolerate: bool):
        self._tolerate = tolerate
        self.items: list[dict] = []

    def add_image(self, reason: str, image_id, file_name) -> None:
        """Leaves out one image; raises UserError when nothing may be left out."""
        self._add(
            f"image {image_id} ({file_name}): {reason}",
            {"image_id": image_id, "file_name": file_name, "reason": reason},
        )

    def add_annotation(self, reason: str, annotation_id, image_id) -> None:
        """Leaves out one annotation; raises UserError when nothing may be left out."""
        self._add(
            f"annotation {annotation_id} of image {image_id}: {reason}",
            {"image_id": image_id, "annotation_id": annotation_id, "reason": reason},
        )

    def _add(self, sentence: str, item: dict) -> None:
        if not self._tolerate:
            raise UserError(f"{sentence}; correct it, or leave it out with --on_invalid=skip.")
        self.items.append(item)


class CocoImage(NamedTuple):
    """One image as the JSON announces it, with its annotations that name known things."""

    id: int
    file_name: str
    height: int
    width: int
    annotations: list[dict]


class CocoDataset(NamedTuple):
    """A COCO instance file whose images and references have been checked."""

    images: list[CocoImage]  # ascending by id
    categories: list[dict]  # {"label": 1..K, "id", "name"}, ascending by id


def load_dataset(path: str, skipped: SkippedItems) -> CocoDataset:
    """Reads a COCO instance file and checks everything but boxes, masks and image files.

    Args:
      path: the JSON.
      skipped: takes the images and annotations that cannot be used.

    Raises:
      UserError: the file is missing, cut short or no COCO instance file; its categories cannot be
        used; or `skipped` tolerates nothing and something is wrong.
    """
    content = _read_json(path)
    for key in ("images", "annotations", "categories"):
        if not isinstance(content, dict) or not isinstance(content.get(key), list):
            raise UserError(
                f"{path} is no COCO instance file: it has no list {key!r}; give the JSON that "
                "holds images, annotations and categories."
            )
    categories = _check_categories(content["categories"], path)
    images, dropped_ids = _check_images(content["images"], skipped)
    _attach_annotations(
        content["annotations"],
        images=images,
        dropped_ids=dropped_ids,
        category_ids={category["id"] for category in categories},
        skipped=skipped,
    )
    if not images:
        raise UserError(f"{path} holds no usable image; there is nothing to convert.")
    return CocoDataset([images[key] for key in sorted(images)], categories)


def _read_json(path: str) -> object:
    try:
        with open_file(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path.") from None
    try:
        text = raw.decode("utf-8-sig")
        del raw  # of a large file, bytes, text and parsed values need not be held at once
        return json.loads(text, object_hook=_pack_numbers)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} is not readable as JSON ({error}); it may be cut short, fetch it again."
        ) from None


def _pack_numbers(mapping: dict) -> dict:
    """Keeps polygons and runs as packed numbers: a quarter of the memory, quick to send on."""
    try:
        if isinstance(segmentation := mapping.get("segmentation"), list):
            mapping["segmentation"] = [array.array("d", polygon) for polygon in segmentation]
        elif isinstance(counts := mapping.get("counts"), list):
            mapping["counts"] = array.array("q", counts)
    except (TypeError, OverflowError):
        pass  # left as it is, and refused with its annotation's id when the mask is made
    return mapping


def _is_integer(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and -(2**63) <= value < 2**63


def _check_categories(entries: list, path: str) -> list[dict]:
    names = {}
    for entry in entries:
        if not (
            isinstance(entry, dict)
            and _is_integer(entry.get("id"))
            and isinstance(entry.get("name"), str)
        ):
            raise UserError(
                f"{path}: category {entry!r} lacks an integer 'id' or a 'name'; correct it."
            )
        if entry["id"] in names:
            raise UserError(
                f"{path}: category id {entry['id']} stands twice ({names[entry['id']]!r} and "
                f"{entry['name']!r}); give each category an id of its own."
            )
        names[entry["id"]] = entry["name"]
    if not names:
        raise UserError(f"{path} lists no categories; add the classes of its annotations.")
    return [
        {"label": label, "id": category_id, "name": names[category_id]}
        for label, category_id in enumerate(sorted(names), start=1)
    ]


def _check_images(entries: list, skipped: SkippedItems) -> tuple[dict[int, CocoImage], set]:
    """Returns the usable images by id, and the ids of those left out."""
    images: dict[int, CocoImage] = {}
    dropped_ids = set()
    for entry in entries:
        if not isinstance(entry, dict):
            skipped.add_image(f"the entry {entry!r} is no JSON object", None, None)
            continue
        image_id, file_name = entry.get("id"), entry.get("file_name")
        if reason := _image_problem(entry, known=images):
            skipped.add_image(reason, image_id, file_name)
            if _is_integer(image_id) and image_id not in images:
                dropped_ids.add(image_id)
            continue
        images[image_id] = CocoImage(image_id, file_name, entry["height"], entry["width"], [])
    return images, dropped_ids - images.keys()


def _image_problem(entry: dict, known: Mapping) -> str:
    """Says why an image entry cannot be used; empty when it can."""
    for key in ("id", "file_name", "height", "width"):
        if key not in entry:
            return f"the key {key!r} is missing"
    if not _is_integer(entry["id"]) or entry["id"] < 0:
        return "the id is no integer of 0 or more"
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        return "the file_name is no text"
    for side in ("height", "width"):
        if not _is_integer(entry[side]) or entry[side] <= 0:
            return f"the {side} {entry[side]!r} is no positive integer"
    return "another image has the same id" if entry["id"] in known else ""


def _attach_annotations(
    entries: list,
    *,
    images: Mapping[int, CocoImage],
    dropped_ids: set,
    category_ids: set,
    skipped: SkippedItems,
) -> None:
    """Hands every usable annotation to its image; those of images left out go with them."""
    seen_ids: set = set()
    for entry in entries:
        if not isinstance(entry, dict):
            skipped.add_annotation(f"the entry {entry!r} is no JSON object", None, None)
            continue
        image_id = entry.get("image_id")
        if _is_integer(image_id) and image_id in dropped_ids:
            continue
        if reason := _annotation_problem(entry, images, category_ids, seen_ids):
            skipped.add_annotation(reason, entry.get("id"), image_id)
            continue
        seen_ids.add(entry["id"])
        images[image_id].annotations.append(entry)


def _annotation_problem(entry: dict, images: Mapping, category_ids: set, seen_ids: set) -> str:
    """Says why an annotation's references cannot be used; empty when they can."""
    for key in ("id", "image_id", "category_id", "bbox"):
        if key not in entry:
            return f"the key {key!r} is missing"
    if not _is_integer(entry["id"]):
        return "the id is no integer"
    if entry["id"] in seen_ids:
        return "another annotation has the same id"
    if not _is_integer(entry["image_id"]) or entry["image_id"] not in images:
        return "no image has this image_id"
    if not _is_integer(entry["category_id"]) or entry["category_id"] not in category_ids:
        return f"no category has the id {entry['category_id']!r}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd is {entry['iscrowd']!r} instead of 0 or 1"
    return ""


def clip_box(bbox: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """Turns a COCO box into corners and clips it to the image.

    Args:
      bbox: x, y, width, height in pixels.
      height, width: size of the image in pixels.

    Returns:
      y1, x1, y2, x2 in pixels, 0 <= y1 < y2 <= height and likewise in x.

    Raises:
      InvalidAnnotation: not four finite numbers, a negative side, or no area inside the image.
    """
    if not isinstance(bbox, Sequence) or isinstance(bbox, str) or len(bbox) != 4:
        raise InvalidAnnotation(f"the box {bbox!r} is not four numbers")
    if not all(is_finite_number(value) for value in bbox):
        raise InvalidAnnotation(f"the box {bbox!r} is not four finite numbers")
    x, y, box_width, box_height = bbox
    if box_width < 0 or box_height < 0:
        raise InvalidAnnotation(f"the box {bbox!r} has a negative side")
    y1, y2 = (min(max(value, 0.0), height) for value in (y, y + box_height))
    x1, x2 = (min(max(value, 0.0), width) for value in (x, x + box_width))
    # Records keep single precision relative to the image, where a hair's breadth vanishes.
    if np.float32(y1 / height) >= np.float32(y2 / height) or np.float32(x1 / width) >= np.float32(
        x2 / width
    ):
        raise InvalidAnnotation(
            f"the box {bbox!r} has no area inside the image of {width}x{height} pixels"
        )
    return y1, x1, y2, x2


def is_finite_number(value) -> bool:
    """Whether a JSON value is a number other than NaN and the infinities."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and abs(value) <= sys.float_info.max


def run_lengths(segmentation, height: int, width: int) -> np.ndarray:
    """Turns a COCO segmentation into the run lengths that pycocotools' `annToMask` decodes.

    Args:
      segmentation: polygons (x, y in turn, pixels), or an RLE with compressed or plain counts.
      height, width: size of the image in pixels.

    Returns:
      int64 [R] run lengths, column by column, zeros first; they add up to height * width.

    Raises:
      InvalidAnnotation: the segmentation is missing or malformed.
    """
    if isinstance(segmentation, dict):
        return _rle_run_lengths(segmentation, height, width)
    if isinstance(segmentation, list) and segmentation:
        return _polygon_run_lengths(segmentation, height, width)
    raise InvalidAnnotation(
        "it has no mask (segmentation); for boxes alone convert with --noinclude_masks"
    )


def polygons(segmentation) -> list[np.ndarray]:
    """The polygons of a segmentation that `run_lengths` has accepted; none of an RLE.

    Returns:
      float64 [2 V] for each polygon of V points, x, y in turn.
    """
    if isinstance(segmentation, dict):
        return []
    return [np.asarray(polygon, np.float64) for polygon in segmentation]


def _polygon_run_lengths(polygons: list, height: int, width: int) -> np.ndarray:
    reach = _MAX_SIDES_OUTSIDE * max(height, width)
    outlines = [_polygon_coordinates(polygon) for polygon in polygons]
    if any(np.abs(outline).max() > reach for outline in outlines):
        raise InvalidAnnotation("a polygon reaches absurdly far outside the image")
    encoded = coco_mask.frPyObjects(outlines, height, width)
    merged = encoded[0] if len(encoded) == 1 else coco_mask.merge(encoded)
    return decode_counts(merged["counts"])


def _polygon_coordinates(polygon) -> np.ndarray:
    try:
        coordinates = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        coordinates = np.zeros([0, 0])
    if coordinates.ndim != 1 or coordinates.size % 2:
        raise InvalidAnnotation("a polygon is no list of x, y pairs")
    if coordinates.size < 6:
        raise InvalidAnnotation(f"a polygon has {coordinates.size // 2} points, fewer than three")
    if not np.isfinite(coordinates).all():
        raise InvalidAnnotation("a polygon's coordinates are not all finite")
    return coordinates


def _rle_run_lengths(rle: Mapping, height: int, width: int) -> np.ndarray:
    size, counts = rle.get("size"), rle.get("counts")
    if not isinstance(size, list) or size != [height, width]:
        raise InvalidAnnotation(
            f"the RLE's size {size!r} is not the image's [{height}, {width}] (height, width)"
        )
    if isinstance(counts, str):
        runs = decode_counts(counts)
    elif isinstance(counts, array.array | list) and all(map(_is_integer, counts)):
        runs = np.array(counts, np.int64)
    else:
        raise InvalidAnnotation("the RLE's counts are neither text nor a list of integers")
    if np.any((runs < 0) | (runs > height * width)) or runs.sum() != height * width:
        raise InvalidAnnotation(
            f"the RLE's counts do not add up to the image's {height} x {width} pixels"
        )
    return runs


def decode_counts(counts: str | bytes) -> np.ndarray:
    """Decodes pycocotools' compressed counts without making the mask.

    Each count is a variable-length integer, five bits a character from the lowest up, offset by
    48; bit 5 says that more follow, bit 4 of the last is the sign. From the fourth count on it is
    the difference to the count before last (`rleFrString` in cocoapi's maskApi.c).

    Args:
      counts: the compressed text.

    Returns:
      int64 [R] run lengths.

    Raises:
      InvalidAnnotation: the text is not such an encoding.
    """
    raw = counts.encode("utf-8", "surrogatepass") if isinstance(counts, str) else counts
    codes = np.frombuffer(raw, np.uint8).astype(np.int64) - 48
    if not codes.size or codes.min() < 0 or codes.max() > 63:
        raise InvalidAnnotation("the RLE's compressed counts hold foreign characters or nothing")
    ends = np.flatnonzero(codes < 32)
    starts = np.concatenate([[0], ends[:-1] + 1])
    lengths = ends - starts + 1
    if not ends.size or ends[-1] != codes.size - 1 or lengths.max() > _MAX_CHARACTERS:
        raise InvalidAnnotation("the RLE's compressed counts are cut short")
    shifts = 5 * (np.arange(codes.size) - np.repeat(starts, lengths))
    runs = np.add.reduceat((codes & 31) << shifts, starts)
    runs -= np.where(codes[ends] & 16, np.int64(1) << (5 * lengths), 0)
    runs[1::2] = np.cumsum(runs[1::2])
    runs[2::2] = np.cumsum(runs[2::2])
    return runs


def mask_area(runs: np.ndarray) -> int:
    """Number of pixels of a mask given as run lengths int64 [R]."""
    return int(runs[1::2].sum())
