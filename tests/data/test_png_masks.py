"""PNG masks become the run lengths that the same masks have."""

import struct
import zlib

import numpy as np
import pytest
import tensorflow as tf
from sample_records import blobs, encode_png, run_lengths

from data.png_masks import png_run_lengths

HEIGHT, WIDTH, IMAGE_ID = 9, 14, 4711


def _read(pngs, boxes, height=HEIGHT, width=WIDTH):
    sizes = (tf.constant(number, tf.int64) for number in (height, width, IMAGE_ID))
    boxes = tf.constant(boxes or [[0, 0, height, width]] * len(pngs), tf.float32, [len(pngs), 4])
    return png_run_lengths(tf.convert_to_tensor(pngs, tf.string), boxes, *sizes)


def _runs(pngs, height=HEIGHT, width=WIDTH):
    return [value.numpy() for value in _read(pngs, None, height, width)]


def _refusal(png, *boxes):
    dataset = tf.data.Dataset.from_tensors(0).map(lambda _: _read([png], list(boxes)))
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        next(iter(dataset))
    return caught.value.message


def test_a_mask_worked_by_hand():
    mask = np.array([[1, 0, 1], [0, 0, 1]], np.uint8)
    # Columns (1, 0), (0, 0), (1, 1): no zeros, a one, three zeros, two ones.
    counts, lengths = _runs([encode_png(mask), encode_png(1 - mask)], 2, 3)
    np.testing.assert_array_equal(counts, [0, 1, 3, 2, 1, 3, 2])
    np.testing.assert_array_equal(lengths, [4, 3])
    assert counts.dtype == lengths.dtype == np.int64


@pytest.mark.parametrize("value", [1, 255])
@pytest.mark.parametrize("seed", range(4))
def test_run_lengths_equal_those_of_the_bitmaps(value, seed):
    rng = np.random.default_rng(seed)
    masks = [blobs(rng, HEIGHT, WIDTH) for _ in range(5)]
    masks += [np.zeros((HEIGHT, WIDTH), np.uint8), np.ones((HEIGHT, WIDTH), np.uint8)]
    counts, lengths = _runs([encode_png(mask * np.uint8(value)) for mask in masks])
    expected = [run_lengths(mask) for mask in masks]
    np.testing.assert_array_equal(counts, np.concatenate(expected))
    np.testing.assert_array_equal(lengths, [len(runs) for runs in expected])


@pytest.mark.parametrize("mode", ["1", "P", "RGB", "LA"])
def test_other_kinds_of_png_are_masks_too(mode):
    from io import BytesIO

    from PIL import Image

    mask = blobs(np.random.default_rng(5), HEIGHT, WIDTH)
    file = BytesIO()
    Image.fromarray(mask * np.uint8(255)).convert(mode).save(file, "PNG")
    np.testing.assert_array_equal(_runs([file.getvalue()])[0], run_lengths(mask))


def test_without_instances_there_are_no_runs():
    counts, lengths = _runs([])
    assert counts.shape == lengths.shape == (0,)


def test_what_is_no_mask_of_this_image_is_refused_with_its_id():
    mask = np.ones((HEIGHT, WIDTH), np.uint8)
    for png in (b"", b"\x89PNG", b"\xff\xd8\xff\xe0 a JPEG", encode_png(mask.astype(np.uint16))):
        assert f"a mask is not an 8-bit PNG. Image id:] [{IMAGE_ID}]" in _refusal(png)
    message = _refusal(encode_png(mask.T.copy()))
    assert f"a mask differs in size from its image. Image id:] [{IMAGE_ID}]" in message
    assert "[9 14]" in message
    assert "Invalid PNG data" in _refusal(encode_png(blobs(np.random.default_rng(0), 9, 14))[:-30])


def test_a_header_that_promises_too_much_is_refused_before_anything_is_allocated():
    header = b"IHDR" + struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 0, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header
    png += struct.pack(">I", zlib.crc32(header))
    assert "differs in size" in _refusal(png)


def test_a_mask_that_lies_outside_its_box_is_refused():
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[2:6, 3:7] = 1
    png = encode_png(mask)
    for box in ([2, 3, 6, 7], [2, 3, 3.9, 7], [0.5, 0.5, 9, 14]):  # half of it is enough
        np.testing.assert_array_equal(_read([png], [box])[0], run_lengths(mask))
    for box in ([2, 9, 6, 13], [7.5, 0, 9, 14]):
        assert "most of a mask lies outside its box" in _refusal(png, box)
    whole = encode_png(np.ones((HEIGHT, WIDTH), np.uint8))
    for box in ([2, 3, 6, 7], [0, 0, 6, 14]):  # the second holds two thirds of it
        assert f"[{IMAGE_ID}]" in _refusal(whole, box)
    np.testing.assert_array_equal(_read([whole], [[0, 0.5, 9, 13.5]])[0], [0, 9 * 14])
    empty = encode_png(np.zeros((HEIGHT, WIDTH), np.uint8))
    assert _read([empty], [[2, 3, 6, 7]])[1].numpy() == [1]
