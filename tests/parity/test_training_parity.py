"""Whole networks against mmdetection, Detectron2 and torchvision: losses, gradients, steps of SGD.

Every candidate is sampled, so nothing is drawn. Ground-truth masks are whole bitmaps, or in
Detectron2's first case, which is its default, polygons. Gradients of our variables are compared
with those of the tensors that the importer takes them from.

Deviations: mmdetection's default compares logits with 0.5 in the MaskIoU target; that case is run
with the threshold at that probability.
Our matcher takes IoUs for equal that rounding alone tells apart and then has more positives; the
references' own labels are used here.

Not covered: i_ms_full's training, whose candidates are in the authors' inclusive coordinates, but
for its mask branch (test_authors_training_parity); its losses' formulas are compared in
test_loss_parity.
"""

import math
from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf
from fixtures import FOLDER, agree, fixture, yx
from polygon_rows import polygon_rows
from reference_networks import Reference, batch_features, box_tolerance, load, with_settings

from data.anchor_matching import TIE_TOLERANCE, match
from data.anchors import AnchorGrid
from data.boxes import encode, pairwise_iou
from model.importers.translate import place
from model.mask_head import mask_targets
from model.maskiou_head import area_ratios, maskiou_targets, ratio_full_areas
from model.variables import named_variables

fixture("i_mm_tiny.npz")
CASES = [
    (file, case)
    for file in sorted(path.name for path in FOLDER.glob("i_*_tiny.npz"))
    for case in fixture(file).cases
    if case.startswith("train")
]
# Our names of the libraries' losses.
LOSSES = {
    "loss_rpn_cls": "rpn_objectness_loss",
    "loss_objectness": "rpn_objectness_loss",
    "loss_rpn_bbox": "rpn_box_loss",
    "loss_rpn_loc": "rpn_box_loss",
    "loss_rpn_box_reg": "rpn_box_loss",
    "loss_cls": "class_loss",
    "loss_classifier": "class_loss",
    "loss_bbox": "box_loss",
    "loss_box_reg": "box_loss",
    "loss_mask": "mask_loss",
    "loss_mask_iou": "maskiou_loss",
}
# The fixtures' three steps.
SGD_RATE, SGD_MOMENTUM, SGD_DECAY = 1e-3, 0.9, 1e-4
# See `test_three_steps_of_sgd`.
WEIGHT_NOISE, LEAST_NOISE_RUNS, MOST_NOISE_RUNS, SPREAD_FACTOR = 1e-5, 4, 24, 4.0
# What float noise amounts to in mask logits of some tens.
LOGIT_NOISE = 1e-3


class Run(NamedTuple):
    """One training case: a copy of the network, and its batch."""

    reference: Reference
    case: object
    images: object
    features: dict
    labels: dict

    @property
    def network(self):
        """The copy."""
        return self.reference.network

    def tolerance(self, name: str) -> float:
        """One of the manifest's tolerances."""
        return self.reference.fixture.tolerance[name]


@pytest.fixture(scope="module", params=CASES, ids=lambda pair: "-".join(pair))
def run(request):
    file, name = request.param
    reference = load(file)
    case, images = reference.fixture[name], reference.fixture["train"]
    config = reference.fixture["config"].params
    threshold = 1 / (1 + math.exp(-0.5)) if (reference.library, name) == ("mm", "train") else 0.5
    reference = with_settings(
        reference,
        rpn_pre_nms_train=reference.config.rpn_pre_nms_test,
        rpn_post_nms_train=reference.config.rpn_post_nms_test,
        rois_per_image=config.get("roi_batch", 10**6),
        roi_positive_fraction=1.0,
        maskiou_target_threshold=threshold,
        mask_target="bitmap" if "bitmask" in name else reference.config.mask_target,
    )
    sizes = [images[f"image{index}_rgb"].shape[:2] for index in range(2)]
    multiple = config.get("size_divisible", 32)
    canvas = tuple(
        math.ceil(max(sides) / multiple) * multiple for sides in zip(*sizes, strict=True)
    )
    features = batch_features([images[f"image{index}_rgb"] for index in range(2)], canvas)
    labels = batch_labels(reference, images, canvas, config.get("rpn_batch"))
    return Run(reference, case, images, features, labels)


def batch_labels(reference, images, canvas, rpn_samples):
    """Ground truth padded to equal counts, and every anchor that is positive or negative."""
    boxes = [yx(images[f"gt{index}_boxes"]) for index in range(2)]
    most = max(map(len, boxes))
    polygons = [polygon_rows(images, f"gt{index}/") for index in range(2)]
    longest = max(parts.shape[1] for _, parts in polygons)
    room = [[[0, most - len(parts)], [0, longest - parts.shape[1]]] for _, parts in polygons]
    anchors = AnchorGrid.from_config(reference.data, canvas).boxes()
    images_labels = []
    for index, gt_boxes in enumerate(boxes):
        labels, matches = dense_labels(anchors, gt_boxes, reference.data)
        check_our_matcher(labels, gt_boxes, reference.data, canvas)
        sampled = np.concatenate([np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)])
        spare_slots = (rpn_samples or len(anchors)) - len(sampled)
        deltas = encode(gt_boxes[matches[sampled]], anchors[sampled]).numpy()
        height, width = images[f"image{index}_rgb"].shape[:2]
        bitmaps = np.unpackbits(images[f"gt{index}_bitmaps"], axis=-1)[:, :height, :width]
        masks = np.zeros([most, *canvas], np.uint8)
        masks[: len(bitmaps), :height, :width] = bitmaps
        classes = reference.to_classes(images[f"gt{index}_labels"])
        spare = most - len(gt_boxes)
        images_labels.append(
            {
                "gt_boxes": np.pad(gt_boxes, [[0, spare], [0, 0]]),
                "gt_classes": np.pad(classes, [0, spare]),
                "gt_masks": masks,
                "gt_polygons": np.pad(polygons[index][0], [*room[index], [0, 0]]),
                "gt_polygon_parts": np.pad(polygons[index][1], room[index]),
                "gt_windows": np.tile(np.float32([0, 0, *canvas]), [most, 1]),
                "gt_areas": masks.sum(axis=(1, 2)).astype(np.float32),
                "rpn_indices": np.pad(sampled, [0, spare_slots]).astype(np.int32),
                "rpn_labels": np.pad(labels[sampled], [0, spare_slots], constant_values=-1),
                "rpn_deltas": np.pad(deltas, [[0, spare_slots], [0, 0]]),
                "sample_seeds": np.int32([index, 0]),
            }
        )
    names = images_labels[0]
    return {name: tf.constant(np.stack([one[name] for one in images_labels])) for name in names}


def dense_labels(anchors, gt_boxes, data):
    """The references' rule with their float32 arithmetic, which decides what ties exactly.

    Returns:
        int32 [A] labels (1, 0, -1 = ignored) and int64 [A], the box each anchor learns.
    """
    ious = pairwise_iou(tf.constant(anchors), tf.constant(gt_boxes)).numpy()
    best, matches = ious.max(axis=1), ious.argmax(axis=1)
    labels = np.where(
        best >= data.rpn_positive_iou, 1, np.where(best < data.rpn_negative_iou, 0, -1)
    )
    for gt, best_of_gt in enumerate(ious.max(axis=0)):
        forced = (ious[:, gt] == best_of_gt) & (best_of_gt > 0)
        if data.rpn_forced_match == "reassign":
            forced &= best_of_gt >= data.rpn_negative_iou
            matches[forced] = gt
        labels[forced] = 1
    return labels.astype(np.int32), matches


def check_our_matcher(labels, gt_boxes, data, canvas):
    """The sparse matcher agrees but for anchors whose IoU ties with a best one up to rounding."""
    matches = match(
        tf.constant(gt_boxes),
        tf.zeros([0, 4]),
        AnchorGrid.from_config(data, canvas),
        positive_iou=data.rpn_positive_iou,
        negative_iou=data.rpn_negative_iou,
        ignore_crowds=False,
        forced_match=data.rpn_forced_match,
    )
    positives = matches.positives.numpy()
    assert set(np.flatnonzero(labels == 1)) <= set(positives)
    extra = np.setdiff1d(positives, np.flatnonzero(labels == 1))
    anchors = AnchorGrid.from_config(data, canvas).boxes()
    ious = pairwise_iou(tf.constant(anchors), tf.constant(gt_boxes)).numpy()
    ties = np.abs(ious[extra] - ious.max(axis=0)) <= 2 * TIE_TOLERANCE * ious.max(axis=0)
    assert ties.any(axis=1).all()


def trainable_variables(run):
    """Those of the copy by path."""
    variables = named_variables(run.network)
    return {path: variable for path, variable in variables.items() if variable.trainable}


def losses_and_gradients(run):
    """Losses by our names, and the gradients of all trainable variables by path, None without."""
    variables = trainable_variables(run)
    with tf.GradientTape() as tape:
        losses, _ = run.network.compute_losses(run.features, run.labels)
        total = tf.add_n(list(losses.values()))
    gradients = tape.gradient(total, [variable.value for variable in variables.values()])
    gradients = [None if g is None else tf.convert_to_tensor(g) for g in gradients]
    return losses, dict(zip(variables, gradients, strict=True))


def as_numpy(tensors):
    """Arrays of a dict of tensors."""
    return {name: None if x is None else x.numpy() for name, x in tensors.items()}


@pytest.fixture(scope="module")
def first_step(run):
    return [as_numpy(tensors) for tensors in losses_and_gradients(run)]


def loss_names(run):
    stored = run.case if "loss_names" in run.case else run.images
    return [LOSSES[name.decode()] for name in stored["loss_names"]]


def test_proposals_of_both_images(run):
    _, _, proposals = run.network.propose(run.features, training=True)
    for index in range(2):
        theirs = run.images[f"proposals{index}"]
        ours = yx(proposals.boxes.numpy()[index][: len(theirs)])
        order = [np.abs(theirs - box).max(axis=1).argmin() for box in ours]
        assert len(set(order)) == len(theirs)
        agree(
            ours,
            theirs[order],
            "training: proposals, pixels",
            run.reference.library,
            atol=box_tolerance(run.reference.fixture.tolerance),
        )


def test_losses(run, first_step):
    losses = first_step[0]
    names = loss_names(run)
    assert set(names) == set(losses)
    for name, expected in zip(names, run.case["losses_f64"], strict=True):
        agree(
            losses[name],
            expected,
            f"training: {name}",
            run.reference.library,
            rtol=run.tolerance("losses_rtol"),
        )


def test_norms_and_sums_of_all_gradients(run, first_step):
    gradients = first_step[1]
    names = [name.decode() for name in run.case["grad_names"]]
    seen = set()
    for name, (norm, total) in zip(names, run.case["grad_norm_sum_f64"], strict=True):
        path, _ = place(name, run.reference.family)
        seen.add(path)
        ours = gradients[path].astype(np.float64)
        tolerance = run.tolerance("grad_norm_rtol")
        library = run.reference.library
        scale = max(norm, 1e-6)
        agree(
            np.linalg.norm(ours) / scale,
            norm / scale,
            "training: gradient norms, relative",
            library,
            atol=tolerance,
        )
        agree(
            ours.sum() / (scale * math.sqrt(ours.size)),
            total / (scale * math.sqrt(ours.size)),
            "training: gradient sums, relative to the norm",
            library,
            atol=tolerance,
        )
    silent = {
        path for path, gradient in gradients.items() if gradient is None or not gradient.any()
    }
    assert seen | silent >= set(gradients)
    everything = math.sqrt(
        sum(
            float(np.sum(np.square(g, dtype=np.float64)))
            for g in gradients.values()
            if g is not None
        )
    )
    agree(
        everything,
        run.case.params["grad_total_norm"],
        "training: norm of all gradients",
        run.reference.library,
        rtol=run.tolerance("grad_norm_rtol"),
    )


def test_whole_gradients(run, first_step):
    stored = run.case.arrays("grad/")
    if not stored:
        assert run.case.name != "train", "the first case has whole gradients"
    for name, gradient in stored.items():
        path, layout = place(name, run.reference.family)
        expected = layout(gradient)
        agree(
            first_step[1][path],
            expected,
            "training: whole gradients",
            run.reference.library,
            atol=run.tolerance("grad_norm_rtol") * float(np.abs(expected).max()),
        )


def test_positive_rois_and_their_maskiou_targets(run):
    if "mask_iou_targets" not in run.case:
        assert run.reference.library != "mm"
        return
    network, labels, config = run.network, run.labels, run.reference.config
    pyramid = network.extract_features(run.features["image"], run.features["image_info"], True)
    start = 0
    for index in range(2):
        rois = tf.constant(yx(run.images[f"pos_rois{index}"]))
        gt = run.images[f"pos_gt{index}"]

        def take(name, index=index, gt=gt):
            return tf.gather(labels[name][index], gt)

        classes = take("gt_classes")
        image_index = tf.fill([len(gt)], index)
        pooled = network.regions(pyramid, rois, image_index, output_size=config.mask_size // 2)
        logits = network.mask_head(pooled, classes)
        masks, windows = take("gt_masks"), take("gt_windows")
        targets = mask_targets(masks, windows, rois, config.mask_size, "bitmap")
        full = ratio_full_areas(targets, area_ratios(masks, windows, rois))
        threshold = config.maskiou_target_threshold
        ours = maskiou_targets(logits, targets, full, threshold).numpy()
        # A cell whose logit lies within float noise of the threshold may be on either side of it.
        distance = np.abs(logits.numpy() - math.log(threshold / (1 - threshold)))
        undecided = (distance < LOGIT_NOISE).sum(axis=(1, 2))
        predicted = np.maximum((logits.numpy() > 0).sum(axis=(1, 2)), 1)
        theirs = run.case["mask_iou_targets"][start : start + len(gt)]
        agree(
            np.where(np.abs(ours - theirs) <= 2 * undecided / predicted, theirs, ours),
            theirs,
            "training: MaskIoU targets",
            run.reference.library,
            atol=fixture("g_maskiou.npz").tolerance["targets_atol"],
        )
        assert (undecided == 0).mean() > 0.5
        start += len(gt)


def three_steps(run, reference, differentiate, noise_seed=None):
    """Losses [3, losses] of three steps of SGD from the reference's weights, perhaps with noise."""
    draw = np.random.default_rng(noise_seed).standard_normal
    for ours, theirs in zip(
        run.network.trainable_variables, reference.network.trainable_variables, strict=True
    ):
        noise = 0.0 if noise_seed is None else WEIGHT_NOISE * draw(ours.shape)
        ours.assign(theirs.numpy() * (1 + noise))
    velocities, rows = {}, []
    for _ in range(3):
        losses, gradients = map(as_numpy, differentiate())
        rows.append([float(losses[name]) for name in loss_names(run)])
        for path, variable in trainable_variables(run).items():
            gradient = 0.0 if gradients[path] is None else gradients[path]
            update = gradient + SGD_DECAY * variable.numpy()
            velocities[path] = SGD_MOMENTUM * velocities.get(path, 0.0) + update
            variable.assign(variable.numpy() - SGD_RATE * velocities[path])
    return np.array(rows)


def test_three_steps_of_sgd(run):
    """Within the manifest's tolerance, or as near as the steps can be told at all.

    With gradients of norm 150 the steps of the mmdetection and Detectron2 networks are chaotic: a
    single ReLU whose input lies within float noise of 0 moves later losses by per cents. How much,
    is seen from our own steps with a relative noise of 1e-5 on the weights. Most of these runs meet
    no such ReLU, so there are more of them where a few explain nothing.
    """
    expected = run.case["losses_3_sgd_steps_f64"]
    reference, run = run.reference, run._replace(reference=with_settings(run.reference))
    differentiate = tf.function(lambda: losses_and_gradients(run), autograph=False)
    ours = three_steps(run, reference, differentiate)
    error = np.abs(ours - expected)
    tolerance = run.tolerance("losses_after_sgd_rtol") * np.abs(expected)
    spread = np.zeros_like(ours)
    for seed in range(MOST_NOISE_RUNS):
        again = three_steps(run, reference, differentiate, seed)
        spread = np.maximum(spread, SPREAD_FACTOR * np.abs(again - ours))
        explained = error <= np.maximum(tolerance, spread)
        if seed + 1 >= LEAST_NOISE_RUNS and explained.all():
            break
    assert explained.all(), error / np.abs(expected)
    told = spread <= tolerance
    assert told[0].any()
    agree(
        (ours / expected)[told],
        np.ones(told.sum()),
        "training: losses over three steps of SGD, relative, where noise allows",
        run.reference.library,
        atol=run.tolerance("losses_after_sgd_rtol"),
    )
