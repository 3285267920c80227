"""The whole network on a synthetic batch: training losses, detections, and their variants."""

import operator
import random

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_batch import NUM_CLASSES, toy_features, toy_labels, toy_params, toy_polygons

from data.settings import SettingError
from model.layers import Conv, ConvTranspose, Dense
from model.systems import build_network

LOSSES = {
    "rpn_objectness_loss",
    "rpn_box_loss",
    "class_loss",
    "box_loss",
    "mask_loss",
    "maskiou_loss",
}


@pytest.fixture(scope="module")
def network():
    return build_network(toy_params())


def variant(network, **settings):
    """A network with the same weights under other settings."""
    copy = build_network(toy_params(**settings))
    for ours, theirs in zip(copy.variables, network.variables, strict=True):
        ours.assign(theirs)
    return copy


@pytest.fixture(scope="module")
def finding(network):
    """The network without a threshold, so that it finds as much as it may."""
    return variant(network, score_threshold=0.0)


def numbers(losses):
    return {name: float(value) for name, value in losses.items()}


def losses_and_gradients(network, labels, watched, static=False):
    with tf.GradientTape() as tape:
        losses, metrics = network.compute_losses(toy_features(), labels, static)
        loss = tf.add_n(list(losses.values()))
    return losses, metrics, tape.gradient(loss, [variable.value for variable in watched])


def test_every_loss_trains_its_part(network):
    losses, metrics, gradients = losses_and_gradients(
        network, toy_labels(), network.trainable_variables
    )
    assert set(losses) == LOSSES
    assert all(value.shape == () and value.dtype == tf.float32 for value in losses.values())
    assert all(0 < value < 10 for value in numbers(losses).values())
    assert 0 < float(metrics["num_positive_rois"]) <= 2 * 6
    for variable, gradient in zip(network.trainable_variables, gradients, strict=True):
        assert gradient is not None, variable.path
        assert np.isfinite(tf.convert_to_tensor(gradient)).all(), variable.path


def test_same_seed_same_weights_and_losses(network):
    again = build_network(toy_params())
    for a, b in zip(network.variables, again.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    ours, theirs = (n.compute_losses(toy_features(), toy_labels())[0] for n in (network, again))
    assert numbers(ours) == numbers(theirs)


def test_settings_of_the_losses(network):
    features, labels = toy_features(), toy_labels()
    plain = numbers(network.compute_losses(features, labels)[0])
    assert plain == numbers(network.compute_losses(features, labels)[0])
    weighted = variant(network, maskiou_loss_weight=3.0).compute_losses(features, labels)[0]
    assert float(weighted["maskiou_loss"]) == pytest.approx(3 * plain["maskiou_loss"])
    by_ratio = variant(network, maskiou_target_area="ratio")
    ratio = numbers(by_ratio.compute_losses(features, labels)[0])
    assert ratio["maskiou_loss"] == pytest.approx(plain["maskiou_loss"], rel=0.5)
    del ratio["maskiou_loss"]
    assert ratio == {name: plain[name] for name in ratio}
    of_all = variant(network, maskiou_target_classes="all").compute_losses(features, labels)[0]
    assert float(of_all["maskiou_loss"]) > plain["maskiou_loss"]


@pytest.mark.parametrize("stopped", [False, True])
def test_maskiou_gradient_stops_only_when_asked(network, stopped):
    network = variant(network, maskiou_stop_gradient=stopped)
    with tf.GradientTape() as tape:
        loss = network.compute_losses(toy_features(), toy_labels())[0]["maskiou_loss"]
    watched = [
        network.maskiou_head.convs[0].kernel,
        network.mask_head.convs[0].conv.kernel,
        network.fpn.outputs[0].conv.kernel,
        network.backbone.stem.conv.kernel,
    ]
    gradients = tape.gradient(loss, [variable.value for variable in watched])
    reached = [gradient is not None and bool(np.any(gradient)) for gradient in gradients]
    assert reached == [True] + [not stopped] * 3


def test_batch_without_ground_truth(network):
    labels = toy_labels(num_objects=0)
    losses, metrics, gradients = losses_and_gradients(
        network, labels, network.mask_head.trainable_variables + network.fpn.trainable_variables
    )
    values = numbers(losses)
    for name in ("mask_loss", "maskiou_loss", "box_loss", "rpn_box_loss"):
        assert values[name] == 0.0, name
    assert np.isfinite(values["class_loss"]) and values["class_loss"] > 0
    assert float(metrics["num_positive_rois"]) == 0.0
    for gradient in gradients:
        assert np.isfinite(tf.convert_to_tensor(gradient)).all()


def test_padding_of_the_image_is_not_seen(network):
    features = toy_features()
    height, width = 60, 56
    noisy = features["image"].numpy()
    noisy[:, height:] = 255
    noisy[:, :, width:] = 7
    changed = features | {"image": tf.constant(noisy)}
    for a, b in zip(
        network.extract_features(features["image"], features["image_info"], False),
        network.extract_features(changed["image"], changed["image_info"], False),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)


def test_pixels_are_normalised(network):
    seen = []
    backbone = network.backbone.call
    network.backbone.call = lambda x, **kwargs: seen.append(x) or backbone(x, **kwargs)
    try:
        image = np.zeros((1, 64, 64, 3), np.uint8)
        image[0, 0, 0] = [255, 0, 124]
        network.extract_features(tf.constant(image), tf.constant([[2.0, 2, 1, 2, 2]]), False)
    finally:
        network.backbone.call = backbone
    expected = [(255 - 123.675) / 58.395, -116.28 / 57.12, (124 - 103.53) / 57.375]
    np.testing.assert_allclose(seen[0][0, 0, 0], expected, rtol=1e-5)
    assert not np.any(seen[0][0, 2:]) and not np.any(seen[0][0, :, 2:])


def test_detections(finding):
    found = finding.detect(toy_features())
    expected = {
        "num_detections": ((2,), tf.int32),
        "detection_boxes": ((2, 6, 4), tf.float32),
        "detection_classes": ((2, 6), tf.int32),
        "box_scores": ((2, 6), tf.float32),
        "mask_ious": ((2, 6), tf.float32),
        "mask_scores": ((2, 6), tf.float32),
        "detection_masks": ((2, 6, 8, 8), tf.float32),
    }
    assert {name: (tuple(x.shape), x.dtype) for name, x in found.items()} == expected
    found = {name: values.numpy() for name, values in found.items()}
    np.testing.assert_array_equal(found["num_detections"], [6, 6])
    assert set(np.unique(found["detection_classes"])) <= set(range(1, NUM_CLASSES))
    assert (np.diff(found["box_scores"], axis=1) <= 0).all()
    assert ((found["mask_ious"] >= 0) & (found["mask_ious"] <= 1)).all()
    np.testing.assert_allclose(found["mask_scores"], found["box_scores"] * found["mask_ious"])
    assert ((found["detection_masks"] > 0) & (found["detection_masks"] < 1)).all()
    assert (found["detection_boxes"] <= [60, 56, 60, 56]).all()
    assert (found["detection_boxes"] >= 0).all()


def test_rating_its_own_masks_gives_the_ious_of_its_detections(finding):
    features = toy_features()
    found = finding.detect(features)
    boxes, classes, masks = (found[f"detection_{name}"] for name in ("boxes", "classes", "masks"))
    rated = finding.rate(features, boxes, classes, masks)
    valid = classes.numpy() > 0
    assert valid.sum() > 3
    np.testing.assert_allclose(rated.numpy()[valid], found["mask_ious"].numpy()[valid], atol=1e-5)


def test_rescoring_can_be_switched_off(finding, monkeypatch):
    rescored = finding.detect(toy_features())
    monkeypatch.setattr(finding.maskiou_head, "rescore", False)
    plain = finding.detect(toy_features())
    np.testing.assert_array_equal(plain["mask_scores"], plain["box_scores"])
    for name in set(rescored) - {"mask_scores"}:
        np.testing.assert_array_equal(plain[name], rescored[name])


@pytest.mark.parametrize("static", [False, True])
def test_detections_may_be_none_or_few(finding, static, monkeypatch):
    scores = finding.detect(toy_features(), static)
    between = float(scores["box_scores"][0, 1:3].numpy().mean())
    for threshold, first in ((1.0, 0), (between, 2)):
        monkeypatch.setattr(finding.box_head, "score_threshold", threshold)
        found = finding.detect(toy_features(), static)
        count = found["num_detections"].numpy()
        assert count[0] == first
        empty = np.arange(6)[None] >= count[:, None]
        for name in set(found) - {"num_detections"}:
            assert not found[name].numpy()[empty].any(), name


def test_images_do_not_influence_each_other(finding):
    features = toy_features()
    together = finding.detect(features)
    alone = finding.detect({name: values[1:] for name, values in features.items()})
    for name in together:
        np.testing.assert_allclose(together[name][1], alone[name][0], rtol=1e-3, atol=1e-4)


def test_static_shapes_give_the_same_losses_and_detections(finding):
    labels = toy_labels()
    watched = finding.trainable_variables
    plain, metrics, gradients = losses_and_gradients(finding, labels, watched)
    theirs, static_metrics, static_gradients = losses_and_gradients(
        finding, labels, watched, static=True
    )
    assert numbers(theirs) == pytest.approx(numbers(plain), rel=1e-5)
    assert numbers(metrics) == numbers(static_metrics)
    for variable, a, b in zip(watched, gradients, static_gradients, strict=True):
        a, b = (tf.convert_to_tensor(gradient).numpy() for gradient in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max() + 1e-7, err_msg=variable.path)

    static_detections = finding.detect(toy_features(), static=True)
    for name, values in finding.detect(toy_features()).items():
        np.testing.assert_allclose(static_detections[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("mask_target", ["bitmap", "polygon"])
def test_xla_gives_the_same(mask_target):
    # Frozen norms and a frozen backbone keep the compilation short; the heads all train.
    settings = {"norm": "frozen_bn", "freeze_at": 5, "mask_target": mask_target}
    network = build_network(toy_params(**settings))
    watched = network.trainable_variables
    labels = toy_labels() | toy_polygons(toy_labels())

    @tf.function(jit_compile=True)
    def step():
        losses, _, gradients = losses_and_gradients(network, labels, watched, static=True)
        return losses, [tf.convert_to_tensor(gradient) for gradient in gradients]

    losses, _, gradients = losses_and_gradients(network, labels, watched)
    xla_losses, xla_gradients = step()
    assert numbers(xla_losses) == pytest.approx(numbers(losses), rel=1e-4)
    for variable, a, b in zip(watched, gradients, xla_gradients, strict=True):
        a = tf.convert_to_tensor(a).numpy()
        np.testing.assert_allclose(a, b, atol=1e-2 * np.abs(a).max() + 1e-6, err_msg=variable.path)


@pytest.mark.parametrize(
    "precision, tolerance, alike", [("mixed_bfloat16", 0.08, 0.95), ("mixed_float16", 0.01, 0.99)]
)
def test_losses_and_gradients_in_half_precision_are_close(network, precision, tolerance, alike):
    labels = toy_labels()
    # All candidates are sampled, so that rounding the scores cannot change who is.
    settings = {"rois_per_image": 80, "rpn_post_nms_train": 15}
    mixed = build_network(toy_params(precision=precision, **settings))
    assert {variable.dtype for variable in mixed.variables} == {"float32"}
    kernels = ("backbone.stem.conv", "mask_head.deconv", "box_head.classes")
    network = variant(network, **settings)
    watched = [
        [operator.attrgetter(f"{path}.kernel")(each) for path in kernels]
        for each in (network, mixed)
    ]
    exact, _, gradients = losses_and_gradients(network, labels, watched[0])
    close, _, mixed_gradients = losses_and_gradients(mixed, labels, watched[1])
    assert all(value.dtype == tf.float32 for value in close.values())
    for name, value in numbers(exact).items():
        assert float(close[name]) == pytest.approx(value, rel=tolerance), name
    for ours, theirs in zip(mixed_gradients, gradients, strict=True):
        cosine = np.sum(ours * theirs) / (np.linalg.norm(ours) * np.linalg.norm(theirs))
        assert cosine > alike


@pytest.mark.parametrize("precision", ["mixed_bfloat16", "mixed_float16"])
def test_outputs_in_half_precision_hardly_tie(precision):
    mixed = build_network(toy_params(precision=precision))
    _, rpn, _ = mixed.propose(toy_features(batch=1), training=False)
    draw = np.random.default_rng(0).standard_normal
    pooled = tf.constant(draw((250, 7, 7, 32)), mixed.compute_dtype)
    classes = tf.ones([25], tf.int32)
    boxes = mixed.box_head(pooled)
    masks = mixed.mask_head(pooled[:25, :4, :4], classes)
    maskious = mixed.maskiou_head.predict_all_classes(
        pooled[:, :4, :4], tf.constant(draw((250, 8, 8)), tf.float32)
    )
    for outputs in (*rpn, *boxes, masks, maskious):
        assert outputs.dtype == tf.float32
        best = np.sort(outputs.numpy().ravel())[-1000:]
        # With the last layers in half precision 232 to 954 of them differ.
        assert len(best) == 1000 and len(np.unique(best)) > 980


def test_the_process_stays_as_it_is(monkeypatch):
    """No switch to deterministic ops, and no draw of the generators that are the user's."""

    def forbidden(*_):
        raise AssertionError("a switch of the whole process")

    monkeypatch.setattr(tf.config.experimental, "enable_op_determinism", forbidden)
    monkeypatch.setattr(tf.random, "set_seed", forbidden)
    monkeypatch.setattr(keras.utils, "set_random_seed", forbidden)
    states = [random.getstate(), np.random.get_state()[1].tolist()]
    network = build_network(toy_params())
    network.detect(toy_features())
    network.compute_losses(toy_features(), toy_labels())
    assert states == [random.getstate(), np.random.get_state()[1].tolist()]


def test_decayed_variables_are_the_trainable_kernels(network):
    frozen = build_network(toy_params(freeze_at=2))
    # The stem and two convolutions in each of two blocks; with group norm each has 3 variables.
    assert len(network.decayed_variables) - len(frozen.decayed_variables) == 5
    assert len(network.trainable_variables) - len(frozen.trainable_variables) == 15
    for each in (network, frozen):
        expected = {v.path for v in each.trainable_variables if v.path.endswith("kernel")}
        assert {variable.path for variable in each.decayed_variables} == expected
        assert len(each.decayed_variables) == len(expected)
        assert all(len(variable.shape) >= 2 for variable in each.decayed_variables)
    kernels = [
        layer.kernel
        for layer in network._flatten_layers()
        if isinstance(layer, (Conv, ConvTranspose, Dense))
    ]
    assert {id(kernel) for kernel in kernels} == {id(v) for v in network.decayed_variables}


def test_one_part_alone_can_be_trained():
    network = build_network(toy_params(norm="bn", train_only=("maskiou_head",)))
    head = {id(variable) for variable in network.maskiou_head.variables}
    assert {id(variable) for variable in network.trainable_variables} == head
    assert {id(kernel) for kernel in network.decayed_variables} < head
    before = [variable.numpy() for variable in network.variables]
    _, _, gradients = losses_and_gradients(network, toy_labels(), network.trainable_variables)
    assert all(gradient is not None for gradient in gradients)
    # Statistics of batches stay too.
    for variable, value in zip(network.variables, before, strict=True):
        np.testing.assert_array_equal(variable, value)


def test_a_part_that_the_system_lacks_cannot_be_trained():
    with pytest.raises(SettingError, match="^--train_only=box_head,mask.* parts of this system: b"):
        params = toy_params(
            system="faster_rcnn", train_only=("box_head", "mask_head", "maskiou_head")
        )
        build_network(params)


def test_perturbed_masks_train_the_maskiou_head_alone(network):
    spoilt = variant(network, maskiou_perturbed_masks=True)
    with tf.GradientTape() as tape:
        losses, _ = spoilt.compute_losses(toy_features(), toy_labels())
    assert set(losses) == LOSSES | {"maskiou_perturbed_loss"}
    loss = losses["maskiou_perturbed_loss"]
    assert 0 < float(loss) < 1
    gradients = tape.gradient(loss, [v.value for v in spoilt.trainable_variables])
    head = {id(variable) for variable in spoilt.maskiou_head.variables}
    for variable, gradient in zip(spoilt.trainable_variables, gradients, strict=True):
        assert (gradient is not None) == (id(variable) in head), variable.path
    others, _ = network.compute_losses(toy_features(), toy_labels())
    assert numbers(others) == pytest.approx(
        {k: v for k, v in numbers(losses).items() if k in LOSSES}
    )


def test_without_maskiou_head():
    network = build_network(toy_params(system="mask_rcnn", score_threshold=0.0))
    assert network.head_names == ("box_head", "mask_head")
    losses, _ = network.compute_losses(toy_features(), toy_labels())
    assert set(losses) == LOSSES - {"maskiou_loss"}
    found = network.detect(toy_features())
    assert "mask_ious" not in found
    np.testing.assert_array_equal(found["mask_scores"], found["box_scores"])
    assert found["detection_masks"].shape == (2, 6, 8, 8)


def test_polygon_targets_are_the_rois_discs(network):
    """Losses as of bitmaps of the same discs: at most cells on the outline differ."""
    labels = toy_labels() | toy_polygons(toy_labels())
    plain = numbers(network.compute_losses(toy_features(), labels)[0])
    for area in ("closed", "ratio"):
        drawn = variant(network, mask_target="polygon", maskiou_target_area=area)
        losses = numbers(drawn.compute_losses(toy_features(), labels)[0])
        assert losses["mask_loss"] == pytest.approx(plain["mask_loss"], rel=0.05)
        assert losses["maskiou_loss"] == pytest.approx(plain["maskiou_loss"], rel=0.3)
    empty = labels | {"gt_polygon_parts": tf.zeros_like(labels["gt_polygon_parts"])}
    losses = numbers(drawn.compute_losses(toy_features(), empty)[0])
    assert losses["maskiou_loss"] == 0 < losses["mask_loss"]


def test_without_mask_head_masks_are_not_read(network):
    settings = {"system": "faster_rcnn", "score_threshold": 0.0}
    part = build_network(toy_params(**settings))
    assert part.head_names == ("box_head",)
    for a, b in zip(part.box_head.variables, network.box_head.variables, strict=True):
        np.testing.assert_array_equal(a, b)
    labels = toy_labels()
    del labels["gt_masks"], labels["gt_areas"]
    losses, _ = part.compute_losses(toy_features(), labels)
    assert set(losses) == LOSSES - {"mask_loss", "maskiou_loss"}
    assert set(part.detect(toy_features())) == {
        "num_detections",
        "detection_boxes",
        "detection_classes",
        "box_scores",
    }


@pytest.mark.parametrize(
    "settings, changed",
    [
        ({"roi_aligned": False}, LOSSES - {"rpn_objectness_loss", "rpn_box_loss"}),
        ({"roi_sampling_ratio": 0}, LOSSES - {"rpn_objectness_loss", "rpn_box_loss"}),
        ({"mask_target": "soft"}, {"mask_loss", "maskiou_loss"}),
        ({"mask_target": "polygon"}, {"mask_loss", "maskiou_loss"}),
        ({"maskiou_target_area": "ratio"}, {"maskiou_loss"}),
    ],
)
def test_settings_of_rois_and_targets_reach_their_losses(network, settings, changed):
    # Of few corners, so that polygons differ from the masks in some cell.
    labels = toy_labels() | toy_polygons(toy_labels(), corners=4)
    plain = numbers(network.compute_losses(toy_features(), labels)[0])
    changed_network = variant(network, **settings)
    watched = changed_network.trainable_variables
    losses, _, gradients = losses_and_gradients(changed_network, labels, watched)
    losses = numbers(losses)
    assert {name for name in LOSSES if losses[name] != plain[name]} == changed
    assert all(np.isfinite(tf.convert_to_tensor(gradient)).all() for gradient in gradients)
