"""Systems that take proposals from a file, from training to evaluation."""

import json
import pathlib
import sys

import pytest

from data.conversion import convert
from data.errors import UserError
from trainer import region_features
from trainer.main import main
from trainer.predictor import load

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1] / "data"))
from coco_files import settings_of  # noqa: E402

SMALL = (
    "--backbone=resnet18", "--backbone_width=8", "--canvases=64x96", "--short_side=64",
    "--long_side=96", "--train_short_side_min=64", "--max_proposals=4", "--rois_per_image=6",
    "--region_size=208", "--train_batch_size=1", "--eval_batch_size=2", "--train_steps=2",
    "--warmup_steps=0", "--learning_rate=0.001", "--log_every_steps=1",
    "--num_eval_images_shown=0",
)  # fmt: skip


@pytest.fixture
def workplace(tmp_path):
    """Four images with records, annotations and proposals."""
    settings = settings_of(tmp_path, num_shards=1)
    convert(settings)
    annotations = json.loads(pathlib.Path(settings.annotations_file).read_text())
    proposals = [
        {"image_id": a["image_id"], "bbox": a["bbox"], "score": 0.9, "category_id": 1}
        for a in annotations["annotations"]
        if not a.get("iscrowd") and min(a["bbox"][2:]) > 0
    ]
    proposals += [
        {
            "image_id": image["id"],
            "bbox": [0, 0, image["width"] / 2, image["height"] / 2],
            "score": s,
        }
        for image in annotations["images"]
        for s in (0.1, 0.2)
    ]
    path = tmp_path / "proposals.json"
    path.write_text(json.dumps(proposals))

    def run(mode, *flags, proposals_file=path):
        records = [
            f"--{kind}_file_pattern={settings.output_prefix}-*" for kind in ("train", "eval")
        ]
        truth = f"--eval_annotation_file={settings.annotations_file}"
        given = [f"--proposals_file={proposals_file}"] if proposals_file else []
        return main(
            ["main", f"--mode={mode}", *SMALL, *records, truth, *given]
            + [f"--model_dir={tmp_path}/m", *flags]
        )

    return run, tmp_path


def read_metrics(folder) -> dict:
    return json.loads((folder / "m" / "eval" / "metrics.json").read_text())


def test_fast_rcnn_from_training_to_evaluation(workplace, capsys):
    run, folder = workplace
    system = ("--system=fast_rcnn", "--roi_pooling=max")
    assert run("train_and_eval", *system) == 0
    metrics = read_metrics(folder)
    assert "bbox" in metrics and "segm" not in metrics
    lines = [json.loads(line) for line in (folder / "m" / "train.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert "rpn_box_loss" not in lines[0] and lines[0]["class_loss"] > 0
    # The file is part of the recorded settings.
    assert run("predict", proposals_file=None) == 0
    assert json.loads((folder / "m" / "predictions" / "bbox.json").read_text()) is not None
    capsys.readouterr()
    assert run("export", proposals_file=None) == 1
    assert "holds a fast_rcnn, which needs proposals for every image" in capsys.readouterr().err
    with pytest.raises(UserError, match="needs proposals for every image"):
        load(folder / "m")


def test_rcnn_runs_all_its_trainings_and_resumes_each(workplace, capsys, monkeypatch):
    run, folder = workplace
    monkeypatch.setattr(region_features, "IMAGES_PER_SHARD", 1)
    computed = []
    select = region_features._select

    def stop_after_two(*features):
        computed.append(len(computed))
        if len(computed) == 3:
            raise KeyboardInterrupt
        return select(*features)

    monkeypatch.setattr(region_features, "_select", stop_after_two)
    system = ("--system=rcnn", "--score_threshold=0")
    assert run("train_and_eval", *system) == 1
    assert "run the same command again" in capsys.readouterr().err
    assert len(list((folder / "m" / "features").glob("*.tfrecord"))) == 2
    assert run("train_and_eval", *system) == 0
    assert len(computed) == 3 + 2  # the third and the fourth image; those on disk are not repeated
    said = capsys.readouterr().out
    assert "The features of 4 images with up to 4 proposals each take up to" in said
    assert not (folder / "m" / "features").exists()
    metrics = read_metrics(folder)
    assert metrics["step"] == 3 and "segm" not in metrics
    # Nothing is left to do, and evaluation finds the fitted head.
    assert run("train", *system) == 0 and len(computed) == 5
    assert run("eval", proposals_file=None) == 0
    again = read_metrics(folder)
    assert again["bbox"] == metrics["bbox"]
    # Further training fits the head again.
    assert run("train", *system, "--train_steps=4") == 0 and len(computed) == 9
    assert (folder / "m" / "ckpt-5.index").exists()


@pytest.mark.parametrize(
    ("system", "proposals", "words"),
    [
        ("fast_rcnn", None, "needs --proposals_file, which is not set"),
        ("faster_rcnn", "p.json", "expected none for --system=faster_rcnn, which makes its"),
    ],
)
def test_proposals_are_given_where_they_are_needed(workplace, capsys, system, proposals, words):
    run, _ = workplace
    with pytest.raises(SystemExit) as stop:
        run("train", f"--system={system}", proposals_file=proposals)
    assert stop.value.code == 2
    assert words in capsys.readouterr().err


def test_proposals_of_another_dataset_are_refused_before_the_start(workplace, capsys):
    run, folder = workplace
    other = folder / "other.json"
    other.write_text('[{"image_id": 99999, "bbox": [1, 2, 3, 4], "score": 1}]')
    assert run("train", "--system=fast_rcnn", proposals_file=other) == 1
    assert "has no proposals for any image of" in capsys.readouterr().err
    assert not list((folder / "m").glob("ckpt*"))
