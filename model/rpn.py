"""Region Proposal Network (Ren et al., NIPS 2015, section 3.1) over a feature pyramid.

Axes: B images, A anchors of all levels in the order of `AnchorGrid`, S sampled anchors.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf

from data.anchors import AnchorGrid
from model.layers import OUTPUT_DTYPE, Conv, LayerList, Part, SeparableConv, normal
from model.losses import global_sum, num_replicas, smooth_l1
from model.proposals import Proposals, RPNOutputs, generate_proposals
from model.scopes import OUTPUTS, in_scope


class RPNHead(Part):
    """3×3 convolutions (one in the paper) and two 1×1 convolutions, shared by all levels.

    Args:
        rng: source of the initial weights.
        channels: channels of every level.
        make_grid: makes the anchors of a canvas (H, W).
        anchors_per_cell: number of anchors at each cell.
        hidden: channels of the 3×3 convolutions; 0 means `channels`.
        softmax: whether an anchor has two scores, of background and foreground, under softmax, as
            in the paper, instead of one under the sigmoid.
        num_convs: number of 3×3 convolutions.
        separable: whether they are `SeparableConv`s.
        pre_nms, post_nms: see `generate_proposals`; in training and at test.
        nms_iou, clip_below: see `generate_proposals`.
        box_loss_beta, loss_normaliser: see `rpn_losses`.
        dtype: Keras dtype policy.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        channels: int,
        make_grid: Callable[[tuple[int, int]], AnchorGrid],
        anchors_per_cell: int,
        *,
        hidden: int = 0,
        softmax: bool = False,
        num_convs: int = 1,
        separable: bool = False,
        pre_nms: tuple[int, int] = (2000, 1000),
        post_nms: tuple[int, int] = (1000, 1000),
        nms_iou: float = 0.7,
        clip_below: bool = False,
        box_loss_beta: float = 0.0,
        loss_normaliser: str = "slots",
        dtype: str = "float32",
    ):
        super().__init__(dtype=dtype, autocast=False)
        kwargs = {"kernel_init": normal(0.01)}
        make = SeparableConv if separable else Conv
        hidden = hidden or channels
        widths = [channels, *[hidden] * num_convs]
        self.convs = LayerList(
            [make(rng, *pair, 3, dtype=dtype, **kwargs) for pair in itertools.pairwise(widths)]
        )
        num_scores = anchors_per_cell * (2 if softmax else 1)
        self.objectness = Conv(rng, hidden, num_scores, 1, dtype=OUTPUT_DTYPE, **kwargs)
        self.deltas = Conv(rng, hidden, anchors_per_cell * 4, 1, dtype=OUTPUT_DTYPE, **kwargs)
        self.softmax = softmax
        self.make_grid, self.pre_nms, self.post_nms = make_grid, pre_nms, post_nms
        self.nms_iou, self.clip_below = nms_iou, clip_below
        self.box_loss_beta, self.loss_normaliser = box_loss_beta, loss_normaliser
        self.built = True

    def propose(
        self,
        maps: Sequence[tf.Tensor],
        features: dict[str, tf.Tensor],
        *,
        training: bool,
        static: bool = False,
    ) -> tuple[RPNOutputs, Proposals]:
        """Computes the outputs of every anchor, and the proposals from them.

        Args:
            maps: [P2, …, P6], each [B, H, W, channels].
            features: `image` [B, H, W, 3], of which only the size is used, and `image_info`.
            training: whether to use the numbers of proposals for training.
            static: see `model.nms.suppress`.
        """
        outputs = self(maps)
        phase = 0 if training else 1
        proposals = generate_proposals(
            outputs,
            self.make_grid(tuple(features["image"].shape[1:3])),
            features["image_info"],
            pre_nms=self.pre_nms[phase],
            post_nms=self.post_nms[phase],
            nms_iou=self.nms_iou,
            static=static,
            clip_below=self.clip_below,
        )
        return outputs, proposals

    def compute_losses(
        self, outputs: RPNOutputs, labels: dict[str, tf.Tensor]
    ) -> dict[str, tf.Tensor]:
        """Computes `rpn_losses`."""
        return rpn_losses(outputs, labels, self.box_loss_beta, self.loss_normaliser)

    def call(self, pyramid: Sequence[tf.Tensor]) -> RPNOutputs:
        """Scores the anchors of [P2, …, P6], each [B, H, W, channels]."""
        hidden = list(pyramid)
        for conv in self.convs:
            hidden = [tf.nn.relu(conv(level)) for level in hidden]
        return self._outputs(hidden)

    @in_scope(OUTPUTS)
    def _outputs(self, hidden: Sequence[tf.Tensor]) -> RPNOutputs:
        batch = tf.shape(hidden[0])[0]

        def flatten(maps: list[tf.Tensor], shape: list[int]) -> tf.Tensor:
            flat = [tf.reshape(m, [batch, _anchors(m, shape), *shape]) for m in maps]
            return tf.concat(flat, axis=1)

        return RPNOutputs(
            logits=flatten([self._score(x) for x in hidden], []),
            deltas=flatten([self.deltas(x) for x in hidden], [4]),
        )

    def _score(self, hidden: tf.Tensor) -> tf.Tensor:
        """Computes one logit for each anchor: [B, H, W, anchors_per_cell]."""
        scores = self.objectness(hidden)
        if not self.softmax:
            return scores
        # The softmax of two scores is the sigmoid of their difference.
        background, foreground = tf.split(scores, 2, axis=-1)
        return foreground - background


def _anchors(level_map: tf.Tensor, shape: list[int]) -> int:
    _, rows, columns, channels = level_map.shape
    return rows * columns * channels // max(1, int(np.prod(shape)))


@in_scope("losses")
def rpn_losses(
    outputs: RPNOutputs,
    labels: dict[str, tf.Tensor],
    box_loss_beta: float,
    normaliser: str = "slots",
) -> dict[str, tf.Tensor]:
    """Computes the losses on the anchors that the input pipeline sampled.

    Args:
        outputs: of the RPN head.
        labels: `rpn_indices` int32 [B, S], `rpn_labels` int32 [B, S] (1, 0, -1 = padding) and
            `rpn_deltas` float32 [B, S, 4].
        box_loss_beta: see `smooth_l1`.
        normaliser: "slots" divides by S times the global batch size, as in Detectron2; "sampled" by
            the number of anchors sampled in the global batch, as in torchvision and mmdetection.

    Returns:
        `rpn_objectness_loss` and `rpn_box_loss`.
    """
    indices, sampled = labels["rpn_indices"], labels["rpn_labels"]
    logits = tf.gather(outputs.logits, indices, batch_dims=1)
    deltas = tf.gather(outputs.deltas, indices, batch_dims=1)
    if normaliser == "sampled":
        count = global_sum(tf.math.count_nonzero(sampled >= 0, dtype=tf.int32))
        divisor = tf.maximum(count, 1.0)
    else:
        batch, samples = sampled.shape
        divisor = float(batch * samples * num_replicas())

    positive = tf.cast(sampled == 1, tf.float32)
    objectness = tf.nn.sigmoid_cross_entropy_with_logits(labels=positive, logits=logits)
    objectness = tf.where(sampled >= 0, objectness, 0.0)
    box = smooth_l1(deltas - labels["rpn_deltas"], box_loss_beta) * positive[..., None]
    return {
        "rpn_objectness_loss": tf.reduce_sum(objectness) / divisor,
        "rpn_box_loss": tf.reduce_sum(box) / divisor,
    }
