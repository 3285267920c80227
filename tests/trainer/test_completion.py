"""Records without a manifest: classes, names and masks come from a look into them."""

import dataclasses

import numpy as np
import pytest
from toy_model import toy_params

from data.errors import UserError
from data.manifest import Manifest, load_manifest, write_manifest
from data.records import Instance, encode_example
from data.tfrecords import write_shard
from trainer.categories import write_categories
from trainer.completion import complete_from_manifests, complete_from_records
from trainer.known_classes import evaluated_categories, predicted_categories


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


def make_categories(*names):
    return tuple({"label": n, "id": 10 * n, "name": name} for n, name in enumerate(names, 1))


def write_own(folder, name, *names, content=b"", num_instances=1):
    """A shard with a manifest of these categories; returns its path."""
    path = folder / f"{name}-00000-of-00001.tfrecord"
    path.write_bytes(content)
    shards = ({"name": path.name, "num_images": 1, "bytes": len(content), "sha256": ""},)
    counts = (1, num_instances, 0, num_instances)
    manifest = Manifest(*counts, True, make_categories(*names), {}, shards)
    write_manifest(f"{folder}/{name}.manifest.json", manifest)
    return str(path)


def record_training(folder, *names, **flags):
    """What a training run leaves in its model_dir, with categories if any are named."""
    (folder / "checkpoint").touch()
    if names:
        write_categories(make_categories(*names), str(folder))
    lines = "".join(f"--{name}={value}\n" for name, value in flags.items())
    (folder / "config.flags").write_text(lines)


def complete(folder, mode, **changes):
    changes = {"num_classes": 0, **changes}
    params = complete_from_manifests(toy_params(folder, mode=mode, **changes))
    return complete_from_records(params)


def predicted(completion):
    return predicted_categories(completion.params, completion.categories)


def evaluated(completion, truth):
    return evaluated_categories(completion.params, completion.categories, truth)


def num_classes(folder, mode, **changes):
    return complete(folder, mode, **changes).params.model.num_classes


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
    assert "--num_classes=91 is more than the 3 classes of the records" in capsys.readouterr().err


def test_what_is_given_wins(tmp_path, capsys):
    train = write_foreign(tmp_path, "train", 3, 11)
    assert num_classes(tmp_path, "train", train_file_pattern=train, num_classes=40) == 40
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="label 11, but the network has --num_classes=11"):
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


def ids_by_label(categories) -> dict:
    return {category["label"]: category["id"] for category in categories}


def test_a_first_training_takes_the_classes_of_its_records(tmp_path):
    own = write_own(tmp_path, "own", "cat", "dog")
    completion = complete(tmp_path, "train", train_file_pattern=own)
    assert completion.categories == make_categories("cat", "dog")
    assert (completion.label_map, completion.num_images) == ({}, 1)
    foreign = write_foreign(tmp_path, "train", 3, 1, names={3: "cow", 1: ""})
    completion = complete(tmp_path, "train", train_file_pattern=foreign)
    assert completion.categories == (
        {"label": 1, "id": 1, "name": "1"},
        {"label": 3, "id": 3, "name": "cow"},
    )
    assert completion.num_images == 2
    # Image 1 is in this fraction, image 0 is not.
    half = complete(tmp_path, "train", train_file_pattern=foreign, train_fraction=0.3)
    assert half.num_images == 1


def test_a_resumed_training_maps_labels_by_name(tmp_path, capsys):
    record_training(tmp_path, "cat", "dog", num_classes=3)
    own = write_own(tmp_path, "own", "dog", "cat")
    completion = complete(tmp_path, "train", train_file_pattern=own)
    assert completion.categories == make_categories("cat", "dog")
    assert completion.label_map == {1: 2, 2: 1}
    assert "classes matched by name: dog 1 (id 10) -> 2 (id 20)" in capsys.readouterr().out

    write_own(tmp_path, "own", "cat", "horse", "cow")
    with pytest.raises(UserError, match="own.* does not know: 'horse', 'cow'"):
        complete(tmp_path, "train", train_file_pattern=own)
    write_own(tmp_path, "own", "dog")
    assert complete(tmp_path, "train", train_file_pattern=own).label_map == {1: 2}
    assert "Warning: the model in" in capsys.readouterr().err
    write_own(tmp_path, "own", "cat", "dog")
    assert complete(tmp_path, "train", train_file_pattern=own).label_map == {}

    (tmp_path / "checkpoint").unlink()
    write_own(tmp_path, "own", "horse")
    assert complete(tmp_path, "train", train_file_pattern=own).categories[0]["name"] == "horse"


@pytest.mark.parametrize("mode", ["eval", "predict"])
def test_results_carry_the_ids_of_the_evaluation_set(tmp_path, capsys, mode):
    record_training(tmp_path, "cat", "dog", num_classes=3)
    own = write_own(tmp_path, "own", "dog", "cat")

    def found(truth, **changes):
        completion = complete(tmp_path, mode, **changes)
        assert completion.params.model.num_classes == 3
        if mode == "predict":
            return ids_by_label(predicted(completion))
        return ids_by_label(evaluated(completion, {"categories": truth}))

    assert found([], eval_file_pattern=own) == {1: 20, 2: 10}
    assert "classes matched by name: dog 1 (id 10) -> 2 (id 20)" in capsys.readouterr().out
    write_own(tmp_path, "own", "dog")
    assert found([], eval_file_pattern=own) == {1: None, 2: 10}
    assert "Warning: detections of 'cat' are left out" in capsys.readouterr().err
    write_own(tmp_path, "own", "horse", "cat")
    with pytest.raises(UserError, match="own.* has classes .* does not know: 'horse'; "):
        found([], eval_file_pattern=own)

    foreign = write_foreign(tmp_path, "val", 1, names={1: "dog"})
    expected = {1: 10, 2: 20} if mode == "predict" else {1: 10, 2: 1}
    assert found([{"id": 1, "name": "dog"}], eval_file_pattern=foreign) == expected


def test_an_annotation_file_tells_the_ids(tmp_path):
    record_training(tmp_path, "cat", "dog", num_classes=3)
    own = write_own(tmp_path, "own", "cat", "dog")
    files = {"eval_file_pattern": own, "eval_annotation_file": "val.json"}
    completion = complete(tmp_path, "eval", **files)
    truth = {"categories": [{"label": 1, "id": 7, "name": "dog"}]}
    assert ids_by_label(evaluated(completion, truth)) == {
        1: 10,
        2: 7,
    }
    truth["categories"][0]["name"] = "cow"
    with pytest.raises(UserError, match="val.json has classes .*: 'cow'"):
        evaluated(completion, truth)


def test_a_fresh_training_from_other_weights_counts_its_own_classes(tmp_path):
    elsewhere = tmp_path / "other"
    elsewhere.mkdir()
    record_training(elsewhere, "cat", num_classes=2)
    own = write_own(tmp_path, "own", "cat", "dog")
    weights = {"train_file_pattern": own, "init_checkpoint": str(elsewhere / "ckpt-4")}
    assert complete(tmp_path, "train", **weights).params.model.num_classes == 3


def test_without_recorded_classes_those_of_the_records_are_assumed(tmp_path, capsys):
    own = write_own(tmp_path, "own", "cat", "dog")
    completion = complete(tmp_path, "eval", eval_file_pattern=own)
    assert completion.categories == make_categories("cat", "dog")
    assert "Warning: there is no categories.json" in capsys.readouterr().err
    foreign = write_foreign(tmp_path, "val", 2)
    completion = complete(tmp_path, "eval", eval_file_pattern=foreign)
    truth = {"categories": [{"id": 2, "name": "dog"}]}
    assert ids_by_label(evaluated(completion, truth)) == {2: 2}
    assert predicted(completion) == []


def test_a_checkpoint_elsewhere_brings_its_classes(tmp_path):
    elsewhere = tmp_path / "other"
    (elsewhere / "best").mkdir(parents=True)
    record_training(elsewhere, "cat", "dog", num_classes=3)
    own = write_own(tmp_path, "own", "dog", "cat")
    for checkpoint in (elsewhere / "ckpt-4", elsewhere / "best", elsewhere / "best" / "ckpt-2"):
        weights = {"eval_file_pattern": own, "init_checkpoint": str(checkpoint)}
        completion = complete(tmp_path, "predict", **weights)
        assert ids_by_label(predicted(completion)) == {
            1: 20,
            2: 10,
        }


def test_records_without_an_object_are_warned_about(tmp_path, capsys):
    own = write_own(tmp_path, "own", "cat", num_instances=0)
    complete(tmp_path, "train", train_file_pattern=own)
    said = capsys.readouterr().err
    assert f"Warning: the images of {own} have no objects to learn" in said
    empty = write_foreign(tmp_path, "empty")
    complete(tmp_path, "train", train_file_pattern=empty, num_classes=2)
    assert f"Warning: the images of {empty} have no objects to learn" in capsys.readouterr().err


def test_the_background_is_no_label(tmp_path):
    train = write_foreign(tmp_path, "train", 0, 1)
    with pytest.raises(UserError, match="have the label 0, but 0 is the background"):
        complete(tmp_path, "train", train_file_pattern=train)


def test_boxes_alone_need_a_network_of_boxes_alone(tmp_path):
    train = write_foreign(tmp_path, "train", 1, 2, with_masks=False)
    for given in (0, 9):
        with pytest.raises(UserError, match="--system=faster_rcnn"):
            complete(tmp_path, "train", train_file_pattern=train, num_classes=given)
    boxes_alone = {"system": "faster_rcnn"}
    assert num_classes(tmp_path, "train", train_file_pattern=train, **boxes_alone) == 3
    assert num_classes(tmp_path, "eval", eval_file_pattern=train) == 3


def test_crowded_images_are_warned_about(tmp_path, capsys):
    train = write_foreign(tmp_path, "train", 1, 1, 1)
    complete(tmp_path, "train", train_file_pattern=train, max_instances=2)
    assert "3 objects and --max_instances=2" in capsys.readouterr().err


def test_without_an_object_the_number_is_asked_for(tmp_path):
    empty = write_foreign(tmp_path, "empty")
    with pytest.raises(UserError, match="nor labelled objects.* give --num_classes"):
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
    with pytest.raises(UserError, match="--system=faster_rcnn"):
        complete(tmp_path, "train", train_file_pattern=pets)


def test_polygon_targets_need_polygons_and_room_for_them(tmp_path):
    own = write_own(tmp_path, "own", "cat")
    path = tmp_path / "own.manifest.json"
    polygons = {"train_file_pattern": own, "mask_target": "polygon"}
    with pytest.raises(UserError, match=f"{own} have objects without polygons.*=bitmap"):
        complete(tmp_path, "train", **polygons)
    complete(tmp_path, "eval", eval_file_pattern=own, mask_target="polygon")
    boxes_alone = {"system": "faster_rcnn"}
    complete(tmp_path, "train", **polygons, **boxes_alone)

    facts = {"num_without_polygons": 0, "max_polygon_vertices": 600}
    write_manifest(str(path), dataclasses.replace(load_manifest(str(path)), **facts))
    with pytest.raises(UserError, match="600 polygon vertices, more .*=512: use .*=600"):
        complete(tmp_path, "train", **polygons)
    complete(tmp_path, "train", **polygons, max_polygon_vertices=600)

    foreign = write_foreign(tmp_path, "train", 1)
    with pytest.raises(UserError, match="without polygons"):
        complete(tmp_path, "train", train_file_pattern=foreign, mask_target="polygon")
