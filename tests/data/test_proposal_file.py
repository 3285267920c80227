"""External proposals: reading the file, choosing the best, and their way to the canvas."""

import dataclasses
import gzip
import json
import types

import numpy as np
import pytest
import tensorflow as tf
from sample_records import make_instance, make_record
from test_examples import CONFIG

from data import proposal_file
from data.errors import UserError
from data.examples import eval_example, padding_example, train_example
from data.input_fn import input_fn
from data.proposal_file import ProposalFile, open_proposals
from data.record_files import RecordFiles
from data.tfrecords import write_shard


def entry(image_id, x, y, width, height, score=0.5, **others):
    return {
        "image_id": image_id,
        "category_id": 1,
        "bbox": [x, y, width, height],
        "score": score,
        **others,
    }


ENTRIES = [
    entry(7, 1, 2, 3, 4, 0.1),
    entry(5, 10, 20, 30, 8, 0.9, segmentation={"size": [4, 4], "counts": "x"}),
    entry(7, 0, 0, 6, 5, 0.7),
    entry(7, 2, 2, 2, 2, 0.7),
]


def write(path, entries) -> str:
    path.write_text(json.dumps(entries))
    return str(path)


def test_the_best_of_each_image_in_order(tmp_path):
    found = ProposalFile(write(tmp_path / "p.json", ENTRIES), 2)
    assert found.image_ids.tolist() == [5, 7]
    assert found.find(tf.constant(7, tf.int64)).numpy().tolist() == [[0, 0, 5, 6], [2, 2, 4, 4]]
    assert found.find(tf.constant(5, tf.int64)).numpy().tolist() == [[20, 10, 28, 40]]
    for absent in (-1, 6, 8):
        assert found.find(tf.constant(absent, tf.int64)).shape == (0, 4)


def test_several_files_are_one(tmp_path):
    first, second = (
        write(tmp_path / name, entries)
        for name, entries in (("a.json", ENTRIES[:2]), ("b.json", ENTRIES[2:]))
    )
    found = open_proposals(f"{first}, {second}", 2)
    whole = ProposalFile(write(tmp_path / "p.json", ENTRIES), 2)
    np.testing.assert_array_equal(found.boxes, whole.boxes)
    np.testing.assert_array_equal(found.starts, whole.starts)
    write(tmp_path / "b.json", ENTRIES[3:])
    assert len(open_proposals(f"{first}, {second}", 9).boxes) == 3


def test_blocks_and_compression_change_nothing(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    entries = [
        entry(int(rng.integers(9)), *rng.uniform(1, 50, 4).tolist(), rng.random(), name="},{ é")
        for _ in range(60)
    ]
    text = json.dumps(entries, indent=1, ensure_ascii=False).replace("},{ é", "} { é")
    (tmp_path / "p.json").write_text(text, encoding="utf-8")
    (tmp_path / "p.json.gz").write_bytes(gzip.compress(text.encode()))
    whole = ProposalFile(str(tmp_path / "p.json"), 5)
    for block in (7, 300, 10**6):
        monkeypatch.setattr(proposal_file, "_BLOCK", block)
        for name in ("p.json", "p.json.gz"):
            found = ProposalFile(str(tmp_path / name), 5)
            np.testing.assert_array_equal(found.boxes, whole.boxes)
            np.testing.assert_array_equal(found.starts, whole.starts)
    for image_id in range(9):
        own = [e for e in entries if e["image_id"] == image_id]
        best = sorted(own, key=lambda e: -e["score"])[:5]
        expected = [[y, x, y + h, x + w] for x, y, w, h in (e["bbox"] for e in best)]
        found = whole.find(tf.constant(image_id, tf.int64))
        np.testing.assert_allclose(found, np.reshape(expected, [-1, 4]), rtol=1e-6)


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ([], "has no proposals"),
        ({"annotations": []}, "no COCO results file"),
        ([*ENTRIES, {"image_id": 1, "bbox": [1, 2, 3, 4]}], "entry 5 .*score is missing"),
        ([{"bbox": [1, 2, 3, 4], "score": 1}], "entry 1 .*image_id is missing"),
        ([*ENTRIES, entry(1, 2, 3, 4, 0)], r"entry 5 .*box \[2, 3, 4, 0\] of image id 1 has no"),
        ([entry(1, 2, 3, float("nan"), 4)], "entry 1 .*bbox is"),
        ([entry(1, 2, 3, 4, 5, float("nan"))], "score is nan"),
        ([entry("a", 2, 3, 4, 5)], "image_id is 'a'"),
        ([entry(1.5, 2, 3, 4, 5)], "image_id is 1.5"),
        ([{**entry(1, 2, 3, 4, 5), "bbox": [1, 2, 3]}], r"bbox is \[1, 2, 3\]"),
        ([*ENTRIES, 3], "entry 5 .*it is no object"),
    ],
)
def test_what_is_no_proposal_is_refused_in_a_sentence(tmp_path, entries, words):
    with pytest.raises(UserError, match=words):
        ProposalFile(write(tmp_path / "p.json", entries), 9)


@pytest.mark.parametrize("content", [b"", b"no json", b'[{"image_id": 1', b"\xff\xfe"])
def test_what_is_no_json_is_refused_in_a_sentence(tmp_path, content):
    for name in ("p.json", "p.json.gz"):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name} is no COCO results file"):
            ProposalFile(str(tmp_path / name), 9)


def test_a_missing_file_is_refused_in_a_sentence(tmp_path):
    with pytest.raises((UserError, OSError), match="absent.json"):
        open_proposals(str(tmp_path / "absent.json"), 9)


def test_a_file_is_read_again_only_if_it_changes(tmp_path):
    path = write(tmp_path / "p.json", ENTRIES)
    first = open_proposals(path, 9)
    assert open_proposals(path, 9) is first
    write(tmp_path / "p.json", ENTRIES[:1])
    assert len(open_proposals(path, 9).boxes) == 1


PICTURE = np.full([32, 48, 3], 90, np.uint8)
BOX = (4.0, 6.0, 20.0, 30.0)


def instance_of(box):
    y1, x1, y2, x2 = (int(side) for side in box)
    mask = np.zeros(PICTURE.shape[:2], np.uint8)
    mask[y1:y2, x1:x2] = 1
    return make_instance(mask)


@pytest.fixture
def with_proposals(tmp_path):
    """A record with one object, and a file with its box and one that covers half of it."""
    y1, x1, y2, x2 = BOX
    entries = [
        entry(3, x1, y1, x2 - x1, y2 - y1, 0.9),
        entry(3, x1, y1, (x2 - x1) / 2, y2 - y1, 0.8),
    ]
    record = make_record(PICTURE, [instance_of(BOX)], image_id=3)
    return record, ProposalFile(write(tmp_path / "p.json", entries), 4)


@pytest.mark.parametrize("epoch", range(8))
def test_proposals_go_where_boxes_go(with_proposals, epoch):
    record, found = with_proposals
    config = dataclasses.replace(
        CONFIG, max_proposals=4, horizontal_flip=0.5, vertical_flip=0.5,
        scale_jitter_min=0.5, scale_jitter_max=2.0,
    )  # fmt: skip
    features, labels = train_example(
        record, tf.constant(epoch, tf.int64), config, True, proposals=found
    )
    assert not {name for name in labels if name.startswith("rpn")}
    proposals, box = features["proposals"].numpy(), labels["gt_boxes"].numpy()[0]
    assert proposals.shape == (4, 4)
    np.testing.assert_allclose(proposals[0], box, atol=1e-4)
    assert not proposals[2:].any()
    if proposals[1].any():  # otherwise its half is cut off
        half = proposals[1]
        assert (half[:2] >= box[:2] - 1e-4).all() and (half[2:] <= box[2:] + 1e-4).all()


def test_invisible_proposals_are_left_out(tmp_path):
    config = dataclasses.replace(
        CONFIG, max_proposals=3, scale_jitter_min=2.0, scale_jitter_max=2.0
    )
    corners = [entry(3, x, y, 2, 2) for x in (0, 46) for y in (0, 30)]
    middle = entry(3, 23, 15, 2, 2, 0.1)
    found = ProposalFile(write(tmp_path / "p.json", [*corners, middle]), 5)
    record = make_record(PICTURE, [instance_of(BOX)], image_id=3)
    features, _ = train_example(record, tf.constant(1, tf.int64), config, True, proposals=found)
    boxes = features["proposals"].numpy()
    shown = boxes[boxes.any(axis=1)]
    # Half of the rows and columns are visible, so at most one corner is, and always the middle.
    assert 1 <= len(shown) <= 2 and (shown[:, 2:] > shown[:, :2]).all()
    assert (boxes[: len(shown)] == shown).all()


def test_evaluation_maps_them_as_it_maps_the_image(with_proposals):
    record, found = with_proposals
    config = dataclasses.replace(CONFIG, max_proposals=4)
    features = eval_example(record, config, found)
    # The image fills the canvas at scale 2.
    np.testing.assert_array_equal(features["proposals"][0], 2 * np.array(BOX))
    padding = padding_example(
        tf.constant(64, tf.int64), tf.constant(96, tf.int64), config, has_proposals=True
    )
    assert padding.keys() == features.keys()
    assert padding["proposals"].shape == (4, 4) and not padding["proposals"].numpy().any()


@pytest.fixture
def records(tmp_path):
    """Records of images 0 to 4 of 32 x 48 pixels."""
    path = tmp_path / "r-00000-of-00001.tfrecord"
    write_shard(str(path), [make_record(PICTURE, [instance_of(BOX)], n) for n in range(5)])
    return str(path)


def check(tmp_path, records, entries):
    found = ProposalFile(write(tmp_path / "p.json", entries), 9)
    found.check(RecordFiles.match(records), records)


def test_proposals_of_all_images_need_no_words(tmp_path, records, capsys):
    check(tmp_path, records, [entry(n, 0, 0, 48, 32) for n in range(9)])
    assert capsys.readouterr().err == ""


def test_images_without_proposals_are_named(tmp_path, records, capsys):
    check(tmp_path, records, [entry(3, 0, 0, 48, 32)])
    warning = capsys.readouterr().err
    assert "Warning: 4 of 5 images" in warning and "image id 0, 1, 2 and 1 more" in warning


def test_proposals_of_other_images_are_refused(tmp_path, records):
    with pytest.raises(UserError, match="has no proposals for any image"):
        check(tmp_path, records, [entry(30, 0, 0, 48, 32)])


def test_boxes_outside_their_image_are_refused_and_those_beyond_it_named(tmp_path, records, capsys):
    inside = [entry(n, 0, 0, 48, 32) for n in range(5)]
    with pytest.raises(UserError, match="a box of image id 2 lies outside the image of 48 x 32"):
        check(tmp_path, records, [*inside, entry(2, 48, 3, 5, 5)])
    check(tmp_path, records, [*inside, entry(4, 40, 3, 9, 5), entry(1, 40, 3, 9.5, 5)])
    assert "Warning: 1 boxes" in (warning := capsys.readouterr().err) and "image id 1." in warning


def test_the_input_carries_them_in_batches(tmp_path, records):
    path = write(tmp_path / "p.json", [entry(n, n, 0, 10, 10) for n in range(5)])
    data = dataclasses.replace(
        CONFIG, train_file_pattern=records, eval_file_pattern=records, max_proposals=3,
        proposals_file=path, train_batch_size=2, eval_batch_size=2,
    )  # fmt: skip
    model = types.SimpleNamespace(include_mask=True, include_polygons=False, has_rpn=False)
    params = types.SimpleNamespace(data=data, model=model)
    seen = {}
    for features in input_fn("eval", params):
        for image_id, boxes in zip(features["image_id"], features["proposals"], strict=True):
            seen[int(image_id)] = boxes.numpy()
    assert seen.keys() == {-1, *range(5)}
    assert all(seen[n][0].tolist() == [0, 2 * n, 20, 2 * n + 20] for n in range(5))
    assert not seen[-1].any()
    features, labels = next(iter(input_fn("train", params)))
    assert features["proposals"].shape == (2, 3, 4) and "rpn_indices" not in labels
