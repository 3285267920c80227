"""The input pipeline: from TFRecord shards to batches, in graph operations only.

Every image appears exactly once an epoch; the order is a function of the seed and every draw one of
the seed, the epoch and the image id. So two runs see the same batches, and a run that starts at a
later step sees those that it would have seen (`data/epochs.py`).

With `--data_service` the workers of a tf.data service make the single images, dealt file by file.
They are grouped and batched here, because consecutive batches have to be of one canvas whichever
worker made them; a batch has the bytes of its images, so batching there would save no traffic.
The order is whatever the workers' speeds make it. Then
- evaluation shows every image exactly once. If a worker dies it waits until the worker is back at
  the same address, and if images were lost it ends in an error (FailedPreconditionError).
- training makes every image once for each epoch, with the draws it has without a service, and a run
  that starts at a later step begins with the epoch that this step lies in. Epochs
  overlap: the files of the next are dealt while others still read the last ones of this. So among
  any images of an epoch's number some may be missing and others there twice, as many as the
  workers' open files hold. A worker that dies loses the rest of its open files for that epoch.

Axes: B images of a replica's batch, H W canvas.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator

import tensorflow as tf

from data.config import DataConfig
from data.data_service import run_on_workers
from data.epochs import count_sizes, ordered_records, plan_epochs, with_next
from data.errors import UserError
from data.examples import eval_example, padding_example, train_example
from data.files import open_file
from data.files import size as file_size
from data.manifest import Manifest, expand_pattern, find_manifest

MODES = ("train", "eval", "predict")
# Files read at a time: enough to mix shards and to hide the latency of remote storage.
FILES_READ_AT_A_TIME = 8
# Share of an epoch's files that a worker of a service opens at a time, at most the number above.
SHARE_OPENED_BY_WORKER = 1 / 16
# Batches made ahead of each replica.
BATCHES_AHEAD = 2
# Records looked at to guess the mean size where no manifest tells it.
RECORDS_PROBED = 32
# Part of a canvas's grouping key; no canvas is as wide.
KEY_BASE = 1 << 20


def input_fn(
    mode: str,
    params,
    input_context: tf.distribute.InputContext | None = None,
    start_step: int = 0,
) -> tf.data.Dataset:
    """Batches for one worker; consecutive ones go to its replicas.

    A batch holds images of one canvas, and so do all batches that the replicas of a worker take in
    one step. In training the data set has no end. Otherwise every image appears exactly once, and
    what is missing to full batches for all replicas is made up by black images with image_id -1.

    Args:
        mode: "train", "eval" or "predict".
        params: settings; `params.data` is read, and of `params.model` whether the labels have
            masks (`include_mask`), as far as the records do, and polygons (`include_polygons`).
        input_context: number of pipelines and replicas, from
            `strategy.distribute_datasets_from_function`; one of each if None.
        start_step: training steps taken before; their batches are left out.

    Returns:
        Data set of (features, labels) in "train", of features otherwise; their shapes and types
        are those of `data.examples` with a leading axis B. H and W are static if there is a single
        canvas.

    Raises:
        ValueError: `mode` is none of the three.
        UserError: no file matches, there is nothing to train on, the batch size is not divisible
            by the replicas, or the data service cannot be reached or has no worker.
    """
    if mode not in MODES:
        raise ValueError(f"mode={mode!r}: expected one of {', '.join(MODES)}.")
    config, context = params.data, input_context or tf.distribute.InputContext()
    batch_size = _replica_batch_size("train" if mode == "train" else "eval", config, context)
    replicas = context.num_replicas_in_sync // context.num_input_pipelines
    if mode != "train":
        examples = _eval_examples(config, context)
        batches = _batch_by_canvas(examples, batch_size, replicas, config, pad=True)
    elif config.data_service:
        examples = _dealt_train_examples(config, context, params.model, start_step)
        batches = _batch_by_canvas(examples, batch_size, replicas, config, pad=False)
    else:
        examples = _train_examples(config, context, params.model, start_step)
        batches = examples.batch(batch_size, drop_remainder=True)
    return batches.prefetch(BATCHES_AHEAD * replicas).with_options(_options(config))


def _train_examples(
    config: DataConfig, context: tf.distribute.InputContext, wanted, start_step: int
) -> tf.data.Dataset:
    """Images of all epochs, of one canvas as many as a step takes.

    Each pipeline reads the records of all and decodes its own images, so that all are on one canvas
    in the same step and none needs to know the others.
    """
    files, manifest, buffer_size = _train_files(config)
    with tf.init_scope():  # counted at once, also where a graph is being built
        sizes = count_sizes(files, manifest)
        config, plan = plan_epochs(config, sizes, config.train_batch_size)

    def shuffled_records(number: tf.Tensor) -> tf.data.Dataset:
        shuffled_files, order_seed = _draw_order(files, number, config.seed)
        return _read_in_turn(tf.data.Dataset.from_tensor_slices(shuffled_files)).shuffle(
            buffer_size, order_seed, reshuffle_each_iteration=False
        )

    records = ordered_records(shuffled_records, config, plan, start_step)
    if config.pairs_images:
        records = with_next(records)
    if context.num_input_pipelines > 1:
        share = plan.window // context.num_input_pipelines
        records = (
            records.enumerate()
            .filter(lambda place, _: place % plan.window // share == context.input_pipeline_id)
            .map(lambda _, record: record)
        )
    return records.map(
        _example_maker(config, manifest, wanted), tf.data.AUTOTUNE, deterministic=True
    )


def _dealt_train_examples(
    config: DataConfig, context: tf.distribute.InputContext, wanted, start_step: int
) -> tf.data.Dataset:
    """The same made by the workers of a service, which are dealt files of epochs, in their order.

    A shuffle buffer for each open file keeps workers from reading far into later epochs only to
    fill it. Nothing is opened ahead, as by parallel calls: those files would be lost to others.
    """
    files, manifest, buffer_size = _train_files(config)
    first_epoch = start_step * config.train_batch_size // sum(_count_records(files, manifest))
    if start_step:
        print(
            f"--data_service deals whole epochs: epoch {first_epoch + 1}, in which step "
            f"{start_step} lies, is started over.",
            file=sys.stderr,
        )
    open_files = round(len(files) * SHARE_OPENED_BY_WORKER)
    open_files = min(max(1, open_files), FILES_READ_AT_A_TIME)

    def file_records(index: tf.Tensor) -> tf.data.Dataset:
        place = index * context.num_input_pipelines + context.input_pipeline_id
        epoch = place // len(files) + first_epoch
        shuffled_files, order_seed = _draw_order(files, epoch, config.seed)
        return (
            tf.data.TFRecordDataset(shuffled_files[place % len(files)])
            .shuffle(max(1, buffer_size // open_files), order_seed, reshuffle_each_iteration=False)
            .map(lambda serialized: (serialized, epoch))
            .prefetch(tf.data.AUTOTUNE)
        )

    records = tf.data.Dataset.range(tf.int64.max).interleave(file_records, cycle_length=open_files)
    if config.pairs_images:
        records = with_next(records)
    examples = records.map(
        _example_maker(config, manifest, wanted), tf.data.AUTOTUNE, deterministic=False
    )
    return run_on_workers(examples, config.data_service)


def _train_files(config: DataConfig) -> tuple[list[str], Manifest | None, int]:
    """The files to train on, their manifest, and how many of their records are shuffled."""
    files = expand_pattern(config.train_file_pattern)
    manifest = find_manifest(config.train_file_pattern)
    _require_records(files, manifest)
    return files, manifest, _shuffle_buffer_size(files, manifest, config)


def _example_maker(config: DataConfig, manifest: Manifest | None, wanted) -> Callable:
    """What makes an image of a record, its epoch and perhaps a second record."""
    include_masks = wanted.include_mask and (manifest is None or manifest.include_masks)
    if config.pairs_images and not include_masks:
        raise UserError(
            f"--augmentations={','.join(config.augmentations)} needs masks, and the records "
            f"{config.train_file_pattern} have none: leave copy_paste out, or convert with masks."
        )

    @tf.autograph.experimental.do_not_convert
    def make_example(serialized: tf.Tensor, epoch: tf.Tensor, second: tf.Tensor | None = None):
        return train_example(
            serialized, epoch, config, include_masks, wanted.include_polygons, second
        )

    return make_example


def _draw_order(files: list[str], epoch: tf.Tensor, seed: int) -> tuple[tf.Tensor, tf.Tensor]:
    """The files in the order of an epoch, and a seed to shuffle their records with."""
    # Dataset.shuffle mixes the graph's seed into its own; a constant one here keeps the order
    # free of tf.random.set_seed, which within a function concerns that function only.
    tf.random.set_seed(1)
    key = tf.random.experimental.stateless_fold_in(
        tf.constant([seed, 0], tf.int64), epoch, alg="philox"
    )
    order_seed = tf.random.stateless_uniform([], key, 0, 2**31 - 1, tf.int64, alg="philox")
    return tf.random.experimental.stateless_shuffle(files, key, alg="philox"), order_seed


def _eval_examples(config: DataConfig, context: tf.distribute.InputContext) -> tf.data.Dataset:
    """Every image once, in the order of the files unless a service makes them."""
    files = expand_pattern(config.eval_file_pattern)
    make_example = functools.partial(eval_example, config=config)
    if not config.data_service:
        return _share_of_records(files, context).map(
            make_example, tf.data.AUTOTUNE, deterministic=True
        )
    records, count = _dealt_eval_records(files, find_manifest(config.eval_file_pattern), context)
    examples = records.map(make_example, tf.data.AUTOTUNE, deterministic=False)
    # Without it, images that died with a worker would be missing from the metrics unseen.
    counted = tf.data.experimental.assert_cardinality(count)
    return run_on_workers(examples, config.data_service).apply(counted)


def _dealt_eval_records(
    files: list[str], manifest: Manifest | None, context: tf.distribute.InputContext
) -> tuple[tf.data.Dataset, int]:
    """Serialised records for a worker of a service, which is dealt a file at a time; their number.

    Pipelines share the files, if there are enough, or else the records of each file: a worker does
    not see the others', so it could not count on from file to file.
    """
    pipelines, index = context.num_input_pipelines, context.input_pipeline_id
    sizes = _count_records(files, manifest)
    if len(files) >= pipelines:
        files, count = files[index::pipelines], sum(sizes[index::pipelines])
        pipelines, index = 1, 0
    else:
        count = sum(len(range(index, size, pipelines)) for size in sizes)
    return (
        tf.data.Dataset.from_tensor_slices(files).flat_map(
            lambda path: tf.data.TFRecordDataset(path).shard(pipelines, index)
        ),
        count,
    )


def _share_of_records(files: list[str], context: tf.distribute.InputContext) -> tf.data.Dataset:
    """This pipeline's share of the serialised records: of the files, if there are enough."""
    shard = (context.num_input_pipelines, context.input_pipeline_id)
    paths = tf.data.Dataset.from_tensor_slices(files)
    if len(files) >= context.num_input_pipelines:
        return _read_in_turn(paths.shard(*shard))
    return _read_in_turn(paths).shard(*shard)


def _read_in_turn(paths: tf.data.Dataset) -> tf.data.Dataset:
    """The serialised records of several files at a time, always in the same order."""
    return paths.interleave(
        tf.data.TFRecordDataset,
        cycle_length=FILES_READ_AT_A_TIME,
        num_parallel_calls=tf.data.AUTOTUNE,
        deterministic=True,
    )


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
    empty = not (manifest.num_images if manifest else any(map(file_size, files)))
    if empty:
        raise UserError(
            f"there is no image in {files[0]} and its like; convert the data set again."
        )


def _shuffle_buffer_size(files: list[str], manifest: Manifest | None, config: DataConfig) -> int:
    """Records that fit the memory set aside for shuffling, at least one."""
    if manifest:
        mean_bytes = sum(shard["bytes"] for shard in manifest.shards) / max(manifest.num_images, 1)
    else:
        mean_bytes = _mean_record_bytes(files[0])
    return max(1, int(config.shuffle_megabytes * 1e6 / max(mean_bytes, 1)))


def _mean_record_bytes(path: str) -> float:
    """Mean size of the first records of a file."""
    ends = list(itertools.islice(_record_ends(path), RECORDS_PROBED))
    return ends[-1] / len(ends) if ends else 0.0


def _count_records(files: list[str], manifest: Manifest | None) -> list[int]:
    """Number of records in each file."""
    shards = manifest.shards if manifest else ()
    told = {shard["name"]: shard["num_images"] for shard in shards}
    if len(told) < len(shards):  # Joined manifests that have shards of one name tell nothing.
        told = {}
    names = map(os.path.basename, files)
    return [
        told[name] if name in told else sum(1 for _ in _record_ends(path))
        for path, name in zip(files, names, strict=True)
    ]


def _record_ends(path: str) -> Iterator[int]:
    """Where each record of a file ends, from the lengths that frame them."""
    size = file_size(path)
    end = 0
    with open_file(path, "rb") as file:
        while end < size:
            file.seek(end)
            # A record is framed by its length, two checksums of 4 bytes and itself.
            end += 16 + int.from_bytes(file.read(8), "little")
            if end > size:
                raise UserError(
                    f"{path} is truncated or no uncompressed TFRecord file; convert the data set "
                    "again."
                )
            yield end


def _options(config: DataConfig) -> tf.data.Options:
    options = tf.data.Options()
    options.deterministic = config.deterministic
    if config.input_threads:
        options.threading.private_threadpool_size = config.input_threads
    return options
