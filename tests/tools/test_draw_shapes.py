"""The drawn dataset: valid COCO, deterministic, exact masks, every kind of annotation."""

import collections
import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from tools.draw_shapes import (
    CATEGORIES,
    Shape,
    arrange_shapes,
    describe_shape,
    draw_data_set,
    main,
    place_shape,
    rasterise,
)
from trainer.coco_ground_truth import load_ground_truth, segmentation_to_rle


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """A folder with 60 drawn training and 4 validation pictures."""
    folder = tmp_path_factory.mktemp("shapes")
    draw_data_set(str(folder), 60, 4, seed=0, sides=(96, 128))
    return folder


@pytest.fixture(scope="module")
def train(shapes):
    """The training annotations."""
    return json.loads((shapes / "annotations" / "train.json").read_text())


def digest(folder):
    """One hash over all files of a folder, their names included."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    whole = hashlib.sha256()
    for path in paths:
        whole.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return len(paths), whole.hexdigest()


def square(x, y, side):
    """Corners of a square."""
    return np.array([[x, y], [x + side, y], [x + side, y + side], [x, y + side]], float)


def test_same_seed_same_bytes_other_seed_other_bytes(tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        draw_data_set(str(tmp_path / name), 3, 2, seed, (96, 110))
    assert digest(tmp_path / "a") == digest(tmp_path / "b")
    assert digest(tmp_path / "a")[0] == 7
    assert digest(tmp_path / "a") != digest(tmp_path / "c")


def test_pictures_are_as_the_annotations_say(shapes, train):
    assert len(train["images"]) == 60
    suffixes = collections.Counter()
    for image in train["images"]:
        picture = Image.open(shapes / "train" / image["file_name"])
        assert picture.size == (image["width"], image["height"])
        assert picture.mode == "RGB"
        assert 96 <= min(picture.size) <= max(picture.size) <= 128
        suffixes[image["file_name"][-4:]] += 1
    assert set(suffixes) == {".jpg", ".png"}


def test_ids_are_unique_and_splits_apart(shapes, train):
    val = json.loads((shapes / "annotations" / "val.json").read_text())
    ids = [image["id"] for image in train["images"] + val["images"]]
    assert ids == list(range(1, 65))
    assert len({a["id"] for a in train["annotations"]}) == len(train["annotations"])
    category_ids = [category["id"] for category in CATEGORIES]
    assert category_ids == sorted(category_ids) != list(range(1, 7))


def test_boxes_and_areas_are_the_masks(train):
    sizes = {image["id"]: (image["height"], image["width"]) for image in train["images"]}
    for annotation in train["annotations"]:
        rle = segmentation_to_rle(annotation["segmentation"], *sizes[annotation["image_id"]])
        assert coco_mask.area(rle) == annotation["area"] > 50
        assert coco_mask.toBbox(rle).tolist() == annotation["bbox"]


def test_objects_of_an_image_do_not_share_pixels(train):
    masks = {}
    for annotation in train["annotations"]:
        size = next(
            (i["height"], i["width"]) for i in train["images"] if i["id"] == annotation["image_id"]
        )
        mask = coco_mask.decode(segmentation_to_rle(annotation["segmentation"], *size))
        masks[annotation["image_id"]] = masks.get(annotation["image_id"], 0) + mask
    assert len(masks) > 50
    assert all(covered.max() == 1 for covered in masks.values())


def test_every_kind_of_annotation_occurs(train):
    kinds = collections.Counter()
    for annotation in train["annotations"]:
        segmentation = annotation["segmentation"]
        if isinstance(segmentation, list):
            kinds["polygon" if len(segmentation) == 1 else "polygons"] += 1
        else:
            kinds[type(segmentation["counts"]).__name__] += 1
        kinds["crowd" if annotation["iscrowd"] else "object"] += 1
    assert set(kinds) == {"polygon", "polygons", "str", "list", "crowd", "object"}
    annotated = {annotation["image_id"] for annotation in train["annotations"]}
    assert 50 < len(annotated) < 60
    assert {a["category_id"] for a in train["annotations"]} == {c["id"] for c in CATEGORIES}


def test_the_converters_reader_accepts_all_of_it(shapes, caplog):
    loaded = load_ground_truth(str(shapes / "annotations" / "train.json"), "")
    assert len(loaded["images"]) == 60
    assert not caplog.records


def test_covered_pixels_are_cut_out_of_the_lower_shape():
    for image_id in range(20):
        rng = np.random.default_rng(image_id)
        placed, visible = arrange_shapes(rng, 120, 120)
        covered = np.zeros((120, 120), bool)
        for shape, mask in reversed(list(zip(placed, visible, strict=True))):
            whole = rasterise(shape, 120, 120)
            np.testing.assert_array_equal(mask, whole & ~covered)
            assert mask.sum() >= 0.45 * whole.sum()
            covered |= whole


def test_sizes_are_those_a_short_training_can_find():
    rng = np.random.default_rng(1)
    for _ in range(100):
        points = np.concatenate(place_shape(rng, 160, 160).parts)
        length = np.linalg.norm(points[:, None] - points[None], axis=-1).max()
        assert 20 <= length <= 90


def test_ring_has_a_hole():
    ring = Shape(3, (square(10, 10, 20),), hole=square(15, 15, 10))
    mask = rasterise(ring, 40, 40)
    assert mask.sum() == 20 * 20 - 10 * 10
    assert not mask[20, 20] and mask[12, 12]


def test_segmentation_takes_turns_and_polygons_are_only_for_whole_shapes():
    shape = Shape(7, (square(10, 10, 20),))
    whole = rasterise(shape, 40, 50)
    cut = whole.copy()
    cut[:, 20:] = False
    by_turn = [describe_shape(shape, whole, number)["segmentation"] for number in (1, 2, 3)]
    assert by_turn[0] == by_turn[1] == [[10, 10, 30, 10, 30, 30, 10, 30]]
    # Ten empty columns of 40, then twenty of 10 + 20 + 10 pixels, then twenty empty ones.
    assert by_turn[2] == {"size": [40, 50], "counts": [410, *[20, 20] * 19, 20, 810]}
    description = describe_shape(shape, cut, 1)
    assert isinstance(description["segmentation"]["counts"], str)
    assert (description["bbox"], description["area"]) == ([10, 10, 10, 20], 200)


def test_mask_from_the_first_pixel_on_starts_with_a_run_of_no_zeros():
    mask = np.zeros((4, 5), bool)
    mask[:2, 0] = True
    segmentation = describe_shape(Shape(7, (square(0, 0, 2),), is_crowd=True), mask, 1)
    assert segmentation["segmentation"]["counts"] == [0, 2, 18]


def test_command_line(tmp_path, capsys):
    assert main([f"--output_dir={tmp_path}/a", "--num_train=1", "--num_val=1"]) == 0
    assert "1 training and 1 validation images" in capsys.readouterr().out
    assert len(list((tmp_path / "a").rglob("*.json"))) == 2
    (tmp_path / "file").write_text("")
    assert main([f"--output_dir={tmp_path}/file", "--num_train=1", "--num_val=1"]) == 1
    assert capsys.readouterr().err.startswith("error: --output_dir=")


@pytest.mark.parametrize("flag", ["--num_train=0", "--min_side=20", "--seed=-1", "--colour=red"])
def test_bad_flags_exit_with_2(tmp_path, flag):
    with pytest.raises(SystemExit) as caught:
        main([f"--output_dir={tmp_path}", flag])
    assert caught.value.code == 2


def test_drawing_needs_no_tensorflow(repository):
    code = "import sys, tools.draw_shapes; sys.exit('tensorflow' in sys.modules)"
    finished = subprocess.run([sys.executable, "-c", code], cwd=repository, check=False)
    assert finished.returncode == 0
