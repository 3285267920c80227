"""The converter as a user starts it: flags, sentences, exit codes, kill and go on."""

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from tools.create_coco_tfrecord import run

_ROOT = pathlib.Path(__file__).parents[2]
_SCRIPT = str(_ROOT / "tools" / "create_coco_tfrecord.py")


@pytest.fixture
def dataset(tmp_path):
    """Writes 12 images of one square each; returns the flags but --num_shards."""
    return _write_dataset(tmp_path, num_images=12, side=20)


def _write_dataset(folder, num_images, side):
    (folder / "images").mkdir()
    content = {"images": [], "annotations": [], "categories": [{"id": 5, "name": "square"}]}
    for number in range(1, num_images + 1):
        name = f"{number}.jpg"
        Image.effect_noise((side, side), 99).save(folder / "images" / name)
        content["images"].append({"id": number, "file_name": name, "height": side, "width": side})
        outline = [2, 2, number + 2, 2, number + 2, 9, 2, 9]
        content["annotations"].append(
            {
                "id": number,
                "image_id": number,
                "category_id": 5,
                "iscrowd": 0,
                "area": 7 * number,
                "bbox": [2, 2, number, 7],
                "segmentation": [outline],
            }
        )
    (folder / "instances.json").write_text(json.dumps(content))
    return [
        f"--image_dir={folder}/images",
        f"--object_annotations_file={folder}/instances.json",
        f"--output_file_prefix={folder}/out/train",
    ]


def _contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _start(arguments, command=(_SCRIPT,), cwd=None):
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.Popen(
        [sys.executable, *command, *arguments],
        cwd=cwd,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    "command, cwd", [((_SCRIPT,), None), (("-m", "tools.create_coco_tfrecord"), _ROOT)]
)
def test_one_line_of_summary_and_progress_on_stderr(tmp_path, dataset, command, cwd):
    arguments = [*dataset, "--num_shards=3", "--num_processes=2", "--logtostderr"]
    process = _start(arguments, command, cwd or tmp_path)
    output, progress = process.communicate(timeout=60)
    assert process.returncode == 0, progress
    assert output == (
        "wrote 12 images with 12 instances and 0 crowds to 3 shards "
        f"{tmp_path}/out/train-*-of-00003.tfrecord\n"
    )
    assert progress == "Converting: 12 of 12 images\n"
    assert sorted(_contents(tmp_path / "out")) == [
        *(f"train-0000{index}-of-00003.tfrecord" for index in range(3)),
        "train.manifest.json",
    ]


def test_tensorflow_is_not_imported():
    code = "import sys, tools.create_coco_tfrecord; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=_ROOT, check=False).returncode == 0


@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--num_shards=0"], "--num_shards=0: expected 1 or more"),
        (["--num_shards=x"], "num_shards=x"),
        (["--num_processes=-1"], "--num_processes=-1: expected 0 or more"),
        (["--on_invalid=ignore"], "on_invalid=ignore"),
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["--image_dir=elsewhere"], "image_dir"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_bad_flags_exit_with_2(tmp_path, dataset, capsys, change, sentence):
    assert run(["create", *dataset, *change]) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and sentence in printed.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("position, flag", [(0, "image_dir"), (1, "object_annotations_file")])
def test_missing_flags_exit_with_2(dataset, capsys, position, flag):
    del dataset[position]
    assert run(["create", *dataset]) == 2
    assert flag in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    assert run(["create", "--help"]) == 0
    printed = capsys.readouterr().out
    for flag in ("image_dir", "num_shards", "[no]include_masks", "on_invalid"):
        assert f"--{flag}" in printed


@pytest.mark.parametrize("num_processes", [0, 2])
def test_bad_input_stops_with_one_sentence(tmp_path, dataset, num_processes):
    broken = tmp_path / "images" / "5.jpg"
    broken.write_bytes(broken.read_bytes()[:-9])
    process = _start([*dataset, "--num_shards=4", f"--num_processes={num_processes}"])
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 1 and output == ""
    sentence = errors.splitlines()[-1]
    assert sentence.startswith("error: image 5 (5.jpg): ") and "truncated" in sentence
    assert "Traceback" not in errors
    assert not list((tmp_path / "out").glob("train-*"))


def test_skipping_tells_where_the_list_is(tmp_path, dataset, capsys):
    (tmp_path / "images" / "5.jpg").unlink()
    assert run(["create", *dataset, "--num_processes=0", "--on_invalid=skip"]) == 0
    assert "left out 1 images and 0 annotations, listed in" in capsys.readouterr().out
    manifest = json.loads((tmp_path / "out" / "train.manifest.json").read_text())
    assert manifest["skipped"]["images"] == 1
    assert manifest["skipped"]["items"][0]["file_name"] == "5.jpg"


def test_masks_can_be_left_out(tmp_path, dataset):
    assert run(["create", *dataset, "--num_processes=0", "--noinclude_masks"]) == 0
    manifest = json.loads((tmp_path / "out" / "train.manifest.json").read_text())
    assert manifest["include_masks"] is False and len(manifest["shards"]) == 32


def _is_alive(process_id):
    try:
        return pathlib.Path(f"/proc/{process_id}/stat").read_text().split()[2] != "Z"
    except OSError:
        return False


def _children(process_id):
    path = pathlib.Path(f"/proc/{process_id}/task/{process_id}/children")
    return path.read_text().split() if path.exists() else []


def _wait_until(condition):
    for _ in range(6000):
        if condition():
            return True
        time.sleep(0.005)
    return False


def _kill(process, held):
    process.kill()
    return -signal.SIGKILL


def _press_control_c(process, held):
    os.killpg(process.pid, signal.SIGINT)
    while process.poll() is None:
        # Nothing to read: the worker there comes free, and its shard is not finished.
        with contextlib.suppress(OSError):
            os.close(os.open(held, os.O_WRONLY | os.O_NONBLOCK))
        time.sleep(0.02)
    return 1


def _kill_a_worker(process, held):
    os.kill(int(_children(process.pid)[0]), signal.SIGKILL)
    return 1


@pytest.mark.parametrize("interrupt", [_kill, _press_control_c, _kill_a_worker])
def test_an_interrupted_run_goes_on(tmp_path, interrupt):
    flags = [*_write_dataset(tmp_path, num_images=24, side=40), "--num_shards=12"]
    assert run(["create", *flags, "--num_processes=0"]) == 0
    expected = _contents(tmp_path / "out")
    flags[2] = f"--output_file_prefix={tmp_path}/other/train"
    flags += ["--num_processes=2"]
    # A pipe that nobody writes to holds one worker fast, so that the interruption comes in time.
    last = max((tmp_path / "images").iterdir(), key=lambda path: int(path.stem))
    content = last.read_bytes()
    last.unlink()
    os.mkfifo(last)
    process = _start(flags)
    partial = tmp_path / "other" / "train.partial"
    assert _wait_until(lambda: len(list(partial.glob("*.json"))) >= 2)
    children = _children(process.pid)
    exit_code = interrupt(process, last)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == exit_code
    assert "Traceback" not in errors
    assert _wait_until(lambda: not any(map(_is_alive, children)))
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["train.partial"]
    finished = {
        f"train-{path.stem}.tfrecord": path.with_suffix("").stat().st_mtime_ns
        for path in partial.glob("*.json")
    }
    last.unlink()
    last.write_bytes(content)
    again = _start(flags)
    _, errors = again.communicate(timeout=60)
    assert again.returncode == 0, errors
    assert _contents(tmp_path / "other") == expected
    assert len(finished) >= 2
    for name, modified in finished.items():
        assert (tmp_path / "other" / name).stat().st_mtime_ns == modified
