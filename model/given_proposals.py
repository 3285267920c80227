"""Proposals that come with the image, as in Fast R-CNN (Girshick, ICCV 2015, section 2).

Axes: B images, P proposals.
"""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from data import boxes as box_ops
from model.layers import Part
from model.proposals import EMPTY_SCORE, Proposals


class GivenProposals(Part):
    """Takes the place of an RPN; it has no variables and no losses."""

    def __init__(self):
        super().__init__(autocast=False)
        self.built = True

    def propose(
        self,
        maps: Sequence[tf.Tensor],
        features: dict[str, tf.Tensor],
        *,
        training: bool,
        static: bool = False,
    ) -> tuple[None, Proposals]:
        """Returns the proposals in the features, and no outputs.

        Args:
            features: `proposals` float32 [B, P, 4], by descending score; zeros are padding.
        """
        boxes = features["proposals"]
        valid = box_ops.area(boxes) > 0
        return None, Proposals(boxes, tf.where(valid, 0.0, EMPTY_SCORE), valid)

    def compute_losses(self, outputs: None, labels: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Returns no losses."""
        return {}
