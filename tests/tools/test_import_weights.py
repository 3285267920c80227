"""Importing weights from the command line."""

import pathlib
import sys

import numpy as np
import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "model" / "importers"))
from resnet_tensors import WIDTH, resnet18_tensors  # noqa: E402

from data.config import DataConfig
from data.errors import UserError
from model.config import ModelConfig
from model.systems import build_network
from tools.import_weights import parse_classes, run
from trainer.checkpoint_files import load_network
from trainer.config import Params

SMALL = {
    "backbone": "resnet18",
    "backbone_width": WIDTH,
    "fpn_channels": 8,
    "head_dim": 8,
    "norm": "frozen_bn",
}


def flags(**settings):
    return ["import_weights"] + [f"--{name}={value}" for name, value in settings.items()]


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "resnet18.npz"
    np.savez(path, **resnet18_tensors())
    return path


def imported(path, **settings):
    network = build_network(Params(model=ModelConfig(**SMALL, **settings), data=DataConfig(seed=9)))
    load_network(network, str(path))
    return network


def test_a_checkpoint_to_start_from(source, tmp_path, capsys):
    output = tmp_path / "new" / "resnet18"
    run(flags(source=source, output=output, num_classes=4, **SMALL))
    said = capsys.readouterr().out
    assert "Weights of torchvision ResNet" in said
    assert f"Wrote {output}: use it as --init_checkpoint" in said
    kernel = imported(output, num_classes=4).backbone.stem.conv.kernel.numpy()
    np.testing.assert_array_equal(kernel, resnet18_tensors()["conv1.weight"].transpose(2, 3, 1, 0))
    report = pathlib.Path(f"{output}.report.txt").read_text()
    assert "reshaped\tconv1.weight\tbackbone/stem/conv/kernel\n" in report
    assert "skipped\tfc.weight\tnot part of the network\n" in report
    assert "initial\t\tbox_head/classes/kernel\n" in report


def refused(capsys, code, *arguments):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == code
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    return error


def test_half_a_backbone_needs_to_be_allowed(tmp_path, capsys):
    tensors = resnet18_tensors()
    del tensors["layer4.1.conv2.weight"]
    source, output = tmp_path / "half.npz", tmp_path / "half"
    np.savez(source, **tensors)
    arguments = flags(source=source, output=output, num_classes=4, **SMALL)
    error = refused(capsys, 1, arguments)
    assert "backbone/stages/3/1/conv2/conv/kernel" in error and "--allow_partial" in error
    assert [path.name for path in tmp_path.iterdir()] == ["half.npz"]

    run([*arguments, "--allow_partial"])
    network = imported(output, num_classes=4)
    assert np.any(network.backbone.stages[3][1].conv2.conv.kernel.numpy())
    report = pathlib.Path(f"{output}.report.txt").read_text()
    assert "missing\t\tbackbone/stages/3/1/conv2/conv/kernel\n" in report


def test_numbers_that_are_not_finite_are_refused_even_in_part(tmp_path, capsys):
    tensors = resnet18_tensors()
    tensors["layer1.0.conv1.weight"] = np.full_like(tensors["layer1.0.conv1.weight"], 1e39, "f8")
    np.savez(tmp_path / "large.npz", **tensors)
    arguments = flags(source=tmp_path / "large.npz", output=tmp_path / "o", num_classes=4, **SMALL)
    error = refused(capsys, 1, [*arguments, "--allow_partial"])
    assert "layer1.0.conv1.weight" in error and "not finite" in error
    assert [path.name for path in tmp_path.iterdir()] == ["large.npz"]


def test_what_cannot_be_used_is_one_sentence(source, tmp_path, capsys):
    output = tmp_path / "out"
    np.savez(tmp_path / "other.npz", a=np.zeros(3), b=np.zeros(2))
    other = flags(source=tmp_path / "other.npz", output=output, num_classes=4, **SMALL)
    assert "not those of a supported program: a, b" in refused(capsys, 1, other)
    missing = flags(source=tmp_path / "absent.pth", output=output, num_classes=4, **SMALL)
    assert "absent.pth" in refused(capsys, 1, missing)
    chosen = [*other, f"--source={source}", "--keep_classes=1,2"]
    assert "the file has no outputs for classes" in refused(capsys, 1, chosen)
    unsaid = flags(source=source, output=output, **SMALL)
    assert "give --num_classes" in refused(capsys, 1, unsaid)
    assert "--output is missing" in refused(capsys, 2, flags(source=source, num_classes=4, **SMALL))
    group_norm = flags(source=source, output=output, num_classes=4, **(SMALL | {"norm": "gn"}))
    assert "batch norm" in refused(capsys, 1, group_norm)
    folder = flags(source=source, output=f"{output}/", num_classes=4, **SMALL)
    assert "expected a file name" in refused(capsys, 2, folder)
    nowhere = flags(source=source, output="/proc/none", num_classes=4, **SMALL)
    assert "--output=/proc/none cannot be written" in refused(capsys, 1, nowhere)
    colours = flags(source=source, output=output, channel_order="grb", **SMALL)
    assert "expected rgb or bgr" in refused(capsys, 2, colours)
    for epsilon in ("nan", "inf", "-1"):
        strange = flags(source=source, output=output, batch_norm_epsilon=epsilon, **SMALL)
        assert "expected a number of 0 or more" in refused(capsys, 2, strange)
    assert not output.exists() and not list(tmp_path.glob("out*"))


def test_help_shows_the_program_s_own_flags_first(capsys):
    with pytest.raises(SystemExit):
        run(["import_weights", "--help"])
    said = capsys.readouterr().out
    assert said.index("--source=") < said.index("--keep_classes=") < said.index("--num_classes=")


def test_classes_are_named_by_number():
    assert parse_classes("", 5) == []
    assert parse_classes("3,1", 5) == [3, 1]
    for text in ("0", "5", "cat", "1,,2", "coco91"):
        with pytest.raises(UserError, match="expected numbers from 1 to 4"):
            parse_classes(text, 5)
