"""What LVIS's annotation files say beyond COCO's."""

import json

import pytest

from data.errors import UserError
from trainer.lvis_federation import read_federation

IMAGE = {"id": 5, "neg_category_ids": [2, 3], "not_exhaustive_category_ids": [1]}


def read(tmp_path, *images, image_ids=(5,)):
    """The federation of a file with some images."""
    categories = [{"id": 1, "name": "a", "frequency": "r"}, {"id": 2, "name": "b"}]
    path = tmp_path / "lvis.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": categories}))
    return read_federation(str(path), set(image_ids))


def test_lists_of_an_image(tmp_path):
    federation = read(tmp_path, IMAGE)
    assert federation.frequency == {1: "r"}
    lists = {category: list(federation.lists_of(5, category, 9).values()) for category in (1, 2, 4)}
    assert lists == {1: [[], [9]], 2: [[9], []], 4: [[], []]}


def test_images_that_cannot_be_evaluated_may_lack_lists(tmp_path):
    assert read(tmp_path, IMAGE, {"id": 6}, {}, None).negative.keys() == {5}


@pytest.mark.parametrize("key", ["neg_category_ids", "not_exhaustive_category_ids"])
@pytest.mark.parametrize("value", [None, "1", [1.5], ["cat"]])
def test_files_of_coco_are_refused(tmp_path, key, value):
    with pytest.raises(UserError, match=f"lvis.json: image 5 has no list '{key}' of category ids"):
        read(tmp_path, {**IMAGE, key: value})
