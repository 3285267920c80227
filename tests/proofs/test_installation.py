"""`pip install .` in an empty environment, which downloads a gigabyte."""

import subprocess

import pytest
from commands import ROOT, run

SESSION = """
import numpy as np
import msrcnn

small = {"canvases": ["64x96"], "short_side": 64, "long_side": 96, "train_short_side_min": 64}
settings = msrcnn.make_settings("configs/r18.flags", num_classes=3, score_threshold=0.0, **small)
msrcnn.save(msrcnn.build(settings), settings, "run")
found = msrcnn.load("run")(np.zeros((60, 90, 3), np.uint8))
assert found.masks is not None and found.masks.shape == (len(found), 60, 90)
"""


@pytest.mark.proof
@pytest.mark.timeout(3600)
def test_an_empty_environment(tmp_path):
    run("-m", "venv", tmp_path / "environment")
    programs = tmp_path / "environment" / "bin"

    def call(program, *arguments):
        done = subprocess.run(
            [programs / program, *arguments], cwd=tmp_path, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout

    call("pip", "install", ROOT, "mypy")
    assert "--flagfile" in call("msrcnn-train", "--help")
    call("python", "-c", "import msrcnn")
    call("python", "-c", SESSION)
    revealed = "import msrcnn; reveal_type(msrcnn.load('run')('a.jpg'))"
    assert "predictor.Detections" in call("mypy", "-c", revealed)
