"""LVIS's annotations are a federation of data sets: an image is annotated for some categories only.

Source: Gupta et al., LVIS, CVPR 2019, section 2.1.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from typing import NamedTuple

from data.errors import UserError
from data.files import open_file
from data.numbers import is_integer

DETECTIONS_COUNTED_BY_LVIS = 300
# Rare, common and frequent categories, by the number of training images with objects of them.
FREQUENCIES = ("r", "c", "f")


class Federation(NamedTuple):
    """What is known of which category in which image.

    Attributes:
        negative: by image id, the ids of categories that the image has no objects of.
        not_exhaustive: by image id, the ids of categories of which not all objects are annotated.
        frequency: one of `FREQUENCIES` by category id; categories may be absent.
    """

    negative: Mapping[int, frozenset[int]]
    not_exhaustive: Mapping[int, frozenset[int]]
    frequency: Mapping[int, str]

    def lists_of(self, image_id: int, category_id: int, called: int) -> dict[str, list[int]]:
        """Returns LVIS's lists of an image, as far as they are about one category.

        Args:
            image_id, category_id: of the image and the category.
            called: the id of the category in the lists returned.
        """
        return {
            "neg_category_ids": [called] * (category_id in self.negative[image_id]),
            "not_exhaustive_category_ids": [called]
            * (category_id in self.not_exhaustive[image_id]),
        }


def read_federation(annotation_file: str, image_ids: Collection[int]) -> Federation:
    """Reads what an annotation file in LVIS's format says beyond COCO's.

    Args:
        annotation_file: JSON that `data.coco.load_dataset` has read.
        image_ids: the images that can be evaluated.

    Raises:
        UserError: one of the images lacks one of LVIS's lists of categories.
    """
    with open_file(annotation_file, "rb") as file:
        content = json.loads(file.read().decode("utf-8-sig"))
    images = [
        image
        for image in content["images"]
        if isinstance(image, dict) and is_integer(image.get("id")) and image["id"] in image_ids
    ]
    negative, not_exhaustive = (
        {image["id"]: _category_ids(image, key, annotation_file) for image in images}
        for key in ("neg_category_ids", "not_exhaustive_category_ids")
    )
    frequency = {c["id"]: c["frequency"] for c in content["categories"] if "frequency" in c}
    return Federation(negative, not_exhaustive, frequency)


def _category_ids(image: Mapping, key: str, path: str) -> frozenset[int]:
    ids = image.get(key)
    if not isinstance(ids, list) or not all(is_integer(value) for value in ids):
        raise UserError(
            f"{path}: image {image['id']} has no list {key!r} of category ids, which "
            "--eval_lvis_style needs; give annotations in LVIS's format, or leave the flag out."
        )
    return frozenset(ids)
