"""Image files: format from the bytes, truncation found wherever it is."""

import io
import pathlib
import zlib

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.images import ImageFacts, InvalidImage, inspect_image, stated_size

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def _encode(image_format, mode="RGB", size=(45, 33), **options):
    pixels = np.random.default_rng(0).integers(0, 256, [size[1], size[0], 4], np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(file, image_format, **options)
    return file.getvalue()


@pytest.mark.parametrize(
    "image_format, mode, options",
    [
        ("JPEG", "RGB", {}),
        ("JPEG", "L", {}),
        ("JPEG", "CMYK", {}),
        ("JPEG", "RGB", {"progressive": True}),
        ("PNG", "RGB", {}),
        ("PNG", "RGBA", {}),
        ("PNG", "P", {}),
        ("PNG", "1", {}),
    ],
)
def test_format_and_size_come_from_the_bytes(image_format, mode, options):
    encoded = _encode(image_format, mode, **options)
    assert inspect_image(encoded) == ImageFacts(image_format.lower(), height=33, width=45)


@pytest.mark.parametrize("size", [(1, 1), (7, 3), (8, 8)])
def test_small_images_pass(size):
    for image_format in ("JPEG", "PNG"):
        facts = inspect_image(_encode(image_format, size=size))
        assert (facts.width, facts.height) == size


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("progressive", [False, True])
def test_every_truncation_is_found(image_format, progressive):
    encoded = _encode(image_format, progressive=progressive)
    for length in [
        3,
        9,
        30,
        *range(100, len(encoded), 97),
        *range(len(encoded) - 20, len(encoded)),
    ]:
        with pytest.raises(InvalidImage, match="truncated or broken|neither|empty"):
            inspect_image(encoded[:length])


def test_a_jpeg_cut_behind_its_thumbnail_is_found():
    thumbnail = _encode("JPEG", size=(8, 8))
    encoded = _encode("JPEG", comment=thumbnail)
    inspect_image(encoded)
    end_of_thumbnail = encoded.index(b"\xff\xd9") + 2
    assert end_of_thumbnail < len(encoded)
    with pytest.raises(InvalidImage, match="truncated or broken"):
        inspect_image(encoded[:end_of_thumbnail])


def test_bytes_behind_the_end_are_allowed():
    assert inspect_image(_encode("JPEG") + b"\0" * 10).format == "jpeg"
    assert inspect_image(_encode("PNG") + b"\0" * 10).format == "png"


def test_a_jpeg_whose_tail_was_never_written_is_found():
    encoded = _encode("JPEG")
    with pytest.raises(InvalidImage, match="end-of-image"):
        inspect_image(encoded[: len(encoded) // 2] + b"\0" * (len(encoded) // 2))


def test_damaged_png_bytes_are_found():
    encoded = bytearray(_encode("PNG"))
    encoded[len(encoded) // 2] ^= 1
    with pytest.raises(InvalidImage, match="truncated or broken"):
        inspect_image(bytes(encoded))


@pytest.mark.parametrize(
    "encoded, reason",
    [(b"", "empty"), (b"GIF89a", "neither"), (_encode("WEBP"), "neither JPEG nor")],
)
def test_other_files_are_refused(encoded, reason):
    with pytest.raises(InvalidImage, match=reason):
        inspect_image(encoded)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
@pytest.mark.parametrize("tag, orientation", [*((n, n) for n in range(1, 9)), (0, 1), (9, 1)])
def test_the_orientation_is_told(image_format, tag, orientation):
    exif = Image.Exif()
    exif[0x0112] = tag
    facts = inspect_image(_encode(image_format, exif=exif))
    assert facts == ImageFacts(image_format.lower(), 33, 45, orientation)


def test_what_stands_behind_the_first_picture_is_no_matter():
    photo = _encode("JPEG", progressive=True)
    for video in (b"\xff\xda\0\x08" + bytes(100), photo[:-500], b"\xff\xd8\xff" * 9):
        assert inspect_image(photo + video).height == 33


def test_what_stands_behind_the_first_picture_does_not_complete_it():
    photo = _encode("JPEG")
    with pytest.raises(InvalidImage, match="end-of-image"):
        inspect_image(photo[:-2] + bytes(100))
    several = io.BytesIO()
    with Image.open(io.BytesIO(photo)) as image:
        image.save(several, "MPO", save_all=True, append_images=[image])
    assert inspect_image(several.getvalue()).width == 45


def test_markers_within_the_pixels_do_not_end_them():
    # Restart markers and stuffed bytes.
    encoded = _encode("JPEG", restart_marker_blocks=1, quality=100, size=(200, 200))
    assert b"\xff\xd0" in encoded and b"\xff\0" in encoded
    assert inspect_image(encoded).height == 200
    with pytest.raises(InvalidImage, match="end-of-image"):
        inspect_image(encoded[:-2])


def test_too_large_is_not_broken(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 45 * 33 // 2 - 1)
    with pytest.raises(InvalidImage, match="too large: it has more than"):
        inspect_image(_encode("PNG"))


@pytest.mark.parametrize(
    "largest, unused_bits",
    [(0, 8), (255, 8), (256, 7), (1023, 6), (4095, 4), (32767, 1), (32768, 0), (65535, 0)],
)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_unused_bits_of_16_are_counted(channels, largest, unused_bits):
    pixels = np.zeros([7, 5, channels], np.uint16)
    pixels[3, 2] = largest
    if channels in (2, 4):
        pixels[..., -1] = 65535
    assert inspect_image(tf.io.encode_png(pixels).numpy()).unused_bits == unused_bits


def test_real_photographs_pass_and_their_stumps_do_not():
    folder = _SHARED_DATA / "coco_tiny" / "val2017"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    for path in sorted(folder.glob("*.jpg"))[:10]:
        encoded = path.read_bytes()
        with Image.open(path) as image:
            assert inspect_image(encoded) == ImageFacts("jpeg", image.height, image.width)
        for cut in (1, 2, 10, 1000, len(encoded) // 2):
            with pytest.raises(InvalidImage):
                inspect_image(encoded[:-cut])


def test_the_stated_size_needs_only_the_header():
    encoded = _encode("JPEG")
    assert stated_size(encoded) == stated_size(_encode("PNG")) == (33, 45)
    assert stated_size(encoded[:-200]) == (33, 45)
    with pytest.raises(InvalidImage, match="neither JPEG nor PNG"):
        stated_size(b"BM" + encoded)
    for broken in (encoded[:50], b"\xff\xd8\xff"):
        with pytest.raises(InvalidImage, match="truncated or broken") as refusal:
            stated_size(broken)
        assert "object at" not in str(refusal.value)
    large = bytearray(_encode("PNG"))
    large[16:24] = (20000).to_bytes(4, "big") * 2
    large[29:33] = zlib.crc32(large[12:29]).to_bytes(4, "big")
    with pytest.raises(InvalidImage, match="too large: it has more than 178956970 pixels"):
        stated_size(bytes(large))
