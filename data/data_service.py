"""The work on single images on other hosts: what speaks to a tf.data service.

The service is a dispatcher, which knows the data set, and workers, which run its graph; a training
program reads from the workers. `tools/data_service.py` starts both. A worker is dealt whole files,
one at a time, and does not see those of others.
"""

from __future__ import annotations

import sys

# TensorFlow depends on it too; only here can a call to a dispatcher be given a time limit.
import grpc
import tensorflow as tf

from data.config import DataConfig
from data.errors import UserError
from data.record_files import FILES_READ_AT_A_TIME, RecordFiles

# What a dispatcher may take to answer. It does nothing else, so this is for the network.
SECONDS_TO_ANSWER = 10.0
# Share of an epoch's files that a worker opens at a time, if that is fewer than others read.
SHARE_OPENED_BY_WORKER = 1 / 16
_GET_WORKERS = "/tensorflow.data.DispatcherService/GetWorkers"


def run_on_workers(examples: tf.data.Dataset, service: str) -> tf.data.Dataset:
    """Lets the workers of a service make the elements of a data set.

    The sources of the data set are dealt out element by element, to whichever worker asks next
    (`ShardingPolicy.DYNAMIC`), and what a worker makes of them is taken when it is ready. So there
    is no order, and every element appears once at most, whatever the number of workers, also when
    some join later. A worker that dies takes with it what it has not delivered of the source
    elements it holds. The other policies do not fit: OFF would repeat every element in each worker,
    FILE and DATA need a worker on each training host and the list of all of them beforehand.

    Args:
        examples: built of graph operations alone; files are read by the workers, under the same
            paths.
        service: grpc://HOST:PORT of the dispatcher.

    Returns:
        Data set of the same elements.

    Raises:
        UserError: the dispatcher does not answer or has no worker.
    """
    if not find_workers(service):
        raise UserError(
            f"the dispatcher at --data_service={service} has no worker: start some with "
            "tools/data_service.py --role=worker."
        )
    policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return examples.apply(tf.data.experimental.service.distribute(policy, service))


def find_workers(service: str) -> bytes:
    """Asks a dispatcher for its workers: their serialised list, empty if there are none.

    TensorFlow itself would wait for a dispatcher for as long as an hour, and for workers for ever.

    Raises:
        UserError: nothing answers at the address, or something else than a dispatcher.
    """
    try:
        with grpc.insecure_channel(service.removeprefix("grpc://")) as channel:
            return channel.unary_unary(_GET_WORKERS)(b"", timeout=SECONDS_TO_ANSWER)
    except grpc.RpcError as error:
        reason = (error.details() or error.code().name).rstrip(".")
        raise UserError(
            f"no tf.data service dispatcher answers at --data_service={service} ({reason}); check "
            "the address, or start one with tools/data_service.py --role=dispatcher."
        ) from None


def deal_training_records(
    files: RecordFiles, config: DataConfig, context: tf.distribute.InputContext, start_step: int
) -> tf.data.Dataset:
    """Records for a worker, which is dealt files of epochs in the epochs' order, without end.

    A shuffle buffer for each open file keeps workers from reading far into later epochs only to
    fill it. Nothing is opened ahead, as by parallel calls: those files would be lost to others.

    Returns:
        Data set of (string scalar, int64 scalar): serialised records with their epoch.
    """
    paths = files.paths
    open_files = round(len(paths) * SHARE_OPENED_BY_WORKER)
    open_files = min(max(1, open_files), FILES_READ_AT_A_TIME)
    buffer_size = max(1, files.count_that_fit(config.shuffle_megabytes) // open_files)
    first_epoch = start_step * config.train_batch_size // sum(files.count_records())
    if start_step:
        print(
            f"--data_service deals whole epochs: epoch {first_epoch + 1}, in which step "
            f"{start_step} lies, is started over.",
            file=sys.stderr,
        )

    def read_file(index: tf.Tensor) -> tf.data.Dataset:
        place = index * context.num_input_pipelines + context.input_pipeline_id
        epoch = place // len(paths) + first_epoch
        shuffled_paths, order_seed = files.draw_order(epoch, config.seed)
        return (
            tf.data.TFRecordDataset(shuffled_paths[place % len(paths)])
            .shuffle(buffer_size, order_seed, reshuffle_each_iteration=False)
            .map(lambda serialized: (serialized, epoch))
            .prefetch(tf.data.AUTOTUNE)
        )

    return tf.data.Dataset.range(tf.int64.max).interleave(read_file, cycle_length=open_files)


def deal_eval_records(
    files: RecordFiles, context: tf.distribute.InputContext
) -> tuple[tf.data.Dataset, int]:
    """Records for a worker, each once, and the number that all workers together have of them.

    Pipelines share the files, if there are enough, or else the records of each file: a worker does
    not see the others', so it could not count on from file to file.

    Returns:
        Data set of string scalars, serialised records, and how many of them there are.
    """
    pipelines, index = context.num_input_pipelines, context.input_pipeline_id
    paths, sizes = files.paths, files.count_records()
    if len(paths) >= pipelines:
        paths, count = paths[index::pipelines], sum(sizes[index::pipelines])
        pipelines, index = 1, 0
    else:
        count = sum(len(range(index, size, pipelines)) for size in sizes)
    records = tf.data.Dataset.from_tensor_slices(paths).flat_map(
        lambda path: tf.data.TFRecordDataset(path).shard(pipelines, index)
    )
    return records, count
