"""A StableHLO module: what it finds under JAX against TensorFlow, and what it is refused for."""

import json
import pathlib
import sys

import numpy as np
import pytest
import tensorflow as tf

import msrcnn
from data.errors import UserError
from tools.export_stablehlo import main
from trainer.predictor import Predictor
from trainer.runtimes import open_export
from trainer.stablehlo_training import make_step_runner, read_step

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from small_model import CANVAS, CATEGORIES, photograph, write_records  # noqa: E402


@pytest.fixture(scope="module")
def jax():
    reason = "needs JAX 0.10, the extra `stablehlo`"
    return pytest.importorskip("jax", minversion="0.10", reason=reason)


@pytest.fixture(scope="module")
def folder(small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stablehlo")
    arguments = [f"--model={small_model}", f"--output={folder}", f"--canvas={CANVAS}"]
    assert main(["export_stablehlo.py", *arguments]) == 0
    return folder


@pytest.fixture(scope="module")
def exported(folder, jax):
    return Predictor(*open_export(str(folder / "model.stablehlo")))


def test_outputs_classes_and_settings_lie_beside_it(folder):
    metadata = json.loads((folder / "metadata.json").read_text())
    shapes = {output["name"]: (output["dtype"], *output["shape"]) for output in metadata["outputs"]}
    assert shapes == {
        "boxes": ("float32", 1, 6, 4),
        "box_scores": ("float32", 1, 6),
        "classes": ("int32", 1, 6),
        "mask_ious": ("float32", 1, 6),
        "mask_scores": ("float32", 1, 6),
        "masks": ("float32", 1, 6, 8, 8),
        "num_detections": ("int32", 1),
    }
    assert metadata["categories"] == CATEGORIES
    assert metadata["settings"]["canvases"] == [CANVAS]


def test_weights_are_inside(small_model, folder):
    shapes = tf.train.load_checkpoint(str(small_model)).get_variable_to_shape_map()
    weights = 4 * sum(np.prod(shape) for name, shape in shapes.items() if "network" in name)
    assert weights < (folder / "model.stablehlo").stat().st_size < weights + 1e6


@pytest.mark.parametrize("seed", [0, 1])
def test_it_finds_the_same_under_jax(small_model, exported, seed):
    image = photograph(64, 96, seed)
    expected = msrcnn.load(small_model, canvases=[CANVAS])(image)
    found = exported(image)
    assert found.names == expected.names and len(found) == 6
    for name in ("boxes", "box_scores", "mask_ious", "mask_scores", "probabilities"):
        np.testing.assert_allclose(
            getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-4, err_msg=name
        )


def test_boxes_stay_inside_an_image_that_does_not_fill_the_canvas(exported):
    found = exported(photograph(96, 64))
    assert (found.height, found.width) == (96, 64)
    assert (found.boxes >= 0).all() and (found.boxes <= [96, 64, 96, 64]).all()


@pytest.mark.parametrize(
    "damage", ["other bytes", "cut short", "no metadata", "other metadata", "other outputs"]
)
def test_what_is_no_export_is_one_sentence(folder, jax, tmp_path, damage):
    content = (folder / "model.stablehlo").read_bytes()
    metadata = json.loads((folder / "metadata.json").read_text())
    if damage == "other bytes":
        content = b"ML\xefR"
    elif damage == "cut short":
        content = content[:-1000]
    elif damage == "other metadata":
        metadata = {}
    elif damage == "other outputs":
        metadata["outputs"][0]["shape"] = [1, 7]
    (tmp_path / "model.stablehlo").write_bytes(content)
    if damage != "no metadata":
        (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    with pytest.raises(
        UserError, match=r"model.stablehlo cannot be opened .*not an export"
    ) as info:
        open_export(str(tmp_path / "model.stablehlo"))
    assert "\n" not in str(info.value)


def test_jax_is_asked_for_where_it_is_missing(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "jax", None)
    with pytest.raises(UserError, match="are run by JAX; pip install jax"):
        open_export(str(folder / "model.stablehlo"))


def test_a_module_that_does_not_run_is_not_written(small_model, jax, tmp_path, monkeypatch, capsys):
    outputs = [{"name": "boxes", "dtype": "float32", "shape": [1, 6, 4]}]
    monkeypatch.setattr("trainer.stablehlo.lower", lambda *_: (b"ML\xefR", outputs))
    arguments = [f"--model={small_model}", f"--output={tmp_path}/broken", f"--canvas={CANVAS}"]
    assert main(["export_stablehlo.py", *arguments]) == 1
    error = capsys.readouterr().err
    assert "error: The StableHLO module was not written (JAX" in error and "Traceback" not in error
    assert not list((tmp_path / "broken").glob("*"))


def test_a_training_step_under_jax_takes_the_loss_down(small_model, jax, tmp_path):
    records = write_records(tmp_path / "train.tfrecord")
    arguments = [f"--model={small_model}", f"--output={tmp_path}/out", f"--canvas={CANVAS}"]
    arguments += [f"--train_file_pattern={records}", "--train_batch_size=2", "--training_step"]
    arguments += ["--warmup_steps=0", "--learning_rate=0.01", "--freeze_at=5"]
    assert main(["export_stablehlo.py", *arguments]) == 0
    step, batch = read_step(str(tmp_path / "out"))
    assert batch["image"].shape == (2, 64, 96, 3)
    assert {"loss", "mask_loss", "maskiou_loss", "gradient_norm"} <= {
        output["name"] for output in step.outputs
    }
    take_step, variables = make_step_runner(step), step.variables
    losses = []
    for _ in range(3):
        scalars, variables = take_step(batch, variables)
        losses.append(scalars["loss"])
    assert losses[2] < losses[1] < losses[0]


@pytest.mark.parametrize("arguments", [[], ["--model=x"], ["--output=y"]])
def test_bad_flags_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_status:
        main(["export_stablehlo.py", *arguments])
    assert exit_status.value.code == 2


def test_without_a_checkpoint_nothing_is_written(tmp_path, capsys):
    assert main(["export_stablehlo.py", f"--model={tmp_path}", f"--output={tmp_path}/out"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint in --model_dir")
    assert not list(tmp_path.glob("out/*"))
