"""Which training image comes when: a function of the seed alone, so a run can start at any step.

An epoch walks through all records once, in an order drawn from the seed and the epoch's number. Its
images are grouped by canvas into windows, one for each step, before anything is decoded. To fill
windows exactly, an epoch leaves some images of each canvas to the next one: the first that it
meets. So what an epoch takes over is found by looking at the head of the epoch before, and epochs
further back need not be read at all. Every epoch, of N images of a canvas and with windows of W,
takes over (epoch * N) mod W images and ends with all windows filled.

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

# Records looked at together: looking at each alone takes as long as a tenth of decoding it.
_BLOCK = 32


class EpochPlan(NamedTuple):
    """How the images of an epoch fill the windows of its steps.

    Attributes:
        counts: images of each canvas in an epoch.
        window: images of a step.
        passes: walks through the records that make an epoch: more than one where a single walk
            has fewer images than a window.
    """

    counts: tuple[int, ...]
    window: int
    passes: int

    def taken_over(self, epoch):
        """Images of each canvas that an epoch has from the one before: int64 [C] or list."""
        return [epoch * count % self.window for count in self.counts]

    def windows_before(self, epoch: int) -> int:
        """Windows filled by all epochs before this one."""
        return sum(epoch * count // self.window for count in self.counts)

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch that a step (from 0) lies in, and the windows of it that come before."""
        # Epoch `step + 1` begins later than the step, since every epoch fills a window.
        epoch = bisect.bisect_right(range(step + 2), step, key=self.windows_before) - 1
        return epoch, step - self.windows_before(epoch)


def plan_epochs(
    config: DataConfig, sizes: Mapping[Size, int], window: int
) -> tuple[DataConfig, EpochPlan]:
    """Decides which canvases are used and how many images each has in an epoch.

    A canvas with fewer images than a window would show them late, several epochs' copies at a time,
    so its images go to the next best one; the sentence that says so is printed.

    Args:
        config: canvases, short and long side.
        sizes: number of images of each (height, width).
        window: images of a step over all replicas.

    Returns:
        The config with the canvases in use, and the plan, whose counts are in their order.
    """
    while True:
        counts = _count_by_canvas(config, sizes)
        used = [index for index, count in enumerate(counts) if count]
        rarest = min(used, key=lambda index: counts[index])
        if len(used) == 1 or counts[rarest] >= window:
            break
        print(
            f"Canvas {config.canvases[rarest]} has {counts[rarest]} of the {sum(counts)} training "
            f"images, fewer than the {window} of a step: they go to other canvases.",
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
    start_step: int,
) -> tf.data.Dataset:
    """The serialized records in the order of the steps, window after window, without end.

    Args:
        records_of_pass: the records of a pass (int64 scalar) in its order.
        config: the canvases in use, as `plan_epochs` returns it.
        plan: of the same records.
        start_step: steps whose windows are passed over, without decoding any.

    Returns:
        Data set of (string scalar, int64 scalar): records with the pass that they come from. Each
        `plan.window` of them are of one canvas.
    """

    def of_epoch(epoch: tf.Tensor) -> tf.data.Dataset:
        early, late = tf.stack(plan.taken_over(epoch)), tf.stack(plan.taken_over(epoch + 1))
        before, own = (
            _numbered_blocks(records_of_pass, number, config, plan) for number in (epoch - 1, epoch)
        )
        taken_over = _choose(before, lambda place, canvas: place < tf.gather(early, canvas))
        kept = _choose(own, lambda place, canvas: place >= tf.gather(late, canvas))
        return taken_over.take(tf.reduce_sum(early)).concatenate(kept)

    epoch, windows = plan.locate(start_step)
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
    """Blocks of ((record, pass, canvas), how many of its canvas came before) of an epoch."""

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
    """Adds to each record of a block how many of its canvas came before it in the epoch."""
    is_on = tf.one_hot(block[2], counts.shape[0], dtype=tf.int64)
    before = counts + tf.cumsum(is_on, exclusive=True)
    place = tf.gather(before, block[2], axis=1, batch_dims=1)
    return counts + tf.reduce_sum(is_on, axis=0), (block, place)


def _choose(blocks: tf.data.Dataset, is_wanted: Callable) -> tf.data.Dataset:
    """The (record, pass, canvas) of blocks whose place and canvas are wanted."""

    def mask(block, place: tf.Tensor):
        wanted = is_wanted(place, block[2])
        return tf.nest.map_structure(lambda values: tf.boolean_mask(values, wanted), block)

    return blocks.map(mask).unbatch()


def with_next(records: tf.data.Dataset) -> tf.data.Dataset:
    """Each record together with the one that comes next: an image to paste objects from.

    So the second picture is a function of the position too, and nothing is read twice.

    Args:
        records: endless data set of (string scalar, int64 scalar), as `ordered_records` gives it.

    Returns:
        Data set of (string scalar, int64 scalar, string scalar).
    """
    before_the_first = (tf.constant(""), tf.constant(0, tf.int64))
    return records.scan(
        before_the_first,
        lambda last, element: (element, (*last, element[0])),
    ).skip(1)
