"""What the peers on PyTorch share: pinned proposals and scores, and the step around a loss.

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
    """All cores that this process may use, and seeded weights."""
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    torch.manual_seed(settings.seed)


def autocast(settings: PeerSettings) -> torch.autocast:
    """The context in which the precision is as set."""
    import torch

    return torch.autocast("cpu", dtype=torch.bfloat16, enabled=settings.bfloat16)


def make_step(
    settings: PeerSettings, model: torch.nn.Module, loss: Callable[[], torch.Tensor]
) -> Workload:
    """A training step, optimizer included, on the batch that `loss` knows."""
    import torch

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    # Slow enough for random weights to stay finite.
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
    """The proposals, [N, 4], the first `count` of them replaced by positives of boxes, [G, 4]."""
    import torch

    near = torch.from_numpy(synthetic.near_objects(boxes.numpy(), count)).clamp(min=0)
    return torch.cat([near.to(proposals.dtype), proposals[count:]])


def name_classes(
    outputs: tuple[torch.Tensor, torch.Tensor], first: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """A box head's outputs for three classes a RoI that pass the threshold, as ours are pinned.

    Args:
        outputs: logits [N, K] and box deltas.
        first: of the K - 1 classes that are objects.
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
