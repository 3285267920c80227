"""Conversion: what the shards hold, what stops it, what it leaves behind."""

import json
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from coco_files import HEIGHT, WIDTH, contents, settings_of, tiny_coco, write_dataset
from PIL import Image
from pycocotools.coco import COCO

from data.conversion import Conversion, _keep_finished_shards, convert
from data.errors import UserError
from data.manifest import load_manifest
from data.records import parse_record
from data.shards import NOTE_SUFFIX

_SHARED_DATA = pathlib.Path(__file__).parents[2].parent / "shared" / "data"


def _records(prefix, include_masks=True):
    paths = sorted(map(str, pathlib.Path(prefix).parent.glob("*.tfrecord")))
    dataset = tf.data.TFRecordDataset(paths)
    return {
        int(record["image_id"]): record
        for record in dataset.map(
            lambda entry: parse_record(entry, include_masks)
        ).as_numpy_iterator()
    }


def _masks(record):
    """The record's masks [N, H, W], by the definition of run lengths."""
    ends = np.cumsum(record["num_runs"])
    for start, end in zip(ends - record["num_runs"], ends, strict=True):
        runs = record["run_lengths"][start:end]
        flat = np.repeat(np.arange(len(runs), dtype=np.uint8) % 2, runs)
        yield flat.reshape([record["width"], record["height"]]).T


def test_manifest_tells_what_was_written(tmp_path):
    settings = settings_of(tmp_path)
    manifest = convert(settings)
    assert (manifest.num_images, manifest.num_instances, manifest.num_crowds) == (4, 4, 1)
    assert manifest.max_instances_per_image == 2 and manifest.include_masks
    assert manifest.image_sizes == {(HEIGHT, WIDTH): 4}
    assert [entry["name"] for entry in manifest.categories] == ["car", "dog", "toothbrush"]
    assert manifest.skipped == {"images": 0, "annotations": 0, "items": []}
    assert load_manifest(f"{settings.output_prefix}.manifest.json") == manifest
    assert set(contents(tmp_path / "out")) == {
        "train.manifest.json",
        "train-00000-of-00002.tfrecord",
        "train-00001-of-00002.tfrecord",
    }
    for shard in manifest.shards:
        assert shard["num_images"] == 2
        assert shard["bytes"] == (tmp_path / "out" / shard["name"]).stat().st_size


def test_records_hold_the_images_and_labels(tmp_path):
    settings = settings_of(tmp_path)
    convert(settings)
    records = _records(settings.output_prefix)
    assert sorted(records) == [7, 9, 40, 42]
    image_dir = pathlib.Path(settings.image_dir)
    assert records[9]["encoded"] == (image_dir / "b.png").read_bytes()
    np.testing.assert_array_equal(records[7]["classes"], [3, 1])
    np.testing.assert_allclose(records[7]["boxes"][0], [3, 2, 9, 12], rtol=1e-6)
    np.testing.assert_array_equal(records[7]["annotation_ids"], [501, 502])
    np.testing.assert_array_equal(records[42]["is_crowd"], [True, False])
    np.testing.assert_allclose(records[42]["boxes"][1], [10, 0, 20, 6], rtol=1e-6)
    np.testing.assert_array_equal(records[42]["areas"], [20, 150])
    assert records[40]["boxes"].shape == (0, 4)


def _assert_masks_equal_pycocotools(annotations_file, prefix):
    oracle = COCO(str(annotations_file))
    num_masks = 0
    for record in _records(prefix).values():
        for annotation_id, mask in zip(record["annotation_ids"], _masks(record), strict=True):
            np.testing.assert_array_equal(mask, oracle.annToMask(oracle.anns[annotation_id]))
            num_masks += 1
    assert num_masks == len(oracle.anns) > 0


def test_masks_equal_pycocotools(tmp_path):
    settings = settings_of(tmp_path)
    convert(settings)
    _assert_masks_equal_pycocotools(settings.annotations_file, settings.output_prefix)


def test_polygons_are_those_of_the_annotations(tmp_path):
    settings = settings_of(tmp_path)
    written = convert(settings)
    # The disk is an RLE; four and three corners are nine vertices of closed polygons.
    assert (written.num_without_polygons, written.max_polygon_vertices) == (1, 9)
    assert not written.include_polygons
    content = json.loads(pathlib.Path(settings.annotations_file).read_text())
    with_polygons = {
        entry["id"]: entry["segmentation"]
        for entry in content["annotations"]
        if isinstance(entry["segmentation"], list)
    }
    found = {}
    for path in sorted(pathlib.Path(settings.output_prefix).parent.glob("*.tfrecord")):
        for serialized in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            feature = tf.train.Example.FromString(serialized).features.feature
            values = np.array(feature["image/object/mask/points"].float_list.value)
            sizes = 2 * np.array(feature["image/object/mask/num_points"].int64_list.value, int)
            polygons = iter(np.split(values, np.cumsum(sizes)[:-1]))
            ids = feature["image/object/annotation_id"].int64_list.value
            counts = feature["image/object/mask/num_polygons"].int64_list.value
            for annotation_id, count in zip(ids, counts, strict=False):
                found[annotation_id] = [next(polygons).tolist() for _ in range(count)]
    assert {key: value for key, value in found.items() if value} == with_polygons


@pytest.mark.parametrize(
    "image_dir, annotations",
    [
        ("coco_tiny/val2017", "coco_tiny/annotations/instances_val2017.json"),
        ("nuclei/val", "nuclei/annotations/instances_val.json"),
    ],
)
def test_real_masks_equal_pycocotools(tmp_path, image_dir, annotations):
    if not (_SHARED_DATA / annotations).exists():
        pytest.skip(f"no {_SHARED_DATA / annotations}")
    content = json.loads((_SHARED_DATA / annotations).read_text())
    crowded = {entry["image_id"] for entry in content["annotations"] if entry["iscrowd"]}
    chosen = {entry["id"] for entry in content["images"][:8]} | set(sorted(crowded)[:4])
    for key, name in (("images", "id"), ("annotations", "image_id")):
        content[key] = [entry for entry in content[key] if entry[name] in chosen]
    annotations_file = tmp_path / "instances.json"
    annotations_file.write_text(json.dumps(content))
    prefix = str(tmp_path / "out" / "real")
    convert(Conversion(str(_SHARED_DATA / image_dir), str(annotations_file), prefix, 2))
    _assert_masks_equal_pycocotools(annotations_file, prefix)


def test_without_masks_segmentations_are_not_looked_at(tmp_path):
    content = tiny_coco()
    del content["annotations"][0]["segmentation"], content["annotations"][0]["area"]
    del content["annotations"][0]["iscrowd"]
    settings = settings_of(tmp_path, content, include_masks=False)
    assert not convert(settings).include_masks
    record = _records(settings.output_prefix, include_masks=False)[7]
    np.testing.assert_allclose(record["areas"][0], 60)


def test_a_missing_area_is_the_masks(tmp_path):
    content = tiny_coco()
    del content["annotations"][2]["area"]
    settings = settings_of(tmp_path, content)
    convert(settings)
    np.testing.assert_array_equal(_records(settings.output_prefix)[9]["areas"], [77])


@pytest.mark.parametrize("num_processes", [0, 2])
def test_bytes_do_not_depend_on_the_processes(tmp_path, num_processes):
    reference = settings_of(tmp_path, num_shards=3)
    convert(reference)
    other = settings_of(
        tmp_path,
        num_shards=3,
        num_processes=num_processes,
        output_prefix=str(tmp_path / "other" / "train"),
    )
    convert(other)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_more_shards_than_images(tmp_path):
    manifest = convert(settings_of(tmp_path, num_shards=6))
    assert [shard["num_images"] for shard in manifest.shards] == [1, 1, 1, 1, 0, 0]


def _break_image(folder, name, change):
    path = folder / "input" / "images" / name
    if change == "missing":
        path.unlink()
    elif change == "truncated":
        path.write_bytes(path.read_bytes()[:-40])
    elif change == "unsupported":
        path.write_bytes(b"GIF89a")
    elif change == "swapped":
        path.write_bytes(_SQUARE_PNG)


_SQUARE_PNG = bytes(tf.io.encode_png(np.zeros([5, 5, 3], np.uint8)).numpy())


@pytest.mark.parametrize(
    "change, reason, num_processes",
    [
        ("missing", "cannot read .*a.jpg.*No such file", 0),
        ("truncated", "truncated or broken", 0),
        ("truncated", "truncated or broken", 2),
        ("unsupported", "neither JPEG nor PNG", 0),
        ("swapped", "5x5 pixels, but the JSON says 30x20", 0),
    ],
)
def test_bad_image_files_stop_or_are_left_out(tmp_path, change, reason, num_processes):
    settings = settings_of(tmp_path, num_processes=num_processes)
    _break_image(tmp_path, "a.jpg", change)
    with pytest.raises(UserError, match=rf"^image 7 \(a.jpg\): .*{reason}.*--on_invalid=skip"):
        convert(settings)
    assert not list(tmp_path.glob("out/train-*"))  # another process may have finished its shard
    manifest = convert(settings_of(tmp_path, skip_invalid=True, num_processes=num_processes))
    assert manifest.num_images == 3 and manifest.skipped["images"] == 1
    assert manifest.skipped["items"][0]["image_id"] == 7
    assert sorted(_records(settings.output_prefix)) == [9, 40, 42]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"bbox": [1, 1, 0, 4]}, "no area"),
        ({"bbox": [1, 1, float("nan"), 4]}, "finite"),
        ({"segmentation": [[1, 1, 5, 5]]}, "fewer than three"),
        ({"segmentation": {"size": [20, 30], "counts": [5]}}, "do not add up"),
        ({"segmentation": {"size": [5, 5], "counts": [25]}}, "size"),
        ({"segmentation": []}, "no mask"),
        ({"area": -1}, "the area -1 is not a number"),
        ({"category_id": 1}, "no category"),
        ({"image_id": 1}, "no image"),
    ],
)
def test_bad_annotations_stop_or_are_left_out(tmp_path, change, reason):
    content = tiny_coco()
    content["annotations"][1].update(change)
    settings = settings_of(tmp_path, content)
    with pytest.raises(UserError, match=f"^annotation 502 of image .*{reason}"):
        convert(settings)
    assert [path.name for path in tmp_path.iterdir()] == ["input"]
    manifest = convert(settings_of(tmp_path, skip_invalid=True))
    assert manifest.num_images == 4 and manifest.num_instances == 3
    assert manifest.skipped["annotations"] == 1
    assert manifest.skipped["items"][0]["annotation_id"] == 502
    np.testing.assert_array_equal(_records(settings.output_prefix)[7]["annotation_ids"], [501])


def test_skipping_every_image_is_an_error(tmp_path):
    settings = settings_of(tmp_path, skip_invalid=True)
    for path in pathlib.Path(settings.image_dir).iterdir():
        path.unlink()
    with pytest.raises(UserError, match="none of the images of .* can be used.*check --image_dir"):
        convert(settings)


def test_places_that_cannot_be_used(tmp_path):
    settings = settings_of(tmp_path)
    with pytest.raises(UserError, match="the folder .* does not exist; check --image_dir"):
        convert(settings_of(tmp_path, image_dir=str(tmp_path / "absent")))
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot write to .*Not a directory"):
        convert(settings_of(tmp_path, output_prefix=str(tmp_path / "file" / "x" / "train")))
    assert not (tmp_path / "out").exists()
    assert settings.partial_dir.endswith("out/train.partial")


@pytest.mark.parametrize(
    "change, flag",
    [
        ({"num_shards": 0}, "num_shards=0: expected 1 or more"),
        ({"num_processes": -1}, "num_processes=-1: expected 0 or more"),
        ({"output_prefix": "records/"}, "output_file_prefix=records/: expected a path"),
    ],
)
def test_bad_settings_are_refused(tmp_path, change, flag):
    with pytest.raises(ValueError, match=f"^--{flag}"):
        settings_of(tmp_path, **change)


def test_a_failure_leaves_an_earlier_conversion_alone(tmp_path):
    settings = settings_of(tmp_path)
    convert(settings)
    before = contents(tmp_path / "out")
    _break_image(tmp_path, "a.jpg", "missing")
    with pytest.raises(UserError):
        convert(settings)
    assert contents(tmp_path / "out") == before


def test_another_number_of_shards_replaces_the_earlier_conversion(tmp_path):
    convert(settings_of(tmp_path, num_shards=3))
    (tmp_path / "out" / "train-notes.txt").touch()
    convert(settings_of(tmp_path, num_shards=1))
    assert set(contents(tmp_path / "out")) == {
        "train.manifest.json",
        "train-00000-of-00001.tfrecord",
        "train-notes.txt",
    }


@pytest.mark.parametrize("told", ["turned", "stored", "other"])
def test_sizes_tell_which_pixels_the_annotator_saw(told, tmp_path, capsys):
    image_dir, annotations_file = write_dataset(tmp_path / "input", tiny_coco())
    content = tiny_coco()
    entry = content["images"][0]
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 42]
    exif = Image.Exif()
    exif[0x0112] = 8
    stored = WIDTH, HEIGHT  # rows, columns
    picture = Image.fromarray(np.zeros([*stored, 3], np.uint8))
    picture.save(image_dir / entry["file_name"], exif=exif)
    entry["height"], entry["width"] = {
        "turned": (HEIGHT, WIDTH), "stored": stored, "other": (WIDTH, WIDTH)
    }[told]  # fmt: skip
    annotations_file.write_text(json.dumps(content))
    settings = settings_of(tmp_path)
    if told == "other":
        with pytest.raises(UserError, match="image 42 .*20x30 pixels, but the JSON says 30x30"):
            convert(settings)
        return
    manifest = convert(settings)
    counts = manifest.num_turned, manifest.num_kept_as_stored
    assert counts == ((1, 0) if told == "turned" else (0, 1))
    record = _records(settings.output_prefix, include_masks=False)[42]
    assert record["orientation"] == (8 if told == "turned" else 1)
    assert (record["height"], record["width"]) == (entry["height"], entry["width"])
    assert manifest.image_sizes[entry["height"], entry["width"]] == (4 if told == "turned" else 1)
    warned = "Warning: images have an EXIF orientation" in capsys.readouterr().err
    assert warned == (told == "stored")


def test_shards_without_images_are_not_kept_after_a_refusal(tmp_path):
    for name, content in (("0-of-2", b"record"), ("1-of-2", b"")):
        (tmp_path / name).write_bytes(content)
        (tmp_path / (name + NOTE_SUFFIX)).touch()
    assert "Finished shards (1) are kept" in _keep_finished_shards(str(tmp_path))
    assert set(contents(tmp_path)) == {"0-of-2", "0-of-2.json"}
