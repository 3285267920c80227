"""Photographs on the command line: which files are meant, what is written, what is left out."""

import json

import numpy as np
import pytest
from PIL import Image

import trainer.predictor
from data.errors import UserError
from tools.predict import main
from trainer.predictor import Detections


class FakePredictor:
    """Finds one box in every photograph, as high as its first pixel is red."""

    def __init__(self, folder, batch_size, **settings):
        self.folder, self.batch_size, self.settings = folder, batch_size, settings

    def read(self, path):
        try:
            return np.asarray(Image.open(path).convert("RGB"))
        except OSError:
            raise UserError(f"{path} is broken.") from None

    def stream(self, images):
        """The second half comes first, as with several canvases."""
        images = list(images)
        for key, image in images[len(images) // 2 :] + images[: len(images) // 2]:
            yield key, self._find(image)

    def _find(self, image):
        box = np.array([[0, 0, image[0, 0, 0], 10]], np.float32)
        one = np.ones(1, np.float32)
        return Detections(*image.shape[:2], box, np.ones(1, np.int32), ["cat"], [7], one)


@pytest.fixture
def made(monkeypatch):
    made = []

    def load(*args, **kwargs):
        made.append(FakePredictor(*args, **kwargs))
        return made[-1]

    monkeypatch.setattr(trainer.predictor, "load", load)
    return made


@pytest.fixture
def photographs(tmp_path):
    for folder, name, red in (("a", "x.jpg", 5), ("a", "y.png", 6), ("b", "x.jpg", 7)):
        (tmp_path / folder).mkdir(exist_ok=True)
        Image.new("RGB", (40, 20), (red, 0, 0)).save(tmp_path / folder / name, quality=100)
    (tmp_path / "a" / "notes.txt").touch()
    return tmp_path


def run(*arguments):
    return main(["predict", *map(str, arguments)])


def test_results_and_pictures_of_every_photograph(photographs, made, capsys):
    out = photographs / "out"
    pattern = f"{photographs}/a,{photographs}/b"
    assert run(f"--input={pattern}", "--model=m", f"--output_dir={out}", "--nms_iou=0.4") == 0
    assert made[0].folder == "m" and made[0].settings == {"nms_iou": 0.4}
    results = json.loads((out / "predictions.json").read_text())
    assert [entry["file_name"] for entry in results] == [
        str(photographs / name) for name in ("a/x.jpg", "a/y.png", "b/x.jpg")
    ]
    assert [entry["image_id"] for entry in results] == [0, 1, 2]
    assert results[1]["bbox"] == [0, 0, 10, 6] and results[1]["category_id"] == 7
    assert {path.name for path in out.iterdir()} == {
        "predictions.json", "x.jpg.png", "y.png.png", "x.jpg-2.png",
    }  # fmt: skip
    assert Image.open(out / "y.png.png").size == (40, 20)
    assert "The detections in 3 images are in" in capsys.readouterr().out


def test_a_file_that_cannot_be_read_is_named_and_left_out(photographs, made, capsys):
    (photographs / "a" / "broken.jpg").write_bytes(b"nothing")
    out = photographs / "out"
    arguments = (f"--input={photographs}/a", "--model=m", f"--output_dir={out}", "--min_score=2")
    assert run(*arguments, "--batch_size=2") == 1
    assert f"error: {photographs}/a/broken.jpg is broken." in capsys.readouterr().err
    assert len(json.loads((out / "predictions.json").read_text())) == 2
    assert [path.name for path in out.iterdir()] == ["predictions.json"]
    assert made[0].batch_size == 2


def test_frames_of_a_video_have_numbers(photographs, made, monkeypatch):
    frames = [np.full((20, 40, 3), red, np.uint8) for red in (3, 4)]
    monkeypatch.setattr("tools.pictures.read_frames", lambda path: frames)
    (photographs / "a" / "walk.MP4").touch()
    out = photographs / "out"
    pattern = f"{photographs}/a/walk.MP4,{photographs}/a/y.png"
    assert run(f"--input={pattern}", "--model=m", f"--output_dir={out}") == 0
    results = json.loads((out / "predictions.json").read_text())
    assert [(entry["bbox"][3], entry.get("frame")) for entry in results] == [
        (3, 0), (4, 1), (6, None),
    ]  # fmt: skip
    assert [entry["image_id"] for entry in results] == [0, 1, 2]
    assert results[1]["file_name"] == str(photographs / "a" / "walk.MP4")
    assert [path.name for path in sorted((out / "walk.MP4").iterdir())] == [
        "000000.png", "000001.png",
    ]  # fmt: skip


@pytest.mark.parametrize("missing", ["model", "input", "output_dir"])
def test_what_is_needed_has_to_be_named(missing, capsys):
    given = {"model": "m", "input": "x.jpg", "output_dir": "out"}
    del given[missing]
    with pytest.raises(SystemExit) as leaving:
        run(*(f"--{name}={value}" for name, value in given.items()))
    assert leaving.value.code == 2
    assert f"--{missing} is not set" in capsys.readouterr().err


def test_no_model_is_one_sentence(photographs, capsys):
    out = photographs / "out"
    assert run(f"--model={photographs}", f"--input={photographs}/a", f"--output_dir={out}") == 1
    said = capsys.readouterr().err
    assert said.startswith("error: There is no trained model in") and said.count("\n") == 1
