"""The annotation cases from the field, each as its README.txt says."""

import pathlib

import pytest

from data import manifest as manifests
from data.conversion import Conversion, convert
from data.errors import UserError
from data.ground_truth import ground_truth_from_records
from data.survey import survey_records

CASES = pathlib.Path(__file__).parents[2] / "shared" / "cases"

pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason=f"needs {CASES}, which is absent")


def _convert(tmp_path, name, skip_invalid=False) -> manifests.Manifest:
    (folder,) = CASES.glob(name)
    return convert(
        Conversion(
            image_dir=str(folder / "img"),
            annotations_file=str(folder / "a.json"),
            output_prefix=str(tmp_path / "out" / "r"),
            num_shards=1,
            skip_invalid=skip_invalid,
            num_processes=0,
        )
    )


def _masks(tmp_path) -> list[float]:
    truth = ground_truth_from_records(f"{tmp_path}/out/r-*")
    return [annotation["area"] for annotation in truth["annotations"]]


_FLAT = "^annotation 1 of image 1: .*one flat list x1, y1, x2, y2"
_NO_PIXEL = "^annotation 1 of image 1: its mask has no pixels"


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("data/01-*/rle_surrogate", "^annotation 1 of image 1: .*invalid characters"),
        ("data/07-*/rle_empty", _NO_PIXEL),
        ("data/07-*/poly_allout", _NO_PIXEL),
        ("data/07-*/poly_collinear", _NO_PIXEL),
        ("data/07-*/poly_tiny", _NO_PIXEL),
        ("data/07-*/seg_norm", "^annotation 1 of image 1: .*between 0 and 1"),
        ("data/09-*/seg_normboth", "^annotation 1 of image 1: .*between 0 and 1"),
        ("data/19-*/seg_nested", _FLAT),
        ("data/19-*/seg_pairs", _FLAT),
        ("data/19-*/seg_text", _FLAT),
        ("right/05-*/rle_transposed_size", "^annotation 1 of image 1: .*size"),
    ],
)
def test_unusable_annotations_are_refused_or_left_out(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        _convert(tmp_path, name)
    assert not (tmp_path / "out").exists()
    manifest = _convert(tmp_path, name, skip_invalid=True)
    assert (manifest.num_images, manifest.num_instances) == (1, 0)
    assert [item["annotation_id"] for item in manifest.skipped["items"]] == [1]
    assert "no objects to learn from" in manifest.warnings[0]["kind"]


@pytest.mark.parametrize(
    "name, kind",
    [
        ("data/08-*/bbox_xyxy", "the box is x1, y1, x2, y2"),
        ("data/08-*/bbox_yxhw", "the box is y, x, height, width"),
        ("data/08-*/rle_rowmajor", "row by row"),
        ("data/20-*/seg_stray", "fewer than three points"),
    ],
)
def test_doubtful_annotations_are_warned_about(tmp_path, name, kind):
    (entry,) = _convert(tmp_path, name).warnings
    assert kind in entry["kind"] and entry["first"] == ["annotation 1"]


def test_the_good_polygon_beside_a_stray_point_stays(tmp_path):
    _convert(tmp_path, "data/20-*/seg_stray")
    assert _masks(tmp_path) == [1200]


def test_crowds_alone_are_warned_about(tmp_path):
    (entry,) = _convert(tmp_path, "data/18-*/crowds").warnings
    assert "there are no objects to learn from: 1 are crowds" in entry["kind"]


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("data/10-*/imgid_dup", "first because another image has the same id"),
        ("data/11-*/firstbecause", "none of the images .* first because cannot read .*missing.jpg"),
        ("data/11-*/id_str", "no usable images, the first because the id is not an integer"),
        ("data/21-*/backslash", "'images/1/a.jpg' exists"),
        ("data/21-*/backslash2", "'train/a.jpg' exists"),
        ("data/21-*/pct", "'my photo.jpg' exists"),
    ],
)
def test_the_first_reason_is_told_when_nothing_is_left(tmp_path, name, sentence):
    with pytest.raises(UserError, match=sentence):
        _convert(tmp_path, name, skip_invalid=True)


def test_images_without_annotations_are_converted(tmp_path):
    manifest = _convert(tmp_path, "data/14-*/ann_missing")
    assert (manifest.num_images, manifest.num_instances, manifest.warnings) == (1, 0, ())


@pytest.mark.parametrize(
    "name, num_instances",
    [
        ("right/01-*/ids", 6),
        ("right/05-*/rle_list", 1),
        ("right/05-*/rle_str", 1),
        ("right/05-*/rle_countsfirst", 1),
        ("right/05-*/seg_outside", 1),
        ("right/05-*/box_over", 1),
        ("right/06-*/many", 690),
        ("right/06-*/vertices", 1),
    ],
)
def test_what_is_right_stays_right(tmp_path, name, num_instances):
    manifest = _convert(tmp_path, name)
    assert (manifest.num_instances, manifest.warnings) == (num_instances, ())


@pytest.mark.parametrize(
    "name, sentence",
    [
        ("15-*/pixel_boxes", r"record 1 of .* \(.*id 139\) .*not pixels"),
        ("15-*/nan_boxes", r"record 1 of .* \(.*id 139\) .*not finite"),
        ("15-*/swapped_boxes", r"record 1 of .* \(.*id 139\) .*less than its min"),
        ("16-*/dup_id", "record 1 of .* and record 2 of .* the same image id 0"),
        ("16-*/dup_name", "record 1 of .* and record 2 of .* the same image id"),
        (
            "17-*/text_only",
            r"record 1 of .* \(.*id 139\) .*no image/object/class/label",
        ),
        ("17-*/tfds", r"record 1 of .* \(.*id 139\) .*no image/encoded"),
        (
            "22-*/png_alpha",
            r"record 1 of .* \(.*id 139\) .*mask lies outside its box",
        ),
        (
            "22-*/png_pal_white0",
            r"record 1 of .* \(.*id 139\) .*mask lies outside its box",
        ),
        (
            "22-*/mask_order",
            r"record 1 of .* \(.*id 139\) .*mask lies outside its box",
        ),
    ],
)
def test_unusable_records_of_others_are_named(name, sentence):
    (path,) = CASES.glob(f"data/{name}.record")
    with pytest.raises(UserError, match=sentence):
        survey_records(str(path))


@pytest.mark.parametrize(
    "name", ["tfod_png", "png255", "png_rgb", "png_pal_voc", "str_id", "empty_img"]
)
def test_usable_records_of_others_stay_right(name):
    (path,) = CASES.glob(f"right/04-*/{name}.record")
    assert survey_records(str(path)).warnings == []
    truth = ground_truth_from_records(str(path))
    assert {annotation["area"] for annotation in truth["annotations"]} == {1200, 1600}
