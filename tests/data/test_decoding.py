"""Pixels of encoded images: turned or kept, of 8 and 16 bits, and no larger than there is room."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps
from sample_records import encode_png, make_instance, make_record

from data.config import DataConfig
from data.decoding import decode_image
from data.examples import eval_example, train_example
from data.images import MAX_PIXELS
from data.record_files import RecordFiles
from data.records import parse_record
from data.tfrecords import write_shard

HEIGHT, WIDTH = 32, 64
# Large parts of one colour each, so that JPEG keeps them apart: no two turns look alike.
PICTURE = np.full([HEIGHT, WIDTH, 3], 40, np.uint8)
PICTURE[:16, :16] = 200, 60, 60
PICTURE[:16, 16:32] = 60, 60, 200
CONFIG = DataConfig(
    canvases=("64x64",),
    short_side=32,
    long_side=64,
    train_short_side_min=32,
    horizontal_flip=0.0,
    max_instances=4,
)


def _encode(picture, orientation, image_format="JPEG"):
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    Image.fromarray(picture).save(file, image_format, exif=exif, quality=100, subsampling=0)
    return file.getvalue()


def _pillow(encoded, turn=True):
    image = Image.open(io.BytesIO(encoded))
    return np.asarray((ImageOps.exif_transpose(image) if turn else image).convert("RGB"))


def _on_graph(function):
    return tf.function(function, [tf.TensorSpec([], tf.string)], autograph=False)


PIXELS = {
    exif: _on_graph(lambda one, exif=exif: decode_image(parse_record(one, False), exif))
    for exif in ("apply", "ignore")
}
TRAIN = _on_graph(lambda one: train_example(one, tf.constant(0, tf.int64), CONFIG, True))
EVAL = _on_graph(lambda one: eval_example(one, CONFIG))


def _decode(record, exif="apply"):
    return PIXELS[exif](record).numpy()


def _without_orientation(record):
    example = tf.train.Example.FromString(record)
    del example.features.feature["image/orientation"]
    return example.SerializeToString()


@pytest.mark.parametrize("told", [False, True], ids=["by the file", "by the record"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_training_and_evaluation_see_what_viewers_show(orientation, told):
    encoded = _encode(PICTURE, orientation)
    expected = _pillow(encoded)
    is_red = np.uint8(expected[..., 0] > 150)
    record = make_record(
        expected, [make_instance(is_red)], encoded=encoded, orientation=orientation
    )
    if not told:
        record = _without_orientation(record)
    features, labels = TRAIN(record)
    for image in (features["image"], EVAL(record)["image"]):
        height, width = expected.shape[:2]
        np.testing.assert_allclose(image[:height, :width], expected, atol=2)
        assert not image[height:].numpy().any() and not image[:, width:].numpy().any()
    rows, columns = np.flatnonzero(is_red.any(1)), np.flatnonzero(is_red.any(0))
    box = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
    np.testing.assert_array_equal(labels["gt_boxes"][0], box)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
def test_the_size_tells_whether_the_annotator_saw_the_stored_pixels(orientation, image_format):
    encoded = _encode(PICTURE, orientation, image_format)
    record = _without_orientation(make_record(PICTURE, encoded=encoded))  # the stored size
    expected = _pillow(encoded, turn=orientation < 5)
    np.testing.assert_allclose(_decode(record), expected, atol=2)
    square = PICTURE[:, :HEIGHT]
    encoded = _encode(square, orientation, image_format)
    record = _without_orientation(make_record(square, encoded=encoded))
    np.testing.assert_allclose(_decode(record), _pillow(encoded), atol=2)


def test_the_record_s_word_comes_before_the_file_s():
    record = make_record(PICTURE, encoded=_encode(PICTURE, 3, "PNG"), orientation=1)
    np.testing.assert_array_equal(_decode(record), PICTURE)


def test_exif_can_be_ignored_unless_sizes_prove_it_was_seen():
    for orientation in (2, 3, 4):
        encoded = _encode(PICTURE, orientation, "PNG")
        record = make_record(PICTURE, encoded=encoded, orientation=orientation)
        np.testing.assert_array_equal(_decode(record, "ignore"), PICTURE)
        np.testing.assert_array_equal(_decode(_without_orientation(record), "ignore"), PICTURE)
    turned = make_record(
        PICTURE.transpose(1, 0, 2), encoded=_encode(PICTURE, 6, "PNG"), orientation=6, image_id=42
    )
    with pytest.raises(tf.errors.InvalidArgumentError, match="(?s)--exif=ignore.*42.*64 32"):
        _decode(turned, "ignore")


def test_sizes_are_those_of_the_turned_pictures(tmp_path):
    path = str(tmp_path / "a.record")
    encoded = _encode(PICTURE, 6, "PNG")
    turned = make_record(PICTURE.transpose(1, 0, 2), encoded=encoded, orientation=6)
    stored = make_record(PICTURE, encoded=encoded)
    write_shard(path, [turned, _without_orientation(turned), stored])
    sizes = [_decode(record).shape[:2] for record in (turned, _without_orientation(turned), stored)]
    assert RecordFiles([path]).count_sizes() == {size: sizes.count(size) for size in sizes}


@pytest.mark.parametrize("largest", [0, 1, 200, 255, 256, 1023, 1024, 4095, 32767, 32768, 65535])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_of_16_bits_the_highest_8_in_use_are_kept(largest, channels):
    pixels = np.zeros([4, 6, channels], np.uint16)
    pixels[0, :, 0] = np.linspace(0, largest, 6)
    if channels == 1:
        expected = np.repeat(pixels, 3, axis=2)
    elif channels == 2:
        pixels[..., 1] = 65535
        expected = np.repeat(pixels[..., :1], 3, axis=2)
    else:
        pixels[..., 3:] = 65535
        expected = pixels[..., :3]
    divisor = max(1, 2 ** (int(largest).bit_length() - 8)) if largest > 255 else 1
    encoded = tf.io.encode_png(pixels).numpy()
    image = _decode(make_record(expected[..., 0], encoded=encoded))
    np.testing.assert_array_equal(image, expected // divisor)
    if largest >= 32768:
        np.testing.assert_array_equal(image, tf.io.decode_png(encoded, channels=3))


def test_too_large_a_picture_is_refused_before_it_is_decoded():
    record = make_record(PICTURE, height=MAX_PIXELS // 1000 + 1, width=1000, image_id=42)
    with pytest.raises(tf.errors.InvalidArgumentError, match=f"(?s)too large.*{MAX_PIXELS}.*42"):
        _decode(record)


def test_8_bits_are_left_alone():
    dark = PICTURE // 16
    np.testing.assert_array_equal(_decode(make_record(dark, encoded=encode_png(dark))), dark)
