"""Point head: what points see and learn, and which cells of a mask it replaces."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from toy_batch import toy_features, toy_labels, toy_params, toy_polygons

from model import point_head
from model.mask_head import MaskBranch
from model.point_head import (
    PointHead,
    centres_of,
    double,
    find_uncertain,
    point_targets,
    replace_cells,
    sample_at,
)
from model.slots import Slots, choose_slots
from model.systems import build_network
from model.view import View

SYSTEM = "pointrend_mask_scoring_rcnn"


def rng(seed=0):
    return np.random.default_rng(seed)


def f32(values):
    return tf.constant(values, tf.float32)


def read(grid, y, x):
    """Linear interpolation at one point, cell j covering [j, j + 1), from [H, W, C]."""
    (top, down), (left, right) = (np.divmod(place - 0.5, 1) for place in (y, x))
    rows = np.clip([top, top + 1], 0, grid.shape[0] - 1).astype(int)
    columns = np.clip([left, left + 1], 0, grid.shape[1] - 1).astype(int)
    upper, lower = ((1 - right) * grid[r, columns[0]] + right * grid[r, columns[1]] for r in rows)
    return (1 - down) * upper + down * lower


def doubled(mask):
    """An S × S mask read at the centres of cells of half the size."""
    centres = (np.arange(2 * len(mask)) + 0.5) / 2
    return np.array([[read(mask[..., None], y, x)[0] for x in centres] for y in centres])


def test_points_of_a_map_by_hand():
    ramp = 10.0 * np.arange(3)[:, None] + np.arange(4)
    points = [[0.5, 0.5], [1.0, 0.5], [1.5, 2.75], [0.0, 0.0], [3.0, 4.0], [9.0, 2.0]]
    found = sample_at(f32(ramp[None, :, :, None]), f32([points]), tf.constant([0]))
    # The first centre; between two rows; beyond a centre; two corners; outside.
    np.testing.assert_allclose(found[0, :, 0], [0, 5, 12.25, 0, 23, 0], atol=1e-5)


def test_points_equal_a_reading_one_by_one():
    maps = rng().normal(size=(3, 5, 7, 4))
    index = rng(1).integers(0, 3, 6)
    points = rng(2).uniform(0, [5, 7], (6, 9, 2))
    found = sample_at(f32(maps), f32(points), tf.constant(index, tf.int32))
    expected = [
        [read(maps[i], *point) for point in row] for i, row in zip(index, points, strict=True)
    ]
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_uncertain_is_near_0():
    assert find_uncertain(f32([[3, -1, 0.5, -9], [0, 8, -7, 6]]), 2).numpy().tolist() == [
        [2, 1],
        [0, 3],
    ]


def test_centres_by_hand():
    centres = centres_of(tf.constant([[0, 3, 4, 15]]), 4)
    expected = [[0.125, 0.125], [0.125, 0.875], [0.375, 0.125], [0.875, 0.875]]
    np.testing.assert_array_equal(centres[0], expected)


def test_doubling_by_hand():
    np.testing.assert_allclose(
        double(f32([[[0, 4], [8, 12]]]))[0, :2], [[0, 1, 3, 4], [2, 3, 5, 6]]
    )
    mask = rng().normal(size=(5, 5))
    np.testing.assert_allclose(double(f32(mask[None]))[0], doubled(mask), atol=1e-5)


def test_replaced_cells():
    cells = replace_cells(f32([[1, 2, 3], [4, 5, 6]]), tf.constant([[2], [0]]), f32([[30], [40]]))
    np.testing.assert_array_equal(cells, [[1, 2, 30], [40, 5, 6]])


def test_targets_of_a_half_plane():
    # The object is the lower half of its window, from row 20 on; the window ends at row 30.
    mask = np.zeros((1, 10, 10), np.uint8)
    mask[:, 5:] = 1
    window, roi = f32([[10, 0, 30, 40]]), f32([[5, 10, 45, 30]])
    rows = np.array([4.0, 12, 19, 20, 20.5, 21.5, 29.9, 30.1, 44])
    points = np.stack([(rows - 5) / 40, np.full(len(rows), 0.5)], axis=-1)
    found = point_targets(tf.constant(mask), window, roi, f32(points[None]))
    # Cells are 2 pixels high, so that between the centres at 19 and 21 the target rises.
    np.testing.assert_allclose(found[0], [0, 0, 0, 0.5, 0.75, 1, 1, 0, 0], atol=1e-5)
    # Beside the window there is nothing either.
    aside = point_targets(tf.constant(mask), f32([[10, 22, 30, 40]]), roi, f32(points[None]))
    assert not aside.numpy().any()


def make_branch(logits, boxes, image=None, classes=None):
    count = len(logits)
    image = np.zeros(count, np.int32) if image is None else image
    index = tf.stack([image, np.arange(count, dtype=np.int32)], axis=1)
    return MaskBranch(
        found=None,
        slots=Slots(index, tf.ones([count], tf.bool)),
        boxes=f32(boxes),
        classes=tf.ones([count], tf.int32) if classes is None else tf.constant(classes),
        features=None,
        logits=f32(logits),
    )


def make_case(num=5, side=4, channels=3, **settings):
    """A head of random weights, two maps, and RoIs of random masks in them."""
    head = PointHead(rng(), channels, 4, mask_size=side, **settings)
    head.logits.kernel.assign(rng(5).normal(size=head.logits.kernel.shape))
    head.logits.bias.assign([0.0, 0.5, -0.5, 1.0])
    view = View([f32(rng(1).normal(size=(2, 10, 12, channels)))], None, None)
    corner = rng(2).uniform(0, 15, (num, 2))
    boxes = np.concatenate([corner, corner + rng(3).uniform(8, 25, (num, 2))], axis=1)
    image, classes = rng(4).integers(0, 2, num), rng(6).integers(1, 4, num)
    masks = rng(7).normal(size=(num, side, side))
    return head, view, make_branch(masks, boxes, image.astype(np.int32), classes.astype(np.int32))


def predict_slowly(head, view, branch, roi, points):
    """The network in NumPy, at points of one RoI."""
    grid = view.maps[0].numpy()[branch.slots.image[roi]]
    box, mask = branch.boxes[roi].numpy(), branch.logits[roi].numpy()[..., None]
    pixels = box[:2] + points * (box[2:] - box[:2])
    x = np.array([read(grid, *(point / 4)) for point in pixels])
    coarse = np.array([read(mask, *(point * len(mask))) for point in points])
    for layer in head.hidden:
        x = np.concatenate([x, coarse], axis=1) @ layer.kernel.numpy() + layer.bias.numpy()
        x = np.maximum(x, 0)
    outputs = np.concatenate([x, coarse], axis=1) @ head.logits.kernel.numpy()
    return (outputs + head.logits.bias.numpy())[:, branch.classes[roi]]


@pytest.mark.parametrize("subdivisions", [1, 2])
def test_rendering_replaces_the_uncertain_cells_and_interpolates_the_others(subdivisions):
    head, view, branch = make_case(subdivisions=subdivisions)
    rendered = head.render(view, branch).numpy()
    assert rendered.shape == (5, 4 * 2**subdivisions, 4 * 2**subdivisions)
    for roi in range(5):
        mask = branch.logits[roi].numpy()
        for _ in range(subdivisions):
            mask = doubled(mask)
            side = len(mask)
            chosen = np.argsort(np.abs(mask.ravel()))[:16]
            points = (np.stack(np.divmod(chosen, side), axis=-1) + 0.5) / side
            mask.ravel()[chosen] = predict_slowly(head, view, branch, roi, points)
        np.testing.assert_allclose(rendered[roi], mask, atol=2e-4)


def test_static_shapes_render_the_same_and_compile():
    head, view, branch = make_case()
    rendered = head.render(view, branch)
    compiled = tf.function(lambda: head.render(view, branch), jit_compile=True)()
    np.testing.assert_allclose(compiled, rendered, atol=1e-4)


def toy_points(head, wanted, static, logits=None, seeds=((1, 2), (3, 4))):
    """The points of RoIs [B, R] that are wanted: those of each slot, by its index."""
    slots = choose_slots(tf.constant(wanted), head.max_rois, static)
    if logits is None:
        logits = rng(8).normal(size=(*np.shape(wanted), 4, 4))
    branch = make_branch(tf.gather_nd(f32(logits), slots.index), np.zeros((len(slots.index), 4)))
    labels = {"sample_seeds": tf.constant(seeds), "gt_boxes": tf.zeros([2, 1, 4])}
    points = head._choose_points(branch._replace(slots=slots), labels).numpy()
    return dict(zip(map(tuple, slots.index.numpy().tolist()), points, strict=True))


def test_points_to_learn_from_belong_to_their_roi():
    head = PointHead(rng(), 3, 4, mask_size=4, max_rois=3)
    wanted = [[True, True, False, False], [True, False, False, False]]
    every, some = (toy_points(head, wanted, static) for static in (True, False))
    assert len(every) == 6 and len(some) == 3
    for place, points in some.items():
        assert points.shape == (4, 2)
        np.testing.assert_array_equal(points, every[place])
    assert len(np.unique([points[-1] for points in every.values()], axis=0)) == 6
    other = toy_points(head, wanted, True, seeds=((1, 2), (3, 5)))
    same = {place for place in every if np.array_equal(other[place], every[place])}
    assert same == {(0, 0), (0, 1), (0, 2)}


def test_three_quarters_of_the_points_are_uncertain():
    # A mask that is the more certain the further from the line between its halves.
    head = PointHead(rng(), 3, 4, mask_size=28, max_rois=2)
    logits = np.tile(np.arange(-13.5, 14)[:, None], (2, 2, 1, 28))
    points = np.array(list(toy_points(head, np.ones((2, 2), bool), False, logits).values()))
    assert points.shape == (4, 196, 2) and (points >= 0).all() and (points < 1).all()
    assert all(len(np.unique(each, axis=0)) == 196 for each in points)
    distance = np.abs(points[..., 0] - 0.5)
    # Of 588 candidates, 147 lie within an eighth of the line, but for chance; of 49 a quarter do.
    assert distance[:, :147].max() < 0.16 and distance[:, 147:].max() > 0.45
    assert 0.15 < (distance[:, 147:] < 0.125).mean() < 0.36
    assert np.ptp(points[..., 1], axis=1).min() > 0.95


def test_the_seed_of_points_is_not_that_of_the_rois():
    drawn = point_head._draw(tf.constant([1, 2]), [30, 2])
    assert not np.isin(drawn, point_head.draw_uniform(tf.constant([1, 2]), 60)).any()


def test_loss_by_hand():
    # A network that says 2 everywhere, on an object that fills its RoI, and one outside its RoI.
    head, view, branch = make_case(num=3, max_rois=3)
    head.logits.kernel.assign(tf.zeros_like(head.logits.kernel))
    head.logits.bias.assign(np.full(4, 2.0, np.float32))
    slots = branch.slots._replace(valid=tf.constant([True, True, False]))
    branch = branch._replace(
        boxes=f32([[10, 10, 20, 20]] * 3),
        matches=tf.constant([[0, 0], [1, 0], [0, 0]]),
        slots=slots,
    )
    labels = {
        "gt_boxes": f32([[[5, 5, 30, 30]], [[20, 20, 40, 40]]]),
        "gt_masks": tf.ones([2, 1, 8, 8], tf.uint8),
        "sample_seeds": tf.constant([[1, 2], [3, 4]]),
    }
    branch, losses = head.compute_losses(view, branch, labels)
    expected = (np.log1p(np.exp(-2.0)) + np.log1p(np.exp(2.0))) / 2
    assert losses.keys() == {"point_loss"}
    assert float(losses["point_loss"]) == pytest.approx(expected, rel=1e-5)
    assert branch.logits.shape == (3, 4, 4)  # not rendered


def test_a_refined_disc_fits_better_than_the_interpolated_one():
    """Of coarse masks that take whole cells, with a map that shows where the discs are."""
    side, shown, count = 112, 56, 4
    radii, centres = rng(1).uniform(8, 40, count), rng(2).uniform(46, 66, (count, 2))

    def discs(cells, samples):
        """The share of each cell that the discs cover, on the whole RoI: [count, cells, cells]."""
        places = (np.arange(cells * samples) + 0.5) * side / (cells * samples)
        parts = [
            np.hypot(places[:, None] - y, places - x) <= radius
            for radius, (y, x) in zip(radii, centres, strict=True)
        ]
        return np.reshape(parts, (count, cells, samples, cells, samples)).mean((2, 4))

    head = PointHead(rng(), 4, 2, max_rois=1)
    coarse = 6 * (discs(28, 4) >= 0.5) - 3
    view = View([tf.tile(f32(discs(shown, 8))[..., None] - 0.5, [1, 1, 1, 4])], None, None)
    box = [0, 0, 4 * shown, 4 * shown]
    slots = Slots(tf.constant([[i, 0] for i in range(count)]), tf.ones([count], tf.bool))
    branch = make_branch(coarse, [box] * count)._replace(slots=slots, matches=slots.index)
    truth = discs(side, 1)
    labels = {
        "gt_boxes": tf.tile(f32([[box]]), [count, 1, 1]),
        "gt_masks": tf.constant(truth[:, None], tf.uint8),
    }
    optimizer, variables = keras.optimizers.Adam(0.01), head.trainable_variables

    @tf.function
    def step(seeds):
        with tf.GradientTape() as tape:
            losses = head.compute_losses(view, branch, labels | {"sample_seeds": seeds})[1]
        gradients = tape.gradient(losses["point_loss"], [each.value for each in variables])
        optimizer.apply_gradients(zip(gradients, variables, strict=True))
        return losses["point_loss"]

    for number in range(250):
        step(tf.constant([[number, image] for image in range(count)]))

    def mean_iou(logits):
        found = logits.numpy() > 0
        return np.mean((found & (truth > 0)).sum((1, 2)) / (found | (truth > 0)).sum((1, 2)))

    plain, refined = mean_iou(double(double(branch.logits))), mean_iou(head.render(view, branch))
    assert plain < 0.95 and 1 - refined < 0.4 * (1 - plain)


@pytest.fixture(scope="module")
def network():
    return build_network(toy_params(system=SYSTEM, score_threshold=0.0))


def losses_and_gradients(network, labels, names, watched, static=False):
    with tf.GradientTape() as tape:
        losses, _ = network.compute_losses(toy_features(), labels, static)
        loss = tf.add_n([losses[name] for name in names])
    gradients = tape.gradient(loss, [variable.value for variable in watched])
    return losses, gradients


def test_points_train_the_map_both_heads_and_nothing_else(network):
    watched = [
        network.point_head.hidden[0].kernel,
        network.point_head.logits.kernel,
        network.fpn.outputs[0].conv.kernel,
        network.mask_head.logits.kernel,
        network.box_head.classes.kernel,
    ]
    _, gradients = losses_and_gradients(network, toy_labels(), ["point_loss"], watched)
    for gradient in gradients[:4]:
        assert np.abs(tf.convert_to_tensor(gradient)).max() > 0
    assert gradients[4] is None
    # Rendering the masks that the MaskIoU head judges has no gradient.
    _, gradients = losses_and_gradients(network, toy_labels(), ["maskiou_loss"], watched)
    assert np.abs(gradients[2]).max() > 0
    assert [gradient is None for gradient in gradients] == [True, True, False, True, True]


@pytest.mark.parametrize("rule", ["bitmap", "soft", "polygon"])
def test_the_maskiou_head_learns_from_refined_masks(rule, monkeypatch):
    network = build_network(toy_params(system=SYSTEM, mask_target=rule))
    labels = toy_labels() | toy_polygons(toy_labels())
    judged = []
    compute = network.maskiou_head.compute_losses

    def watch(view, branch, labels):
        judged.append(branch)
        return compute(view, branch, labels)

    monkeypatch.setattr(network.maskiou_head, "compute_losses", watch)
    losses, _ = network.compute_losses(toy_features(), labels)
    (branch,) = judged
    assert branch.logits.shape[1:] == branch.targets.shape[1:] == (32, 32)
    np.testing.assert_array_equal(branch.targets.numpy() <= 1, True)
    # Discs fill π / 4 of their boxes, which the positive RoIs overlap by half at least.
    assert 0.3 < branch.targets.numpy().mean() < 0.9
    assert all(np.isfinite(value) for value in losses.values())


def test_without_maskiou_head_training_renders_nothing(monkeypatch):
    network = build_network(toy_params(system="pointrend_mask_rcnn"))
    expected = {"rpn_objectness_loss", "rpn_box_loss", "class_loss", "box_loss", "mask_loss"}
    monkeypatch.setattr(network.point_head, "render", None)
    losses, _ = network.compute_losses(toy_features(), toy_labels())
    assert losses.keys() == expected | {"point_loss"}


def test_detections_have_the_refined_masks(network):
    found = network.detect(toy_features())
    assert found["detection_masks"].shape == (2, 6, 32, 32)
    count = found["num_detections"].numpy()
    assert (count > 0).all()
    for image in range(2):
        empty = found["detection_masks"][image, count[image] :].numpy()
        assert not empty.any()


def test_static_shapes_change_nothing(network):
    labels, watched = toy_labels(), network.trainable_variables
    names = network.compute_losses(toy_features(), labels)[0].keys()
    plain, gradients = losses_and_gradients(network, labels, names, watched)
    theirs, static_gradients = losses_and_gradients(network, labels, names, watched, static=True)
    for name, value in plain.items():
        assert float(theirs[name]) == pytest.approx(float(value), rel=1e-4), name
    for variable, a, b in zip(watched, gradients, static_gradients, strict=True):
        a, b = (tf.convert_to_tensor(gradient).numpy() for gradient in (a, b))
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max() + 1e-7, err_msg=variable.path)
    found = network.detect(toy_features())
    for name, values in network.detect(toy_features(), static=True).items():
        np.testing.assert_allclose(values, found[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_xla_gives_the_same(network):
    features, labels = toy_features(), toy_labels()
    view, _, proposals = network.propose(features, training=True, static=True)
    rois = network.sampler(
        proposals, labels["gt_boxes"], labels["gt_classes"], labels["sample_seeds"]
    )
    branch, _ = network.mask_head.compute_losses(view, rois, labels)
    head = network.point_head
    watched = [branch.logits, view.maps[0], *(each.value for each in head.trainable_variables)]

    def learn():
        with tf.GradientTape() as tape:
            tape.watch(watched[:2])
            refined, losses = head.compute_losses(view, branch, labels)
        gradients = tape.gradient(losses["point_loss"], watched)
        return refined.logits, refined.targets, [tf.convert_to_tensor(each) for each in gradients]

    plain, compiled = learn(), tf.function(learn, jit_compile=True)()
    np.testing.assert_allclose(compiled[0], plain[0], atol=1e-5)
    np.testing.assert_array_equal(compiled[1], plain[1])
    for a, b in zip(plain[2], compiled[2], strict=True):
        np.testing.assert_allclose(a, b, atol=1e-3 * np.abs(a).max())


def test_half_precision_gives_logits_in_float32():
    head, view, branch = make_case(dtype="mixed_bfloat16")
    exact, exact_view, _ = make_case()
    view = View([tf.cast(view.maps[0], tf.bfloat16)], None, None)
    points = f32(rng().random((5, 9, 2)))
    logits = head._predict(view, branch, points)
    assert logits.dtype == head.render(view, branch).dtype == tf.float32
    np.testing.assert_allclose(logits, exact._predict(exact_view, branch, points), atol=0.1)


def test_full_width_has_the_papers_parameters():
    head = PointHead(rng(), 256, 81)
    parameters = sum(int(np.prod(variable.shape)) for variable in head.trainable_variables)
    assert parameters == 3 * (257 * 256 + 256) + 257 * 81 + 81


def test_rendering_converts_to_built_in_operations():
    head, view, branch = make_case()

    def render(logits, features):
        seen = View([features], None, None)
        return head.render(seen, branch._replace(logits=logits))

    inputs = (branch.logits, view.maps[0])
    function = tf.function(render).get_concrete_function(*inputs)
    module = tf.Module()
    module.weights = [variable.value for variable in head.variables]
    converter = tf.lite.TFLiteConverter.from_concrete_functions([function], module)
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
    interpreter = tf.lite.Interpreter(model_content=converter.convert())
    names = {operation["op_name"] for operation in interpreter._get_ops_details()}
    assert not any(name.startswith(("Flex", "WHILE", "IF")) for name in names)
    signature = interpreter.get_signature_runner()
    (found,) = signature(logits=inputs[0].numpy(), features=inputs[1].numpy()).values()
    np.testing.assert_allclose(found, head.render(view, branch), atol=1e-4)
