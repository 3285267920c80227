"""Conversions that are killed, refused or cut off, and what a rerun makes of what they left."""

import errno
import json
import os
import pathlib
import subprocess
import sys

import pytest
from coco_files import contents, settings_of, tiny_coco
from full_disk import filled, small_disk

from data import conversion, files, manifest, shards
from data.conversion import convert
from data.errors import UserError

_HERE = pathlib.Path(__file__).parent


def test_killed_at_any_step_and_run_again(tmp_path):
    done = subprocess.run(
        [sys.executable, str(_HERE / "killed_conversions.py"), str(tmp_path)],
        env={**os.environ, "PYTHONPATH": f"{_HERE.parents[1]}{os.pathsep}{_HERE}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 4


class _Crash(BaseException):
    """Stands for whatever ends a program."""


def _stop_after(monkeypatch, num_images, error: type[BaseException] | BaseException = _Crash):
    """Raises an error at the image after this many; returns the ids of those before."""
    seen = []
    encode = shards.records.encode_example

    def encode_or_stop(**arguments):
        if len(seen) == num_images:
            raise error
        seen.append(arguments["image_id"])
        return encode(**arguments)

    monkeypatch.setattr(shards.records, "encode_example", encode_or_stop)
    return seen


def _rebuilt(monkeypatch, settings):
    """Converts; returns the ids of the images that were read for it."""
    with monkeypatch.context() as patch:
        seen = _stop_after(patch, 99)
        convert(settings)
    return seen


@pytest.fixture
def reference(tmp_path):
    """The files of a conversion that nothing interrupts."""
    convert(settings_of(tmp_path, output_prefix=str(tmp_path / "reference" / "train")))
    return contents(tmp_path / "reference")


def test_a_rerun_goes_on_where_it_was_interrupted(tmp_path, monkeypatch, reference):
    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Crash):
        _stop_after(patch, 3)
        convert(settings)
    assert files.glob(f"{settings.output_prefix}*") == [settings.partial_dir]
    assert files.list_folder(settings.partial_dir) == ["00000-of-00002", "00000-of-00002.json"]
    (tmp_path / "out" / "train.partial" / "00001-of-00002.tmp").write_text("torn")
    assert _rebuilt(monkeypatch, settings) == [9, 42]
    assert contents(tmp_path / "out") == reference


def test_a_rerun_after_an_interrupted_move_goes_on(tmp_path, monkeypatch, reference):
    settings = settings_of(tmp_path)

    def crash(*_):
        raise _Crash

    with monkeypatch.context() as patch, pytest.raises(_Crash):
        patch.setattr(conversion.manifest, "write_manifest", crash)
        convert(settings)
    assert _rebuilt(monkeypatch, settings) == []
    assert contents(tmp_path / "out") == reference


def _change_json(folder, change):
    path = folder / "input" / "instances.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def _move_corner(content):
    content["annotations"][0]["segmentation"][0][0] += 0.5


@pytest.mark.parametrize(
    "change, rebuilt",
    [
        (lambda folder: None, []),
        (lambda folder: _change_json(folder, lambda content: content.update(info="x")), []),
        (lambda folder: _change_json(folder, _move_corner), [7, 40]),
        (lambda folder: _change_json(folder, lambda c: c["categories"][0].update(name="x")), None),
        (lambda folder: os.utime(folder / "input" / "images" / "a.jpg", ns=(1, 1)), [7, 40]),
    ],
    ids=["nothing", "what no shard holds", "annotation", "category", "picture"],
)
def test_a_finished_shard_serves_while_what_it_is_made_of_is_the_same(
    tmp_path, monkeypatch, change, rebuilt
):
    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Crash):
        patch.setattr(conversion, "_summarise", lambda *_: (_ for _ in ()).throw(_Crash))
        convert(settings)
    change(tmp_path)
    assert _rebuilt(monkeypatch, settings) == ([7, 40, 9, 42] if rebuilt is None else rebuilt)
    convert(settings_of(tmp_path, output_prefix=str(tmp_path / "fresh" / "train")))
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


def test_a_picture_replaced_by_one_of_its_size_and_time_is_seen(tmp_path, monkeypatch):
    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Crash):
        _stop_after(patch, 3)
        convert(settings)
    path = tmp_path / "input" / "images" / "a.jpg"
    times = os.stat(path)
    os.rename(path, f"{path}.old")
    path.write_bytes(pathlib.Path(f"{path}.old").read_bytes())
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert _rebuilt(monkeypatch, settings) == [7, 40, 9, 42]


@pytest.mark.parametrize("change", ["settings", "torn"])
def test_a_finished_shard_of_other_settings_or_torn_is_made_again(tmp_path, monkeypatch, change):
    settings = settings_of(tmp_path)
    with monkeypatch.context() as patch, pytest.raises(_Crash):
        _stop_after(patch, 3)
        convert(settings)
    if change == "settings":
        settings = settings_of(tmp_path, include_masks=False)
    else:
        shard = pathlib.Path(settings.partial_dir) / "00000-of-00002"
        shard.write_bytes(shard.read_bytes()[:-1])
    assert _rebuilt(monkeypatch, settings) == [7, 40, 9, 42]


def test_a_refused_conversion_keeps_its_finished_shards(tmp_path, monkeypatch, reference):
    content = tiny_coco()
    good = content["annotations"][2]["bbox"]  # of image 9, the first of the second shard
    content["annotations"][2]["bbox"] = [1, 1, 0, 4]
    _change_json(tmp_path, lambda old: old.update(content))
    settings = settings_of(tmp_path)
    for _ in range(2):
        with pytest.raises(UserError, match=r"annotation 503 .* Finished shards \(1\) are kept"):
            convert(settings)
        assert files.list_folder(settings.partial_dir) == ["00000-of-00002", "00000-of-00002.json"]
        assert files.glob(f"{settings.output_prefix}-*") == []
    _change_json(tmp_path, lambda old: old["annotations"][2].update(bbox=good))
    assert _rebuilt(monkeypatch, settings) == [9, 42]
    assert contents(tmp_path / "out") == reference


@pytest.mark.parametrize(
    "error, raised, sentence",
    [
        (_Crash(), _Crash, None),
        (ZeroDivisionError(), ZeroDivisionError, None),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (OSError(errno.ENOSPC, "No space left on device"), UserError, "No space left on device"),
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("num_images, finished", [(1, 0), (3, 1)])
def test_no_error_leaves_anything_half_written(
    tmp_path, monkeypatch, error, raised, sentence, num_images, finished
):
    settings = settings_of(tmp_path)
    _stop_after(monkeypatch, num_images, error)
    with pytest.raises(raised, match=sentence):
        convert(settings)
    if finished:
        assert files.list_folder(settings.partial_dir) == ["00000-of-00002", "00000-of-00002.json"]
    else:
        assert files.list_folder(tmp_path) == ["input"]


def test_a_full_disk_leaves_one_conversion_or_none_and_a_rerun_completes_it(tmp_path):
    before, after = (settings_of(tmp_path, num_shards=count) for count in (3, 2))
    convert(settings_of(tmp_path, num_shards=2, output_prefix=f"{tmp_path}/whole/train"))
    refused = 0
    with small_disk(tmp_path / "out", "1m") as folder:
        for num_free_pages in range(10):
            convert(before)
            old = contents(folder)
            with filled(folder, num_free_pages):
                try:
                    convert(after)
                except UserError as error:
                    assert "No space left on device" in str(error)
                    refused += 1
                    kept = {path.name for path in folder.iterdir()} - {"filler", "train.partial"}
                    assert {name: (folder / name).read_bytes() for name in kept} == old
            convert(after)
            assert contents(folder) == contents(tmp_path / "whole")
    assert 3 <= refused < 10


def test_a_shard_without_its_note_does_not_stay_after_a_refusal(tmp_path, monkeypatch):
    settings = settings_of(tmp_path)
    files.make_folder(settings.partial_dir)
    for name in ("00000-of-00002", "00001-of-00002.tmp"):
        files.open_file(f"{settings.partial_dir}/{name}", "w").close()
    os.remove(settings.annotations_file)
    with pytest.raises(UserError, match=r"cannot read .*; check the path\.$"):
        convert(settings)
    assert contents(tmp_path / "out") == {}


def test_shards_that_no_manifest_lists_are_not_doubled(tmp_path, reference):
    settings = settings_of(tmp_path)
    convert(settings_of(tmp_path, num_shards=3))
    os.remove(manifest.manifest_name(settings.output_prefix))
    with pytest.raises(UserError, match="would also match train-00000-of-00003.tfrecord, which no"):
        convert(settings)
    assert len(contents(tmp_path / "out")) == 3
    for path in files.glob(f"{settings.output_prefix}-*"):
        files.remove(path)
    # Those of a longer prefix are others' business.
    convert(settings_of(tmp_path, num_shards=1, output_prefix=f"{settings.output_prefix}-small"))
    convert(settings)
    assert reference.items() < contents(tmp_path / "out").items()
