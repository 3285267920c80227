"""The input pipeline: from TFRecord shards to batches, in graph operations only.

Every image appears exactly once per epoch. The order is a function of the seed, and every random
number one of the seed, the epoch and the image id. So two runs see the same batches, and a run that
starts at a later step sees the batches that it would have seen then (`data/epochs.py`).

With `--data_service`, the workers of a tf.data service prepare the single images, file by file. The
images are grouped and batched here, because consecutive batches must have the same canvas whichever
worker made them; batching on the workers would not save traffic. The order depends on the speed of
the workers. Then
- evaluation sees every image exactly once. If a worker dies, it waits until the worker is back at
  the same address; if images were lost, it fails with FailedPreconditionError. The wait has an end,
  and a message, in `data.data_service.watched`.
- training sees every image once per epoch, with the same random numbers as without a service. A run
  that starts at a later step begins with the epoch that contains this step. Epochs overlap, because
  workers start on the files of the next epoch while others still read this one's last files. So
  some of any N consecutive images (an epoch's number) may be missing and others appear twice, at
  most as many as the workers' open files hold. If a worker dies, the rest of its open files is lost
  for that epoch, and the other workers go on.

Axes: B images of a replica's batch, H W canvas.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import tensorflow as tf

from data.config import DataConfig, InputParams
from data.data_service import deal_eval_records, deal_training_records, run_on_workers
from data.epochs import EpochPlan, ordered_records, plan_epochs, with_next
from data.errors import UserError
from data.examples import eval_example, padding_example, train_example
from data.proposal_file import ProposalFile, open_proposals
from data.record_files import RecordFiles
from data.scenes import Tensors
from data.skipped_records import needs_of, skip_of

MODES = ("train", "eval", "predict")
# Batches prepared in advance for each replica.
BATCHES_AHEAD = 2
# Part of a canvas's grouping key; every canvas is narrower.
KEY_BASE = 1 << 20


def input_fn(
    mode: str,
    params: InputParams,
    input_context: tf.distribute.InputContext | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Makes the batches of one worker; consecutive ones go to its replicas.

    A batch holds images of one canvas, and so do all batches that the replicas of a worker take in
    one step. With `--steps_per_call`, it holds those of all steps of a call. In training the
    dataset is endless. Otherwise every image appears exactly once, and black images with image_id
    -1 complete the last batches of all replicas.

    Args:
        mode: "train", "eval" or "predict".
        params: settings; it reads `params.data`, and from `params.model` whether the labels have
            masks (`include_mask`; only if the records have them) and polygons (`include_polygons`),
            and whether the system makes its proposals (`has_rpn`) or reads `--proposals_file`.
        input_context: number of pipelines and replicas, from
            `strategy.distribute_datasets_from_function`; one of each if None.
        start_step: number of training steps already taken; their batches are skipped. It is a
            multiple of `--steps_per_call`.

    Returns:
        Dataset of (features, labels) in "train", of features otherwise; their shapes and types
        are those of `data.examples` with a leading axis B. H and W are static if there is a single
        canvas.

    Raises:
        ValueError: `mode` is unknown.
        UserError: no file matches, there is nothing to train on, the batch size is not divisible by
            the number of replicas, or the data service cannot be reached or has no workers.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}.")
    config, context = params.data, input_context or tf.distribute.InputContext()
    batch_size = _replica_batch_size("train" if mode == "train" else "eval", config, context)
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    if mode != "train":
        examples = _eval_examples(params, context)
        pad = functools.partial(padding_example, has_proposals=not params.model.has_rpn)
        batches = _batch_by_canvas(examples, batch_size, replicas, config, pad)
    elif config.data_service:
        examples = _dealt_train_examples(params, context, start_step)
        batches = _batch_by_canvas(examples, batch_size, replicas, config)
    else:
        examples = _train_examples(params, context, start_step)
        batches = examples.batch(batch_size, drop_remainder=True)
    return batches.prefetch(BATCHES_AHEAD * replicas).with_options(_options(config))


def _train_examples(
    params: InputParams, context: tf.distribute.InputContext, start_step: int
) -> tf.data.Dataset:
    """Makes the images of all epochs, each step's of one canvas."""
    config = params.data
    skip = skip_of("train", params)
    files = RecordFiles.find(config.train_file_pattern, skip, config.train_fraction)
    buffer_size = files.count_that_fit(config.shuffle_megabytes)
    read_pass = functools.partial(files.read_shuffled, seed=config.seed, buffer_size=buffer_size)
    with tf.init_scope():  # counted eagerly, even while a graph is being built
        window = config.train_batch_size * config.steps_per_call
        config, plan = plan_epochs(config, files.count_sizes(), window)
    records = ordered_records(read_pass, config, plan, start_step // config.steps_per_call)
    if config.pairs_images:
        records = with_next(records)
    return _share_of_windows(records, plan, context).map(
        _example_maker(params), tf.data.AUTOTUNE, deterministic=True
    )


def plain_examples(params: InputParams, start: int = 0) -> tf.data.Dataset:
    """Makes every training image once, unaugmented and in the order of the files.

    Args:
        params: settings.
        start: number of images that are left out at the beginning, without decoding them.

    Returns:
        Dataset of (features, labels) as of `input_fn`, in batches of one.
    """
    data = dataclasses.replace(
        params.data,
        augmentations=(),
        horizontal_flip=0.0,
        vertical_flip=0.0,
        scale_jitter_min=1.0,
        scale_jitter_max=1.0,
        train_short_side_min=params.data.short_side,
    )
    files = RecordFiles.find(data.train_file_pattern, skip_of("train", params), data.train_fraction)
    make_example = _example_maker(params, data)
    examples = (
        files.read_in_order()
        .skip(start)
        .map(
            lambda record: make_example(record, tf.constant(0, tf.int64)),
            tf.data.AUTOTUNE,
            deterministic=True,
        )
    )
    return examples.batch(1).prefetch(BATCHES_AHEAD)


def _dealt_train_examples(
    params: InputParams, context: tf.distribute.InputContext, start_step: int
) -> tf.data.Dataset:
    """The same images made by the workers of a service, in any order of canvases."""
    config = params.data
    skip = skip_of("train", params)
    files = RecordFiles.find(config.train_file_pattern, skip, config.train_fraction)
    records = deal_training_records(files, config, context, start_step)
    if config.pairs_images:
        records = with_next(records)
    examples = records.map(_example_maker(params), tf.data.AUTOTUNE, deterministic=False)
    return run_on_workers(examples, config.data_service)


def _eval_examples(params: InputParams, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Makes every image once, in the order of the files unless a service makes them."""
    config = params.data
    files = RecordFiles.find(config.eval_file_pattern, skip_of("eval", params))
    make_example = functools.partial(
        eval_example, config=config, proposals=_external_proposals(params)
    )
    if not config.data_service:
        records = files.read_share(context.num_input_pipelines, context.input_pipeline_id)
        return records.map(make_example, tf.data.AUTOTUNE, deterministic=True)
    records, count = deal_eval_records(files, context)
    examples = records.map(make_example, tf.data.AUTOTUNE, deterministic=False)
    # Without it, images lost with a worker would silently be missing from the metrics.
    counted = tf.data.experimental.assert_cardinality(count)
    return run_on_workers(examples, config.data_service).apply(counted)


def _share_of_windows(
    records: tf.data.Dataset, plan: EpochPlan, context: tf.distribute.InputContext
) -> tf.data.Dataset:
    """Selects this pipeline's share of the images of every step.

    Each pipeline reads all records but decodes its own images only, so that all use the same canvas
    in the same step without communication.
    """
    if context.num_input_pipelines == 1:
        return records
    share = plan.window // context.num_input_pipelines
    return (
        records.enumerate()
        .filter(lambda place, _: place % plan.window // share == context.input_pipeline_id)
        .map(lambda _, record: record)
    )


def _external_proposals(params: InputParams) -> ProposalFile | None:
    """Opens `--proposals_file` if the system does not make its proposals.

    Raises:
        UserError: there is none, or it cannot be used.
    """
    if params.model.has_rpn:
        return None
    return open_proposals(params.data.proposals_file, params.data.max_proposals)


def _example_maker(params: InputParams, config: DataConfig | None = None) -> Callable:
    """Returns a function from a record, its epoch and perhaps a second record to an image.

    Args:
        params: settings.
        config: those of augmentation, if not `params.data`.
    """
    config, needs = config or params.data, needs_of("train", params)
    proposals = _external_proposals(params)
    include_masks, include_polygons = needs.include_masks, needs.max_polygon_vertices > 0
    if config.pairs_images and not include_masks:
        raise UserError(
            f"--augmentations={','.join(config.augmentations)} needs masks, but the records "
            f"{config.train_file_pattern} have none; leave copy_paste out, or convert the dataset "
            "with masks."
        )

    @tf.autograph.experimental.do_not_convert
    def make_example(
        serialized: tf.Tensor, epoch: tf.Tensor, second: tf.Tensor | None = None
    ) -> tuple[Tensors, Tensors]:
        return train_example(
            serialized, epoch, config, include_masks, include_polygons, second, proposals
        )

    return make_example


def _batch_by_canvas(
    examples: tf.data.Dataset,
    batch_size: int,
    replicas: int,
    config: DataConfig,
    pad: Callable | None = None,
) -> tf.data.Dataset:
    """Collects images of one canvas until there is a batch for each replica.

    With `pad`, which makes images of a canvas, incomplete batches at the end are filled up; without
    it, the dataset is endless.
    """
    window_size = batch_size * replicas

    def canvas_key(features: dict[str, tf.Tensor], *_: Any) -> tf.Tensor:
        height, width = tf.unstack(tf.shape(features["image"], tf.int64)[:2])
        return height * KEY_BASE + width

    def batch_window(key: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
        if pad:
            padding = tf.data.Dataset.from_tensors(pad(key // KEY_BASE, key % KEY_BASE, config))
            window = window.concatenate(padding.repeat(window_size)).take(window_size)
        return window.batch(batch_size, drop_remainder=True)

    return examples.group_by_window(canvas_key, batch_window, window_size)


def _replica_batch_size(kind: str, config: DataConfig, context: tf.distribute.InputContext) -> int:
    """Computes the number of images that a replica takes at a time."""
    total, replicas = getattr(config, f"{kind}_batch_size"), context.num_replicas_in_sync
    if total % replicas:
        raise UserError(
            f"--{kind}_batch_size={total} cannot be split evenly over {replicas} replicas; make "
            "it a multiple of their number."
        )
    return total // replicas * (config.steps_per_call if kind == "train" else 1)


def _options(config: DataConfig) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = config.deterministic
    if config.input_threads:
        options.threading.private_threadpool_size = config.input_threads
    return options
