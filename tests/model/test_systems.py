"""The table of systems, and that nothing but it reads the network's settings."""

import ast
import pathlib

import numpy as np
import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_labels, toy_params, toy_proposals

from model import config, systems
from model.variables import named_variables

ROOT = pathlib.Path(__file__).parents[2]


def test_what_is_known_of_systems_is_what_they_are_made_of():
    assert config.SYSTEMS.keys() == systems.SYSTEMS.keys()
    for name, system in systems.SYSTEMS.items():
        facts = config.SYSTEMS[name]
        assert facts.has_masks == ("mask_head" in system.heads)
        assert facts.has_maskiou == ("maskiou_head" in system.heads)
        assert facts.has_pyramid == (system.last_stage == 5)


def toy_network(name, **settings):
    return systems.build_network(toy_params(system=name, **settings))


@pytest.mark.parametrize("name", systems.SYSTEMS)
def test_a_system_has_the_outputs_of_its_heads(name):
    network = toy_network(name)
    assert network.head_names == tuple(systems.SYSTEMS[name].heads)
    found = network.detect(toy_features(batch=1) | toy_proposals(toy_labels(batch=1)))
    assert ("detection_masks" in found) == ("mask_head" in network.head_names)
    assert ("mask_ious" in found) == ("maskiou_head" in network.head_names)


@pytest.mark.parametrize("pooling", ["max", "align"])
@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn_c4"])
def test_systems_of_one_map_learn_with_every_variable(name, pooling):
    network = toy_network(name, roi_pooling=pooling, rpn_channels=12, rpn_scores="softmax")
    labels = toy_labels()
    labels["rpn_indices"] %= 4 * 4 * 9  # one map has fewer anchors than a pyramid
    features = toy_features() | toy_proposals(labels)

    def compute():
        with tf.GradientTape() as tape:
            losses, _ = network.compute_losses(features, labels)
            loss = tf.add_n(list(losses.values()))
        return losses, tape.gradient(loss, [v.value for v in network.trainable_variables])

    losses, gradients = compute()
    of_rpn = {"rpn_objectness_loss", "rpn_box_loss"} if name == "faster_rcnn_c4" else set()
    assert losses.keys() == {"class_loss", "box_loss"} | of_rpn
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient is not None and np.isfinite(gradient).all(), variable.path
    names = named_variables(network)
    assert any(name.startswith("box_head/trunk/") for name in names)
    assert not any(name.startswith("fpn/") for name in names)


@pytest.mark.parametrize("pooling", ["max", "align"])
@pytest.mark.parametrize("name", ["fast_rcnn", "faster_rcnn_c4"])
def test_static_shapes_change_nothing_on_one_map(name, pooling):
    network = toy_network(name, roi_pooling=pooling, score_threshold=0.0)
    labels = toy_labels()
    features = toy_features() | toy_proposals(labels)
    found = network.detect(features)
    compiled = tf.function(lambda: network.detect(features, static=True), jit_compile=True)()
    for key, value in found.items():
        np.testing.assert_allclose(compiled[key], value, atol=1e-3)


def test_empty_slots_of_given_proposals_are_neither_sampled_nor_detected():
    network = toy_network("fast_rcnn", score_threshold=0.0, detections_per_image=60)
    labels = toy_labels()
    features = toy_features() | toy_proposals(labels)
    _, _, proposals = network.propose(features, training=True)
    assert proposals.valid.numpy().tolist() == [[True] * 5 + [False] * 2] * 2
    rois = network.sampler(
        proposals, labels["gt_boxes"], labels["gt_classes"], labels["sample_seeds"]
    )
    assert tf.math.count_nonzero(rois.valid) == 2 * (5 + 2)  # and the objects themselves
    found = network.detect(features)
    assert (found["num_detections"].numpy() <= 5 * 3).all()


def test_one_map_of_the_paper_has_nine_anchors_a_cell():
    network = toy_network("faster_rcnn_c4", rpn_scores="softmax", rpn_channels=512)
    assert network.rpn_head.objectness.kernel.shape[2:] == (512, 18)
    assert network.rpn_head.deltas.kernel.shape[2:] == (512, 36)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"roi_pooling": "max"}, "--roi_pooling=max: expected align for mask_scoring_rcnn"),
        ({"system": "fast_rcnn", "norm": "sync_bn"}, "--norm=sync_bn: expected frozen_bn, gn or"),
    ],
)
def test_what_a_system_cannot_do_is_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        toy_params(**settings)


def test_separable_convolutions_replace_all_of_the_pyramid_and_the_heads():
    network = systems.build_network(toy_params(separable_convs=True, box_num_convs=1))
    kernels = {
        path: tuple(variable.shape)
        for part in (network.fpn, network.rpn_head, *network.heads)
        for path, variable in ((v.path, v) for v in part.decayed_variables)
        if len(variable.shape) == 4
    }
    assert sum(shape[:2] == (3, 3) for shape in kernels.values()) == 4 + 1 + 1 + 4 + 4
    for path, shape in kernels.items():
        assert shape[:2] != (3, 3) or shape[3] == 1, path
    losses = network.detect(toy_features(batch=1))
    assert np.isfinite(losses["mask_ious"]).all()


def test_only_systems_reads_the_settings_of_the_network():
    readers = {
        str(path.relative_to(ROOT))
        for path in (ROOT / "model").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module in ("model.config", "data.config")
    }
    # The importer compares them with those that weights were trained under.
    assert readers == {"model/systems.py", "model/importers/report.py"}
