"""The order of training images: a function of the seed alone, so a run can start at any step.

An epoch walks through all records once, in an order drawn from the seed and the epoch's number. Its
images are grouped by canvas into windows, one for each step (or call, with `--steps_per_call`),
before anything is decoded. To fill
windows exactly, an epoch leaves the first few images of each canvas to the next epoch. So the
images that an epoch takes over are found at the head of the previous epoch, and earlier epochs need
not be read. With N images of a canvas and windows of W images, every epoch takes over (epoch * N)
mod W images and ends with all windows filled.

Axes: C canvases.
"""

from __future__ import annotations

import bisect
import dataclasses
import sys
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from data.augment import choose_canvas
from data.config import DataConfig
from data.record_files import Size
from data.records import parse_sizes

# Records inspected together: inspecting one at a time takes a tenth of its decoding time.
_BLOCK = 32


class EpochPlan(NamedTuple):
    """How the images of an epoch fill the windows of its steps.

    Attributes:
        counts: images of each canvas in an epoch.
        window: images of a step, or of the steps of a call.
        passes: passes over the records that make an epoch: more than one if a single pass has fewer
            images than a window.
    """

    counts: tuple[int, ...]
    window: int
    passes: int

    def taken_over(self, epoch):
        """Images of each canvas that an epoch takes over from the previous one: int64 [C]."""
        return [epoch * count % self.window for count in self.counts]

    def windows_before(self, epoch: int) -> int:
        """Number of windows filled by all previous epochs."""
        return sum(epoch * count // self.window for count in self.counts)

    def locate(self, window: int) -> tuple[int, int]:
        """Finds the epoch of a window (from 0), and how many of its windows come before."""
        # Epoch `window + 1` begins after it, because every epoch fills at least one window.
        epoch = bisect.bisect_right(range(window + 2), window, key=self.windows_before) - 1
        return epoch, window - self.windows_before(epoch)


def plan_epochs(
    config: DataConfig, sizes: Mapping[Size, int], window: int
) -> tuple[DataConfig, EpochPlan]:
    """Decides which canvases are used and how many images each has in an epoch.

    A canvas with fewer images than a window would show copies of several epochs at a time, so its
    images are moved to the next best canvas, and a message says so.

    Args:
        config: canvases, short and long side.
        sizes: number of images of each (height, width).
        window: images of a step, or of the steps of a call, over all replicas.

    Returns:
        The config with only the canvases in use, and the plan, with counts in the same order.
    """
    while True:
        counts = _count_by_canvas(config, sizes)
        used = [index for index, count in enumerate(counts) if count]
        rarest = min(used, key=lambda index: counts[index])
        if len(used) == 1 or counts[rarest] >= window:
            break
        print(
            f"Canvas {config.canvases[rarest]} has {counts[rarest]} of the {sum(counts)} training "
            f"images, fewer than the {window} that training takes at a time, so they are moved to "
            "other canvases.",
            file=sys.stderr,
        )
        others = config.canvases[:rarest] + config.canvases[rarest + 1 :]
        config = dataclasses.replace(config, canvases=others)
    config = dataclasses.replace(config, canvases=tuple(config.canvases[index] for index in used))
    counts = [counts[index] for index in used]
    passes = -(-window // min(counts)) if min(counts) < window else 1
    return config, EpochPlan(tuple(count * passes for count in counts), window, passes)


def _count_by_canvas(config: DataConfig, sizes: Mapping[Size, int]) -> list[int]:
    chosen = choose_canvas(tf.constant(list(sizes), tf.int64), config)
    counts = np.bincount(chosen, weights=list(sizes.values()), minlength=len(config.canvases))
    return counts.astype(int).tolist()


def ordered_records(
    records_of_pass: Callable[[tf.Tensor], tf.data.Dataset],
    config: DataConfig,
    plan: EpochPlan,
    start: int,
) -> tf.data.Dataset:
    """Makes the endless dataset of serialised records in step order, window after window.

    Args:
        records_of_pass: maps a pass (int64 scalar) to its records, in order.
        config: the canvases in use, as `plan_epochs` returns it.
        plan: of the same records.
        start: number of windows that are skipped without decoding.

    Returns:
        Dataset of (string scalar, int64 scalar): records with the pass that they come from. Each
        group of `plan.window` records has one canvas.
    """

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        early, late = tf.stack(plan.taken_over(epoch)), tf.stack(plan.taken_over(epoch + 1))
        before, own = (
            _numbered_blocks(records_of_pass, number, config, plan) for number in (epoch - 1, epoch)
        )
        taken_over = _choose(before, lambda place, canvas: place < tf.gather(early, canvas))
        kept = _choose(own, lambda place, canvas: place >= tf.gather(late, canvas))
        return taken_over.take(tf.reduce_sum(early)).concatenate(kept)

    epoch, windows = plan.locate(start)
    return (
        tf.data.Dataset.range(epoch, tf.int64.max)
        .flat_map(of_epoch)
        .group_by_window(lambda *element: element[2], lambda _, window: window, plan.window)
        .skip(windows * plan.window)
        .map(lambda record, number, _: (record, number))
    )


def _numbered_blocks(
    records_of_pass: Callable, epoch: tf.Tensor, config: DataConfig, plan: EpochPlan
) -> tf.data.Dataset:
    """Makes an epoch's blocks of ((record, pass, canvas), number of previous ones)."""

    def with_canvas(records: tf.Tensor, number: tf.Tensor):
        canvases = choose_canvas(parse_sizes(records), config)
        return records, tf.fill(tf.shape(records), number), canvases

    def blocks_of_pass(number: tf.Tensor) -> tf.data.Dataset:
        return records_of_pass(number).batch(_BLOCK).map(lambda records: (records, number))

    return (
        tf.data.Dataset.range(epoch * plan.passes, (epoch + 1) * plan.passes)
        .flat_map(blocks_of_pass)
        .map(with_canvas, tf.data.AUTOTUNE, deterministic=True)
        .scan(tf.zeros([len(plan.counts)], tf.int64), _number)
    )


def _number(counts: tf.Tensor, block):
    """Adds to each record of a block the number of previous ones of its canvas in the epoch."""
    is_on = tf.one_hot(block[2], counts.shape[0], dtype=tf.int64)
    before = counts + tf.cumsum(is_on, exclusive=True)
    place = tf.gather(before, block[2], axis=1, batch_dims=1)
    return counts + tf.reduce_sum(is_on, axis=0), (block, place)


def _choose(blocks: tf.data.Dataset, is_wanted: Callable) -> tf.data.Dataset:
    """Selects the (record, pass, canvas) of blocks with a given position and canvas."""

    def mask(block, place: tf.Tensor):
        wanted = is_wanted(place, block[2])
        return tf.nest.map_structure(lambda values: tf.boolean_mask(values, wanted), block)

    return blocks.map(mask).unbatch()


def with_next(records: tf.data.Dataset) -> tf.data.Dataset:
    """Pairs each record with the next one, an image to paste objects from.

    So the second image is a function of the position too, and no record is read twice.

    Args:
        records: endless dataset of (string scalar, int64 scalar), as `ordered_records` returns it.

    Returns:
        Dataset of (string scalar, int64 scalar, string scalar).
    """
    before_the_first = (tf.constant(""), tf.constant(0, tf.int64))
    return records.scan(
        before_the_first,
        lambda last, element: (element, (*last, element[0])),
    ).skip(1)
