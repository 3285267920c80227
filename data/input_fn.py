"""The input pipeline: from TFRecord shards to batches, in graph operations only.

Every image appears exactly once an epoch and every draw is a function of the seed, the epoch and
the image id, so with deterministic order two runs see the same batches.

Axes: B images of a replica's batch, H W canvas.
"""

from __future__ import annotations

import functools

import tensorflow as tf

from data.config import DataConfig
from data.errors import UserError
from data.examples import eval_example, padding_example, train_example
from data.manifest import Manifest, expand_pattern, find_manifest

MODES = ("train", "eval", "predict")
# Files read at a time: enough to mix shards and to hide the latency of remote storage.
FILES_READ_AT_A_TIME = 8
# Batches made ahead of each replica.
BATCHES_AHEAD = 2
# Records looked at to guess the mean size where no manifest tells it.
RECORDS_PROBED = 32
# Part of a canvas's grouping key; no canvas is as wide.
KEY_BASE = 1 << 20


def input_fn(
    mode: str, params, input_context: tf.distribute.InputContext | None = None
) -> tf.data.Dataset:
    """Batches for one worker; consecutive ones go to its replicas.

    A batch holds images of one canvas, and so do all batches that the replicas of a worker take in
    one step. In training the data set has no end. Otherwise every image appears exactly once, and
    what is missing to full batches for all replicas is made up by black images with image_id -1.

    Args:
        mode: "train", "eval" or "predict".
        params: settings; `params.data` is read, and `params.model.include_mask`: whether the labels
            have masks, as far as the records do.
        input_context: number of pipelines and replicas, from
            `strategy.distribute_datasets_from_function`; one of each if None.

    Returns:
        Data set of (features, labels) in "train", of features otherwise; their shapes and types
        are those of `data.examples` with a leading axis B. H and W are static if there is a single
        canvas.

    Raises:
        ValueError: `mode` is none of the three.
        UserError: no file matches, there is nothing to train on, or the batch size is not divisible
            by the replicas.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}.")
    config, context = params.data, input_context or tf.distribute.InputContext()
    training = mode == "train"
    batch_size = _replica_batch_size("train" if training else "eval", config, context)
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    examples = (
        _train_examples(config, context, params.model.include_mask)
        if training
        else _eval_examples(config, context)
    )
    return (
        _batch_by_canvas(examples, batch_size, replicas, config, pad=not training)
        .prefetch(BATCHES_AHEAD * replicas)
        .with_options(_options(config))
    )


def _train_examples(
    config: DataConfig, context: tf.distribute.InputContext, include_masks: bool
) -> tf.data.Dataset:
    """Images of all epochs, one after another, without end."""
    files = expand_pattern(config.train_file_pattern)
    manifest = find_manifest(config.train_file_pattern)
    _require_records(files, manifest)
    buffer_size = _shuffle_buffer_size(files, manifest, config)
    make_example = functools.partial(
        train_example,
        config=config,
        include_masks=include_masks and (manifest is None or manifest.include_masks),
    )

    def shuffled_records(epoch: tf.Tensor) -> tf.data.Dataset:
        # Dataset.shuffle mixes the graph's seed into its own; a constant one here keeps the order
        # free of tf.random.set_seed, which within a function concerns that function only.
        tf.random.set_seed(1)
        key = tf.random.experimental.stateless_fold_in(
            tf.constant([config.seed, 0], tf.int64), epoch, alg="philox"
        )
        order_seed = tf.random.stateless_uniform([], key, 0, 2**31 - 1, tf.int64, alg="philox")
        shuffled_files = tf.random.experimental.stateless_shuffle(files, key, alg="philox")
        return (
            _read_records(shuffled_files, len(files), context, config.deterministic)
            .shuffle(buffer_size, order_seed, reshuffle_each_iteration=False)
            .map(lambda serialized: (serialized, epoch))
        )

    return (
        tf.data.Dataset.range(tf.int64.max)
        .flat_map(shuffled_records)
        .map(make_example, tf.data.AUTOTUNE, deterministic=config.deterministic)
    )


def _eval_examples(config: DataConfig, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Every image once, in the order of the files."""
    files = expand_pattern(config.eval_file_pattern)
    return _read_records(tf.constant(files), len(files), context, deterministic=True).map(
        functools.partial(eval_example, config=config), tf.data.AUTOTUNE, deterministic=True
    )


def _read_records(
    files: tf.Tensor, num_files: int, context: tf.distribute.InputContext, deterministic: bool
) -> tf.data.Dataset:
    """This pipeline's share of the serialised records: of the files, if there are enough."""
    shard = (context.num_input_pipelines, context.input_pipeline_id)
    shares_files = num_files >= context.num_input_pipelines
    paths = tf.data.Dataset.from_tensor_slices(files)
    records = (paths.shard(*shard) if shares_files else paths).interleave(
        tf.data.TFRecordDataset,
        cycle_length=FILES_READ_AT_A_TIME,
        num_parallel_calls=tf.data.AUTOTUNE,
        # Pipelines that take turns at the records of a file must agree on their order.
        deterministic=deterministic or not shares_files,
    )
    return records if shares_files else records.shard(*shard)


def _batch_by_canvas(
    examples: tf.data.Dataset,
    batch_size: int,
    replicas: int,
    config: DataConfig,
    pad: bool,
) -> tf.data.Dataset:
    """Collects images of one canvas until there is a batch of them for each replica.

    With `pad`, what is left at the end is filled up; without, there is no end.
    """
    window_size = batch_size * replicas

    def canvas_key(features: dict[str, tf.Tensor], *_) -> tf.Tensor:
        height, width = tf.unstack(tf.shape(features["image"], tf.int64)[:2])
        return height * KEY_BASE + width

    def batch_window(key: tf.Tensor, window: tf.data.Dataset) -> tf.data.Dataset:
        if pad:
            padding = tf.data.Dataset.from_tensors(
                padding_example(key // KEY_BASE, key % KEY_BASE, config)
            )
            window = window.concatenate(padding.repeat(window_size)).take(window_size)
        return window.batch(batch_size, drop_remainder=True)

    return examples.group_by_window(canvas_key, batch_window, window_size)


def _replica_batch_size(kind: str, config: DataConfig, context: tf.distribute.InputContext) -> int:
    """Images of a step that one replica takes."""
    total, replicas = getattr(config, f"{kind}_batch_size"), context.num_replicas_in_sync
    if total % replicas:
        raise UserError(
            f"--{kind}_batch_size={total} cannot be shared by {replicas} replicas: "
            "make it a multiple of their number."
        )
    return total // replicas


def _require_records(files: list[str], manifest: Manifest | None) -> None:
    """Refuses empty files, which an endless data set would read for ever."""
    empty = not (manifest.num_images if manifest else any(map(_file_size, files)))
    if empty:
        raise UserError(
            f"there is no image in {files[0]} and its like; convert the data set again."
        )


def _file_size(path: str) -> int:
    return tf.io.gfile.stat(path).length


def _shuffle_buffer_size(files: list[str], manifest: Manifest | None, config: DataConfig) -> int:
    """Records that fit the memory set aside for shuffling, at least one."""
    if manifest:
        mean_bytes = sum(shard["bytes"] for shard in manifest.shards) / max(manifest.num_images, 1)
    else:
        mean_bytes = _mean_record_bytes(files[0])
    return max(1, int(config.shuffle_megabytes * 1e6 / max(mean_bytes, 1)))


def _mean_record_bytes(path: str) -> float:
    """Mean size of the first records of a file, from the lengths that frame them."""
    size = _file_size(path)
    end = records = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while records < RECORDS_PROBED and end < size:
            file.seek(end)
            # A record is framed by its length, two checksums of 4 bytes and itself.
            end += 16 + int.from_bytes(file.read(8), "little")
            records += 1
    if end > size:
        raise UserError(
            f"{path} is truncated or no uncompressed TFRecord file; convert the data set again."
        )
    return end / max(records, 1)


def _options(config: DataConfig) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = config.deterministic
    if config.input_threads:
        options.threading.private_threadpool_size = config.input_threads
    return options
