"""Records without a manifest: classes, names and masks come from a look into them."""

import dataclasses

import numpy as np
import pytest
from toy_model import toy_params

from data.errors import UserError
from data.manifest import Manifest, load_manifest, write_manifest
from data.records import Instance, encode_example, write_shard
from trainer.completion import complete_from_manifests, complete_from_records


def write_foreign(folder, name, *labels, names=None, with_masks=True):
    """A file of two images, all objects in the second; returns its path."""
    names = names or {}
    instances = [
        Instance((1, 1, 5, 5), label, names.get(label, f"c{label}"), False, 16.0, label, 1,
                 np.array([0, 80]) if with_masks else None)
        for label in labels
    ]  # fmt: skip
    image = {"encoded": b"", "image_format": "png", "height": 8, "width": 10, "file_name": "x"}
    records = [
        encode_example(**image, image_id=number, instances=objects, include_masks=with_masks)
        for number, objects in enumerate(([], instances))
    ]
    path = str(folder / f"{name}.record")
    write_shard(path, records)
    return path


def write_own(folder, name, *names, content=b""):
    """A shard with a manifest of these categories; returns its path."""
    path = folder / f"{name}-00000-of-00001.tfrecord"
    path.write_bytes(content)
    categories = tuple({"label": n, "id": 10 * n, "name": s} for n, s in enumerate(names, 1))
    shards = ({"name": path.name, "num_images": 1, "bytes": len(content), "sha256": ""},)
    manifest = Manifest(1, 1, 0, 1, True, categories, {}, shards)
    write_manifest(f"{folder}/{name}.manifest.json", manifest)
    return str(path)


def record_training(folder, **flags):
    """What a training run leaves in its model_dir."""
    (folder / "checkpoint").touch()
    lines = "".join(f"--{name}={value}\n" for name, value in flags.items())
    (folder / "config.flags").write_text(lines)


def complete(folder, mode, **changes):
    changes = {"num_classes": 0, **changes}
    params = complete_from_manifests(toy_params(folder, mode=mode, **changes))
    return complete_from_records(params)


def num_classes(folder, mode, **changes):
    return complete(folder, mode, **changes).model.num_classes


def test_the_largest_label_of_both_files_counts(tmp_path, capsys):
    train, val = write_foreign(tmp_path, "train", 3, 11), write_foreign(tmp_path, "val", 90)
    both = {"train_file_pattern": train, "eval_file_pattern": val}
    assert num_classes(tmp_path, "train_and_eval", **both) == 91
    said = capsys.readouterr().out
    assert f"The records {train} and {val} have no manifest; their largest label is 90" in said
    assert "--num_classes=91" in said
    assert num_classes(tmp_path, "train", **both) == 12


def test_more_classes_than_categories_are_warned_about(tmp_path, capsys):
    records = write_own(tmp_path, "train", "cat", "dog")
    assert num_classes(tmp_path, "train", train_file_pattern=records, num_classes=91) == 91
    assert "--num_classes=91 is more than the 3 of the records" in capsys.readouterr().err


def test_what_is_given_wins(tmp_path, capsys):
    train = write_foreign(tmp_path, "train", 3, 11)
    assert num_classes(tmp_path, "train", train_file_pattern=train, num_classes=40) == 40
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="label 11 and the network has --num_classes=11"):
        complete(tmp_path, "train", train_file_pattern=train, num_classes=11)


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_evaluation_takes_the_number_that_training_recorded(tmp_path, capsys, mode):
    val = write_foreign(tmp_path, "val", 5)
    assert num_classes(tmp_path, mode, eval_file_pattern=val) == 6
    record_training(tmp_path, num_classes=12, train_file_pattern=f"{tmp_path}/gone")
    assert num_classes(tmp_path, mode, eval_file_pattern=val) == 12
    record_training(tmp_path, num_classes=5)
    assert num_classes(tmp_path, mode, eval_file_pattern=val) == 5
    assert "Warning: the records" in capsys.readouterr().err


def test_a_resumed_training_keeps_its_number(tmp_path):
    train = write_foreign(tmp_path, "train", 5)
    record_training(tmp_path, num_classes=12)
    assert num_classes(tmp_path, "train", train_file_pattern=train) == 12
    (tmp_path / "checkpoint").unlink()
    assert num_classes(tmp_path, "train", train_file_pattern=train) == 6


def test_labels_have_to_mean_the_same(tmp_path):
    own = write_own(tmp_path, "own", "cat", "dog")
    val = write_foreign(tmp_path, "val", 2, names={2: "dog"})
    both = {"train_file_pattern": own, "eval_file_pattern": val}
    assert num_classes(tmp_path, "train_and_eval", **both) == 3
    write_foreign(tmp_path, "val", 2, names={2: "bicycle"})
    for mode in ("train_and_eval", "eval"):
        with pytest.raises(UserError, match="Label 2 is .* in the records") as refusal:
            complete(tmp_path, mode, **both)
        assert "'dog'" in str(refusal.value) and "'bicycle'" in str(refusal.value)
    record_training(tmp_path, num_classes=3, train_file_pattern=own)
    with pytest.raises(UserError, match="Label 2 is"):
        complete(tmp_path, "eval", eval_file_pattern=val)
    record_training(tmp_path, num_classes=3, train_file_pattern=write_foreign(tmp_path, "t", 2))
    with pytest.raises(UserError, match="Label 2 is"):
        complete(tmp_path, "eval", eval_file_pattern=val)


def test_names_that_are_missing_contradict_nothing(tmp_path):
    own = write_own(tmp_path, "own", "cat", "dog")
    val = write_foreign(tmp_path, "val", 2, names={2: ""})
    assert num_classes(tmp_path, "eval", train_file_pattern=own, eval_file_pattern=val) == 3


def test_the_background_is_no_label(tmp_path):
    train = write_foreign(tmp_path, "train", 0, 1)
    with pytest.raises(UserError, match="have the label 0, but 0 is the background"):
        complete(tmp_path, "train", train_file_pattern=train)


def test_boxes_alone_need_a_network_of_boxes_alone(tmp_path):
    train = write_foreign(tmp_path, "train", 1, 2, with_masks=False)
    for given in (0, 9):
        with pytest.raises(UserError, match="--noinclude_mask --noinclude_maskiou"):
            complete(tmp_path, "train", train_file_pattern=train, num_classes=given)
    boxes_alone = {"include_mask": False, "include_maskiou": False}
    assert num_classes(tmp_path, "train", train_file_pattern=train, **boxes_alone) == 3
    assert num_classes(tmp_path, "eval", eval_file_pattern=train) == 3


def test_crowded_images_are_warned_about(tmp_path, capsys):
    train = write_foreign(tmp_path, "train", 1, 1, 1)
    complete(tmp_path, "train", train_file_pattern=train, max_instances=2)
    assert "3 objects and --max_instances=2" in capsys.readouterr().err


def test_without_an_object_the_number_is_asked_for(tmp_path):
    empty = write_foreign(tmp_path, "empty")
    with pytest.raises(UserError, match="nor a labelled object .* give --num_classes"):
        complete(tmp_path, "predict", eval_file_pattern=empty)
    assert num_classes(tmp_path, "predict", eval_file_pattern=empty, num_classes=7) == 7


def test_records_with_manifests_are_not_looked_into(tmp_path):
    own = write_own(tmp_path, "own", "cat", "dog", content=b"no record at all")
    assert num_classes(tmp_path, "train", train_file_pattern=own) == 3


def test_real_records_of_others(tmp_path, shared_data):
    masks = f"{shared_data}/records/tpu_masks/val-*.tfrecord"
    assert num_classes(tmp_path, "train", train_file_pattern=masks) == 91
    pets = f"{shared_data}/records/pets_examples.record"
    assert num_classes(tmp_path, "eval", eval_file_pattern=pets) == 38
    with pytest.raises(UserError, match="--noinclude_mask --noinclude_maskiou"):
        complete(tmp_path, "train", train_file_pattern=pets)


def test_polygon_targets_need_polygons_and_room_for_them(tmp_path):
    own = write_own(tmp_path, "own", "cat")
    path = tmp_path / "own.manifest.json"
    polygons = {"train_file_pattern": own, "mask_target": "polygon"}
    with pytest.raises(UserError, match=f"{own} have objects without polygons.*=bitmap"):
        complete(tmp_path, "train", **polygons)
    complete(tmp_path, "eval", eval_file_pattern=own, mask_target="polygon")
    boxes_alone = {"include_mask": False, "include_maskiou": False}
    complete(tmp_path, "train", **polygons, **boxes_alone)

    facts = {"num_without_polygons": 0, "max_polygon_vertices": 600}
    write_manifest(str(path), dataclasses.replace(load_manifest(str(path)), **facts))
    with pytest.raises(UserError, match="600 polygon vertices .*=512 .* give .*vertices=600"):
        complete(tmp_path, "train", **polygons)
    complete(tmp_path, "train", **polygons, max_polygon_vertices=600)

    foreign = write_foreign(tmp_path, "train", 1)
    with pytest.raises(UserError, match="without polygons"):
        complete(tmp_path, "train", train_file_pattern=foreign, mask_target="polygon")
