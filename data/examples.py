"""Makes the tensors of one image from its serialised record.

Axes: N instances in the record, G ground truths of an image after padding, M mask side, V polygon
vertices of a ground truth after padding, S sampled anchors, P external proposals after padding, H W
canvas.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from data import augment
from data.anchor_matching import RpnTargets, match_and_sample
from data.anchors import AnchorGrid
from data.augmentations import SCENES, find_augmentations
from data.config import DataConfig
from data.decoding import decode_image
from data.proposal_file import ProposalFile
from data.records import parse_record
from data.scenes import Scene, Tensors, draw_scene, fold_seed, keep_largest

# What mmdetection pads the sides of an image to multiples of.
PADDING_MULTIPLE = 32


# There is no Python control flow to convert, but AutoGraph takes seconds to find that out.
@tf.autograph.experimental.do_not_convert
def eval_example(
    serialized: tf.Tensor, config: DataConfig, proposals: ProposalFile | None = None
) -> Tensors:
    """Makes the features of one image for evaluation.

    Args:
        serialized: string scalar, a record.
        config: canvases, short and long side, scales at test.
        proposals: those of systems that do not make their own.

    Returns:
        The features of `lay_out`, and image_id int64 [].
    """
    record = parse_record(serialized, include_masks=False)
    own = None if proposals is None else proposals.find(record["image_id"])
    features = lay_out(decode_image(record, config.exif), config, own)
    return features | {"image_id": record["image_id"]}


def lay_out(pixels: tf.Tensor, config: DataConfig, proposals: tf.Tensor | None = None) -> Tensors:
    """Draws an image on its canvas as evaluation does, once for each test scale.

    Args:
        pixels: uint8 [h, w, 3].
        config: canvases, short and long side, scales at test.
        proposals: float32 [p, 4] in pixels of the image, p <= P.

    Returns:
        image uint8 [H, W, 3] and image_info float32 [5] at the first scale, image_1 and
        image_info_1 at the second, and so on; with proposals also proposals float32 [P, 4] at the
        first.
    """
    size = tf.shape(pixels, tf.int64)[:2]
    index = augment.choose_canvas(size, config)
    features = {}
    for view, canvases in enumerate(config.test_canvas_sizes):
        canvas = tf.gather(tf.constant(canvases, tf.int64), index)
        geometry = augment.fit_geometry(size, canvas, config, config.test_scales[view])
        image = augment.render_image(pixels, geometry, canvas)
        features |= _features(image, geometry.image_info, canvases, view)
        if view == 0 and proposals is not None:
            mapped = augment.map_visible(proposals, geometry)
            features["proposals"] = _pad(mapped, config.max_proposals)
    return features


def padding_example(
    height: tf.Tensor, width: tf.Tensor, config: DataConfig, has_proposals: bool = False
) -> Tensors:
    """Makes the features of a padding image, with image_id -1, to complete an evaluation batch.

    Args:
        height, width: int64 scalars, the canvas at the first scale.
        config: canvases, scales at test.
        has_proposals: whether the others have proposals.

    Returns:
        The keys of `eval_example`; according to image_info, the black canvas is the image.
    """
    features = {"image_id": tf.constant(-1, tf.int64)}
    if has_proposals:
        features["proposals"] = tf.zeros([config.max_proposals, 4])
    firsts = tf.constant(config.test_canvas_sizes[0], tf.int64)
    index = tf.where(tf.reduce_all(firsts == [height, width], axis=1))[0, 0]
    for view, canvases in enumerate(config.test_canvas_sizes):
        canvas = tf.gather(tf.constant(canvases, tf.int64), index)
        image = tf.zeros(tf.concat([canvas, [3]], axis=0), tf.uint8)
        sides = tf.cast(canvas, tf.float32)
        image_info = tf.concat([sides, [1.0], sides], axis=0)
        features |= _features(image, image_info, canvases, view)
    return features


def view_feature(name: str, view: int) -> str:
    """Returns the name of a feature such as `image` in the view with this index."""
    return f"{name}_{view}" if view else name


@tf.autograph.experimental.do_not_convert
def train_example(
    serialized: tf.Tensor,
    epoch: tf.Tensor,
    config: DataConfig,
    include_masks: bool,
    include_polygons: bool = False,
    second: tf.Tensor | None = None,
    proposals: ProposalFile | None = None,
) -> tuple[Tensors, Tensors]:
    """Makes features and labels of one image, augmented at random as its id and the epoch decide.

    Args:
        serialized: string scalar, a record.
        epoch: int64 scalar.
        config: augmentation, anchors, sampling, seed.
        include_masks: whether the labels have masks; the record must then have them.
        include_polygons: the same for polygons, in addition to masks.
        second: string scalar, the record of another image, for augmentations in
            `data.augmentations.SCENES`.
        proposals: those of systems without an RPN.

    Returns:
        The features image uint8 [H, W, 3], image_info float32 [5], image_id int64 [] and, if there
        are external proposals, proposals float32 [P, 4] in canvas pixels (zeros are padding). The
        labels gt_boxes float32 [G, 4], gt_classes int32 [G] (0 is padding), gt_masks uint8
        [G, M, M] and gt_areas float32 [G] if masks are included, gt_polygons float32 [G, V, 2]
        (y, x in canvas pixels) and gt_polygon_parts int32 [G, V] (0 is padding; see
        `data.polygons.lay_out_polygons`) if polygons are, sample_seeds int32 [2], and without
        external proposals rpn_indices int32 [S], rpn_labels int32 [S] and rpn_deltas float32
        [S, 4].
    """
    max_vertices = config.max_polygon_vertices if include_masks and include_polygons else 0
    record = parse_record(serialized, include_masks, max_vertices)
    if proposals is not None:
        record["proposals"] = proposals.find(record["image_id"])
    seeds = image_seeds(config.seed, epoch, record["image_id"])
    size = tf.stack([record["height"], record["width"]])
    canvas_index = augment.choose_canvas(size, config)
    canvas = tf.gather(tf.constant(config.canvas_sizes, tf.int64), canvas_index)
    scene = draw_scene(record, canvas, config, seeds[0])
    for change in find_augmentations(config.augmentations, SCENES):
        seed = fold_seed(seeds[0], change.__name__)

        def draw_second(seed=seed) -> Scene:
            return draw_scene(parse_record(second, include_masks), canvas, config, seed)

        scene = change(scene, draw_second, fold_seed(seed, "second"))
        scene = scene._replace(truths=keep_largest(scene.truths, config.max_instances))
    labels = {name: _pad(values, config.max_instances) for name, values in scene.truths.items()}
    labels["sample_seeds"] = seeds[2]
    features = _features(scene.image, scene.image_info, config.canvas_sizes)
    features["image_id"] = record["image_id"]
    if proposals is None:
        labels |= _rpn_targets(scene, canvas_index, config, seeds[1])
    else:
        features["proposals"] = _pad(scene.proposals, config.max_proposals)
    return features, labels


def image_seeds(seed: int, epoch: tf.Tensor, image_id: tf.Tensor) -> tf.Tensor:
    """Derives the seeds for the geometry, the anchors and the RoIs of one image: int32 [3, 2].

    They depend on the arguments only, not on the order of images or the number of threads.
    """
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([seed, 0], tf.int64), epoch, alg="philox"
    )
    key = tf.random.experimental.stateless_fold_in(key, image_id, alg="philox")
    return tf.random.stateless_uniform(
        [3, 2], key, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )


def _features(
    image: tf.Tensor, image_info: tf.Tensor, canvases: Sequence[tuple[int, int]], view: int = 0
) -> Tensors:
    """Makes the features of a view, with a static shape if there is only one canvas."""
    sides = canvases[0] if len(set(canvases)) == 1 else (None, None)
    return {
        view_feature("image", view): tf.ensure_shape(image, [*sides, 3]),
        view_feature("image_info", view): image_info,
    }


def _rpn_targets(
    scene: Scene, canvas_index: tf.Tensor, config: DataConfig, seed: tf.Tensor
) -> Tensors:
    """Matches the anchors of the image's canvas."""
    valid = scene.valid
    if config.rpn_negative_area == "padded":
        valid = -(-valid // PADDING_MULTIPLE) * PADDING_MULTIPLE
    area = tf.cast(valid, tf.float32)

    def match_on(canvas: tuple[int, int]) -> RpnTargets:
        return match_and_sample(
            scene.truths["gt_boxes"],
            scene.crowds,
            AnchorGrid.from_config(config, canvas),
            seed,
            positive_iou=config.rpn_positive_iou,
            negative_iou=config.rpn_negative_iou,
            num_samples=config.rpn_samples_per_image,
            positive_fraction=config.rpn_positive_fraction,
            ignore_crowds=config.rpn_ignore_crowds,
            forced_match=config.rpn_forced_match,
            negative_area=None if config.rpn_negative_area == "canvas" else area,
        )

    branches = [lambda canvas=canvas: match_on(canvas) for canvas in config.canvas_sizes]
    if len(branches) == 1:
        targets = branches[0]()
    else:
        targets = tf.switch_case(tf.cast(canvas_index, tf.int32), branches)
    return {f"rpn_{name}": values for name, values in targets._asdict().items()}


def _pad(values: tf.Tensor, length: int) -> tf.Tensor:
    """Extends the first axis to `length` with zeros."""
    zeros = tf.zeros([length - tf.shape(values)[0], *values.shape[1:]], values.dtype)
    return tf.ensure_shape(tf.concat([values, zeros], axis=0), [length, *values.shape[1:]])
