"""Which model_dir weights belong to, and which settings come from its record."""

import pytest

from trainer.config import Params
from trainer.flags import parse_command_line, parse_flags, write_flagfile
from trainer.run_record import home_of, load_record, recall_settings, write_record


def recall(*arguments: str) -> Params:
    return parse_command_line(["prog", *arguments], recall=recall_settings).params


def record(folder, *arguments: str) -> None:
    folder.mkdir(exist_ok=True, parents=True)
    write_flagfile(parse_flags(["prog", *arguments]), str(folder / "config.flags"))
    (folder / "checkpoint").touch()


@pytest.mark.parametrize("checkpoint", ["", "m/ckpt-4", "m", "m/best", "m/best/ckpt-2", "w/x"])
def test_weights_belong_to_the_folder_that_they_were_trained_in(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    record(tmp_path / "m")
    (tmp_path / "m" / "best").mkdir()
    (tmp_path / "w").mkdir()
    assert home_of("own", checkpoint) == ("m" if checkpoint.startswith("m") else "own")


def test_what_is_left_open_is_recalled(tmp_path):
    input_sizes = ("--short_side=96", "--train_short_side_min=96")
    record(tmp_path, *input_sizes, "--nms_iou=0.4", "--train_steps=7", "--data_service=grpc://a:1")
    params = recall(f"--model_dir={tmp_path}", "--nms_iou=0.3", "--short_side=128")
    assert (params.data.short_side, params.data.train_short_side_min) == (128, 96)
    assert (params.model.nms_iou, params.data.data_service) == (0.3, "")
    assert params.train == parse_flags(["prog", f"--model_dir={tmp_path}"]).train
    for folder in ("", "none"):
        flags = f"--model_dir={folder}"
        assert recall(flags) == parse_flags(["prog", flags])


def test_what_does_not_go_together_is_refused(tmp_path, capsys):
    record(tmp_path, "--short_side=700")
    with pytest.raises(SystemExit) as leaving:
        recall(f"--model_dir={tmp_path}", "--short_side=600")
    assert leaving.value.code == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert said.startswith(f"error: {tmp_path}/config.flags:")
    assert said.endswith(": --train_short_side_min=640: expected at most --short_side=600.")


def test_what_changes_no_prediction_is_not_warned_about(tmp_path, capsys):
    record(tmp_path, "--eval_batch_size=4")
    recall(f"--model_dir={tmp_path}", "--eval_batch_size=2", "--freeze_at=2")
    assert capsys.readouterr().err == ""
    recall(f"--model_dir={tmp_path}", "--pixel_mean=1,2,3", "--freeze_at=2")
    said = capsys.readouterr().err
    assert said.startswith("Warning: ") and said.count("--") == 2
    assert "--pixel_mean=1.0,2.0,3.0 (before: --pixel_mean=123.675,116.28,103.53)" in said


def test_the_first_of_two_changes_at_one_step_keeps_the_record(tmp_path):
    record(tmp_path, "--seed=1", f"--model_dir={tmp_path}")
    for seed in (2, 3):
        write_record(parse_flags(["prog", f"--seed={seed}", f"--model_dir={tmp_path}"]), 4)
    assert "--seed=1\n" in (tmp_path / "config.ckpt-4.flags").read_text()
    assert load_record(str(tmp_path))["seed"] == 3
