"""The wheel, installed into an empty folder and used from another one.

There a notebook would have a `model.py` and a `data/` of its own, which are left alone.
"""

import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parent.parent
PAGE = ("html", "css", "js", "svg")
PACKAGED = ("data", "model", "trainer", "tools", "configs")
SESSION = """
import sys

import model
import data

import msrcnn

settings = msrcnn.make_settings(
    "configs/r18.flags", num_classes=3, canvases=["64x96"], short_side=64, long_side=96,
    train_short_side_min=64, backbone_width=8, fpn_channels=8, head_dim=8, score_threshold=0.0,
    rpn_post_nms_test=20, detections_per_image=5,
)
network = msrcnn.build(settings)
msrcnn.save(network, settings, "run")

from data.loading import BATCHES  # a folder without __init__.py
from PIL import Image

Image.new("RGB", (90, 60), "olive").save("street.png")
found = msrcnn.load("run")("street.png")
assert len(found) == 5 and found.masks.shape == (5, 60, 90)
assert model.LAYERS == 3 and BATCHES == 4
assert sys.modules.keys().isdisjoint({"trainer", "tools", "model.detector", "data.files"})
print(msrcnn.__file__)
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """Where the wheel is: made of a copy, since building leaves files beside the sources."""
    source = tmp_path_factory.mktemp("source")
    for name in PACKAGED:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "msrcnn.py"):
        shutil.copy(ROOT / name, source)
    target = tmp_path_factory.mktemp("installed")
    done = subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-build-isolation",
         "--disable-pip-version-check", "--target", target, source],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return target


@pytest.fixture
def elsewhere(tmp_path):
    """The folder of a notebook that has modules of the same names."""
    (tmp_path / "model.py").write_text("LAYERS = 3")
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "loading.py").write_text("BATCHES = 4")
    return tmp_path


def run(command, installed, folder):
    done = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_the_wheel_has_two_names_and_all_files(installed):
    assert {path.name for path in installed.iterdir() if "dist-info" not in path.name} == {
        "bin", "mask_scoring_rcnn", "msrcnn",
    }  # fmt: skip
    home = installed / "mask_scoring_rcnn"
    others = [("configs", "*.flags"), *(("tools/demo_page", f"*.{kind}") for kind in PAGE)]
    for folder, pattern in [*((name, "*.py") for name in PACKAGED), *others]:
        ours = {path.relative_to(ROOT / folder) for path in (ROOT / folder).rglob(pattern)}
        assert {path.relative_to(home / folder) for path in (home / folder).rglob(pattern)} == ours
    assert (home / "tools" / "demo_page" / "page.html").exists()
    assert (installed / "msrcnn" / "py.typed").exists() and (home / "py.typed").exists()


@pytest.mark.parametrize("name", ["train", "create-tfrecord", "import-weights", "predict", "demo"])
def test_console_scripts_answer(installed, elsewhere, name):
    script = installed / "bin" / f"msrcnn-{name}"
    assert "--flagfile" in run([sys.executable, script, "--help"], installed, elsewhere)


def test_flagfiles_come_with_it(installed, elsewhere):
    code = "import sys; from mask_scoring_rcnn.trainer.flags import parse_flags as parse; "
    code += "print(parse(sys.argv).model.backbone)"
    command = [sys.executable, "-c", code, "--flagfile=configs/r18.flags"]
    assert run(command, installed, elsewhere) == "resnet18\n"


def test_it_predicts_beside_modules_of_the_same_names(installed, elsewhere):
    (elsewhere / "session.py").write_text(SESSION)
    said = run([sys.executable, "session.py"], installed, elsewhere)
    assert said.splitlines()[-1] == str(installed / "msrcnn" / "__init__.py")
