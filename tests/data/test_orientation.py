"""EXIF orientation on the graph, against Pillow's own."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image, ImageOps

from data.orientation import read_orientation, turn_image

PICTURE = np.random.default_rng(3).integers(0, 256, [5, 9, 3], np.uint8)


def _exif(orientation, big_endian=False):
    exif = Image.Exif()
    exif.endian = ">" if big_endian else "<"
    exif[0x010F] = "a maker"
    exif[0x0112] = orientation
    return exif.tobytes()


def _encode(image_format, orientation=None, big_endian=False, **options):
    if orientation is not None:
        options["exif"] = _exif(orientation, big_endian)
    file = io.BytesIO()
    Image.fromarray(PICTURE).save(file, image_format, **options)
    return file.getvalue()


READ = tf.function(read_orientation, input_signature=[tf.TensorSpec([], tf.string)])
TURN = tf.function(
    turn_image,
    input_signature=[tf.TensorSpec([None, None, 3], tf.uint8), tf.TensorSpec([], tf.int64)],
)


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
@pytest.mark.parametrize("big_endian", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_turned_as_pillow_turns_them(image_format, big_endian, orientation):
    encoded = _encode(image_format, orientation, big_endian)
    image = Image.open(io.BytesIO(encoded))
    assert READ(encoded) == orientation == image.getexif()[0x0112]
    turned = TURN(np.asarray(image), READ(encoded))
    np.testing.assert_array_equal(turned, np.asarray(ImageOps.exif_transpose(image)))


def _segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def test_the_segment_is_found_behind_others():
    plain, exif = _encode("JPEG"), _segment(0xE1, _exif(6))
    before = _segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0<x/>") + _segment(0xE2, bytes(60000))
    for encoded in (
        plain[:2] + before + exif + plain[2:],
        plain[:2] + b"\xff" + exif + plain[2:],  # a byte that fills
    ):
        assert READ(encoded) == 6


def test_the_chunk_is_found_behind_the_pixels():
    plain, turned = _encode("PNG"), _encode("PNG", 8)
    start = turned.index(b"eXIf") - 4
    chunk = turned[start : start + 12 + int.from_bytes(turned[start : start + 4], "big")]
    end = plain.index(b"IEND") - 4
    encoded = plain[:end] + chunk + plain[end:]
    image = Image.open(io.BytesIO(encoded))
    image.load()
    assert READ(encoded) == 8 == image.getexif()[0x0112]


@pytest.mark.parametrize(
    "encoded",
    [
        b"",
        b"\xff\xd8",
        _encode("JPEG"),
        _encode("PNG"),
        _encode("GIF"),
        _encode("BMP"),
        _encode("JPEG", comment=b"Exif\0\0"),
        _encode("JPEG", 0),
        _encode("JPEG", 9),
        _encode("JPEG").replace(b"JFIF", b"Exif"),
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xffIHDR",
    ],
)
def test_without_a_valid_orientation_pictures_stay(encoded):
    assert READ(encoded) == 1


@pytest.mark.parametrize("image_format", ["PNG", "JPEG"])
def test_a_header_cut_anywhere_is_no_error(image_format):
    encoded = _encode(image_format, 6, big_endian=True)
    found = {int(READ(encoded[:length])) for length in range(120)}
    assert found == {1, 6}


@pytest.mark.parametrize("orientation", [-1, 0, 1, 9, 2**40])
def test_no_other_number_turns(orientation):
    np.testing.assert_array_equal(TURN(PICTURE, orientation), PICTURE)
