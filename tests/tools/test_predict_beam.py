"""Predictions as a Beam pipeline: the results of predict.py, reruns, and what is refused."""

import importlib.util
import json
import pathlib
import sys

import numpy as np
import pytest
from PIL import Image

import trainer.predictor
from data.errors import UserError
from tools import predict, predict_beam
from trainer.predictor import Detections

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from small_model import photograph, save  # noqa: E402

# What Beam calls the DirectRunner may be a program that it downloads.
DIRECT = "--runner=FnApiRunner"
THREADS = DIRECT, "--direct_running_mode=multi_threading", "--direct_num_workers=3"
needs_beam = pytest.mark.skipif(
    not importlib.util.find_spec("apache_beam"), reason="apache-beam is not installed"
)


class FakePredictor:
    """Finds one box in every picture, as high as its first pixel is red; refuses some pictures."""

    def __init__(self):
        self.seen = []
        self.refused = set()

    def read(self, path):
        try:
            return np.asarray(Image.open(path))
        except OSError:
            raise UserError(f"{path} is broken.") from None

    def stream(self, images):
        """The last comes first, as with several canvases."""
        for key, image in reversed(list(images)):
            height = int(image[0, 0, 0])
            if height in self.refused:
                raise UserError(f"the picture {height} is refused.")
            self.seen.append(height)
            box = np.array([[0, 0, height, 10]], np.float32)
            one = np.ones(1, np.float32)
            found = Detections(*image.shape[:2], box, np.ones(1, np.int32), ["cat"], [7], one * 0.3)
            yield key, found


@pytest.fixture
def fake(monkeypatch):
    """The predictor that `load` returns, which counts how often it is opened."""
    fake = FakePredictor()
    fake.loads = []

    def load(*args, **kwargs):
        fake.loads.append((args, kwargs))
        return fake

    monkeypatch.setattr(trainer.predictor, "load", load)
    return fake


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Seven files: five pictures, a broken one, and a video of two frames; returns the flags."""
    frames = [np.full((20, 40, 3), red, np.uint8) for red in (16, 17)]
    monkeypatch.setattr("tools.pictures.read_frames", lambda path: frames)
    (tmp_path / "in").mkdir()
    for number in range(1, 6):
        Image.new("RGB", (40, 20), (number, 0, 0)).save(tmp_path / "in" / f"{number}.png")
    (tmp_path / "in" / "2-broken.png").write_bytes(b"nothing")
    (tmp_path / "in" / "3-walk.mp4").touch()
    (tmp_path / "model").touch()
    return [f"--model={tmp_path}/model", f"--input={tmp_path}/in"]


def run(*arguments):
    return predict_beam.main(["predict_beam", *map(str, arguments)])


@needs_beam
@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_results_are_those_of_one_machine(tmp_path, files, fake, capsys, chunk_size):
    alone, out = tmp_path / "alone", tmp_path / "out"
    flags = [*files, "--nms_iou=0.4", "--batch_size=2"]
    assert predict.main(["predict", *flags, f"--output_dir={alone}", "--min_score=2"]) == 1
    told = capsys.readouterr()
    arguments = [*THREADS, *flags, f"--output_dir={out}", f"--chunk_size={chunk_size}"]
    assert run(*arguments) == 1
    expected = (alone / "predictions.json").read_bytes()
    assert (out / "predictions.json").read_bytes() == expected
    assert [entry["image_id"] for entry in json.loads(expected)] == list(range(7))
    assert [path.name for path in out.iterdir()] == ["predictions.json"]
    printed = capsys.readouterr()
    assert printed.out == told.out.replace("/alone/", "/out/")
    assert f"error: {tmp_path}/in/2-broken.png is broken." in printed.err.splitlines()
    assert len(fake.loads) == 2 and fake.loads[0] == fake.loads[1]


@needs_beam
def test_a_rerun_predicts_what_is_missing_or_changed(tmp_path, files, fake, capsys):
    (tmp_path / "in" / "2-broken.png").unlink()
    arguments = [DIRECT, *files, f"--output_dir={tmp_path}/out", "--chunk_size=2"]
    fake.refused = {5}
    assert run(*arguments) == 1
    assert "error: the picture 5 is refused." in capsys.readouterr().err
    assert not (tmp_path / "out" / "predictions.json").exists()
    assert sorted(fake.seen) == [1, 2, 3, 16, 17]
    fake.seen.clear()
    assert run(*arguments) == 1
    assert fake.seen == []
    Image.new("RGB", (40, 20), (9, 0, 0)).save(tmp_path / "in" / "2.png")
    fake.refused.clear()
    assert run(*arguments) == 0
    assert sorted(fake.seen) == [1, 4, 5, 9]
    results = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert [entry["bbox"][3] for entry in results] == [1, 9, 16, 17, 3, 4, 5]


@needs_beam
@pytest.mark.parametrize("change", ["settings", "model"])
def test_chunks_of_another_model_are_not_used(tmp_path, files, fake, change):
    arguments = [DIRECT, *files, f"--output_dir={tmp_path}/out", "--chunk_size=2"]
    fake.refused = {5}
    assert run(*arguments) == 1
    fake.seen.clear()
    fake.refused.clear()
    if change == "settings":
        arguments.append("--score_threshold=0.2")
    else:
        (tmp_path / "model").write_text("trained for longer")
    run(*arguments)
    assert sorted(fake.seen) == [1, 2, 3, 4, 5, 16, 17]


@needs_beam
def test_a_model_that_cannot_be_opened_is_one_sentence(tmp_path, files, capsys, monkeypatch):
    def load(*_, **__):
        raise UserError("There is no trained model in it.")

    monkeypatch.setattr(trainer.predictor, "load", load)
    assert run(DIRECT, *files, f"--output_dir={tmp_path}/out") == 1
    assert "error: There is no trained model in it." in capsys.readouterr().err.splitlines()
    assert run(DIRECT, "--model=nowhere", files[1], f"--output_dir={tmp_path}/out") == 1
    assert "error: nowhere: No such file" in capsys.readouterr().err


@needs_beam
@pytest.mark.parametrize(
    "change, sentence",
    [
        (["--colour=red"], "there is no flag --colour"),
        (["stray"], "'stray' is not a flag"),
        (["--direct_num_workers=many"], "invalid int value: 'many'"),
        (["--chunk_size=0"], "chunk_size"),
        (["--output_dir="], "--output_dir is not set"),
    ],
)
def test_bad_flags_exit_with_2(tmp_path, files, capsys, change, sentence):
    with pytest.raises(SystemExit) as leaving:
        run(*files, f"--output_dir={tmp_path}/out", *change)
    assert leaving.value.code == 2
    printed = capsys.readouterr()
    assert printed.out == "" and printed.err.startswith("error: ") and sentence in printed.err
    assert len(printed.err.splitlines()) == 1


@needs_beam
def test_help_lists_the_flags(capsys):
    with pytest.raises(SystemExit) as leaving:
        run("--help")
    assert leaving.value.code == 0
    printed = capsys.readouterr().out
    assert "--chunk_size" in printed and "--score_threshold" in printed


@needs_beam
def test_a_model_finds_what_it_finds_on_one_machine(tmp_path, small_model):
    (tmp_path / "in").mkdir()
    for number in range(3):
        save(tmp_path / "in", f"{number}.png", photograph(seed=number))
    flags = [f"--model={small_model}", f"--input={tmp_path}/in"]
    alone, out = tmp_path / "alone", tmp_path / "out"
    assert predict.main(["predict", *flags, f"--output_dir={alone}", "--min_score=2"]) == 0
    assert run(*THREADS, *flags, f"--output_dir={out}", "--chunk_size=1") == 0
    expected = (alone / "predictions.json").read_bytes()
    assert (out / "predictions.json").read_bytes() == expected
    assert json.loads(expected)
