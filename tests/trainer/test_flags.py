"""Settings survive the way through flags, flagfiles compose, and mistakes are sentences."""

import dataclasses
import pathlib
import subprocess
import sys

import pytest
from absl import flags
from hypothesis import given
from hypothesis import strategies as st

from data.config import DataConfig
from model.config import ModelConfig
from trainer.config import Params, TrainConfig
from trainer.flags import (
    define_flags,
    list_settings,
    params_from_flags,
    parse_command_line,
    parse_flags,
    write_flagfile,
)

ROOT = pathlib.Path(__file__).parents[2]


def parse(*arguments: str) -> Params:
    return parse_flags(["prog", *arguments])


def refusal(capsys, *arguments: str) -> str:
    with pytest.raises(SystemExit) as leaving:
        parse(*arguments)
    assert leaving.value.code == 2
    said = capsys.readouterr().err
    assert "Traceback" not in said
    return said


def test_no_flags_give_the_dataclasses_defaults():
    assert parse() == Params()


def test_every_field_is_a_flag_with_help():
    fields = {
        field.name
        for config in (DataConfig, ModelConfig, TrainConfig)
        for field in dataclasses.fields(config)
    }
    settings = list(list_settings())
    assert {setting.name for setting in settings} == fields
    assert len(settings) == len(fields), "two rooms share a name"
    assert all(setting.help for setting in settings)


def test_each_kind_of_value_is_parsed():
    params = parse(
        "--num_classes=81",
        "--learning_rate=1e-3",
        "--backbone=resnet18",
        "--anchor_ratios=0.5,1,2,3",
        "--learning_rate_steps=1,2",
        "--canvases=64x64, 64x96",
        "--noinclude_maskiou",
        "--deterministic",
    )
    assert params.model.num_classes == 81
    assert params.train.learning_rate == 1e-3
    assert params.model.backbone == "resnet18"
    assert params.data.anchor_ratios == (0.5, 1.0, 2.0, 3.0)
    assert params.train.learning_rate_steps == (1, 2)
    assert params.data.canvases == ("64x64", "64x96")
    assert params.model.include_maskiou is False
    assert params.data.deterministic is True


def test_flags_of_the_process_work_too():
    values = flags.FlagValues()
    define_flags(values)
    values(["prog", "--train_steps=7"])
    assert params_from_flags(values).train.train_steps == 7


@given(
    rate=st.floats(1e-9, 10.0),
    steps=st.lists(st.integers(0, 10**6), max_size=4),
    deterministic=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_flagfile_round_trip(tmp_path_factory, rate, steps, deterministic, seed):
    params = Params(
        data=DataConfig(deterministic=deterministic, seed=seed, canvases=("64x96",)),
        model=ModelConfig(include_mask=False, include_maskiou=False, pixel_std=(1.0, 0.1, 3e-7)),
        train=TrainConfig(learning_rate=rate, learning_rate_steps=tuple(sorted(steps))),
    )
    path = str(tmp_path_factory.mktemp("flags") / "config.flags")
    write_flagfile(params, path)
    assert parse(f"--flagfile={path}") == params


def test_flagfile_records_every_setting(tmp_path):
    path = tmp_path / "config.flags"
    write_flagfile(Params(), str(path))
    lines = [line for line in path.read_text().splitlines() if line.startswith("--")]
    assert len(lines) == len(list(list_settings())) - 1, "the mode is no setting of the model's"
    assert "--anchor_sizes=32.0,64.0,128.0,256.0,512.0" in lines
    assert "--nodeterministic" in lines


def test_flagfiles_compose_and_later_flags_win(tmp_path):
    base, own = tmp_path / "base.flags", tmp_path / "own.flags"
    base.write_text("# shared\n--train_steps=10\n--seed=1\n--norm=gn\n")
    own.write_text(f"--flagfile={base}\n--seed=2\n")
    params = parse(f"--flagfile={own}", "--norm=bn")
    assert params.train.train_steps == 10
    assert params.data.seed == 2
    assert params.model.norm == "bn"


def test_the_command_line_wins_wherever_it_stands(tmp_path):
    first, second = tmp_path / "first.flags", tmp_path / "second.flags"
    first.write_text("--train_steps=10\n--seed=1\n--norm=gn\n")
    second.write_text("--seed=2\n")
    command = parse_command_line(
        ["prog", "--norm=bn", "--flagfile", str(first), "--nodeterministic", f"--flagfile={second}"]
    )
    assert command.params.train.train_steps == 10
    assert command.params.data.seed == 2
    assert command.params.model.norm == "bn"
    assert command.places == {
        "train_steps": f"{first}:1",
        "seed": f"{second}:1",
        "norm": "",
        "deterministic": "",
    }
    assert command.literal == {"norm", "deterministic"}


def test_a_tilde_is_the_home_folder(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ada")
    params = parse("--model_dir=~/runs/x", "--init_checkpoint=~/w", "--output_dir=a~b")
    assert params.train.model_dir == "/home/ada/runs/x"
    assert params.train.init_checkpoint == "/home/ada/w"
    assert params.train.output_dir == "a~b"


def test_a_setting_of_the_network_changes_predictions_or_concerns_training_alone():
    """Evaluation warns about the former; a further setting belongs into one of the two sets."""
    training_alone = {
        "jit_compile", "freeze_at", "rpn_pre_nms_train", "rpn_post_nms_train", "rpn_box_loss_beta",
        "rpn_loss_normaliser", "rois_per_image", "roi_positive_fraction", "roi_positive_iou",
        "box_loss_beta", "mask_target", "maskiou_target_area", "maskiou_target_threshold",
        "maskiou_stop_gradient", "maskiou_loss_weight",
    }  # fmt: skip
    settings = list(list_settings())
    silent = {s.name for s in settings if s.room == "model" and not s.changes_predictions}
    assert silent == training_alone
    of_input = {s.name for s in settings if s.room != "model" and s.changes_predictions}
    assert of_input == {
        "canvases", "short_side", "long_side", "anchor_sizes", "anchor_ratios", "anchor_rounding",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--learning_rate_steps=1,x", "learning_rate_steps"),
        ("--train_steps=0", "--train_steps=0: expected a positive number"),
        ("--mode=fly", "--mode=fly: expected one of train"),
        ("--canvases=33x64", "33x64"),
        ("train", "'train' is not a flag"),
        ("--flagfile=/nowhere/x.flags", "/nowhere/x.flags"),
        ("--learning_rate", "--learning_rate has no value"),
        ("--learning_rat=1", "did you mean --learning_rate?"),
        ("--train_steps=many", "--train_steps=many: expected a whole number."),
        ("--learning_rate=fast", "--learning_rate=fast: expected a number."),
        ("--anchor_ratios=1,x", "--anchor_ratios=1,x: expected a comma list, each item a number."),
        ("--include_mask=perhaps", "--include_mask=perhaps: expected true or false."),
        ("--model_dir=a\nb", "--model_dir has a line break"),
    ],
)
def test_bad_flags_are_one_sentence_and_exit_2(capsys, argument, words):
    said = refusal(capsys, argument)
    assert words in said
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1


def test_help_exits_0_without_tensorflow():
    program = (
        "import sys; sys.argv = ['prog', sys.argv[1]]\n"
        "from trainer.main import main\n"
        "try: main(sys.argv)\n"
        "except SystemExit as e: print(e.code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    meanings = dict.fromkeys(("-h", "--help", "--helpfull"), "Steps in all")
    for flag, shown in {**meanings, "--helpshort": "--train_steps=90000"}.items():
        done = subprocess.run(
            [sys.executable, "-c", program, flag], cwd=ROOT, capture_output=True, text=True
        )
        assert done.stdout.endswith("0 False False\n"), done.stderr
        assert shown in done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.flags")), ids=lambda p: p.stem)
def test_shipped_flagfiles_parse_and_say_what_to_expect(path, monkeypatch):
    monkeypatch.chdir(ROOT)
    parse(f"--flagfile=configs/{path.name}")
    comments = [line for line in path.read_text().splitlines() if line.startswith("#")]
    for word in ("Command:", "Hardware:", "Time:", "Expected AP:"):
        assert any(word in line for line in comments), word


def test_r50_is_the_papers_recipe(monkeypatch):
    monkeypatch.chdir(ROOT)
    params = parse("--flagfile=configs/r50.flags")
    assert params.model.backbone == "resnet50"
    assert params.train.learning_rate_steps == (60000, 80000)
    assert (params.train.learning_rate, params.train.learning_rate_batch_size) == (0.02, 16)
