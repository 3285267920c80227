"""Point head: predicts masks again where they are uncertain, on ever finer grids.

Source: Kirillov et al., PointRend: Image Segmentation as Rendering, CVPR 2020, section 3; numbers
as in Detectron2's project of that name.

A mask is rendered like a picture: its grid is doubled several times, each time by interpolation,
and then the cells with the smallest absolute logits, which lie along the outline, are replaced by
predictions of a small network. It sees two things at a point: the finest map of the neck and the
logit of the mask head's mask, both interpolated. In training it predicts points drawn at random,
most of them where the mask head is uncertain.

Two things differ from Detectron2. The first mask is that of Mask R-CNN's head, 28 × 28, while there
it is 7 × 7 and the points predict all of its cells again. And a point sees the logit of its RoI's
class only, because the mask head applies no other filter.

Axes: N RoIs of all images, K classes with the background, M side of the mask head's masks, S side
of a mask, P points of a RoI, C channels. Points are y and x in RoIs whose sides are 1.
"""

from __future__ import annotations

import numpy as np
import tensorflow as tf

from model.gather import gather_rows
from model.layers import OUTPUT_DTYPE, Dense, LayerList, Part, kaiming_normal, normal
from model.mask_head import (
    MaskBranch,
    Tensors,
    filter_own_class,
    mask_loss,
    matched_masks,
    matched_targets,
)
from model.roi_align import combine_by_tap, ends_in_cells, neighbours
from model.roi_sampling import draw_uniform
from model.scopes import OUTPUTS, in_scope
from model.view import View

NUM_HIDDEN = 3
# Training: of 3 candidates a point, the most uncertain ones are three quarters of the points; the
# rest are drawn anywhere.
OVERSAMPLING = 3
UNCERTAIN_SHARE = 0.75
# Distinguishes the draws from those of the RoIs, which have the same seeds.
_SEED_OF_POINTS = 1


class PointHead(Part):
    """Three hidden layers, each of which sees the coarse logit again, and a filter for each class.

    Args:
        rng: source of the initial weights.
        channels: C, of the map and the hidden layers.
        num_classes: K.
        mask_size: M. A doubling predicts M² cells again; training takes (M / 2)² points of a RoI.
        subdivisions: number of doublings.
        max_rois: as for the mask head.
        target: rule of the targets of refined masks, see `matched_targets`.
        is_judged: whether the next head learns from refined masks, so that training renders them.
        stride: pixels between cells of the finest map.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        num_classes: int,
        *,
        mask_size: int = 28,
        subdivisions: int = 2,
        max_rois: int = 128,
        target: str = "bitmap",
        is_judged: bool = False,
        stride: int = 4,
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"kernel_init": kaiming_normal, "dtype": dtype}
        self.hidden = LayerList(
            [Dense(rng, channels + 1, channels, **kwargs) for _ in range(NUM_HIDDEN)]
        )
        self.logits = Dense(
            rng, channels + 1, num_classes, kernel_init=normal(0.001), dtype=OUTPUT_DTYPE
        )
        self.mask_size, self.subdivisions, self.max_rois = mask_size, subdivisions, max_rois
        self.target, self.is_judged, self.stride = target, is_judged, stride
        self.built = True

    def call(self, features: tf.Tensor, coarse: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        """Predicts points for the class of their RoI.

        Args:
            features: [N, P, C] of the finest map.
            coarse: float32 [N, P], logits of the mask head.
            classes: int32 [N].

        Returns:
            float32 [N, P], logits.
        """
        points, channels = features.shape[1:]
        x, seen = tf.reshape(features, [-1, channels]), tf.reshape(coarse, [-1, 1])
        for layer in self.hidden:
            x = tf.nn.relu(layer(tf.concat([x, tf.cast(seen, x.dtype)], axis=1)))
        return self._outputs(tf.reshape(x, [-1, points, channels]), coarse, classes)

    @in_scope(OUTPUTS)
    def _outputs(self, x: tf.Tensor, coarse: tf.Tensor, classes: tf.Tensor) -> tf.Tensor:
        x = tf.concat([tf.cast(x, OUTPUT_DTYPE), coarse[..., None]], axis=2)
        return filter_own_class(x, self.logits.kernel, self.logits.bias, classes)

    def compute_losses(
        self, view: View, branch: MaskBranch, labels: Tensors
    ) -> tuple[MaskBranch, Tensors]:
        """Returns `point_loss`; if the next head learns from refined masks, these as well.

        They are rendered as at test, without gradient.
        """
        points = self._choose_points(branch, labels)
        logits = self._predict(view, branch, points)
        masks = matched_masks(labels, branch.matches)
        targets = point_targets(*masks, branch.boxes, points)
        loss = mask_loss(logits[..., None], targets[..., None], branch.slots.valid)
        if self.is_judged:
            refined = tf.stop_gradient(self.render(view, branch))
            targets = matched_targets(
                labels, branch.matches, branch.boxes, refined.shape[1], self.target, view.static
            )
            branch = branch._replace(logits=refined, targets=targets)
        return branch, {"point_loss": loss}

    def detect(self, view: View, branch: MaskBranch) -> tuple[MaskBranch, Tensors]:
        """Returns the refined masks, and as output their probabilities."""
        branch = branch._replace(logits=self.render(view, branch))
        masks = branch.slots.put(tf.sigmoid(branch.logits), *branch.found.valid.shape)
        return branch, {"detection_masks": masks}

    def render(self, view: View, branch: MaskBranch) -> tf.Tensor:
        """Refines the mask head's masks: float32 [N, S, S] logits, S = M times 2^subdivisions."""
        logits = branch.logits
        for _ in range(self.subdivisions):
            logits = double(logits)
            side = logits.shape[1]
            cells = tf.reshape(logits, [-1, side * side])
            chosen = find_uncertain(cells, self.mask_size**2)
            predicted = self._predict(view, branch, centres_of(chosen, side))
            logits = tf.reshape(replace_cells(cells, chosen, predicted), [-1, side, side])
        return logits

    def _predict(self, view: View, branch: MaskBranch, points: tf.Tensor) -> tf.Tensor:
        """Predicts float32 [N, P, 2] points of each RoI: float32 [N, P]."""
        corners, sides = branch.boxes[:, None, :2], branch.boxes[:, None, 2:]
        pixels = corners + points * (sides - corners)
        fine = sample_at(view.maps[0], pixels / self.stride, branch.slots.image)
        return self(fine, _sample_each(branch.logits, points * self.mask_size), branch.classes)

    @in_scope("point_sampling")
    def _choose_points(self, branch: MaskBranch, labels: Tensors) -> tf.Tensor:
        """Draws the points to learn from: float32 [N, P, 2]."""
        count = (self.mask_size // 2) ** 2
        uncertain, candidates = int(UNCERTAIN_SHARE * count), OVERSAMPLING * count
        seeds = tf.unstack(labels["sample_seeds"], num=labels["gt_boxes"].shape[0])
        shape = [self.max_rois, candidates + count - uncertain, 2]
        # A RoI's points depend on its image and its place there, not on which others have a slot.
        drawn = branch.slots.take(tf.stack([_draw(seed, shape) for seed in seeds]))
        anywhere = drawn[:, candidates:]
        drawn = drawn[:, :candidates]
        chosen = find_uncertain(_sample_each(branch.logits, drawn * self.mask_size), uncertain)
        return tf.stop_gradient(tf.concat([gather_rows(drawn, chosen), anywhere], axis=1))


def _draw(seed: tf.Tensor, shape: list[int]) -> tf.Tensor:
    seed = tf.bitwise.bitwise_xor(seed, _SEED_OF_POINTS)
    return tf.reshape(draw_uniform(seed, int(np.prod(shape))), shape)


@in_scope("rendering")
def find_uncertain(logits: tf.Tensor, count: int) -> tf.Tensor:
    """Finds the `count` logits nearest to 0 of each row of float32 [N, P]: int32 [N, count]."""
    return tf.math.top_k(-tf.abs(logits), count).indices


def centres_of(cells: tf.Tensor, side: int) -> tf.Tensor:
    """Returns the centres of cells of an S × S grid: int32 [N, P], row by row → [N, P, 2]."""
    places = tf.stack([cells // side, cells % side], axis=-1)
    return (tf.cast(places, tf.float32) + 0.5) / side


@in_scope("rendering")
def replace_cells(cells: tf.Tensor, chosen: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Replaces the int32 [N, P] chosen ones of float32 [N, cells] by float32 [N, P]."""
    rows = tf.broadcast_to(tf.range(tf.shape(chosen)[0])[:, None], tf.shape(chosen))
    return tf.tensor_scatter_nd_update(cells, tf.stack([rows, chosen], axis=-1), values)


@in_scope("rendering")
def double(masks: tf.Tensor) -> tf.Tensor:
    """Doubles the sides of float32 [N, S, S], linearly between the centres of cells."""
    return tf.image.resize(masks[..., None], [2 * side for side in masks.shape[1:]])[..., 0]


@in_scope("point_sampling")
def sample_at(maps: tf.Tensor, positions: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
    """Reads maps at points, linearly between the centres of cells.

    Within half a cell of its border, and up to half a cell beyond, a map has the value of its
    outermost cells; further out it is 0.

    Args:
        maps: [B, H, W, C].
        positions: float32 [N, P, 2], y and x in cells; cell j covers [j, j + 1). No gradient.
        index: int32 [N], the map that each row of points is in.

    Returns:
        [N, P, C] in the dtype of the maps.
    """
    height, width, channels = maps.shape[1:]
    y, x = tf.unstack(tf.stop_gradient(positions) - 0.5, axis=2)
    shape = [-1, positions.shape[1], 2]
    rows, row_weights = neighbours(y, tf.constant([height]), 1, shape)
    columns, column_weights = neighbours(x, tf.constant([width]), 1, shape)
    rows = (index[:, None, None] * height + rows) * width
    taps = (tf.reshape(each, [-1, 1, 2]) for each in (rows, columns, row_weights, column_weights))
    sampled = combine_by_tap(tf.reshape(maps, [-1, channels]), *taps)
    return tf.reshape(sampled, [-1, positions.shape[1], channels])


def _sample_each(masks: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Reads each of [N, H, W] at its own points, float32 [N, P, 2] in cells: [N, P]."""
    return sample_at(masks[..., None], positions, tf.range(tf.shape(masks)[0]))[..., 0]


@in_scope("mask_targets")
def point_targets(
    gt_masks: tf.Tensor, gt_windows: tf.Tensor, rois: tf.Tensor, points: tf.Tensor
) -> tf.Tensor:
    """Reads ground-truth masks at points, linearly between the centres of their cells.

    Args:
        gt_masks: [N, M', M''], 0 or 1.
        gt_windows: float32 [N, 4], the areas that the masks' arrays cover, outside which there is
            no object.
        rois: float32 [N, 4].
        points: float32 [N, P, 2].

    Returns:
        float32 [N, P] in 0..1, without gradient.
    """
    positions, inside = [], True
    for axis, cells in enumerate(gt_masks.shape[1:3]):
        start, stop = (end[:, None] for end in ends_in_cells(rois, gt_windows, cells, axis))
        position = start + points[..., axis] * (stop - start)
        inside &= (position >= 0.0) & (position <= cells)
        positions.append(position)
    values = _sample_each(tf.cast(gt_masks, tf.float32), tf.stack(positions, axis=2))
    return tf.stop_gradient(tf.where(inside, values, 0.0))
