"""The benchmark as a command: its refusals, and whole measurements in processes."""

import json
import sys

import numpy as np
import pytest

from tools.benchmark import main
from tools.benchmarks import synthetic, write_networks


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["walk"],
        ["match", "--json=x", "--repeats=0"],
        ["--json=x"],
        ["match", "--json=x", "--against=nobody"],
        ["match", "--json=x", "--against=torchvision"],
        ["match", "--json=x", "--images=0"],
        ["match", "--json=x", "--instances=-3"],
        ["evaluate", "--json=x", "--kind=mask"],
        ["match", "--json=x", "--sweep=instances"],
        ["match", "--json=x", "--sweep=instances=many"],
        ["match", "--json=x", "--sweep=model_dir=1"],
        ["match", "--json=x", "--sweep=instances=1", "--against=model_garden"],
        ["match", "--json=x", "--against=model_garden:python:model.tflite"],
        ["match", "--json=x", "--against=model_garden,model_garden"],
        ["export", "--json=x"],
        ["export", "--json=x", "--exports=x", "--sweep=image_size=64"],
    ],
)
def test_bad_flags_exit_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as exit_status:
        main(["benchmark.py", *arguments])
    assert exit_status.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_missing_data_is_one_sentence(tmp_path, capsys):
    assert main(["benchmark.py", "evaluate", f"--json={tmp_path}/f.json"]) == 1
    assert capsys.readouterr().err.startswith("error: ours: --object_annotations_file")
    assert not (tmp_path / "f.json").exists()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["evaluate", "--kind=both"], "--kind=both: `evaluate` has bbox and segm"),
        (["match", "--image_size=100"], "--canvases=100x100: expected"),
        (["match", "--sweep=images=0,1"], "--images=0: expected a positive number"),
    ],
)
def test_settings_that_a_program_cannot_have_are_one_sentence(tmp_path, capsys, arguments, reason):
    assert main(["benchmark.py", *arguments, f"--json={tmp_path}/f.json"]) == 1
    assert capsys.readouterr().err.startswith(f"error: ours: {reason}")


def test_a_missing_interpreter_is_one_sentence(tmp_path, capsys):
    arguments = ["--image_size=128", "--images=2", "--repeats=1", f"--json={tmp_path}/f.json"]
    peer = f"--against=model_garden:{tmp_path}/python"
    assert main(["benchmark.py", "match", *arguments, peer]) == 1
    assert "cannot be run: No such file" in capsys.readouterr().err


def test_measures_a_sweep(tmp_path):
    arguments = ["--image_size=128", "--images=4", "--repeats=2", "--sweep=instances=2,3"]
    assert main(["benchmark.py", "match", *arguments, f"--json={tmp_path}/new/f.json"]) == 0
    figures = json.loads((tmp_path / "new" / "f.json").read_text(encoding="utf-8"))
    assert (figures["what"], figures["sweep"]) == ("match", "instances")
    assert [entry["settings"]["instances"] for entry in figures["contestants"]] == [2, 3]
    for entry in figures["contestants"]:
        assert 0 < entry["min"] <= entry["median"] <= entry["max"]
        assert entry["peak_rss_mb"] > 50
        assert entry["ready_seconds"] > 0


def test_compares_evaluations(tmp_path):
    coco = {
        "images": [{"id": 1, "height": 60, "width": 80, "file_name": "1.jpg"}],
        "categories": [{"id": 4, "name": "cat"}],
    }
    coco = synthetic.draw_annotations(coco, 5, np.random.default_rng(0))
    (tmp_path / "coco.json").write_text(json.dumps(coco), encoding="utf-8")
    arguments = [f"--object_annotations_file={tmp_path}/coco.json", "--kind=bbox"]
    arguments += ["--repeats=1", "--against=pycocotools", f"--json={tmp_path}/f.json"]
    assert main(["benchmark.py", "evaluate", *arguments]) == 0
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    assert [entry["name"] for entry in figures["contestants"]] == ["ours", "pycocotools"]
    assert "pycocotools" in figures["contestants"][1]["versions"]
    assert figures["ratios"]["pycocotools"]["median"] > 0


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A folder with a small network and its LiteRT files."""
    from tools.export_tflite import main as export_tflite

    folder = tmp_path_factory.mktemp("exported")
    small = ["--backbone=resnet18", "--backbone_width=8", "--fpn_channels=16", "--head_dim=16"]
    small += ["--num_classes=40", "--mask_size=8", "--rpn_pre_nms_test=30"]
    small += ["--rpn_post_nms_test=20", "--detections_per_image=6", "--image_size=64"]
    assert write_networks.main(["", "ours", f"{folder}/run", *small]) == 0
    arguments = [f"--model={folder}/run", f"--output={folder}", "--types=float32,dynamic"]
    assert export_tflite(["", *arguments]) == 0
    return folder


def test_compares_exported_models(exported, tmp_path):
    exports = f"{exported}/model_float32.tflite,{exported}/model_dynamic.tflite"
    arguments = [f"--exports={exports}", "--image_size=64", "--repeats=1"]
    assert main(["benchmark.py", "export", *arguments, f"--json={tmp_path}/f.json"]) == 0
    figures = json.loads((tmp_path / "f.json").read_text(encoding="utf-8"))
    first, second = figures["contestants"]
    assert first["name"] == "ours LiteRT model_float32.tflite"
    assert second["name"] == "ours LiteRT model_dynamic.tflite"
    assert figures["ratios"][second["name"]]["median"] > 0
    assert first["file_mb"] == (exported / "model_float32.tflite").stat().st_size / 1e6
    assert first["peak_rss_mb"] < 400, "LiteRT needs no TensorFlow"
    for entry in (first, second):
        assert entry["settings"]["backbone"] == "resnet18"
        assert entry["settings"]["batch_size"] == 1


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--exports={}/run"], "There is no exported model in "),
        (["--exports={}/model_float32.tflite"], "takes images of 64x64 pixels: set --image_size"),
        (
            [
                "--exports={}/model_float32.tflite",
                f"--against=model_garden:{sys.executable}:{{}}/none",
            ],
            "/none does not exist; tools/benchmarks/write_networks.py writes it.",
        ),
    ],
)
def test_exported_models_that_cannot_be_run_are_one_sentence(
    exported, tmp_path, capsys, arguments, reason
):
    given = [argument.format(exported) for argument in arguments]
    assert main(["benchmark.py", "export", *given, f"--json={tmp_path}/f.json"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and reason in error and error.count("\n") == 1


def test_networks_of_peers_need_their_packages(tmp_path, capsys):
    assert write_networks.main(["", "model_garden", f"{tmp_path}/garden"]) == 1
    assert capsys.readouterr().err == (
        "error: No module named 'official'; run this with an interpreter that has it.\n"
    )
    with pytest.raises(SystemExit) as exit_status:
        write_networks.main(["", "torchvision", f"{tmp_path}/torch", "--image_size=0"])
    assert exit_status.value.code == 2
    assert "--image_size=0: expected a positive number" in capsys.readouterr().err
