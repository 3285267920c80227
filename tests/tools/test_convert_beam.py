"""The converter as a Beam pipeline: the bytes of the other, its sentences, kill and go on."""

import importlib.util
import json
import os
import pathlib
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
from PIL import Image

from data import files
from tools import convert_beam, create_coco_tfrecord
from tools.beam_tasks import split_arguments

# What Beam calls the DirectRunner may be a program that it downloads.
DIRECT = "--runner=FnApiRunner"
THREADS = DIRECT, "--direct_running_mode=multi_threading", "--direct_num_workers=3"
PROCESSES = DIRECT, "--direct_running_mode=multi_processing", "--direct_num_workers=2"
needs_beam = pytest.mark.skipif(
    not importlib.util.find_spec("apache_beam"), reason="apache-beam is not installed"
)
ROOT = pathlib.Path(__file__).parents[2]
OWN = {
    "convert": ("image_dir", "object_annotations_file", "output_file_prefix", "num_shards"),
    "predict": ("model", "input", "output_dir"),
}


@pytest.fixture
def dataset(tmp_path):
    """Writes 12 images of one square each; returns the flags of their conversion to 6 shards."""
    (tmp_path / "images").mkdir()
    numbers = range(1, 13)
    for number in numbers:
        Image.effect_noise((30, 20), 99).save(tmp_path / "images" / f"{number}.png")
    content = {
        "images": [
            {"id": n, "file_name": f"{n}.png", "height": 20, "width": 30} for n in numbers
        ],
        "annotations": [
            {"id": 100 + n, "image_id": n, "category_id": 5, "iscrowd": 0, "area": 7 * n,
             "bbox": [2, 2, n, 7], "segmentation": [[2, 2, n + 2, 2, n + 2, 9, 2, 9]]}
            for n in numbers
        ],
        "categories": [{"id": 5, "name": "square"}],
    }  # fmt: skip
    (tmp_path / "instances.json").write_text(json.dumps(content))
    return [
        f"--image_dir={tmp_path}/images",
        f"--object_annotations_file={tmp_path}/instances.json",
        "--num_shards=6",
    ]


def to(folder):
    return f"--output_file_prefix={folder}/train"


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def expected(folder, *flags):
    """The files that the converter writes on one machine, and what it says."""
    arguments = ["create", to(folder / "expected"), "--num_processes=0", *flags]
    assert create_coco_tfrecord.run(arguments) == 0
    return contents(folder / "expected")


def run(*arguments):
    return convert_beam.run(["convert_beam", *map(str, arguments)])


@needs_beam
@pytest.mark.parametrize("changes", [[], ["--noinclude_masks"]])
def test_the_bytes_are_those_of_one_machine(tmp_path, dataset, capsys, changes):
    alone = expected(tmp_path, *dataset, *changes)
    told = capsys.readouterr()
    assert run(*THREADS, *dataset, *changes, to(tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == alone
    printed = capsys.readouterr()
    assert printed.out == told.out.replace("/expected/", "/out/")


@needs_beam
def test_images_and_output_on_a_remote_file_system(tmp_path, dataset):
    remote = "ram://convert_beam"
    files.make_folder(f"{remote}/images")
    for path in [*(tmp_path / "images").iterdir(), tmp_path / "instances.json"]:
        with files.open_file(f"{remote}/{path.relative_to(tmp_path)}", "wb") as copy:
            copy.write(path.read_bytes())
    here = [flag.replace(str(tmp_path), remote) for flag in dataset]
    assert run(*THREADS, *here, to(f"{remote}/out")) == 0
    written = {}
    for name in files.list_folder(f"{remote}/out"):
        with files.open_file(f"{remote}/out/{name}", "rb") as file:
            written[name] = file.read()
    assert written == expected(tmp_path, *dataset)


@needs_beam
def test_options_of_beam_stand_anywhere(tmp_path, dataset):
    arguments = ["--runner", "FnApiRunner", *dataset, "--direct_num_workers", "1"]
    assert run(*arguments, to(tmp_path / "out"), "--", "--only_the_runner_knows=this") == 0
    assert contents(tmp_path / "out") == expected(tmp_path, *dataset)


@needs_beam
def test_bad_input_stops_with_one_sentence_and_keeps_the_rest(tmp_path, dataset, capsys):
    broken = tmp_path / "images" / "9.png"
    whole, times = broken.read_bytes(), os.stat(broken)
    broken.write_bytes(whole[:-20])
    assert run(*THREADS, *dataset, to(tmp_path / "out")) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if "rror:" in line]
    assert len(errors) == 1 and errors[0].startswith("error: image 9 (9.png): ")
    assert errors[0].endswith("(5) are kept in " + f"{tmp_path}/out/train.partial for a rerun.")
    assert len(list((tmp_path / "out" / "train.partial").iterdir())) == 2 * 5
    broken.write_bytes(whole)
    os.utime(broken, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert run(*THREADS, *dataset, to(tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == expected(tmp_path, *dataset)


@needs_beam
def test_what_is_left_out_is_listed(tmp_path, dataset):
    (tmp_path / "images" / "9.png").unlink()
    assert run(DIRECT, *dataset, "--on_invalid=skip", to(tmp_path / "out")) == 0
    alone = expected(tmp_path, *dataset, "--on_invalid=skip")
    assert contents(tmp_path / "out") == alone
    assert json.loads(alone["train.manifest.json"])["skipped"]["images"] == 1


@needs_beam
def test_a_full_disk_is_one_sentence(tmp_path, dataset, capsys, monkeypatch):
    def refuse(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data.shards.write_shard", refuse)
    assert run(*THREADS, *dataset, to(tmp_path / "out")) == 1
    assert "No space left on device; choose another" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@needs_beam
def test_a_failure_of_the_pipeline_is_one_sentence(tmp_path, dataset, capsys):
    assert run("--runner=NoSuchRunner", *dataset, to(tmp_path)) == 1
    assert "error: the Beam pipeline failed: " in capsys.readouterr().err
    assert not list(tmp_path.glob("train*"))


@needs_beam
@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--colour=red"], "Unknown command line flag 'colour'"),
        (["stray"], "unexpected argument 'stray'"),
        (["--direct_num_workers=many"], "invalid int value: 'many'"),
        (["--num_processes=2"], "--num_processes has no effect here"),
    ],
)
def test_bad_flags_exit_with_2(tmp_path, dataset, capsys, change, sentence):
    assert run(*dataset, *change, to(tmp_path / "out")) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and sentence in printed.err
    assert len(printed.err.splitlines()) == 1
    assert not (tmp_path / "out").exists()


# Imported by every Python of a conversion, so that a kill comes in time.
SLOW = """
import time
from data import records
encode = records.encode_example
records.encode_example = lambda **arguments: time.sleep(0.2) or encode(**arguments)
"""


@needs_beam
def test_a_killed_run_goes_on(tmp_path, dataset):
    alone = expected(tmp_path, *dataset)
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "sitecustomize.py").write_text(SLOW)
    partial = tmp_path / "out" / "train.partial"
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.convert_beam", *PROCESSES, *dataset, to(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}/slow{os.pathsep}{ROOT}"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    while len(list(partial.glob("*-of-*.json"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert [path.name for path in partial.parent.iterdir()] == ["train.partial"]
    finished = {
        f"train-{path.stem}.tfrecord": path.with_suffix("").stat().st_mtime_ns
        for path in partial.glob("*-of-*.json")
    }
    assert 2 <= len(finished) < 6
    assert run(*THREADS, *dataset, to(tmp_path / "out")) == 0
    assert contents(tmp_path / "out") == alone
    for name, modified in finished.items():
        assert (tmp_path / "out" / name).stat().st_mtime_ns == modified


@needs_beam
def test_the_commands_of_the_page_are_accepted():
    page = (ROOT / "docs" / "BEAM.md").read_text().replace("\\\n", "").replace("…", "")
    commands = re.findall(r"^    .*(convert|predict)[-_]beam(?:\.py)? +(.*)$", page, re.MULTILINE)
    assert len(commands) == 5
    for tool, arguments in commands:
        own, options = split_arguments(shlex.split(arguments))
        assert options.get_all_options()["runner"]
        known = {f"--{name}" for name in OWN[tool]}
        assert {argument.partition("=")[0] for argument in own} <= known


def test_without_beam_the_program_says_what_to_install(tmp_path, dataset, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam.options.pipeline_options", None)
    assert run(*dataset, to(tmp_path / "out")) == 1
    assert "pip install 'mask-scoring-rcnn[beam]'" in capsys.readouterr().err


def test_help_lists_the_flags(capsys):
    assert run("--help") == 0
    printed = capsys.readouterr().out
    assert "options of Beam" in printed and "--num_shards" in printed
