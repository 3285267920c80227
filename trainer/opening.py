"""What a run says before its first step: what runs, on what, from where, and for how long."""

from __future__ import annotations

from collections.abc import Sequence

from trainer.categories import Category
from trainer.config import Params
from trainer.optimizer import peak_learning_rate

_CLASSES_NAMED = 5


def describe_schedule(params: Params, step: int, num_images: int | None) -> str:
    """The steps to come in a line, with their epochs, images and rate."""
    train, batch = params.train, params.data.train_batch_size
    images = f"{train.train_steps * batch} images"
    if num_images:
        epochs = train.train_steps * batch / num_images
        images += f", {epochs:.3g} epochs of {num_images}"
    begun = f", {step} of them taken," if step else ""
    return (
        f"{train.train_steps} steps{begun} of batch {batch}: {images}; learning rate "
        f"{peak_learning_rate(params):.3g} ({train.learning_rate_schedule}) after "
        f"{train.warmup_steps} steps of warm-up."
    )


def describe_system(
    params: Params, categories: Sequence[Category], devices: str, weights: str
) -> str:
    """The network in a line, with its classes, precision, devices and weights.

    Args:
      params: settings.
      categories: of the network's labels.
      devices: in words.
      weights: where they come from, in words.
    """
    model = params.model
    return (
        f"{_system(params)}, {model.backbone}, {model.precision}, on {devices}, "
        f"{weights}; {_describe_classes(categories, model.num_classes - 1)}."
    )


def _system(params: Params) -> str:
    if params.model.include_maskiou:
        return "Mask Scoring R-CNN"
    return "Mask R-CNN" if params.model.include_mask else "Faster R-CNN"


def _describe_classes(categories: Sequence[Category], count: int) -> str:
    names = [str(category["name"]) for category in categories[:_CLASSES_NAMED]]
    if len(categories) > len(names):
        names.append("...")
    listed = f" ({', '.join(names)})" if names else ""
    return f"{count} class{'es' if count != 1 else ''}{listed}"
