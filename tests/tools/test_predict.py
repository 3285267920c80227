"""Photographs on the command line: which files are meant, what is written, what is left out."""

import json

import numpy as np
import pytest
from PIL import Image

import trainer.predictor
from data.errors import UserError
from model.config import ModelConfig
from tools.predict import main, predict
from trainer.config import Params
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


def scored(mask_ious):
    """Detections of an image of 20 x 40 pixels, each a pixel higher than the one before."""
    count = len(mask_ious)
    ious, scores = np.array(mask_ious, np.float32), np.linspace(0.9, 0.5, count, dtype=np.float32)
    boxes = np.array([[0, 0, 1 + index, 10] for index in range(count)], np.float32)
    names = [f"class {index}" for index in range(count)]
    probabilities = np.ones([count, 4, 4], np.float32)
    labels = np.arange(count, dtype=np.int32)
    return Detections(
        20, 40, boxes, labels, names, labels.tolist(), scores, ious, scores * ious, probabilities
    )


def test_detections_of_low_quality_are_listed_for_review(tmp_path):
    class Scoring(FakePredictor):
        def _find(self, image):
            ious = {5: [0.9, 0.3, 0.8], 6: [], 7: [0.79, 0.1]}
            return scored(ious[int(image[0, 0, 0])])

    paths = [str(tmp_path / f"{red}.png") for red in (5, 6, 7)]
    for red, path in enumerate(paths, 5):
        Image.new("RGB", (40, 20), (red, 0, 0)).save(path)
    assert predict(Scoring("m", 1), paths, str(tmp_path), 2.0, min_quality=0.8) == (3, 0)
    kept, review = (
        json.loads((tmp_path / name).read_text()) for name in ("predictions.json", "review.json")
    )
    assert [entry["mask_iou"] for entry in review] == [0.1, 0.3, 0.79]
    assert [entry["image_id"] for entry in review] == [2, 0, 2]
    assert [entry["category_id"] for entry in review] == [1, 1, 0]
    assert review[1]["file_name"] == paths[0] and review[1]["bbox"] == [0, 0, 10, 2]
    # 0.8 in single precision is above 0.8.
    assert [(entry["image_id"], entry["category_id"]) for entry in kept] == [(0, 0), (0, 2)]
    assert kept[0].keys() == review[0].keys()
    (tmp_path / "all").mkdir()
    predict(Scoring("m", 1), paths, str(tmp_path / "all"), 2.0)
    assert len(json.loads((tmp_path / "all" / "predictions.json").read_text())) == 5
    assert not (tmp_path / "all" / "review.json").exists()


def test_quality_needs_a_maskiou_head(photographs, made, monkeypatch, capsys):
    params = Params(model=ModelConfig(system="mask_rcnn"))
    monkeypatch.setattr(FakePredictor, "params", params, raising=False)
    arguments = (f"--input={photographs}/a", "--model=m", f"--output_dir={photographs}/out")
    assert run(*arguments, "--min_quality=0.5") == 1
    assert "this model is a mask_rcnn" in capsys.readouterr().err


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
