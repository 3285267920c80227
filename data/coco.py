"""Reads COCO files: checks their structure and links annotations to images and categories.

`data/annotations.py` reads the content of a single annotation.
"""

from __future__ import annotations

import array
import collections
import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

from data.errors import UserError
from data.files import open_file
from data.findings import SkippedItems, first_reason
from data.numbers import is_finite_number, is_integer

_IMAGE_KEYS = ("id", "file_name", "height", "width")


class CocoImage(NamedTuple):
    """One image entry of the JSON with its annotations, whose references are valid."""

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

    A file without annotations, such as COCO's image_info, lists images without objects.

    Args:
        path: the JSON.
        skipped: takes the images and annotations that cannot be used.

    Raises:
        UserError: the file is missing, truncated or not a COCO instance file; its categories cannot
            be used; or an entry is invalid and `skipped` tolerates none.
    """
    content = _read_json(path)
    entries = _check_lists(content, path)
    categories = _check_categories(entries["categories"], path)
    if entries["annotations"] and not categories:
        raise UserError(f"{path} lists no categories; add the categories that its annotations use.")
    images, dropped_ids = _check_images(entries["images"], skipped)
    _attach_annotations(
        entries["annotations"],
        images=images,
        dropped_ids=dropped_ids,
        category_ids={category["id"] for category in categories},
        skipped=skipped,
    )
    if not images:
        raise UserError(f"{path} contains no usable images{first_reason(skipped.items)}.")
    return CocoDataset([images[key] for key in sorted(images)], categories)


def _check_lists(content, path: str) -> dict[str, list]:
    """Returns the three lists of a file; both annotations and categories may be absent."""
    entries = dict.fromkeys(("images", "annotations", "categories"))
    if isinstance(content, dict):
        entries |= {"annotations": [], **content}
    if not entries["annotations"] and entries["categories"] is None:
        entries["categories"] = []
    for key in ("images", "annotations", "categories"):
        if not isinstance(entries[key], list):
            raise UserError(
                f"{path} is not a COCO instance file: it has no list {key!r}; give a JSON file "
                "with the lists images, annotations and categories."
            )
    return entries


def _read_json(path: str) -> object:
    try:
        with open_file(path, "rb") as file:
            raw = file.read()
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}; check the path.") from None
    try:
        text = raw.decode("utf-8-sig")
        del raw  # avoids holding bytes, text and parsed values of a large file at once
        return json.loads(text, object_hook=_pack_numbers)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"{path} cannot be parsed as JSON ({error}); it may be truncated, so download it again."
        ) from None


def _pack_numbers(mapping: dict) -> dict:
    """Packs the numbers of polygons and runs: a quarter of the memory, and fast to pickle."""
    try:
        if isinstance(segmentation := mapping.get("segmentation"), list):
            mapping["segmentation"] = [array.array("d", polygon) for polygon in segmentation]
        elif isinstance(counts := mapping.get("counts"), list):
            mapping["counts"] = array.array("q", counts)
    except (TypeError, OverflowError):
        pass  # kept as it is; decoding the mask refuses it and names the annotation's id
    return mapping


def _check_categories(entries: list, path: str) -> list[dict]:
    names = {}
    for entry in entries:
        if not (
            isinstance(entry, dict)
            and is_integer(entry.get("id"))
            and isinstance(entry.get("name"), str)
        ):
            raise UserError(
                f"{path}: category {entry!r} lacks an integer 'id' or a 'name'; correct it."
            )
        if entry["id"] in names:
            raise UserError(
                f"{path}: category id {entry['id']} is used twice ({names[entry['id']]!r} and "
                f"{entry['name']!r}); give each category a unique id."
            )
        names[entry["id"]] = entry["name"]
    return [
        {"label": label, "id": category_id, "name": names[category_id]}
        for label, category_id in enumerate(sorted(names), start=1)
    ]


def _check_images(entries: list, skipped: SkippedItems) -> tuple[dict[int, CocoImage], set]:
    """Returns the usable images by id, and the ids of those left out."""
    file_names = collections.defaultdict(set)
    for entry in entries:
        if isinstance(entry, dict) and is_finite_number(entry.get("id")):  # 7.0 is 7, too
            file_names[entry["id"]].add(repr(entry.get("file_name")))
    # It cannot be told which of the images an annotation with such an id belongs to.
    ambiguous = {image_id for image_id, names in file_names.items() if len(names) > 1}
    images: dict[int, CocoImage] = {}
    for entry in entries:
        if not isinstance(entry, dict):
            skipped.add_image(f"the entry {entry!r} is not a JSON object", None, None)
        elif reason := _image_problem(entry, known=images.keys() | ambiguous):
            skipped.add_image(reason, entry.get("id"), entry.get("file_name"))
        else:
            image = CocoImage(*(entry[key] for key in _IMAGE_KEYS), [])
            images[image.id] = image
    return images, file_names.keys() - images.keys()


def _image_problem(entry: dict, known: Collection) -> str:
    """Says why an image entry cannot be used; empty when it can."""
    for key in _IMAGE_KEYS:
        if key not in entry:
            return f"the key {key!r} is missing"
    if not is_integer(entry["id"]) or entry["id"] < 0:
        return "the id is not an integer of at least 0"
    if not isinstance(entry["file_name"], str) or not entry["file_name"]:
        return "the file_name is not a string"
    for side in ("height", "width"):
        if not is_integer(entry[side]) or entry[side] <= 0:
            return f"the {side} {entry[side]!r} is not a positive integer"
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
            skipped.add_annotation(f"the entry {entry!r} is not a JSON object", None, None)
            continue
        image_id = entry.get("image_id")
        if is_integer(image_id) and image_id in dropped_ids:
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
    if not is_integer(entry["id"]):
        return "the id is not an integer"
    if entry["id"] in seen_ids:
        return "another annotation has the same id"
    if not is_integer(entry["image_id"]) or entry["image_id"] not in images:
        return "no image has this image_id"
    if not is_integer(entry["category_id"]) or entry["category_id"] not in category_ids:
        return f"no category has the id {entry['category_id']!r}"
    if entry.get("iscrowd", 0) not in (0, 1):
        return f"iscrowd is {entry['iscrowd']!r} instead of 0 or 1"
    return ""
