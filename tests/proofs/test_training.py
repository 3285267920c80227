"""Real data, trained as docs/RESULTS.md tells: hours of two CPU cores."""

import json

import pytest
from commands import SHARED, convert, metrics, train

pytestmark = [
    pytest.mark.proof,
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not SHARED.is_dir(), reason="needs the datasets of ../shared/data"),
]


def train_and_eval(model_dir, train_pattern, eval_pattern, annotations, *arguments):
    """Trains, evaluates and returns the metrics."""
    train(
        model_dir,
        *arguments,
        "--mode=train_and_eval",
        f"--train_file_pattern={train_pattern}",
        f"--eval_file_pattern={eval_pattern}",
        f"--eval_annotation_file={annotations}",
    )
    return metrics(model_dir)


@pytest.fixture(scope="module")
def nuclei(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nuclei")
    annotations = SHARED / "nuclei" / "annotations"
    patterns = [
        convert(
            SHARED / "nuclei" / split,
            annotations / f"instances_{split}.json",
            folder / split,
        )
        for split in ("train", "val")
    ]
    return *patterns, annotations / "instances_val.json"


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_nuclei_in_18_minutes(nuclei, tmp_path, seed):
    found = train_and_eval(tmp_path, *nuclei, "--flagfile=configs/nuclei.flags", f"--seed={seed}")
    assert found["segm"]["AP"] >= 0.47
    assert found["segm"]["AP50"] >= 0.80


def choose_images(dataset, num_images, num_with_crowds):
    """The first images of a dataset, the first ones with crowds among them."""
    crowded = {a["image_id"] for a in dataset["annotations"] if a["iscrowd"]}
    with_crowds = [image for image in dataset["images"] if image["id"] in crowded]
    others = [image for image in dataset["images"] if image["id"] not in crowded]
    images = with_crowds[:num_with_crowds] + others[: num_images - num_with_crowds]
    kept = {image["id"] for image in images}
    annotations = [a for a in dataset["annotations"] if a["image_id"] in kept]
    return dataset | {"images": images, "annotations": annotations}


def test_overfit_32_images_of_coco(tmp_path):
    with open(SHARED / "coco_tiny/annotations/instances_train2017.json", encoding="utf-8") as file:
        dataset = choose_images(json.load(file), 32, 4)
    annotations = tmp_path / "train32.json"
    annotations.write_text(json.dumps(dataset), encoding="utf-8")
    records = convert(SHARED / "coco_tiny/train2017", annotations, tmp_path / "train32")
    found = train_and_eval(
        tmp_path / "run", records, records, annotations, "--flagfile=configs/overfit.flags"
    )
    assert found["segm"]["AP"] >= 0.60
