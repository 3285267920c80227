"""LiteRT files: built-in operations without loops, and what they find against TensorFlow."""

import collections
import pathlib
import shutil
import sys
import zipfile

import numpy as np
import pytest
import tensorflow as tf

import msrcnn
from data.errors import UserError
from tools.export_tflite import main
from trainer.run_record import load_params

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "trainer"))
from small_model import CANVAS, photograph  # noqa: E402


def test_files_have_one_graph_of_built_in_operations_without_loops(small_tflite):
    interpreter = tf.lite.Interpreter(str(small_tflite / "model_float32.tflite"))
    operations = collections.Counter(
        operation["op_name"] for operation in interpreter._get_ops_details()
    )
    assert operations["NON_MAX_SUPPRESSION_V4"] == 6 and operations["CONV_2D"] > 20
    assert not any(name.startswith(("Flex", "WHILE", "IF")) for name in operations)
    (signature,) = interpreter.get_signature_list().values()
    assert signature["inputs"] == ["image"]
    assert set(signature["outputs"]) == {
        "num_detections", "boxes", "classes", "box_scores", "mask_ious", "mask_scores", "masks",
    }  # fmt: skip


@pytest.mark.parametrize("size", [(64, 96), (40, 60), (96, 64)])
def test_load_opens_a_file_behind_the_same_call(small_model, small_tflite, size):
    image = photograph(*size)
    expected = msrcnn.load(small_model, canvases=[CANVAS], precision="float32")(image)
    found = msrcnn.load(small_tflite / "model_float32.tflite")(image)
    assert (found.height, found.width) == size
    if size == (64, 96):  # Where the picture fills the canvas, nothing differs.
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.mask_scores, expected.mask_scores, atol=1e-4)
        assert found.names == expected.names
    assert (found.boxes >= 0).all() and (found.boxes <= [*size, *size]).all()


def test_weights_of_8_bits_take_a_fraction_of_the_room(small_tflite):
    sizes = [(small_tflite / f"model_{kind}.tflite").stat().st_size
             for kind in ("float32", "dynamic")]  # fmt: skip
    assert sizes[1] < 0.9 * sizes[0]
    with zipfile.ZipFile(small_tflite / "model_dynamic.tflite") as archive:
        assert archive.namelist() == ["metadata.json"]


def test_the_weights_are_the_model_dirs_and_not_those_it_began_with(small_model, tmp_path):
    """config.flags also records the checkpoint that a fine-tuning began from."""
    trained = shutil.copytree(small_model, tmp_path / "trained")
    with open(trained / "config.flags", "a") as flags:
        flags.write(f"--init_checkpoint={tmp_path}/begun\n")
    assert load_params(str(trained)).train.init_checkpoint == ""


def test_int8_computes_convolutions_in_8_bits_and_selects_in_float32(small_tflite):
    interpreter = tf.lite.Interpreter(str(small_tflite / "model_int8.tflite"))
    dtypes = {each["index"]: each["dtype"] for each in interpreter.get_tensor_details()}
    inputs = collections.defaultdict(set)
    for operation in interpreter._get_ops_details():
        inputs[operation["op_name"]].add(dtypes[operation["inputs"][0]])
    assert np.int8 in inputs["CONV_2D"] and np.int8 in inputs["FULLY_CONNECTED"]
    for name in ("NON_MAX_SUPPRESSION_V4", "TOPK_V2", "SOFTMAX", "EXP", "RSQRT"):
        assert inputs[name] == {np.float32}, name
    sizes = [(small_tflite / f"model_{kind}.tflite").stat().st_size
             for kind in ("float32", "int8")]  # fmt: skip
    assert sizes[1] < 0.9 * sizes[0]


def test_int8_gives_nearly_the_same_features(small_tflite):
    image = photograph(64, 96)
    found = [
        msrcnn.load(small_tflite / f"model_{kind}.tflite")(image) for kind in ("float32", "int8")
    ]
    assert len(found[1]) == len(found[0])
    np.testing.assert_allclose(found[1].box_scores, found[0].box_scores, atol=0.03)


@pytest.mark.parametrize(
    "arguments", [[], ["--model=x"], ["--model=x", "--output=y", "--types=int4"]]
)
def test_bad_flags_exit_with_2(arguments):
    with pytest.raises(SystemExit) as exit_status:
        main(["export_tflite.py", *arguments])
    assert exit_status.value.code == 2


def test_what_is_no_model_is_one_sentence(tmp_path, capsys):
    assert main(["export_tflite.py", f"--model={tmp_path}", f"--output={tmp_path}/out"]) == 1
    assert capsys.readouterr().err.startswith("error: There is no checkpoint in --model_dir")
    (tmp_path / "other.tflite").write_bytes(b"TFL3")
    with pytest.raises(UserError, match=r"other.tflite cannot be opened .*not an export"):
        msrcnn.load(tmp_path / "other.tflite")
