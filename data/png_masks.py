"""Converts masks stored as PNGs of the image's size to COCO run lengths, in graph operations.

Masks are decoded and reduced to runs one after another, so that memory holds one bitmap at a time
for any number of instances.

Axes: I instances, R runs of all instances, H W image.
"""

from __future__ import annotations

import struct

import tensorflow as tf

from data.assertions import make_assertion

# A PNG starts with these four words; width, height and a word beginning with the bit depth follow.
_FIRST_WORDS = struct.unpack(">4i", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
_WIDTH, _HEIGHT, _DEPTH = 4, 5, 6
_HEADER_BYTES = 28
_DEPTH_TOO_LARGE = 9 << 24
# Minimum fraction of a mask's pixels inside its box; for hand-drawn boxes it is at least 0.6.
_LEAST_SHARE = 0.5
# The same for a mask that covers the whole image, as one marked by transparency does.
_LEAST_SHARE_OF_WHOLE = 0.9


def png_run_lengths(
    pngs: tf.Tensor, boxes: tf.Tensor, height: tf.Tensor, width: tf.Tensor, image_id: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes masks into the form in which `data.masks` reads them.

    All non-black pixels belong to the object: some writers use 1 and some 255. A mask that marks
    its object by transparency or by palette index would cover the whole image, and a mask of
    another object lies elsewhere; the box reveals both.

    Args:
        pngs: string [I], PNG files of at most 8 bits a channel.
        boxes: float32 [I or more, 4], [y1, x1, y2, x2] in pixels.
        height, width: int64 scalars, size of the image in pixels.
        image_id: int64 scalar, named in error messages.

    Returns:
        run_lengths int64 [R], column-major, zeros first, and num_runs int64 [I].

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on a file that is not such a PNG, differs in
            size from the image or cannot be decoded, or on a mask mostly outside its box.
    """
    with tf.control_dependencies(_header_checks(pngs, height, width, image_id)):
        # As many boxes as masks (0 without masks); their numbers are compared elsewhere.
        count = tf.minimum(tf.size(pngs), tf.shape(boxes)[0])
        runs, share = tf.map_fn(
            _decode_runs,
            (pngs[:count], boxes[:count]),
            # More at a time would hold as many bitmaps, and images are already decoded in parallel.
            parallel_iterations=1,
            fn_output_signature=(
                tf.RaggedTensorSpec([None], tf.int64, ragged_rank=0),
                tf.TensorSpec([], tf.float32),
            ),
        )
    outside = (
        "most of a mask lies outside its box: the masks may be in another order than the boxes, "
        "or mark the object by transparency or by palette index instead of by non-black pixels. "
        "Image id:"
    )
    check = make_assertion(tf.reduce_all(share >= _LEAST_SHARE), [outside, image_id])
    with tf.control_dependencies([check]):
        return tf.identity(runs.flat_values), runs.row_lengths()


def _header_checks(
    pngs: tf.Tensor, height: tf.Tensor, width: tf.Tensor, image_id: tf.Tensor
) -> list:
    """Makes assertions on the headers, before anything of that size is allocated."""
    words = tf.io.decode_raw(pngs, tf.int32, little_endian=False, fixed_length=_HEADER_BYTES)
    are_pngs = tf.reduce_all(tf.equal(words[:, : len(_FIRST_WORDS)], _FIRST_WORDS))
    sizes = tf.cast(tf.gather(words, (_HEIGHT, _WIDTH), axis=1), tf.int64)
    size = tf.stack([height, width])
    return [
        make_assertion(
            are_pngs & tf.reduce_all(words[:, _DEPTH] < _DEPTH_TOO_LARGE),
            ["a mask is not an 8-bit PNG. Image id:", image_id],
        ),
        make_assertion(
            ~are_pngs | tf.reduce_all(tf.equal(sizes, size)),
            ["a mask differs in size from its image. Image id:", image_id, "size:", size],
        ),
    ]


def _decode_runs(mask_and_box: tuple[tf.Tensor, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes one mask: run lengths int64 [R] and the share inside its box, 1 if it is empty.

    For a mask that covers the whole image, the share is scaled to its own minimum.
    """
    png, box = mask_and_box
    mask = tf.io.decode_png(png, channels=1)[:, :, 0] > 0
    y1, x1 = tf.unstack(tf.maximum(tf.cast(tf.floor(box[:2]), tf.int32) - 1, 0))
    y2, x2 = tf.unstack(tf.maximum(tf.cast(tf.math.ceil(box[2:]), tf.int32) + 1, 0))
    inside = tf.math.count_nonzero(mask[y1:y2, x1:x2], dtype=tf.float32)
    share = tf.math.divide_no_nan(inside, tf.math.count_nonzero(mask, dtype=tf.float32))
    share *= tf.where(tf.reduce_all(mask), _LEAST_SHARE / _LEAST_SHARE_OF_WHOLE, 1.0)
    pixels = tf.reshape(tf.transpose(mask), [-1])
    # An imaginary zero precedes the first pixel, so a run of ones there follows a run of length 0,
    # as in COCO.
    changes = tf.where(tf.not_equal(pixels, tf.concat([[False], pixels[:-1]], axis=0)))[:, 0]
    ends = tf.concat([changes, [tf.size(pixels, tf.int64)]], axis=0)
    return ends - tf.concat([[0], changes], axis=0), tf.where(tf.reduce_any(mask), share, 1.0)
