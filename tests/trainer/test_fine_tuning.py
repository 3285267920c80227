"""Outputs for classes of the same name, and heads that both have; the others stay as they were."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from data.errors import UserError
from trainer.categories import write_categories
from trainer.fine_tuning import load_by_class


class Part(tf.Module):
    def __init__(self, **layers):
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)


def make_network(num_classes: int, seed: int, width: int = 3) -> Part:
    """The parts of a network that have outputs for every class, and a body."""
    keras.utils.set_random_seed(seed)

    def build(layer, *shape):
        layer.build((None, *shape))
        for variable in layer.variables:
            variable.assign(np.random.default_rng(seed + variable.shape[-1]).random(variable.shape))
        return layer

    return Part(
        backbone=Part(dense=build(keras.layers.Dense(width), 2)),
        box_head=Part(
            classes=build(keras.layers.Dense(num_classes), width),
            deltas=build(keras.layers.Dense(4 * num_classes), width),
        ),
        mask_head=Part(logits=build(keras.layers.Conv2D(num_classes, 1), 5, 5, width)),
        point_head=Part(logits=build(keras.layers.Dense(num_classes), width)),
        maskiou_head=Part(maskiou=build(keras.layers.Dense(num_classes), width)),
    )


def categories(*names):
    return [{"label": n, "id": 10 * n, "name": name} for n, name in enumerate(names, 1)]


def save(folder, network, *names) -> str:
    path = str(folder / "ckpt-4")
    tf.train.Checkpoint(network=network).write(path)
    if names:
        write_categories(categories(*names), str(folder))
    return path


def outputs(network) -> list[tuple[np.ndarray, int]]:
    """Every variable with outputs for classes, and how many each class has."""
    return [
        (variable.numpy(), size)
        for layer, size in (
            (network.box_head.classes, 1),
            (network.box_head.deltas, 4),
            (network.mask_head.logits, 1),
            (network.point_head.logits, 1),
            (network.maskiou_head.maskiou, 1),
        )
        for variable in layer.variables
    ]


def test_classes_of_the_same_name_keep_their_outputs(tmp_path, capsys):
    source, network, initial = (make_network(n, seed) for n, seed in ((4, 1), (3, 2), (3, 2)))
    path = save(tmp_path, source, "cat", "dog", "cow")
    load_by_class(network, path, categories("horse", "dog"))
    np.testing.assert_array_equal(network.backbone.dense.kernel, source.backbone.dense.kernel)
    for (found, size), (theirs, _), (before, _) in zip(
        outputs(network), outputs(source), outputs(initial), strict=True
    ):
        arrays = [np.split(v, v.shape[-1] // size, -1)[:3] for v in (found, theirs, before)]
        for label, (values, carried, initialised) in enumerate(zip(*arrays, strict=True)):
            expected = initialised if label == 1 else carried
            np.testing.assert_array_equal(values, expected)
    said = capsys.readouterr().out
    assert (
        f"in {path} are kept for 'dog', initialised for 'horse', dropped for 'cat', 'cow'." in said
    )
    assert "classes matched by name" not in said, "the dog has its number"


def test_classes_in_another_order_are_permuted(tmp_path, capsys):
    source, network = make_network(3, 1), make_network(3, 2)
    load_by_class(network, save(tmp_path, source, "cat", "dog"), categories("dog", "cat"))
    for (found, size), (theirs, _) in zip(outputs(network), outputs(source), strict=True):
        by_class = theirs.reshape(*theirs.shape[:-1], 3, size)[..., [0, 2, 1], :]
        np.testing.assert_array_equal(found, by_class.reshape(theirs.shape))
    said = capsys.readouterr().out
    assert said.startswith("classes matched by name: dog 1 (id 10) -> 2 (id 20), cat 2")
    assert "are kept for 'dog', 'cat'." in said


def test_the_best_checkpoint_belongs_to_the_folder_above(tmp_path):
    source, network = make_network(3, 1), make_network(2, 2)
    (tmp_path / "best").mkdir()
    path = save(tmp_path / "best", source)
    write_categories(categories("cat", "dog"), str(tmp_path))
    load_by_class(network, path, categories("dog"))
    np.testing.assert_array_equal(network.box_head.classes.bias[1], source.box_head.classes.bias[2])


@pytest.mark.parametrize("names", [(), ("cat", "dog", "cow")])
def test_without_other_classes_everything_has_to_fit(tmp_path, names, capsys):
    source = make_network(4, 1)
    path = save(tmp_path, source, *names)
    load_by_class(make_network(4, 2), path, categories("cat", "dog", "cow"))
    assert capsys.readouterr().out == ""
    with pytest.raises(UserError, match="does not fit"):
        load_by_class(make_network(4, 2, width=5), path, categories("cat", "dog", "cow"))


def test_what_differs_in_more_than_classes_is_refused(tmp_path):
    path = save(tmp_path, make_network(3, 1), "cat", "dog")
    with pytest.raises(UserError, match="does not fit.*backbone/dense"):
        load_by_class(make_network(2, 2, width=5), path, categories("cat"))


def without_maskiou(num_classes: int, seed: int) -> Part:
    network = make_network(num_classes, seed)
    names = ("backbone", "box_head", "mask_head", "point_head")
    parts = {name: getattr(network, name) for name in names}
    return Part(**parts)


@pytest.mark.parametrize("names", [(), ("cat", "dog"), ("dog", "cow")])
def test_a_head_that_the_checkpoint_lacks_keeps_its_initial_values(tmp_path, names, capsys):
    source, network, initial = without_maskiou(3, 1), make_network(3, 2), make_network(3, 2)
    path = save(tmp_path, source, *names)
    load_by_class(network, path, categories("cat", "dog"))
    for own, before in zip(
        network.maskiou_head.maskiou.variables, initial.maskiou_head.maskiou.variables, strict=True
    ):
        np.testing.assert_array_equal(own, before)
    np.testing.assert_array_equal(network.backbone.dense.kernel, source.backbone.dense.kernel)
    dog = 1 if names == ("dog", "cow") else 2
    own, theirs = network.mask_head.logits, source.mask_head.logits
    np.testing.assert_array_equal(own.kernel[..., 2], theirs.kernel[..., dog])
    said = capsys.readouterr().out
    assert f"{path} has no maskiou_head; it keeps its initial values." in said
    assert ("are kept for" in said) == (names == ("dog", "cow"))


def test_a_head_that_the_network_lacks_is_not_used(tmp_path, capsys):
    source, network = make_network(3, 1), without_maskiou(3, 2)
    path = save(tmp_path, source)
    load_by_class(network, path, categories("cat", "dog"))
    np.testing.assert_array_equal(network.box_head.deltas.bias, source.box_head.deltas.bias)
    assert capsys.readouterr().out == f"The maskiou_head of {path} is not used.\n"


def test_another_box_head_is_refused(tmp_path):
    source = make_network(3, 1)
    source.box_head = Part(stages=Part(first=source.box_head))
    path = save(tmp_path, source)
    with pytest.raises(UserError, match="does not fit"):
        load_by_class(without_maskiou(3, 2), path, categories("cat", "dog"))


def test_a_checkpoint_of_something_else_is_refused(tmp_path):
    path = str(tmp_path / "ckpt-1")
    tf.train.Checkpoint(weights=tf.Variable([1.0])).write(path)
    with pytest.raises(UserError, match="does not fit.*network/backbone"):
        load_by_class(make_network(3, 2), path, categories("cat", "dog"))


def test_every_stage_of_a_cascade_keeps_its_outputs(tmp_path):
    def cascade(num_classes, seed):
        network = make_network(num_classes, seed)
        heads = [make_network(num_classes, seed + n).box_head.classes for n in range(3)]
        network.box_head = Part(stages=[Part(classes=layer) for layer in heads])
        return network

    source, network = cascade(3, 1), cascade(2, 5)
    load_by_class(network, save(tmp_path, source, "cat", "dog"), categories("dog"))
    for ours, theirs in zip(network.box_head.stages, source.box_head.stages, strict=True):
        np.testing.assert_array_equal(ours.classes.bias[1], theirs.classes.bias[2])
