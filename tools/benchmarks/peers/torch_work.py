"""Shared code of the PyTorch peers: fixed proposals and scores, and the training step.

Axes: G objects, N RoIs, K classes with the background.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from tools.benchmarks import synthetic
from tools.benchmarks.peers import PeerSettings
from tools.benchmarks.stages import Workload

if TYPE_CHECKING:
    import torch

SAMPLED_ROIS = 512


def set_up(settings: PeerSettings) -> None:
    """Seeds the weights and uses all cores that this process may use."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(settings.seed)


def autocast(settings: PeerSettings) -> torch.autocast:
    """Returns the context for the precision in the settings."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bfloat16)


def make_step(
    settings: PeerSettings, model: torch.nn.Module, loss: Callable[[], torch.Tensor]
) -> Workload:
    """Makes a training step, optimizer included, on the batch in `loss`."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Low enough for random weights to stay finite.
    optimizer = torch.optim.SGD(trained, lr=1e-5, momentum=0.9, weight_decay=1e-4)

    def run() -> int:
        optimizer.zero_grad()
        with autocast(settings):
            total = loss()
        total.backward()
        optimizer.step()
        total.item()
        return settings.batch_size

    return run


def near_objects(boxes: torch.Tensor, proposals: torch.Tensor, count: int) -> torch.Tensor:
    """Replaces the first `count` of the proposals, [N, 4], by positives of boxes, [G, 4]."""
    import torch

    near = torch.from_numpy(synthetic.near_objects(boxes.numpy(), count)).clamp(min=0)
    return torch.cat([near.to(proposals.dtype), proposals[count:]])


def name_classes(
    outputs: tuple[torch.Tensor, torch.Tensor], first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Makes a box head's outputs with three classes per RoI above the threshold, like ours.

    Args:
        outputs: logits [N, K] and box deltas.
        first: index of the first of the K - 1 object classes.
    """
    import torch

    logits, deltas = outputs
    shape = len(logits), synthetic.SCORED_CLASSES
    generator = torch.Generator().manual_seed(1)
    last = first + logits.shape[1] - 1
    chosen = torch.randint(first, last, shape, generator=generator)
    heights = torch.rand(shape, generator=generator) * 2.0
    pinned = torch.full(logits.shape, -4.0).scatter(1, chosen, heights)
    return pinned, deltas.float() * 0.01
