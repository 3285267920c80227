"""The command line from end to end over a toy, and what it refuses."""

import json
import shutil
import sys
import types

import numpy as np
import pytest
import tensorflow as tf
from full_disk import filled, small_disk
from toy_model import build_network, make_train_input_fn, toy_model_fn

from data import files
from data.manifest import Manifest, write_manifest
from data.records import encode_example
from data.tfrecords import write_shard
from trainer.flags import parse_flags
from trainer.main import main
from trainer.run_record import load_record

CATEGORIES = ({"label": 1, "id": 7, "name": "cell"},)
FLAGS = [
    "--train_batch_size=2",
    "--eval_batch_size=2",
    "--train_steps=4",
    "--log_every_steps=2",
    "--save_every_steps=2",
    "--eval_every_steps=2",
    "--num_eval_images_shown=1",
]


def write_records(folder, name, **changes) -> str:
    """A manifest beside an empty shard; the toy's input does not read it."""
    shard = f"{name}-00000-of-00001.tfrecord"
    (folder / shard).touch()
    fields = dict(
        num_images=2,
        num_instances=2,
        num_crowds=0,
        max_instances_per_image=1,
        include_masks=True,
        categories=CATEGORIES,
        skipped={"images": 0, "annotations": 0, "items": []},
        shards=({"name": shard, "num_images": 2, "bytes": 0, "sha256": ""},),
    )
    write_manifest(f"{folder}/{name}.manifest.json", Manifest(**{**fields, **changes}))
    return f"{folder}/{name}-*.tfrecord"


def toy_input_fn(mode, params, context=None, start_step=0):
    if mode == "train":
        return make_train_input_fn([1.0, 2.0])(mode, params, context, start_step)
    batch = {"image": np.zeros((1, 2, 8, 8, 3), np.uint8), "image_id": np.array([[1, 3]])}
    return tf.data.Dataset.from_tensor_slices(batch)


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Records, an annotation file, and the toy in the place of the real network and input."""
    parts = {
        "model.systems": {"build_network": build_network},
        "model.model_fn": {"model_fn": toy_model_fn},
        "data.input_fn": {"input_fn": toy_input_fn},
    }
    for name, content in parts.items():
        module = types.ModuleType(name)
        module.__dict__.update(content)
        monkeypatch.setitem(sys.modules, name, module)
    annotation = {"id": 1, "image_id": 1, "category_id": 7, "bbox": [2, 1, 3, 2], "area": 6}
    ground_truth = {
        "images": [{"id": i, "height": 8, "width": 8, "file_name": f"{i}.png"} for i in (1, 3)],
        "annotations": [{**annotation, "iscrowd": 0}],
        "categories": [{"id": 7, "name": "cell"}],
    }
    (tmp_path / "val.json").write_text(json.dumps(ground_truth))
    write_records(tmp_path, "train")
    write_records(tmp_path, "val")
    return tmp_path


def run(folder, mode: str, *more: str) -> int:
    return main(
        [
            "prog",
            *FLAGS,
            f"--mode={mode}",
            f"--model_dir={folder}/m",
            f"--train_file_pattern={folder}/train-*.tfrecord",
            f"--eval_file_pattern={folder}/val-*.tfrecord",
            f"--eval_annotation_file={folder}/val.json",
            *more,
        ]
    )


def refusal(capsys) -> str:
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def test_train_and_eval_leaves_everything_promised(workplace, capsys):
    assert run(workplace, "train_and_eval") == 0
    folder = workplace / "m"
    metrics = json.loads((folder / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 4
    assert 0 <= metrics["bbox"]["AP"] <= 1
    assert 0 <= metrics["quality"]["box_score"]["oLRP"] <= 1
    assert [entry["category_id"] for entry in json.loads((folder / "eval/bbox.json").read_text())]
    assert [json.loads(line)["step"] for line in (folder / "train.jsonl").open()] == [2, 4]
    assert json.loads((folder / "best" / "best.json").read_text())["step"] == 2
    assert list((folder / "summaries" / "eval").glob("events.*"))
    recorded = parse_flags(["prog", f"--flagfile={folder}/config.flags"])
    assert recorded.model.num_classes == 2
    assert recorded.train.train_steps == 4
    assert "Evaluation at step 4" in capsys.readouterr().out


def test_rerun_ends_well_and_a_larger_number_continues(workplace, capsys):
    assert run(workplace, "train") == 0
    assert run(workplace, "train") == 0
    assert "nothing is left to train" in capsys.readouterr().out
    assert run(workplace, "train", "--train_steps=6") == 0
    steps = [json.loads(line)["step"] for line in (workplace / "m" / "train.jsonl").open()]
    assert steps == [2, 4, 6]


def test_evaluation_in_the_style_of_lvis(workplace, capsys):
    assert run(workplace, "train") == 0
    assert run(workplace, "eval", "--eval_lvis_style") == 1
    assert "/val.json: image 1 has no list 'neg_category_ids'" in refusal(capsys)
    annotations = json.loads((workplace / "val.json").read_text())
    for image in annotations["images"]:
        image |= {"neg_category_ids": [], "not_exhaustive_category_ids": [7]}
    (workplace / "val.json").write_text(json.dumps(annotations))
    assert run(workplace, "eval", "--eval_lvis_style") == 0
    metrics = json.loads((workplace / "m" / "eval" / "metrics.json").read_text())
    assert 0 <= metrics["lvis"]["AP"] <= 1
    assert "AR300" in capsys.readouterr().out


def test_eval_and_predict_use_the_latest_checkpoint(workplace):
    assert run(workplace, "train") == 0
    assert run(workplace, "eval") == 0
    metrics = json.loads((workplace / "m" / "eval" / "metrics.json").read_text())
    assert metrics["step"] == 4
    assert run(workplace, "predict") == 0
    results = json.loads((workplace / "m" / "predictions" / "bbox.json").read_text())
    assert {entry["image_id"] for entry in results} == {1, 3}
    assert {entry["category_id"] for entry in results} == {7}


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_no_checkpoint_is_refused(workplace, capsys, mode):
    assert run(workplace, mode) == 1
    assert "no checkpoint" in refusal(capsys)


def test_flags_the_mode_needs(capsys):
    for arguments, missing in (
        ([], "--model_dir"),
        (["--model_dir=m"], "--train_file_pattern"),
        (["--model_dir=m", "--mode=eval"], "--eval_file_pattern"),
        (["--model_dir=m", "--mode=train_and_eval", "--train_file_pattern=x"], "--eval_file"),
    ):
        with pytest.raises(SystemExit) as leaving:
            main(["prog", *arguments])
        assert leaving.value.code == 2
        assert missing in refusal(capsys)


def test_records_that_tell_no_classes_need_num_classes(workplace, capsys):
    (workplace / "train.manifest.json").unlink()
    assert run(workplace, "train") == 1
    assert "--num_classes" in refusal(capsys)
    assert run(workplace, "train", "--num_classes=2") == 0


def test_too_few_classes_are_refused(workplace, capsys):
    two = ({"label": 1, "id": 7, "name": "a"}, {"label": 2, "id": 8, "name": "b"})
    write_records(workplace, "train", categories=two)
    assert run(workplace, "train", "--num_classes=2") == 1
    assert "--num_classes=2 is too small" in refusal(capsys)


def test_records_without_masks_are_refused_for_a_mask_network(workplace, capsys):
    write_records(workplace, "train", include_masks=False)
    assert run(workplace, "train") == 1
    assert "--system=faster_rcnn" in refusal(capsys)
    assert run(workplace, "train", "--system=faster_rcnn") == 0


def test_crowded_images_are_warned_about(workplace, capsys):
    write_records(workplace, "train", max_instances_per_image=150)
    assert run(workplace, "train") == 0
    assert "150 objects and --max_instances=100" in capsys.readouterr().err


def test_differing_categories_are_refused(workplace, capsys):
    write_records(workplace, "val", categories=({"label": 1, "id": 9, "name": "dog"},))
    assert run(workplace, "train_and_eval") == 1
    said = refusal(capsys)
    assert "val-*.tfrecord has classes that the model in" in said
    assert "does not know: 'dog'" in said
    assert not (workplace / "m" / "config.flags").exists()


def test_nothing_matches_and_no_folder(workplace, capsys):
    assert run(workplace, "train", f"--train_file_pattern={workplace}/none-*") == 1
    assert "none-*" in refusal(capsys)
    assert run(workplace, "train", f"--model_dir={workplace}/val.json") == 1
    assert "cannot be written to" in refusal(capsys)


def test_a_disk_that_is_full_is_one_sentence_and_spares_the_checkpoint(
    workplace, capsys, monkeypatch
):
    assert run(workplace, "train", "--train_steps=2") == 0

    def fail(self, **_):
        raise tf.errors.ResourceExhaustedError(None, None, "x.data; No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(tf.train.CheckpointManager, "save", fail)
        assert run(workplace, "train") == 1
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.endswith(
        "/m: No space left on device; free disk space and run the same command again."
    )
    assert run(workplace, "train") == 0
    lines = (workplace / "m" / "train.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [2, 4]


def what_remains(folder):
    """The log without its times, the metrics, and the step of the best checkpoint."""
    log = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    names = ("eval/metrics.json", "best/best.json")
    return [(line["step"], line["loss"]) for line in log], *(
        json.loads((folder / name).read_text()) for name in names
    )


def test_training_goes_on_after_a_disk_was_full(workplace, capsys):
    """Whatever it was writing when the last free page was used: logs, checkpoints or results."""
    assert run(workplace, "train_and_eval", f"--model_dir={workplace}/whole") == 0
    whole = what_remains(workplace / "whole")
    with small_disk(workplace / "m", "4m") as model_dir:
        for num_free_pages in (0, 1, 2, 4, 6):
            assert run(workplace, "train_and_eval", "--train_steps=2") == 0
            with filled(model_dir, num_free_pages):
                assert run(workplace, "train_and_eval") == 1
            assert "ree disk space" in refusal(capsys)
            assert run(workplace, "train_and_eval") == 0
            assert what_remains(model_dir) == whole
            assert not [*model_dir.rglob("*temp*"), *model_dir.rglob("*.tmp")]
            for path in model_dir.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def test_a_run_elsewhere_goes_on_there(workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    elsewhere = f"--model_dir=ram://{workplace.name}/m"
    assert run(workplace, "train", elsewhere, "--train_steps=2") == 0
    assert run(workplace, "train", elsewhere) == 0
    with files.open_file(f"ram://{workplace.name}/m/train.jsonl") as file:
        assert [json.loads(line)["step"] for line in file] == [2, 4]
    assert not list(workplace.glob("ram:*"))


def test_a_tilde_is_the_home_folder(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    monkeypatch.chdir(workplace)
    assert run(workplace, "train", "--model_dir=~/m", "--train_file_pattern=~/train-*") == 0
    from_there = ["--model_dir=~/other", "--init_checkpoint=~/m"]
    assert run(workplace, "predict", *from_there, "--eval_file_pattern=~/val-*") == 0
    assert (workplace / "m" / "summaries").is_dir() and (workplace / "other").is_dir()
    assert not (workplace / "~").exists()


def write_image(folder, encoded: bytes) -> str:
    """A record of one image, without a manifest; returns its path."""
    path = f"{folder}/one.record"
    example = {"encoded": encoded, "image_format": "jpeg", "height": 8, "width": 8}
    example |= {"file_name": "x.jpg", "image_id": 4711, "instances": [], "include_masks": False}
    write_shard(path, [encode_example(**example)])
    return path


def broken_input_fn(mode, params, context=None, start_step=0):
    """Stops as TensorFlow's decoders do, without a word about the image."""
    return tf.data.Dataset.from_tensors(b"\xff\xd8\xff").map(tf.io.decode_jpeg)


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_picture_that_cannot_be_decoded_is_named(workplace, capsys, monkeypatch, mode):
    assert run(workplace, "train") == 0

    monkeypatch.setattr(sys.modules["data.input_fn"], "input_fn", broken_input_fn)
    path = write_image(workplace, b"\xff\xd8\xff cut short")
    flags = [f"--{kind}_file_pattern={path}" for kind in ("train", "eval")]
    assert run(workplace, mode, *flags, "--num_classes=2", "--train_steps=6") == 1
    said = capsys.readouterr().err
    assert f"error: cannot use record 1 of {path} (byte 0, image id 4711) (" in said
    assert "Traceback" not in said


def test_an_error_without_a_broken_record_is_not_hidden(workplace, monkeypatch):
    monkeypatch.setattr(sys.modules["data.input_fn"], "input_fn", broken_input_fn)
    with pytest.raises(tf.errors.InvalidArgumentError):
        run(workplace, "train")


def category_ids(path) -> set:
    return {entry["category_id"] for entry in json.loads(path.read_text())}


def test_a_model_brings_its_classes(workplace, capsys):
    assert run(workplace, "train") == 0
    folder = workplace / "m"
    assert json.loads((folder / "categories.json").read_text()) == list(CATEGORIES)
    (workplace / "val.manifest.json").unlink()
    assert run(workplace, "predict") == 0
    assert category_ids(folder / "predictions" / "bbox.json") == {7}, "the model's own id"

    write_records(workplace, "val", categories=({"label": 1, "id": 9, "name": "cell"},))
    assert run(workplace, "predict") == 0
    assert category_ids(folder / "predictions" / "bbox.json") == {9}, "the evaluation set's id"
    assert "classes matched by name: cell 1 (id 9) -> 1 (id 7)" in capsys.readouterr().out


def test_labels_are_coco_ids_where_nothing_names_them(workplace, capsys):
    assert run(workplace, "train") == 0
    (workplace / "m" / "categories.json").unlink()
    (workplace / "val.manifest.json").unlink()
    assert run(workplace, "predict") == 0
    assert category_ids(workplace / "m" / "predictions" / "bbox.json") == {1}
    assert "Warning: there is no categories.json" in capsys.readouterr().err
    assert run(workplace, "eval") == 0
    assert category_ids(workplace / "m" / "eval" / "bbox.json") == {1}


def test_a_model_brings_its_settings(workplace, capsys):
    assert run(workplace, "train", "--anchor_sizes=8,16,32,64,128", "--rpn_nms_iou=0.6") == 0
    said = capsys.readouterr().out
    assert said.startswith("4 steps of batch 2: 8 images, 4 epochs of 2; learning rate 0.02")
    assert "Mask Scoring R-CNN, resnet50, float32, on the CPU, random weights; 1 class" in said
    shown = []

    def show(mode, params, context=None):
        shown.append(params)
        return toy_input_fn(mode, params, context)

    sys.modules["data.input_fn"].input_fn = show
    bare = ["prog", "--mode=eval", f"--model_dir={workplace}/m"]
    bare += [
        f"--eval_file_pattern={workplace}/val-*",
        f"--eval_annotation_file={workplace}/val.json",
    ]
    assert main(bare) == 0
    said = capsys.readouterr()
    assert "Warning" not in said.err
    assert f"from step 4, weights of {workplace}/m/ckpt-4" in said.out
    assert shown[-1].data.anchor_sizes == (8, 16, 32, 64, 128)
    assert shown[-1].model.num_classes == 2

    assert (
        main([*bare, "--rpn_nms_iou=0.5", "--seed=3", f"--flagfile={workplace}/m/config.flags"])
        == 0
    )
    said = capsys.readouterr().err
    assert shown[-1].model.rpn_nms_iou == 0.5
    assert shown[-1].train.mode == "eval"
    (warning,) = [line for line in said.splitlines() if line.startswith("Warning")]
    assert "change the predictions: --rpn_nms_iou=0.5 (before: --rpn_nms_iou=0.6)." in warning

    (workplace / "m" / "config.flags").write_text("--no_such_flag=1\n")
    assert main(bare) == 1
    assert "config.flags:1: there is no flag --no_such_flag" in refusal(capsys)


def test_the_record_tells_what_the_checkpoints_were_trained_with(workplace, capsys):
    folder = workplace / "m"
    assert run(workplace, "train") == 0
    recorded = (folder / "config.flags").read_text()
    assert "--mode=" not in recorded
    assert run(workplace, "train", "--train_steps=3", "--rpn_nms_iou=0.6") == 0, "nothing to train"
    assert run(workplace, "train", "--optimizer=adamw", "--train_steps=6") == 1, "does not fit"
    assert (folder / "config.flags").read_text() == recorded
    capsys.readouterr()

    assert run(workplace, "train", "--train_steps=6", "--rpn_nms_iou=0.6") == 0
    said = capsys.readouterr().err
    assert (
        "Warning: from step 4 on the settings differ: --rpn_nms_iou=0.6 (before: --rpn_nms_iou=0.7)"
        in said
    )
    assert "--train_steps=6 (before: --train_steps=4)" in said
    assert (folder / "config.ckpt-4.flags").read_text() == recorded
    assert "--train_steps=6\n" in (folder / "config.flags").read_text()
    assert run(workplace, "train", "--train_steps=8", "--rpn_nms_iou=0.6") == 0
    said = capsys.readouterr().out
    assert "From step 6 on the settings differ: --train_steps=8 (before: --train_steps=6)." in said
    assert sorted(path.name for path in folder.glob("config*")) == [
        "config.ckpt-4.flags", "config.ckpt-6.flags", "config.flags",
    ]  # fmt: skip


def test_a_recipe_scales_with_the_batch_once(workplace, capsys):
    recipe = workplace / "recipe.flags"
    recipe.write_text("--learning_rate_batch_size=4\n--learning_rate=0.04\n--warmup_steps=3\n")
    given = (f"--flagfile={recipe}", "--learning_rate_schedule=constant")
    assert run(workplace, "train", *given) == 0
    said = capsys.readouterr().out
    assert said.startswith("4 steps of batch 2: 8 images, 4 epochs of 2; learning rate 0.02 ")
    assert "after 6 steps of warm-up" in said
    recorded = load_record(str(workplace / "m"))
    assert (recorded["train_steps"], recorded["warmup_steps"]) == (4, 6), "the first is literal"
    assert (recorded["learning_rate"], recorded["learning_rate_batch_size"]) == (0.02, 0)
    again = f"--flagfile={workplace}/m/config.flags"
    assert main(["prog", again, "--mode=train", "--train_steps=6"]) == 0
    assert "settings differ: --train_steps=6 (before: --train_steps=4)." in capsys.readouterr().out
    assert run(workplace, "train", *given, "--train_steps=8") == 0
    assert "settings differ: --train_steps=8 (before: --train_steps=6)." in capsys.readouterr().out


def test_a_checkpoint_that_is_named_is_the_one_used(workplace, capsys):
    assert run(workplace, "train") == 0
    assert run(workplace, "eval", f"--init_checkpoint={workplace}/m/ckpt-2") == 0
    said = capsys.readouterr().out
    assert f"from step 2, weights of {workplace}/m/ckpt-2;" in said
    assert json.loads((workplace / "m" / "eval" / "metrics.json").read_text())["step"] == 2
    assert run(workplace, "predict", f"--init_checkpoint={workplace}/none/ckpt-9") == 1
    assert "no readable checkpoint at" in refusal(capsys)


def test_where_a_training_started_is_not_what_is_evaluated(workplace, capsys):
    assert run(workplace, "train") == 0
    own = f"--model_dir={workplace}/own"
    assert run(workplace, "train", own, f"--init_checkpoint={workplace}/m/ckpt-2") == 0
    assert f"on the CPU, weights of {workplace}/m/ckpt-2; 1 class" in capsys.readouterr().out
    assert run(workplace, "eval", own, f"--flagfile={workplace}/own/config.flags") == 0
    assert f"from step 4, weights of {workplace}/own/ckpt-4" in capsys.readouterr().out


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_results_can_go_elsewhere(workplace, capsys, monkeypatch, mode):
    assert run(workplace, "train") == 0
    results = {"eval": "eval", "predict": "predictions"}[mode]
    assert run(workplace, mode, f"--output_dir={workplace}/out") == 0
    assert (workplace / "out" / results / "bbox.json").exists()
    assert not (workplace / "m" / results).exists()
    assert run(workplace, mode, f"--output_dir={workplace}/val.json") == 1
    assert "--output_dir=" in refusal(capsys)


def test_a_file_that_cannot_be_written_is_one_sentence(workplace, capsys):
    assert run(workplace, "train") == 0
    (workplace / "m" / "eval").write_text("")
    assert run(workplace, "eval") == 1
    assert f"error: {workplace}/m/eval" in capsys.readouterr().err
