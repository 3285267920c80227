"""Selective search: its boxes and their order, its output, interruptions and bad input."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("cv2.ximgproc", reason="needs OpenCV, the extra `proposals`")

from data import files
from data.proposal_file import ProposalFile
from tools import selective_search
from tools.selective_search import Search, main, propose

ROOT = pathlib.Path(__file__).parents[2]
RECTANGLES = [(20, 30, 60, 45), (110, 70, 30, 60)]  # x, y, w, h in pixels


def draw(width=160, height=140, rectangles=RECTANGLES):
    """Draws rectangles on a gray ground: uint8 [h, w, 3]."""
    image = np.full((height, width, 3), 128, np.uint8)
    colours = [(220, 30, 30), (30, 60, 220)]
    for (x, y, w, h), colour in zip(rectangles, colours, strict=False):
        image[y : y + h, x : x + w] = colour
    return image


def iou(first, second):
    """IoU of two boxes x, y, w, h."""
    sides = [
        min(first[axis] + first[axis + 2], second[axis] + second[axis + 2])
        - max(first[axis], second[axis])
        for axis in (0, 1)
    ]
    common = max(sides[0], 0) * max(sides[1], 0)
    return common / (first[2] * first[3] + second[2] * second[3] - common)


def write_dataset(folder, images, **exif):
    """Writes images, with the ids 1, 2, …, and their JSON; returns the flags."""
    (folder / "images").mkdir()
    entries = []
    for number, pixels in enumerate(images, start=1):
        name = f"{number}.png"
        Image.fromarray(pixels).save(folder / "images" / name, **exif)
        height, width = pixels.shape[:2]
        entries.append({"id": number, "file_name": name, "height": height, "width": width})
    write_json(folder, entries)
    return [
        f"--image_dir={folder}/images",
        f"--object_annotations_file={folder}/images.json",
        f"--output_file={folder}/out/proposals.json",
        "--num_processes=0",
        "--width=80",
    ]


def write_json(folder, entries):
    (folder / "images.json").write_text(json.dumps({"images": entries}))


def read(folder, name="proposals.json"):
    return json.loads((folder / "out" / name).read_bytes())


@pytest.mark.parametrize("method", ["fast", "quality"])
@pytest.mark.parametrize("width", [0, 100, 320])
def test_rectangles_are_among_the_first_proposals(method, width):
    boxes = propose(draw(), Search(method=method, width=width), seed=7)
    for rectangle in RECTANGLES:
        assert max(iou(rectangle, box) for box in boxes[:12]) >= 0.85


def test_without_resizing_the_boxes_are_those_of_opencv(tmp_path):
    import cv2

    noise = np.random.default_rng(0).integers(0, 255, (60, 90, 3), np.uint8)
    Image.fromarray(noise).resize((180, 120)).save(tmp_path / "image.png")
    searcher = cv2.ximgproc.segmentation.createSelectiveSearchSegmentation()
    searcher.setBaseImage(cv2.imread(str(tmp_path / "image.png")))
    searcher.switchToSelectiveSearchFast()
    boxes = propose(np.asarray(Image.open(tmp_path / "image.png")), Search(width=0), seed=0)
    assert len(boxes) > 20 and sorted(boxes.tolist()) == sorted(searcher.process().tolist())


def test_boxes_are_distinct_and_inside_the_image():
    noise = np.random.default_rng(0).integers(0, 255, (120, 90, 3), np.uint8)
    boxes = propose(noise, Search(width=200), seed=0)
    assert len(boxes) > 20 and len(np.unique(boxes, axis=0)) == len(boxes)
    assert boxes.min() >= 0 and boxes[:, 2:].min() >= 1
    assert ((boxes[:, :2] + boxes[:, 2:]) <= [90, 120]).all()


def test_the_seed_alone_decides_the_order():
    def boxes(seed, **search):
        return propose(draw(), Search(width=100, **search), seed).tolist()

    first = boxes(1)
    other = boxes(2)
    assert boxes(1) == first
    assert other != first and sorted(other) == sorted(first)
    assert boxes(1, max_proposals=3) == first[:3]


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 2), (1, 900), (900, 1)])
@pytest.mark.parametrize("width", [0, 100])
def test_the_smallest_images_have_a_proposal(size, width):
    height, width_of_image = size
    boxes = propose(np.full((*size, 3), 9, np.uint8), Search(width=width), seed=0)
    assert boxes.tolist() == [[0, 0, width_of_image, height]]


def test_results_are_in_coco_format_and_scores_fall(tmp_path, capsys):
    flags = write_dataset(tmp_path, [draw(), draw(120, 100)])
    assert main(flags) == 0
    entries = read(tmp_path)
    assert capsys.readouterr().out == (
        f"wrote {len(entries)} proposals of 2 images to {tmp_path}/out/proposals.json\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["proposals.json"]
    for image_id in (1, 2):
        own = [entry for entry in entries if entry["image_id"] == image_id]
        scores = [entry["score"] for entry in own]
        assert scores[:3] == [1, 0.5, 0.333333] and sorted(set(scores), reverse=True) == scores
        assert {entry["category_id"] for entry in own} == {1}
        assert all(len(entry["bbox"]) == 4 for entry in own)


def test_a_name_in_gz_compresses_and_training_reads_it(tmp_path):
    flags = write_dataset(tmp_path, [draw()] * 17)  # two groups
    assert main(flags) == 0
    path = tmp_path / "out" / "proposals.json.gz"
    assert main([*flags, f"--output_file={path}"]) == 0
    entries = read(tmp_path)
    with gzip.open(path) as file:
        assert json.load(file) == entries
    expected = [entry["bbox"] for entry in entries if entry["image_id"] == 17][:5]
    starts, ends = np.split(ProposalFile(str(path), max_proposals=5).find(np.int64(17)), 2, axis=1)
    assert np.concatenate([starts, ends - starts], axis=1)[:, [1, 0, 3, 2]].tolist() == expected


def test_boxes_refer_to_the_rotated_image(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # viewers turn it clockwise by a quarter
    stored = draw(100, 80, [(10, 20, 40, 30)])
    flags = write_dataset(tmp_path, [stored], exif=exif)
    write_json(tmp_path, [{"id": 1, "file_name": "1.png", "height": 100, "width": 80}])
    assert main([*flags, "--width=0"]) == 0
    boxes = [entry["bbox"] for entry in read(tmp_path)]
    assert max(iou(box, (80 - 20 - 30, 10, 30, 40)) for box in boxes) >= 0.85


def test_other_file_systems(tmp_path):
    flags = write_dataset(tmp_path, [draw()])
    assert main(flags) == 0
    assert main([*flags, "--output_file=ram://selective_search/p.json"]) == 0
    with files.open_file("ram://selective_search/p.json") as file:
        assert json.load(file) == read(tmp_path)
    assert files.list_folder("ram://selective_search") == ["p.json"]


# Searches the images of 160 pixels and stops at the first other one, as a slow search would.
SLOW = """
import sys, time
from tools import selective_search
own = selective_search.propose
def propose(image, *rest):
    return own(image, *rest) if image.shape[1] == 160 else time.sleep(600)
selective_search.propose = propose
selective_search._IMAGES_PER_GROUP = 2
selective_search.main(sys.argv[1:])
"""


def count_searches(monkeypatch):
    """Returns a list that grows by the width of each image that is searched."""
    searched = []

    def propose_and_count(image, *rest):
        searched.append(image.shape[1])
        return propose(image, *rest)

    monkeypatch.setattr(selective_search, "propose", propose_and_count)
    return searched


def test_a_killed_run_continues_to_the_same_bytes(tmp_path, monkeypatch):
    flags = write_dataset(tmp_path, [draw()] * 4 + [draw(120, 100)] * 4)
    monkeypatch.setattr(selective_search, "_IMAGES_PER_GROUP", 2)
    output = tmp_path / "out" / "proposals.json"
    assert main(flags) == 0
    expected = output.read_bytes()
    output.unlink()

    partial = tmp_path / "out" / "proposals.json.partial"
    process = subprocess.Popen(
        [sys.executable, "-c", SLOW, *flags, "--num_processes=2"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
    )
    try:
        while process.poll() is None and len(list(partial.glob("*"))) < 2:
            time.sleep(0.05)
        assert process.poll() is None
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert not output.exists()

    searched = count_searches(monkeypatch)
    assert main(flags) == 0
    assert searched == [120] * 4
    assert output.read_bytes() == expected and not partial.exists()


def test_other_settings_or_images_start_over(tmp_path, monkeypatch):
    flags = write_dataset(tmp_path, [draw(), draw(120, 100)])
    monkeypatch.setattr(selective_search, "_IMAGES_PER_GROUP", 1)
    searched = count_searches(monkeypatch)
    kept = tmp_path / "images" / "2.png"
    encoded = kept.read_bytes()

    def stop_at_the_second(*changes):
        kept.write_bytes(b"")
        assert main([*flags, *changes]) == 1
        kept.write_bytes(encoded)
        searched.clear()

    stop_at_the_second()
    assert main([*flags, "--width=90"]) == 0 and searched == [160, 120]
    stop_at_the_second()
    assert main([*flags, "--method=quality"]) == 0 and searched == [160, 120]
    stop_at_the_second()
    Image.fromarray(draw(rectangles=[])).save(tmp_path / "images" / "1.png")
    assert main(flags) == 0 and searched == [160, 120]


def test_leaving_out_an_image_keeps_what_is_finished(tmp_path, monkeypatch):
    flags = write_dataset(tmp_path, [draw(), draw(120, 100), draw()])
    (tmp_path / "images" / "2.png").write_bytes(b"")
    monkeypatch.setattr(selective_search, "_IMAGES_PER_GROUP", 1)
    searched = count_searches(monkeypatch)
    assert main(flags) == 1 and searched == [160]
    assert main([*flags, "--on_invalid=skip"]) == 0 and searched == [160, 160]
    assert {entry["image_id"] for entry in read(tmp_path)} == {1, 3}


def test_an_image_that_was_left_out_is_an_error_again(tmp_path, monkeypatch):
    flags = write_dataset(tmp_path, [draw(), draw(120, 100), draw()])
    (tmp_path / "images" / "2.png").write_bytes(b"")
    monkeypatch.setattr(selective_search, "_IMAGES_PER_GROUP", 1)
    monkeypatch.setattr(selective_search, "_join", lambda *_: os.stat(tmp_path / "none"))
    assert main([*flags, "--on_invalid=skip"]) == 1
    assert len(list((tmp_path / "out" / "proposals.json.partial").iterdir())) == 3
    assert main(flags) == 1


def refusal(capsys, flags):
    """Returns the sentence with which a run is refused."""
    assert main(flags) == 1
    *_, sentence = capsys.readouterr().err.splitlines()
    return sentence


def test_images_that_cannot_be_used_are_named_or_left_out(tmp_path, capsys):
    flags = write_dataset(tmp_path, [draw(), draw(), draw()])
    (tmp_path / "images" / "1.png").unlink()
    assert refusal(capsys, flags) == (
        f"error: image 1 (1.png): cannot read '{tmp_path}/images/1.png': No such file or "
        "directory; correct it, or use --on_invalid=skip to leave it out."
    )
    broken = tmp_path / "images" / "2.png"
    broken.write_bytes(broken.read_bytes()[:-20])
    assert main([*flags, "--on_invalid=skip"]) == 0
    assert {entry["image_id"] for entry in read(tmp_path)} == {3}
    *_, warning = capsys.readouterr().err.splitlines()
    assert warning.startswith("Warning: left out 2 images, the first because cannot read")
    (tmp_path / "images" / "3.png").unlink()
    assert "none of the images of" in refusal(capsys, [*flags, "--on_invalid=skip"])


def test_an_id_must_be_unique(tmp_path, capsys):
    flags = write_dataset(tmp_path, [draw()] * 3)
    entries = json.loads((tmp_path / "images.json").read_text())["images"]
    write_json(tmp_path, [{**entry, "id": min(entry["id"], 2)} for entry in entries])
    assert "image 2 (2.png): another image has the same id" in refusal(capsys, flags)


def test_annotations_do_not_matter(tmp_path):
    flags = write_dataset(tmp_path, [draw()])
    content = json.loads((tmp_path / "images.json").read_text())
    content |= {"categories": [{"id": 1, "name": "box"}], "annotations": [{"id": 1}]}
    (tmp_path / "images.json").write_text(json.dumps(content))
    assert main(flags) == 0 and read(tmp_path)


def test_folders_that_cannot_be_used(tmp_path, capsys):
    flags = write_dataset(tmp_path, [draw()])
    missing = refusal(capsys, [*flags, f"--image_dir={tmp_path}/none"])
    assert missing == f"error: the folder {tmp_path}/none does not exist; check --image_dir."
    folder = refusal(capsys, [*flags, f"--output_file={tmp_path}/images"])
    assert folder == f"error: --output_file={tmp_path}/images is a folder; add the name of a file."
    (tmp_path / "file").touch()
    assert f"cannot write {tmp_path}/file/p.json: Not a directory; choose another" in refusal(
        capsys, [*flags, f"--output_file={tmp_path}/file/p.json"]
    )
    assert not (tmp_path / "out").exists()


def test_opencv_without_its_contributed_modules(tmp_path, capsys, monkeypatch):
    flags = write_dataset(tmp_path, [draw()])
    monkeypatch.setitem(sys.modules, "cv2.ximgproc", None)
    sentence = refusal(capsys, flags)
    assert "pip install 'mask-scoring-rcnn[proposals]'" in sentence


@pytest.mark.parametrize("flag", ["--max_proposals=0", "--width=-1", "--method=best", "--seed=-1"])
def test_invalid_flags(tmp_path, flag):
    with pytest.raises(SystemExit, match="2"):
        main([*write_dataset(tmp_path, [draw()]), flag])
