"""Instance masks stored as PNGs of the image's size, turned into COCO run lengths on the graph.

One mask after another is decoded and reduced to its runs, so that memory holds one bitmap at a
time, however many instances an image has.

Axes: I instances, R runs of all instances, H W image.
"""

from __future__ import annotations

import struct

import tensorflow as tf

# A PNG opens with these four words; width, height and a word that starts with the bit depth follow.
_FIRST_WORDS = struct.unpack(">4i", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR")
_WIDTH, _HEIGHT, _DEPTH = 4, 5, 6
_HEADER_BYTES = 28
_DEPTH_TOO_LARGE = 9 << 24


def png_run_lengths(
    pngs: tf.Tensor, height: tf.Tensor, width: tf.Tensor, image_id: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Decodes masks into the form in which `data.masks` reads them.

    Whatever is not 0 is the object: some writers use 1 and some 255.

    Args:
        pngs: string [I], PNG files of at most 8 bits a channel.
        height, width: int64 scalars, size of the image in pixels.
        image_id: int64 scalar that error messages name.

    Returns:
        run_lengths int64 [R], column-major, zeros first, and num_runs int64 [I].

    Raises:
        tf.errors.InvalidArgumentError: when evaluated on what is no such PNG, is of another size
            than the image, or cannot be decoded.
    """
    with tf.control_dependencies(_header_checks(pngs, height, width, image_id)):
        runs = tf.map_fn(
            _decode_runs,
            tf.identity(pngs),
            # More at a time would hold as many bitmaps; images are decoded in parallel already.
            parallel_iterations=1,
            fn_output_signature=tf.RaggedTensorSpec([None], tf.int64, ragged_rank=0),
        )
    return runs.flat_values, runs.row_lengths()


def _header_checks(
    pngs: tf.Tensor, height: tf.Tensor, width: tf.Tensor, image_id: tf.Tensor
) -> list:
    """Assertions on what the headers say, before anything of that size is allocated."""
    words = tf.io.decode_raw(pngs, tf.int32, little_endian=False, fixed_length=_HEADER_BYTES)
    are_pngs = tf.reduce_all(tf.equal(words[:, : len(_FIRST_WORDS)], _FIRST_WORDS))
    sizes = tf.cast(tf.gather(words, (_HEIGHT, _WIDTH), axis=1), tf.int64)
    size = tf.stack([height, width])
    return [
        tf.debugging.Assert(
            are_pngs & tf.reduce_all(words[:, _DEPTH] < _DEPTH_TOO_LARGE),
            ["a mask is no PNG of 8 bits. Image id:", image_id],
        ),
        tf.debugging.Assert(
            ~are_pngs | tf.reduce_all(tf.equal(sizes, size)),
            ["a mask differs in size from its image. Image id:", image_id, "size:", size],
        ),
    ]


def _decode_runs(png: tf.Tensor) -> tf.Tensor:
    """Run lengths of one mask: string scalar -> int64 [runs]."""
    mask = tf.io.decode_png(png, channels=1)[:, :, 0] > 0
    pixels = tf.reshape(tf.transpose(mask), [-1])
    # Before the first pixel stands an imaginary zero, so a run of ones there follows one of length
    # 0, as COCO has it.
    changes = tf.where(tf.not_equal(pixels, tf.concat([[False], pixels[:-1]], axis=0)))[:, 0]
    ends = tf.concat([changes, [tf.size(pixels, tf.int64)]], axis=0)
    return ends - tf.concat([[0], changes], axis=0)
