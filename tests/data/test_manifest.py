"""Manifests: written, read, found by the pattern of their shards."""

import dataclasses
import json
import os

import pytest

from data.errors import UserError
from data.manifest import (
    Manifest,
    check_shards,
    expand_pattern,
    find_manifest,
    journal_name,
    load_manifest,
    manifest_name,
    shard_name,
    totals,
    write_manifest,
)

_CATEGORIES = ({"label": 1, "id": 3, "name": "car"}, {"label": 2, "id": 90, "name": "brush"})


def _shards(prefix, count=2):
    """What a manifest says about shards of nine bytes and 1, 2, … images."""
    return tuple(
        {
            "name": shard_name(prefix, index, count),
            "num_images": index + 1,
            "bytes": 9,
            "sha256": "a",
        }
        for index in range(count)
    )


def _manifest(prefix="train", **changes):
    arguments = {
        "num_images": 3,
        "num_instances": 7,
        "num_crowds": 1,
        "max_instances_per_image": 4,
        "include_masks": True,
        "categories": _CATEGORIES,
        "skipped": {"images": 0, "annotations": 1, "items": [{"annotation_id": 5, "reason": "?"}]},
        "shards": _shards(prefix),
    }
    return Manifest(**{**arguments, **changes})


def _write_set(folder, prefix, manifest=None):
    path = str(folder / prefix)
    for shard in _shards(path):
        with open(shard["name"], "wb") as file:
            file.write(bytes(9))
    if manifest is not None:
        write_manifest(manifest_name(path), manifest)
    return path


def test_names():
    assert shard_name("out/train", 3, 12) == "out/train-00003-of-00012.tfrecord"
    assert manifest_name("out/train") == "out/train.manifest.json"


def test_round_trip_and_the_promised_keys(tmp_path):
    path = str(tmp_path / "train.manifest.json")
    write_manifest(path, _manifest())
    assert load_manifest(path) == _manifest()
    assert [entry.name for entry in tmp_path.iterdir()] == ["train.manifest.json"]
    with open(path) as file:
        content = json.load(file)
    assert list(content)[0] == "schema_version" and content["schema_version"] == 1
    assert set(content) == {field.name for field in dataclasses.fields(Manifest)}
    assert _manifest().num_classes == 3


def test_manifests_of_records_without_polygons_are_read(tmp_path):
    path = tmp_path / "train.manifest.json"
    write_manifest(str(path), _manifest(num_without_polygons=0, max_polygon_vertices=30))
    assert load_manifest(str(path)).include_polygons
    content = json.loads(path.read_text())
    del content["num_without_polygons"], content["max_polygon_vertices"]
    path.write_text(json.dumps(content))
    assert load_manifest(str(path)) == _manifest()
    assert not _manifest().include_polygons
    assert not _manifest(num_without_polygons=1).include_polygons
    assert _manifest(num_instances=0).include_polygons


@pytest.mark.parametrize(
    "content, sentence",
    [
        ("{", "cannot read the manifest"),
        ("[]", "schema version None"),
        ('{"schema_version": 2}', "schema version 2, but this program reads version 1"),
        ('{"schema_version": 1}', "lacks 'num_images'"),
    ],
)
def test_broken_manifests_are_refused(tmp_path, content, sentence):
    path = tmp_path / "x.manifest.json"
    path.write_text(content)
    with pytest.raises(UserError, match=sentence):
        load_manifest(str(path))


def test_patterns_expand_sorted_without_repeats(tmp_path):
    train, val = _write_set(tmp_path, "train"), _write_set(tmp_path, "val")
    (tmp_path / "folder-00000-of-00002.tfrecord").mkdir()
    for prefix in (train, val):
        write_manifest(manifest_name(prefix), _manifest())
    expected = [shard_name(prefix, index, 2) for prefix in (train, val) for index in range(2)]
    assert expand_pattern(f"{tmp_path}/*.tfrecord") == expected
    assert expand_pattern(f"{val}-*, {train}-*,{train}-00001*") == expected
    assert expand_pattern(f"{tmp_path}/") == expand_pattern(f"{tmp_path}/*[nl]*") == expected
    assert expand_pattern(f"file://{train}-*") == [f"file://{path}" for path in expected[:2]]


@pytest.mark.parametrize("folder", ["run[1],x", "a b", "c,d", "e*"])
def test_a_path_that_is_there_is_taken_literally(tmp_path, folder):
    (tmp_path / folder).mkdir()
    prefix = _write_set(tmp_path / folder, "train", _manifest())
    other = _write_set(tmp_path, "other")
    expected = [shard_name(prefix, index, 2) for index in range(2)]
    assert expand_pattern(expected[1]) == expected[1:]
    assert expand_pattern(f"{tmp_path}/{folder}") == expand_pattern(f"{prefix}*") == expected
    several = expand_pattern(f" {other}-*, {expected[0]} ,{prefix}-00001*")
    assert several == sorted([*expected, *expand_pattern(f"{other}-*")])
    assert find_manifest(f"{prefix}-*") == _manifest()


def test_a_tilde_is_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    prefix = _write_set(tmp_path, "train", _manifest())
    assert expand_pattern("~") == expand_pattern("~/train-*") == expand_pattern(f"{prefix}-*")
    assert find_manifest("~/train-*") == _manifest()


@pytest.mark.parametrize("pattern", ["", "absent-*", "{}/train-*,{}/absent*"])
def test_a_pattern_without_files_is_refused(tmp_path, pattern):
    _write_set(tmp_path, "train")
    with pytest.raises(UserError, match="no file matches"):
        expand_pattern(pattern.replace("{}", str(tmp_path)))


def test_the_manifest_of_a_pattern_is_found(tmp_path):
    prefix = _write_set(tmp_path, "train", _manifest())
    assert find_manifest(f"{prefix}-*") == _manifest()
    assert find_manifest(f"file://{prefix}-*") == _manifest()


def test_records_of_others_have_no_manifest(tmp_path):
    prefix = _write_set(tmp_path, "train")
    assert find_manifest(f"{prefix}-*") is None
    (tmp_path / "pets.record").touch()
    assert find_manifest(str(tmp_path / "pets.record")) is None
    with pytest.raises(UserError, match="no file matches"):
        find_manifest(f"{prefix}x*")


def test_several_sets_are_joined_when_their_categories_agree(tmp_path):
    first = _write_set(tmp_path, "a", _manifest("a"))
    second = _write_set(
        tmp_path, "b", _manifest("b", include_masks=False, max_instances_per_image=9)
    )
    joined = find_manifest(f"{first}-*,{second}-*")
    assert (joined.num_images, joined.num_instances, joined.num_crowds) == (6, 14, 2)
    assert (joined.max_instances_per_image, joined.include_masks) == (9, False)
    assert joined.skipped["annotations"] == len(joined.skipped["items"]) == 2
    assert [shard["name"][0] for shard in joined.shards] == ["a", "a", "b", "b"]
    assert (joined.num_without_polygons, joined.max_polygon_vertices) == (14, 0)
    polygons = {"num_without_polygons": 0, "max_polygon_vertices": 30}
    write_manifest(manifest_name(first), _manifest("a", **polygons))
    joined = find_manifest(f"{first}-*,{second}-*")
    assert (joined.num_without_polygons, joined.max_polygon_vertices) == (7, 30)
    write_manifest(manifest_name(second), _manifest("b", categories=_CATEGORIES[:1]))
    with pytest.raises(UserError, match="categories in .* differ"):
        find_manifest(f"{first}-*,{second}-*")


def _size(path, count):
    with open(path, "wb") as file:
        file.write(bytes(count))


@pytest.mark.parametrize("pattern", ["{}-*", "{}*.tfrecord", "{folder}", "{}-0000[01]-of-*"])
@pytest.mark.parametrize(
    "damage, sentence",
    [
        (
            lambda prefix: os.remove(shard_name(prefix, 1, 2)),
            "train-00001-of-00002.* is listed in .* but missing",
        ),
        (lambda prefix: _size(shard_name(prefix, 1, 3), 9), "train-00001-of-00003.* is not listed"),
        (
            lambda prefix: _size(shard_name(prefix, 1, 2), 8),
            "has 8 bytes, but .* says 9: it was changed",
        ),
        (lambda prefix: os.makedirs(journal_name(prefix)), "a conversion .* was interrupted"),
    ],
    ids=["missing", "unlisted", "altered", "unfinished"],
)
def test_shards_that_do_not_fit_their_manifest_are_refused(tmp_path, pattern, damage, sentence):
    prefix = _write_set(tmp_path, "train", _manifest())
    pattern = pattern.format(prefix, folder=tmp_path)
    check_shards(pattern)
    damage(prefix)
    with pytest.raises(UserError, match=sentence):
        check_shards(pattern)


def test_a_pattern_that_leaves_shards_out_counts_what_it_matches(tmp_path, capsys):
    counts = {"num_instances": 4, "num_crowds": 0, "max_instances_per_image": 3}
    counts |= {"num_without_polygons": 1, "max_polygon_vertices": 30}
    shards = _shards("train")
    manifest = _manifest(shards=(shards[0], {**shards[1], **counts}))
    prefix = _write_set(tmp_path, "train", manifest)
    os.remove(shard_name(prefix, 0, 2))  # is not meant, and need not be there
    pattern = f"{prefix}-00001*"
    check_shards(pattern)
    assert capsys.readouterr().err == (
        f"Warning: {pattern} does not match 1 of the 3 images in {prefix}.manifest.json.\n"
    )
    selected = dataclasses.replace(manifest, shards=manifest.shards[1:], num_images=2, **counts)
    assert find_manifest(pattern) == selected


def test_what_a_pattern_matches_beside_one_conversion_is_said(tmp_path, capsys):
    train = _write_set(tmp_path, "train", _manifest())
    check_shards(f"{train}-*")
    assert capsys.readouterr().err == ""
    _write_set(tmp_path, "train-small", _manifest("train-small"))
    check_shards(f"{train}-*")
    assert f"matches several sets of shards: {train}, {train}-small; all" in capsys.readouterr().err
    check_shards(f"{train}-0*,{train}-small-*")
    assert capsys.readouterr().err == ""
    (tmp_path / "pets.record").touch()
    check_shards(f"{train}-0*,{tmp_path}/pets.record")
    assert (
        "Warning: " + str(tmp_path / "pets.record") + " is not in any manifest"
        in capsys.readouterr().err
    )


def test_an_empty_shard_has_counts(tmp_path):
    assert totals([{"num_images": 0, "max_polygon_vertices": 0}]) == {
        "num_images": 0,
        "max_polygon_vertices": 0,
    }
    assert totals([{"num_images": 1, "num_crowds": 2}, {"num_images": 3}]) == {"num_images": 4}
