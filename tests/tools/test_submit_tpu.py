"""What tools/submit_tpu.py refuses before anything is created, and what it prints."""

import re
import shlex
import subprocess
import sys
import textwrap

import pytest

from tools.submit_tpu import main

GOOD = {
    "name": "photos",
    "zone": "us-west4-a",
    "model_dir": "gs://b/photos",
    "train_file_pattern": "gs://b/train-*",
}


@pytest.fixture(autouse=True)
def no_programs(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))


def submit(*more, **changes):
    flags = [f"--{name}={value}" for name, value in (GOOD | changes).items() if value is not None]
    return main(["submit_tpu.py", *flags, *more])


def refused(capsys, *more, **changes):
    with pytest.raises(SystemExit) as exit_status:
        submit(*more, **changes)
    assert exit_status.value.code == 2
    captured = capsys.readouterr()
    assert not captured.out
    return captured.err


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"accelerator_type": "v6e-8"}, "TensorFlow supports TPU v2 to v5 only"),
        ({"model_dir": "runs/photos"}, "--model_dir=runs/photos: expected a path on gs://"),
        ({"model_dir": None}, "--mode=train needs --model_dir"),
        ({"train_file_pattern": "records/*"}, "--train_file_pattern=records/*: expected a path"),
        ({"init_checkpoint": "weights/r50"}, "--init_checkpoint=weights/r50: expected a path"),
        ({"train_file_pattern": None}, "--mode=train needs --train_file_pattern"),
        ({"name": "My TPU"}, "--name=My TPU: expected at most 63"),
        ({"target": "gpu"}, "--target=gpu: expected one of tpu, vertex"),
        ({"python_version": "3.10"}, "--python_version=3.10: expected one of 3.11, 3.12, 3.13"),
        ({"target": "vertex", "gpu_count": "0"}, "--gpu_count=0: expected a positive number"),
        ({"train_stepz": "5"}, "there is no flag --train_stepz; did you mean --train_steps?"),
        ({"train_steps": "-5"}, "--train_steps=-5: expected a positive number"),
        ({"roi_sampling_ratio": "0"}, "expected at least 1 with --distribution=tpu"),
        ({"project": "P", "zone": None}, "--zone is not set"),
    ],
)
def test_bad_flags_are_refused_before_anything_is_created(capsys, changes, sentence):
    assert sentence in refused(capsys, **changes)


def test_spot_and_reserved_exclude_each_other(capsys):
    assert "--spot and --reserved exclude each other" in refused(capsys, "--spot", "--reserved")


def test_without_a_project_the_commands_are_printed(capsys):
    assert submit() == 0
    captured = capsys.readouterr()
    assert "because --project is not set" in captured.err
    assert "queued-resources create photos" in captured.out and "--project" not in captured.out


def test_python_313_is_warned_about(capsys):
    assert submit(python_version="3.13") == 0
    captured = capsys.readouterr()
    assert captured.err.startswith("Warning: --python_version=3.13 has no tensorflow-io-gcs")
    assert "--python=3.13" in captured.out


def test_vertex_prints_its_request(capsys):
    assert submit("--spot", target="vertex") == 0
    output = capsys.readouterr().out
    assert '"strategy": "SPOT"' in output and "gcloud ai custom-jobs create" in output
    assert "--region=us-west4 " in output and "tpus" not in output


def test_the_environment_is_not_printed(capsys, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    assert submit() == 0
    assert "hunter2" not in capsys.readouterr().out


def test_it_starts_without_tensorflow(repository):
    code = "import sys, tools.submit_tpu; print('tensorflow' in sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=repository, capture_output=True, text=True
    )
    assert done.stdout == "False\n", done.stderr


def _without_folder(text):
    """Removes the path of the repository, on whose length the line breaks depend."""
    text = re.sub(r"--directory=('[^']*'|\S+)", "--directory=D", text)
    return re.sub(r"\s+\\\n\s+", " ", text)


def test_the_page_shows_the_real_output(repository, monkeypatch, capsys):
    page = (repository / "docs" / "TPU.md").read_text(encoding="utf-8")
    command, shown = re.search(
        r"    (python tools/submit_tpu.py .*?--dry_run)\n\nprints\n\n(.*?)\n## 3", page, re.DOTALL
    ).groups()
    monkeypatch.chdir(repository)
    assert main(shlex.split(command.replace("\\\n", ""))[1:]) == 0
    output, shown = map(_without_folder, (capsys.readouterr().out, textwrap.dedent(shown)))
    assert output.strip() == shown.strip()
