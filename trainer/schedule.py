"""Adapts a recipe's schedule to another batch size than the one it was written for."""

from __future__ import annotations

import dataclasses
from collections.abc import Container

from trainer.config import Params

_STEPS = ("train_steps", "warmup_steps", "learning_rate_steps")


def resolve_schedule(params: Params, literal: Container[str] = ()) -> Params:
    """Scales a schedule from `--learning_rate_batch_size` to the actual batch size.

    With a batch k times as large the rate is k times as high (Goyal et al. 2017, section 2.1) and
    the steps are k times fewer, so that the images seen stay the same.

    Args:
        params: settings; if `learning_rate_batch_size` is 0, nothing is scaled.
        literal: names of settings whose steps are not scaled, such as those given on the command
            line.

    Returns:
        Params with `learning_rate_batch_size` 0, so that scaling them again changes nothing.
    """
    train, reference = params.train, params.train.learning_rate_batch_size
    if not reference:
        return params
    batch_size = params.data.train_batch_size

    def scale(steps: int) -> int:
        # Adding half a step rounds to the nearest one.
        return max((2 * steps * reference + batch_size) // (2 * batch_size), 1) if steps else 0

    scaled = {}
    for name in _STEPS:
        value = getattr(train, name)
        if name not in literal:
            scaled[name] = tuple(map(scale, value)) if isinstance(value, tuple) else scale(value)
    rate = train.learning_rate * batch_size / reference
    train = dataclasses.replace(train, learning_rate=rate, learning_rate_batch_size=0, **scaled)
    return dataclasses.replace(params, train=train)
