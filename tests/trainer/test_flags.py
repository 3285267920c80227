"""Settings survive the way through flags, flagfiles compose, and mistakes are sentences."""

import dataclasses
import pathlib
import subprocess
import sys
import typing

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
    assert len(settings) == len(fields), "two parts share a name"
    assert all(setting.help for setting in settings)


def test_each_kind_of_value_is_parsed():
    params = parse(
        "--num_classes=81",
        "--learning_rate=1e-3",
        "--backbone=resnet18",
        "--anchor_ratios=0.5,1,2,3",
        "--learning_rate_steps=1,2",
        "--canvases=64x64, 64x96",
        "--system=mask_rcnn",
        "--norescore",
        "--deterministic",
    )
    assert params.model.num_classes == 81
    assert params.train.learning_rate == 1e-3
    assert params.model.backbone == "resnet18"
    assert params.data.anchor_ratios == (0.5, 1.0, 2.0, 3.0)
    assert params.train.learning_rate_steps == (1, 2)
    assert params.data.canvases == ("64x64", "64x96")
    assert params.model.system == "mask_rcnn"
    assert params.model.rescore is False
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
    seed=st.integers(0, 2**31 - 1),
)
def test_flagfile_round_trip(tmp_path_factory, rate, steps, deterministic, seed):
    params = Params(
        data=DataConfig(deterministic=deterministic, seed=seed, canvases=("64x96",)),
        model=ModelConfig(system="faster_rcnn", pixel_std=(1.0, 0.1, 3e-7)),
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


# Numbers with which a run goes on: what they mean, or what else bounds them.
MEMORY = "the machine's memory bounds it"
TIME = "only the run's length bounds it"
ACCEPTED = {
    "0": {
        "seed": "a seed as any other",
        "horizontal_flip": "never mirrored",
        "vertical_flip": "never mirrored",
        "input_threads": "left to tf.data",
        "num_classes": "taken from the records",
        "freeze_at": "nothing is frozen",
        "backbone_width": "as published",
        "pixel_mean": "nothing is subtracted",
        "rpn_nms_iou": "proposals do not overlap",
        "nms_iou": "detections of a class do not overlap",
        "rpn_box_loss_beta": "plain L1",
        "box_loss_beta": "plain L1",
        "roi_sampling_ratio": "adaptive",
        "box_num_convs": "none, as in the paper",
        "rpn_channels": "as many as the input has",
        "maskiou_loss_weight": "the head is not trained",
        "score_threshold": "everything is detected",
        "num_logical_cpus": "the CPU is not split",
        "learning_rate_batch_size": "the rate is not scaled",
        "learning_rate_steps": "the first step has the lower rate",
        "warmup_steps": "no warm-up",
        "warmup_factor": "a warm-up from 0",
        "momentum": "plain SGD",
        "weight_decay": "no decay",
        "gradient_clip_norm": "not clipped",
        "ema_decay": "weights are not averaged",
        "nonfinite_retries": "a loss that is not finite is refused",
        "save_every_minutes": "by steps only",
        "patience": "training does not stop early",
        "num_eval_images_shown": "none is shown",
    },
    "-1": {"pixel_mean": "an offset as any other"},
    "1e9": {
        **dict.fromkeys(
            (
                "train_batch_size", "eval_batch_size", "max_instances", "max_polygon_vertices",
                "mask_crop_size", "rpn_samples_per_image", "shuffle_megabytes", "input_threads",
                "max_proposals", "rpn_channels",
                "num_classes", "backbone_width", "fpn_channels", "rpn_num_convs",
                "rpn_pre_nms_train", "rpn_pre_nms_test", "rpn_post_nms_train", "rpn_post_nms_test",
                "rois_per_image", "roi_sampling_ratio", "box_num_convs", "box_num_fcs", "head_dim",
                "mask_size", "detections_per_image", "num_logical_cpus", "keep_checkpoints",
                "num_eval_images_shown",
            ),
            MEMORY,
        ),
        **dict.fromkeys(
            (
                "train_steps", "warmup_steps", "learning_rate_steps", "log_every_steps",
                "save_every_steps", "save_every_minutes", "eval_every_steps",
            ),
            TIME,
        ),
        "seed": "a seed as any other",
        "long_side": "the canvas bounds the picture",
        "short_side": "the canvas bounds the picture",
        "pixel_mean": "an offset as any other",
        "pixel_std": "all pixels are nearly 0",
        "rpn_box_loss_beta": "L2",
        "box_loss_beta": "L2",
        "learning_rate_batch_size": "a small rate",
        "learning_rate": "a loss that is not finite is refused",
        "weight_decay": "a loss that is not finite is refused",
        "maskiou_loss_weight": "a loss that is not finite is refused",
        "gradient_clip_norm": "never clipped",
        "nonfinite_retries": "the rate becomes 0",
        "patience": "training does not stop early",
    },
}  # fmt: skip


def numeric_settings():
    for setting in list_settings():
        kind = typing.get_args(setting.type)[0] if setting.type not in KINDS else setting.type
        if kind in (int, float):
            yield setting, kind


KINDS = (int, float, str, bool)


@pytest.mark.parametrize("number", ["nan", "inf", "-inf", "-1", "0", "1e9", "1e300"])
def test_numbers_are_refused_in_one_sentence_or_have_a_meaning(capsys, number):
    accepted = set()
    for setting, kind in numeric_settings():
        text = "1000000000" if (kind, number) == (int, "1e9") else number
        default = getattr(getattr(Params(), setting.part), setting.name)
        count = len(default) if isinstance(default, tuple) else 1
        flag = f"--{setting.name}={','.join([text] * count)}"
        try:
            parse(flag)
            accepted.add(setting.name)
        except SystemExit as leaving:
            said = capsys.readouterr().err
            assert leaving.code == 2
            assert said.startswith("error: ") and said.count("\n") == 1 and setting.name in said
    assert accepted == ACCEPTED.get(number, {}).keys()


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (
            ["--rois_per_image=3"],
            "--roi_positive_fraction=0.25: expected a fraction that gives at least one positive",
        ),
        (
            ["--rpn_samples_per_image=1"],
            "--rpn_positive_fraction=0.5: expected a fraction that gives at least one positive",
        ),
        (["--canvases=32000x32000"], "expected canvases with fewer than 16777216 anchors"),
        (
            ["--anchor_sizes=1,2,4,8,16", "--anchor_rounding"],
            "--anchor_rounding=True: expected false, or --anchor_sizes whose sides are all above 1",
        ),
        (["--anchor_levels=2,4"], "--anchor_levels=2,4: expected ascending levels from 2 to 6"),
        (["--anchor_levels=4,5"], "expected as many for each of the 2 --anchor_levels"),
        (["--anchor_ratios="], "--anchor_ratios=: expected at least one value"),
        (["--pixel_std=0,1,1"], "--pixel_std=0.0,1.0,1.0: expected 3 values, each a positive"),
        (["--seed=1" + "0" * 400], "expected at most 2147483647"),
        (
            ["--augmentations=copy_paste", "--mask_target=polygon"],
            "--augmentations=copy_paste: expected no copy_paste if the system has no masks or with",
        ),
        (
            ["--augmentations=copy_paste", "--system=faster_rcnn"],
            "no copy_paste",
        ),
        (["--augmentations=mosaic"], "--augmentations=mosaic: expected names among photometric_"),
        (["--learning_rate=1e-60"], "expected numbers in single precision's range"),
    ],
)
def test_settings_with_which_nothing_can_be_learnt_are_refused(capsys, arguments, sentence):
    assert sentence in refusal(capsys, *arguments)


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
        "box_loss_beta", "mask_target", "maskiou_target_area", "maskiou_target_classes",
        "maskiou_target_threshold",
        "maskiou_stop_gradient", "maskiou_loss_weight", "train_only",
        "maskiou_perturbed_masks",
    }  # fmt: skip
    settings = list(list_settings())
    silent = {s.name for s in settings if s.part == "model" and not s.changes_predictions}
    assert silent == training_alone
    of_input = {s.name for s in settings if s.part != "model" and s.changes_predictions}
    assert of_input == {
        "canvases", "short_side", "long_side", "exif", "anchor_levels", "anchor_sizes",
        "anchor_ratios", "anchor_rounding", "max_proposals", "test_scales", "test_flip",
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
        (
            "--anchor_ratios=1,x",
            "--anchor_ratios=1,x: expected a comma-separated list, each item a number.",
        ),
        ("--rescore=perhaps", "--rescore=perhaps: expected true or false."),
        ("--model_dir=a\nb", "--model_dir has a line break"),
    ],
)
def test_bad_flags_are_one_sentence_and_exit_2(capsys, argument, words):
    said = refusal(capsys, argument)
    assert words in said
    assert said.startswith("error: ")
    assert len(said.strip().splitlines()) == 1


def test_further_evaluations_are_refused_where_they_measure_nothing(capsys):
    said = refusal(capsys, "--eval_boundary", "--system=faster_rcnn")
    assert "--eval_boundary=True: expected false for --system=faster_rcnn" in said
    lacking = (
        "--eval_lvis_style=True: expected false for --mode=eval without --eval_annotation_file"
    )
    assert lacking in refusal(capsys, "--eval_lvis_style", "--mode=eval")
    assert parse("--eval_lvis_style", "--mode=train").train.eval_lvis_style
    assert parse("--eval_lvis_style", "--mode=eval", "--eval_annotation_file=a.json")


def test_help_exits_0_without_tensorflow():
    program = (
        "import sys; sys.argv = ['prog', sys.argv[1]]\n"
        "from trainer.main import main\n"
        "try: main(sys.argv)\n"
        "except SystemExit as e: print(e.code, 'tensorflow' in sys.modules, 'keras' in sys.modules)"
    )
    meanings = dict.fromkeys(("-h", "--help", "--helpfull"), "Total number of training steps")
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
