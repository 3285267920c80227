"""Messages of a run before its first step: network, devices, weights and schedule."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

from data import files
from model.config import SYSTEMS
from trainer.categories import Category
from trainer.config import Params
from trainer.optimizer import WarmupSchedule, peak_learning_rate

_CLASSES_NAMED = 5
# Relative change of the learning rate; float32 causes smaller ones.
_UNNOTICED_JUMP = 1e-3


def describe_schedule(params: Params, step: int, num_images: int | None) -> str:
    """Describes the schedule in a line, with steps, epochs, images and learning rate."""
    train, batch = params.train, params.data.train_batch_size
    images = f"{train.train_steps * batch} images"
    if num_images:
        epochs = train.train_steps * batch / num_images
        images += f", {epochs:.3g} epochs of {num_images}"
    begun = f", {step} of them done," if step else ""
    return (
        f"{train.train_steps} steps{begun} of batch {batch}: {images}; learning rate "
        f"{peak_learning_rate(params):.3g} ({train.learning_rate_schedule}) after "
        f"{train.warmup_steps} steps of warm-up."
    )


def warn_of_rate(params: Params, recorded: Params, step: int) -> None:
    """Warns of a learning rate that jumps when a run continues, at `step`, with other settings."""
    before, after = (
        float(WarmupSchedule(peak_learning_rate(each), each.train)(step))
        for each in (recorded, params)
    )
    if math.isclose(before, after, rel_tol=_UNNOTICED_JUMP):
        return
    print(
        f"Warning: the learning rate jumps from {before:.3g} to {after:.3g} at step {step}, "
        "because the schedule differs from that of the steps so far.",
        file=sys.stderr,
    )


def warn_of_frozen_weights(params: Params, loaded: str) -> None:
    """Warns of layers that keep their random initial values.

    Args:
        params: settings.
        loaded: where the weights come from; empty if they are random.
    """
    model = params.model
    frozen = {
        f"--freeze_at={model.freeze_at}": model.freeze_at > 0,
        f"--norm={model.norm}": model.norm == "frozen_bn",
        f"--train_only={','.join(model.train_only)}": bool(model.train_only),
    }
    flags = [flag for flag, is_frozen in frozen.items() if is_frozen]
    if loaded or not flags:
        return
    print(
        f"Warning: {' and '.join(flags)} keep{'s' * (len(flags) == 1)} layers at their random "
        "initial values: give --init_checkpoint, or train them (--freeze_at=0 --norm=gn).",
        file=sys.stderr,
    )


def warn_of_slow_precision(params: Params, devices: str, cpu_info: str = "/proc/cpuinfo") -> None:
    """Warns of 16-bit arithmetic on an x86 processor that has to emulate it.

    Args:
        params: settings.
        devices: in words.
        cpu_info: file in which Linux lists the processors' features.
    """
    precision = params.model.precision
    if precision == "float32" or "CPU" not in devices or not files.exists(cpu_info):
        return
    with files.open_file(cpu_info) as file:
        flags = next((line.split() for line in file if line.startswith("flags")), [])
    # TensorFlow's 16-bit kernels need this extension or its successors.
    if flags and "avx512bw" not in flags:
        print(
            f"Warning: this processor emulates --precision={precision} (it lacks AVX-512), which "
            "is several times slower than float32: use --precision=float32.",
            file=sys.stderr,
        )


def describe_system(
    params: Params, categories: Sequence[Category], devices: str, weights: str
) -> str:
    """Describes the network in a line, with classes, precision, devices and weights.

    Args:
        params: settings.
        categories: categories of the network's labels.
        devices: in words.
        weights: their origin, in words.
    """
    model = params.model
    return (
        f"{SYSTEMS[model.system].title}, {model.backbone}, {model.precision}, on {devices}, "
        f"{weights}; {_describe_classes(categories, model.num_classes - 1)}."
    )


def _describe_classes(categories: Sequence[Category], count: int) -> str:
    names = [str(category["name"]) for category in categories[:_CLASSES_NAMED]]
    if len(categories) > len(names):
        names.append("...")
    listed = f" ({', '.join(names)})" if names else ""
    return f"{count} class{'es' if count != 1 else ''}{listed}"
