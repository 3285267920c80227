"""Pictures from the field, each converted and read again: what they have to come out as."""

import json
import pathlib
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from data.conversion import Conversion, convert
from data.decoding import decode_image
from data.errors import UserError
from data.records import parse_record
from tools.write_samples import main as write_samples

CASES = pathlib.Path(__file__).resolve().parents[2] / "shared" / "cases"
pytestmark = pytest.mark.skipif(
    not CASES.is_dir(), reason=f"needs the cases in {CASES}, which are absent"
)

READ = tf.function(
    lambda serialized: (lambda record: (decode_image(record), record))(
        parse_record(serialized, include_masks=True)
    ),
    autograph=False,
)


def _convert(case, tmp_path, skip_invalid=False):
    """The manifest of a case's folder."""
    folder = CASES / case
    return convert(
        Conversion(
            image_dir=str(folder / "img"),
            annotations_file=str(folder / "a.json"),
            output_prefix=str(tmp_path / "r"),
            num_shards=1,
            skip_invalid=skip_invalid,
            num_processes=0,
        )
    )


def _read(tmp_path):
    """Image and mask of each record that a conversion left: uint8 [h, w, 3], bool [h, w]."""
    for serialized in tf.data.TFRecordDataset(str(tmp_path / "r-00000-of-00001.tfrecord")):
        image, record = READ(serialized)
        runs = record["run_lengths"].numpy()
        assert len(record["num_runs"]) == 1
        flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
        yield image.numpy(), flat.reshape(image.shape[1], image.shape[0]).T


def _is_red(image):
    red, green, blue = (image[..., channel].astype(int) for channel in range(3))
    return (red > 150) & (green < 100) & (blue < 100)


def _covers_the_object(image, mask):
    """Whether the mask is the red rectangle, but for the blur of JPEG along its edge."""
    return mask.sum() == 1200 and (mask != _is_red(image)).sum() <= 150


def _write_samples(folder, results, output, capsys):
    """Exit status and error output of the tool."""
    capsys.readouterr()
    status = write_samples(
        [f"--results_dir={results}", f"--image_dir={folder}/img", f"--output_dir={output}",
         f"--object_annotations_file={folder}/a.json"]
    )  # fmt: skip
    return status, capsys.readouterr().err


def _without_results(tmp_path):
    folder = tmp_path / "results"
    folder.mkdir()
    (folder / "bbox.json").write_text("[]")
    return folder


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_a_name_that_is_no_unicode_is_a_record(skip_invalid, tmp_path):
    source = CASES / "data/01-non-utf8-file-name/latin1_name"
    for name in ("a.json", "make.py"):
        shutil.copyfile(source / name, tmp_path / name)
    subprocess.run([sys.executable, tmp_path / "make.py"], check=True)
    assert _convert(tmp_path, tmp_path / "out", skip_invalid).num_instances == 1
    (pair,) = _read(tmp_path / "out")
    assert _covers_the_object(*pair)
    assert not (tmp_path / "out" / "r.partial").exists()


@pytest.mark.parametrize("skip_invalid", [False, True])
def test_an_rle_that_is_no_unicode_is_refused_or_left_out(skip_invalid, tmp_path):
    case = "data/01-non-utf8-file-name/rle_surrogate"
    if skip_invalid:
        assert _convert(case, tmp_path, skip_invalid).skipped["annotations"] == 1
    else:
        with pytest.raises(UserError, match="annotation 1 .*image 1.*invalid characters"):
            _convert(case, tmp_path)
    assert not (tmp_path / "r.partial").exists()


@pytest.mark.parametrize(
    "case",
    [
        "data/02-motion-photo/motion0",
        "data/02-motion-photo/motion1",
        "data/02-motion-photo/motion3",
        "data/03-exif-same-size/exif2",
        "data/03-exif-same-size/exif3",
        "data/03-exif-same-size/exif6_square",
        "data/04-exif-turned-size/exif6_seen",
        "right/02-colour-types/palette_trns",
        "right/02-colour-types/cmyk",
        "right/02-colour-types/la",
        "right/02-colour-types/rgba",
        "right/02-colour-types/bit1",
        "right/02-colour-types/gray",
        "right/03-phones-and-names/apng",
        "right/03-phones-and-names/mpo",
        "right/03-phones-and-names/names",
        "right/03-phones-and-names/png_named_jpg",
        "right/03-phones-and-names/png_trailing",
        "right/03-phones-and-names/progressive",
        "right/03-phones-and-names/samsung_trailer",
        "right/03-phones-and-names/upper_ext",
    ],
)
def test_the_mask_lies_on_the_object(case, tmp_path):
    manifest = _convert(case, tmp_path)
    pairs = list(_read(tmp_path))
    assert len(pairs) == manifest.num_images == len(_images(case))
    assert manifest.num_turned == ("exif" in case)
    for (image, mask), entry in zip(pairs, _images(case), strict=True):
        assert image.shape == (entry["height"], entry["width"], 3)
        if "02-colour-types" in case:
            _check_colours(image, mask, CASES / case / "img" / entry["file_name"])
        else:
            assert _covers_the_object(image, mask)


def _images(case):
    return json.loads((CASES / case / "a.json").read_text())["images"]


def _check_colours(image, mask, path):
    with Image.open(path) as picture:
        expected = np.asarray(picture.convert("RGB")).astype(int)
        tolerance = {"CMYK": 10, "L": 1}.get(picture.mode, 0)
    assert np.abs(image - expected).max() <= tolerance
    assert mask.sum() == 1200 and mask[10:40, 20:60].all()


def test_a_picture_annotated_as_stored_stays_so_and_is_named(tmp_path, capsys):
    manifest = _convert("data/03-exif-same-size/exif6_storedsize", tmp_path)
    assert (manifest.num_turned, manifest.num_kept_as_stored) == (0, 1)
    lines = capsys.readouterr().err.splitlines()
    (warning,) = [line for line in lines if line.startswith("Warning: ")]
    assert "stored pixels" in warning and warning.endswith(": image 1.")
    ((image, mask),) = _read(tmp_path)
    assert image.shape == (128, 96, 3) and mask[10:40, 20:60].all()


def test_data_of_12_bits_keep_their_contrast(tmp_path, capsys):
    _convert("data/05-png16-low-bits/png16_12bit", tmp_path)
    assert "Warning: 16-bit PNGs do not use" in capsys.readouterr().err
    ((image, mask),) = _read(tmp_path)
    np.testing.assert_array_equal(image[mask], 3800 // 16)
    assert 0.05 * 255 < image[~mask].mean() < 0.1 * 255


def test_sample_pictures_show_16_bits_as_training_sees_them(tmp_path, capsys):
    case = CASES / "data/06-png16-samples-white/png16_full"
    results = _without_results(tmp_path)
    assert _write_samples(case, results, tmp_path / "samples", capsys) == (0, "")
    drawn = np.asarray(Image.open(tmp_path / "samples" / "1-a.png"))
    _convert(case, tmp_path)
    ((image, mask),) = _read(tmp_path)
    assert "16-bit" not in capsys.readouterr().err
    np.testing.assert_array_equal(image[mask], 237)
    assert image[~mask].min() >= 18 and image[~mask].max() <= 31
    right_half = drawn[-4 * 96 :: 4, -4 * 128 :: 4]  # enlarged, and without results
    np.testing.assert_array_equal(right_half, image)


def test_a_large_picture_is_called_too_large(tmp_path, capsys):
    case = CASES / "data/12-large-picture/big"
    with pytest.raises(UserError, match=r"image 1 .*too large: it has more than \d+ pixels"):
        _convert(case, tmp_path)
    status, error = _write_samples(case, _without_results(tmp_path), tmp_path / "out", capsys)
    assert status == 1
    assert error.startswith("error: ") and "too large" in error and error.count("\n") == 1


def test_sample_pictures_of_one_name_stand_side_by_side(tmp_path, capsys):
    case = CASES / "data/13-samples-same-stem"
    assert _write_samples(case / "stems", case / "res", tmp_path, capsys)[0] == 0
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["1-0001.png", "2-0001.png", "3-0001.png"]
