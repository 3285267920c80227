"""Sample pictures from results in COCO format."""

import json

import numpy as np
import pytest
from PIL import Image

from tools.write_samples import main, read_results


@pytest.fixture
def run_dir(tmp_path):
    """Two images with one object each, and results for the first."""
    images = []
    for number in (1, 2):
        name = f"{number}.png"
        Image.fromarray(np.full((60, 80, 3), 90, np.uint8)).save(tmp_path / name)
        images.append({"id": number, "file_name": name, "height": 60, "width": 80})
    outline = [[10, 10, 40, 10, 40, 30, 10, 30]]
    annotations = [
        {"id": n, "image_id": n, "category_id": 5, "bbox": [10, 10, 30, 20], "area": 600,
         "iscrowd": 0, "segmentation": outline}
        for n in (1, 2)
    ]  # fmt: skip
    truth = {"images": images, "annotations": annotations, "categories": [{"id": 5, "name": "cup"}]}
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    scores = {
        "image_id": 1,
        "category_id": 5,
        "box_score": 0.9,
        "mask_iou": 0.5,
        "mask_score": 0.45,
    }
    weak = {**scores, "box_score": 0.1}
    segmentation = {"size": [60, 80], "counts": [610, *[20, 40] * 29, 20, 2430]}
    boxes = [{**entry, "bbox": [10, 10, 30, 20], "score": 0.9} for entry in (weak, scores)]
    masks = [{**entry, "segmentation": segmentation, "score": 0.4} for entry in (weak, scores)]
    (tmp_path / "bbox.json").write_text(json.dumps(boxes))
    (tmp_path / "segm.json").write_text(json.dumps(masks))
    return tmp_path


def call(folder, *more):
    """Runs the tool on a folder."""
    return main(
        [f"--results_dir={folder}", f"--image_dir={folder}", f"--output_dir={folder}/out",
         f"--object_annotations_file={folder}/truth.json", *more]
    )  # fmt: skip


def test_a_picture_for_every_image_with_and_without_results(run_dir):
    assert call(run_dir) == 0
    names = sorted(path.name for path in (run_dir / "out").iterdir())
    assert names == ["1-1.png", "2-2.png"]
    first, second = (np.asarray(Image.open(run_dir / "out" / name)) for name in names)
    half = first.shape[1] // 2
    rows = slice(24, None)  # below the captions
    np.testing.assert_array_equal(first[rows, :half], second[rows, :half])
    assert (first[rows, half + 8 :] != 90).any()
    assert (second[rows, half + 8 :] == 90).all()


def test_boxes_and_masks_of_one_detection_are_joined(run_dir):
    (result,) = read_results(run_dir, 0.3)[1]
    assert result["bbox"] == [10, 10, 30, 20]
    assert result["segmentation"]["size"] == [60, 80]
    assert [r["box_score"] for r in read_results(run_dir, 0.0)[1]] == [0.9, 0.1]


def test_boxes_alone_will_do(run_dir):
    (run_dir / "segm.json").unlink()
    assert "segmentation" not in read_results(run_dir, 0.3)[1][0]
    assert call(run_dir, "--num_samples=1") == 0
    assert len(list((run_dir / "out").iterdir())) == 1


def test_files_that_do_not_belong_together_are_refused(run_dir, capsys):
    (run_dir / "segm.json").write_text("[]")
    assert call(run_dir) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and "bbox.json has 2 entries, but segm.json has 0" in error


@pytest.mark.parametrize("missing", ["bbox.json", "2.png", "truth.json"])
def test_missing_files_are_one_sentence(run_dir, missing, capsys):
    (run_dir / missing).unlink()
    assert call(run_dir) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ") and missing in error and error.count("\n") == 1


def test_bad_flags_exit_with_2(run_dir):
    with pytest.raises(SystemExit) as caught:
        call(run_dir, "--num_samples=0")
    assert caught.value.code == 2
