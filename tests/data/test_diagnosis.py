"""The record that stopped the input is named."""

import io
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sample_records import encode_png, make_foreign_record, make_instance, make_record

from data.diagnosis import Needs, explain_error, find_broken_record, name_broken_record
from data.tfrecords import write_shard

PIXELS = np.zeros((32, 48, 3), np.uint8)
BOX = (0.25, 0.1, 0.75, 0.9)


def _truncated_jpeg():
    file = io.BytesIO()
    noise = np.random.default_rng(0).integers(0, 255, PIXELS.shape).astype(np.uint8)
    Image.fromarray(noise).save(file, "JPEG")
    return file.getvalue()[:-400]


def _foreign(image_id, png=None, **features):
    mask = {} if png is None else {"image__object__mask": [png]}
    name = {"image__source_id": [str(image_id).encode()]}
    return make_foreign_record(PIXELS, [BOX], [1], **name, **mask, **features)


_INSIDE = np.zeros((32, 48), np.uint8)
_INSIDE[8:24, 5:43] = 1
GOOD_MASK = encode_png(_INSIDE)


def _find(tmp_path, broken, include_masks=True):
    """The sentence about the third of four records in the second of two files."""
    good = _foreign(1, GOOD_MASK)
    write_shard(str(tmp_path / "a.record"), [good] * 5)
    write_shard(str(tmp_path / "b.record"), [good, good, broken, good])
    return str(find_broken_record(f"{tmp_path}/*.record", Needs(include_masks)))


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"image__encoded": [_truncated_jpeg()]}, "Invalid JPEG data"),
        ({"image__encoded": [encode_png(PIXELS)[:-30]]}, "Invalid PNG data"),
        ({"image__encoded": [b"no image"]}, "it does not contain a JPEG"),
        ({"image__width": [47]}, "a mask differs in size from its image. Image id: 77 size: 32 47"),
        ({"png": b"no mask"}, "a mask is not an 8-bit PNG. Image id: 77"),
        ({"png": None}, "boxes and masks differ in number. Image id: 77 numbers: 1 0"),
        ({"png": GOOD_MASK[:-30]}, "Invalid PNG data"),
        ({"image__object__class__label": [1, 2]}, "boxes and class labels differ"),
    ],
)
def test_the_broken_record_is_found(tmp_path, changes, reason):
    said = _find(tmp_path, _foreign(77, **{"png": GOOD_MASK, **changes}))
    offset = 2 * (12 + len(_foreign(1, GOOD_MASK)) + 4)
    assert f"cannot use record 3 of {tmp_path}/b.record (byte {offset}, image id 77) (" in said
    assert reason in said
    assert "{{" not in said and "[Op" not in said and "\n" not in said


def test_missing_polygons_are_found_where_they_are_asked_for(tmp_path):
    path = str(tmp_path / "a.record")
    write_shard(path, [_foreign(77, GOOD_MASK)])
    assert find_broken_record(path, Needs(True)) is None
    said = str(find_broken_record(path, Needs(True, 9)))
    assert (
        "(byte 0, image id 77) (it has objects without polygons; train with --mask_target" in said
    )


def test_masks_do_not_matter_where_they_are_not_asked_for(tmp_path):
    assert _find(tmp_path, _foreign(77), include_masks=False) == "None"
    own = make_record(PIXELS, [make_instance(np.ones((32, 48), np.uint8))])
    assert _find(tmp_path, own) == "None"


def test_a_torn_file_is_named(tmp_path):
    assert _find(tmp_path, _foreign(5, GOOD_MASK)) == "None"
    path = pathlib.Path(tmp_path / "b.record")
    path.write_bytes(path.read_bytes()[:-10])
    start = 3 * (12 + len(_foreign(5, GOOD_MASK)) + 4)
    said = str(find_broken_record(str(path), Needs(True)))
    assert f"cannot use record 4 of {path} (byte {start}) (the file ends within it)" in said


def test_what_is_no_example_is_named_without_an_id(tmp_path):
    assert f"record 3 of {tmp_path}/b.record (byte " in _find(tmp_path, b"no protocol buffer")


def test_what_no_record_explains_is_told_as_it_is(tmp_path):
    write_shard(str(tmp_path / "x.record"), [_foreign(1, GOOD_MASK)])
    error = tf.errors.DataLossError(None, None, "{{node a}} why [Op:X] name: ")
    said = str(name_broken_record(error, f"{tmp_path}/x.record", include_masks=True))
    assert said == f"cannot read the records {tmp_path}/x.record (why); convert them again."


def test_messages_lose_what_only_tensorflow_understands():
    assert explain_error(tf.errors.DataLossError(None, None, "corrupted record at 0")) == (
        "corrupted record at 0"
    )


def test_what_a_graph_refuses_is_told_without_its_source():
    @tf.function(autograph=False)
    def check(value):
        with tf.control_dependencies(
            [tf.debugging.Assert(value > 0, ["it is not positive:", value])]
        ):
            return tf.identity(value)

    with pytest.raises(tf.errors.InvalidArgumentError) as refusal:
        check(tf.constant(-1))
    assert explain_error(refusal.value) == "it is not positive: -1"
