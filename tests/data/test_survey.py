"""What a look into records without a manifest finds."""

import gzip
import itertools

import numpy as np
import pytest
from sample_records import encode_png, make_foreign_record, make_instance, make_record

from data.errors import UserError
from data.survey import survey_records
from data.tfrecords import write_shard

PIXELS = np.zeros((8, 10, 3), np.uint8)
BOX = (0.25, 0.1, 0.75, 0.9)
_NUMBERS = itertools.count(1)


def _write(path, *records):
    write_shard(str(path), records)
    return str(path)


def _with_masks(*labels, mask=1, **features):
    pixels = np.zeros((8, 10), np.uint8)
    pixels[2:6, 1:9] = mask
    masks = {"image__object__mask": [encode_png(pixels)] * len(labels)}
    features = {"image__source_id": [b"%d" % next(_NUMBERS)]} | features
    return make_foreign_record(PIXELS, [BOX] * len(labels), labels, **masks, **features)


def test_labels_names_and_masks_are_found(tmp_path):
    _write(
        tmp_path / "a",
        _with_masks(90, 3, 90, image__object__class__text=[b"brush", b"car", b"brush"],
                    image__object__is_crowd=[0, 1, 0]),
        make_foreign_record(PIXELS, image__filename=[b"a.jpg"]),
    )  # fmt: skip
    nothing = make_foreign_record(PIXELS, image__filename=[b"b.jpg"])
    _write(tmp_path / "b", _with_masks(7), nothing)
    survey = survey_records(f"{tmp_path}/*")
    assert survey.names == {3: "car", 7: "", 90: "brush"}
    assert survey.largest_label == 90
    assert survey.max_instances_per_image == 2
    assert (survey.images_with_masks, survey.images_without_masks) == (2, 0)
    assert survey.include_masks


def test_run_lengths_are_masks_too(tmp_path):
    instance = make_instance(np.ones((8, 10), np.uint8), label=5)
    path = _write(tmp_path / "own", make_record(PIXELS, [instance]))
    assert survey_records(path).images_with_masks == 1
    assert survey_records(path).names == {5: "class 5"}


def test_one_missing_mask_is_noticed(tmp_path):
    boxes_only = make_foreign_record(PIXELS, [BOX], [1])
    path = _write(tmp_path / "mixed", _with_masks(1), boxes_only)
    survey = survey_records(path)
    assert (survey.images_with_masks, survey.images_without_masks) == (1, 1)
    assert not survey.include_masks
    assert survey_records(path, limit=1).include_masks


def test_records_without_objects(tmp_path):
    survey = survey_records(_write(tmp_path / "empty", make_foreign_record(PIXELS)))
    assert (survey.names, survey.largest_label, survey.include_masks) == ({}, 0, True)


def test_files_without_records(tmp_path):
    assert survey_records(_write(tmp_path / "nothing")).names == {}


def test_what_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(UserError, match="no file matches"):
        survey_records(f"{tmp_path}/*")
    (tmp_path / "torn").write_bytes(b"not a record at all")
    with pytest.raises(UserError, match=r"cannot use record 1 of .*torn \(byte 0\) \(its length"):
        survey_records(f"{tmp_path}/torn")


def test_records_of_others(shared_data):
    masks = survey_records(f"{shared_data}/records/tpu_masks/*.tfrecord")
    assert (masks.largest_label, masks.names[1], masks.images_with_masks) == (90, "person", 22)
    assert masks.include_masks
    pets = survey_records(f"{shared_data}/records/pets_examples.record")
    assert (pets.largest_label, pets.names[11], pets.images_without_masks) == (37, "chihuahua", 10)
    assert not pets.include_masks


def test_missing_polygons_are_noticed_but_not_of_crowds(tmp_path):
    mask = np.ones((8, 10), np.uint8)
    polygons = [np.float64([0, 0, 10, 0, 10, 8, 0, 8]), np.float64([1, 1, 2, 1, 2, 2])]
    plain, outlined = make_instance(mask), make_instance(mask)._replace(polygons=polygons)
    crowd = make_instance(mask, is_crowd=True)
    long_crowd = crowd._replace(polygons=3 * polygons)
    good = make_record(PIXELS, [outlined, crowd])
    path = _write(
        tmp_path / "a", good, make_record(PIXELS, [long_crowd], 2), make_record(PIXELS, (), 3)
    )
    survey = survey_records(path)
    assert survey.include_polygons and survey.max_polygon_vertices == 9
    survey = survey_records(_write(tmp_path / "b", good, make_record(PIXELS, [outlined, plain], 2)))
    assert survey.images_without_polygons == 1 and not survey.include_polygons
    assert not survey_records(_write(tmp_path / "c", _with_masks(1))).include_polygons


def test_what_training_passes_over_is_counted(tmp_path):
    narrow = make_foreign_record(PIXELS, [BOX, (0.25, 0.1, 0.35, 0.9)], [1, 2])
    survey = survey_records(_write(tmp_path / "narrow", narrow))
    assert [entry["kind"][:9] for entry in survey.warnings] == ["1 objects"]
    path = _write(tmp_path / "empty", _with_masks(1, mask=0), _with_masks(1, 2, mask=0))
    (entry,) = survey_records(path).warnings
    assert entry["kind"].startswith("3 masks in the first 32 records")


def _foreign(source_id=b"1", box=BOX, **features):
    return make_foreign_record(PIXELS, [box], [1], image__source_id=[source_id], **features)


def test_what_cannot_be_trained_on_is_named(tmp_path):
    for name, record, reason in (
        ("pixels", _foreign(b"7", (2.0, 1.0, 6.0, 9.0)), "not pixels"),
        ("nan", _foreign(b"7", (0.25, float("nan"), 0.75, 0.9)), "not finite"),
        ("swapped", _foreign(b"7", (0.75, 0.1, 0.25, 0.9)), "less than its min"),
    ):
        _write(tmp_path / name, _foreign(), record)
        sentence = rf"record 2 of .*{name} \(.*id 7\) \(.*{reason}"
        with pytest.raises(UserError, match=sentence):
            survey_records(f"{tmp_path}/{name}")


def test_masks_in_another_order_are_named(tmp_path):
    right = np.zeros((8, 10), np.uint8)
    right[:, 8:] = 1
    masks = {"image__object__mask": [encode_png(right)]}
    path = _write(tmp_path / "order", _with_masks(1), _foreign(b"9", (0.0, 0.0, 1.0, 0.5), **masks))
    sentence = r"record 2 of .*order \(.*id 9\) \(most of a mask lies outside"
    with pytest.raises(UserError, match=sentence):
        survey_records(path)


def test_equal_image_ids_are_named(tmp_path):
    _write(tmp_path / "a", _foreign(b"5"), _foreign(b"6"))
    _write(tmp_path / "b", _foreign(b"7"), _foreign(b"6"))
    with pytest.raises(UserError, match="record 2 of .*a and record 2 of .*b have the same .* 6"):
        survey_records(f"{tmp_path}/*")


def test_compressed_files_are_named(tmp_path):
    _write(tmp_path / "plain", _foreign())
    (tmp_path / "packed").write_bytes(gzip.compress((tmp_path / "plain").read_bytes()))
    with pytest.raises(UserError, match="packed .*compressed with gzip"):
        survey_records(f"{tmp_path}/packed")
