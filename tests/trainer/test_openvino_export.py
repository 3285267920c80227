"""OpenVINO models: what they find against TensorFlow, and what is refused."""

import numpy as np
import pytest
from small_model import CANVAS, photograph

import msrcnn
from data.errors import UserError
from trainer.export import export
from trainer.run_record import load_params


@pytest.fixture(scope="module", autouse=True)
def packages():
    for package in ("openvino", "nncf"):
        pytest.importorskip(package, reason="needs the extra `openvino`")


def test_load_opens_a_model_behind_the_same_call(small_model, small_exports):
    image = photograph(64, 96, seed=5)
    expected = msrcnn.load(small_model, canvases=[CANVAS])(image)
    for _ in range(2):  # Reading outside its memory would differ between runs.
        found = msrcnn.load(small_exports / "openvino" / "float32")(image)
        assert found.names == expected.names
        np.testing.assert_allclose(found.boxes, expected.boxes, atol=1e-2)
        np.testing.assert_allclose(found.mask_scores, expected.mask_scores, atol=1e-4)
        np.testing.assert_allclose(found.probabilities, expected.probabilities, atol=1e-4)


def test_int8_is_near_and_bfloat16_takes_half_the_room(small_exports):
    models = small_exports / "openvino"
    image = photograph(64, 96)
    whole, eight = (msrcnn.load(models / kind)(image) for kind in ("float32", "int8"))
    np.testing.assert_allclose(eight.box_scores, whole.box_scores, atol=0.03)
    assert "FakeQuantize" in (models / "int8" / "model.xml").read_text()
    sizes = [(models / kind / "model.bin").stat().st_size for kind in ("bfloat16", "float32")]
    assert sizes[0] < 0.7 * sizes[1]


def test_other_folders_are_not_openvino_exports(tmp_path):
    (tmp_path / "model.xml").write_text("<net/>")
    with pytest.raises(UserError, match=r"cannot be opened .*not an export of this project"):
        msrcnn.load(tmp_path)


def test_without_records_to_calibrate_on_nothing_is_written(small_model, tmp_path):
    given = {"mode": "export", "canvas": CANVAS, "export_formats": ("saved_model", "openvino")}
    given["output_dir"] = str(tmp_path / "other")
    for pattern, words in (
        ("", "calibration_file_pattern"),
        (str(tmp_path / "none-*"), "no file matches"),
    ):
        changes = {"calibration_file_pattern": pattern}
        with pytest.raises(UserError, match=words):
            export(load_params(str(small_model), given | changes))
    assert not (tmp_path / "other").exists()
