"""The tool that finds a learning rate: its files, its suggestion, its refusals."""

import json
import pathlib
import sys

import numpy as np
import pytest

from data.tfrecords import write_shard
from tools.find_learning_rate import _describe, draw, main
from trainer.rate_range import Suggestion, Trial

TESTS = pathlib.Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS / "trainer"), str(TESTS / "data")]
from sample_records import make_instance, make_record  # noqa: E402
from small_model import photograph  # noqa: E402
from toy_model import toy_params  # noqa: E402

SMALL = """
--canvases=64x64
--short_side=64
--long_side=64
--train_short_side_min=64
--backbone=resnet18
--backbone_width=8
--fpn_channels=16
--head_dim=16
--norm=gn
--freeze_at=0
--rpn_pre_nms_train=50
--rpn_post_nms_train=20
--rois_per_image=8
--train_batch_size=2
--learning_rate_batch_size=16
--system=faster_rcnn
--model_dir=elsewhere
"""


@pytest.fixture(scope="module")
def flagfile(tmp_path_factory):
    folder = tmp_path_factory.mktemp("records")
    mask = np.zeros((64, 64), np.uint8)
    mask[10:40, 8:50] = 1
    records = [
        make_record(photograph(64, 64, seed), [make_instance(mask)], image_id=seed + 1)
        for seed in range(4)
    ]
    write_shard(str(folder / "train.tfrecord"), records)
    path = folder / "small.flags"
    path.write_text(f"{SMALL}--train_file_pattern={folder}/train.tfrecord\n")
    return path


def test_it_writes_losses_and_chart_and_suggests_a_rate(flagfile, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [f"--flagfile={flagfile}", "--output_dir=rates", "--steps=25", "--highest=100"]
    assert main(["find", *arguments]) == 0
    content = json.loads((tmp_path / "rates" / "learning_rate.json").read_text())
    first, second = content["trials"][:2]
    assert first["learning_rate"] == pytest.approx(1e-6)
    assert second["learning_rate"] == pytest.approx(1e-6 * 1e8 ** (1 / 24), rel=1e-4)
    assert first["loss"] == pytest.approx(first["smoothed"])
    assert 0 < content["steepest"] <= content["lowest_loss"] < 100
    said = capsys.readouterr().out
    # The recipe multiplies the flag by 2 / 16.
    assert f"fastest at a learning rate of {content['steepest']:.2g}" in said
    assert f"{8 * content['steepest']:.2g}" in said.split("Try --learning_rate=")[1]
    chart = (tmp_path / "rates" / "learning_rate.svg").read_text()
    assert chart.startswith("<?xml") and "Loss by learning rate" in chart
    assert {path.name for path in tmp_path.iterdir()} == {"rates"}, "no model_dir"


def test_the_suggestion_is_for_the_flag_and_not_for_the_scaled_rate(tmp_path):
    found = Suggestion(steepest=0.004, lowest_loss=0.1)
    plain = toy_params(tmp_path)
    assert "Try --learning_rate=0.004 to 0.01: the" in _describe(plain, found, "x")
    scaled = toy_params(tmp_path, learning_rate_batch_size=16)
    said = _describe(scaled, found, "x")
    assert "Try --learning_rate=0.016 to 0.04 (times 0.25 by --learning_rate_batch_size=16)" in said


def test_the_chart_has_the_losses_and_the_rates_found():
    trials = [Trial(1e-3, 3.0, 3.0), Trial(1e-2, 1.0, 2.0), Trial(1e-1, 9.0, 2.5)]
    (axes,) = draw(trials, Suggestion(1e-3, 1e-2), "note").axes
    each, smoothed, steepest, tenth = axes.lines
    assert list(each.get_ydata()) == [3.0, 1.0, 9.0]
    assert list(smoothed.get_ydata()) == [3.0, 2.0, 2.5]
    assert steepest.get_xdata() == [1e-3, 1e-3] and tenth.get_xdata() == [1e-3, 1e-3]
    assert axes.get_xscale() == "log"
    assert len(draw([], None, "note").axes[0].lines) == 2


def test_without_matplotlib_there_are_the_losses(flagfile, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.setattr("tools.find_learning_rate.find", lambda *_: [Trial(1.0, 2.0, 3.0)] * 20)
    assert main(["find", f"--flagfile={flagfile}", f"--output_dir={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "Warning: there is no chart" in said
    assert "error: no learning rate lowers the loss" in said
    assert [path.name for path in tmp_path.iterdir()] == ["learning_rate.json"]


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--steps=9", "--steps=9: expected 10 or more"),
        ("--lowest=0", "--lowest=0.0: expected a positive number"),
        ("--highest=1e-7", "--highest=1e-07: expected more than --lowest=1e-06"),
        ("--highest=nan", "--highest=nan: expected more than"),
        ("--output_dir=", "--output_dir is not set"),
    ],
)
def test_bad_flags_exit_with_2(flagfile, argument, said, capsys):
    with pytest.raises(SystemExit) as exited:
        main(["find", f"--flagfile={flagfile}", "--output_dir=x", argument])
    assert exited.value.code == 2
    assert said in capsys.readouterr().err


def test_several_workers_are_refused(flagfile, tmp_path, monkeypatch, capsys):
    cluster = {"worker": ["a:1", "b:1"]}
    config = {"cluster": cluster, "task": {"type": "worker", "index": 0}}
    monkeypatch.setenv("TF_CONFIG", json.dumps(config))
    assert main(["find", f"--flagfile={flagfile}", f"--output_dir={tmp_path}"]) == 1
    assert "one machine: unset TF_CONFIG" in capsys.readouterr().err
