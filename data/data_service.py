"""Client of a tf.data service, which prepares single images on other hosts.

The service is a dispatcher, which knows the dataset, and workers, which run its graph; a training
program reads from the workers. `tools/data_service.py` starts both. A worker receives whole files,
one at a time, and does not see those of others.
"""

from __future__ import annotations

import queue
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

# TensorFlow depends on grpc too, but only grpc itself allows a time limit for a call.
import grpc
import tensorflow as tf

from data.config import DataConfig
from data.errors import UserError
from data.record_files import FILES_READ_AT_A_TIME, RecordFiles

# Time that a dispatcher has to answer; it is always idle, so this allows for the network.
SECONDS_TO_ANSWER = 10.0
# Time that a batch may take before the servers are asked whether they are there, and between two
# such questions.
SECONDS_BETWEEN_CHECKS = 10.0
# Time that a server has to come back.
SECONDS_TO_RETURN = 120.0
# Maximum fraction of an epoch's files that a worker opens at a time.
SHARE_OPENED_BY_WORKER = 1 / 16
_GET_WORKERS = "/tensorflow.data.DispatcherService/GetWorkers"
_GET_TASKS = "/tensorflow.data.WorkerService/GetWorkerTasks"

Batch = TypeVar("Batch")


def run_on_workers(examples: tf.data.Dataset, service: str) -> tf.data.Dataset:
    """Moves the computation of a dataset's elements to the workers of a service.

    The sources of the dataset are dealt out element by element, to whichever worker asks next
    (`ShardingPolicy.DYNAMIC`), and what a worker makes of them is taken when it is ready. So there
    is no order, and every element appears at most once for any number of workers, even if some join
    later. If a worker dies, the elements that it holds and has not delivered are lost. The other
    policies are unsuitable: OFF would repeat every element in each worker, and FILE and DATA need a
    worker on each training host and the list of all of them in advance.

    Args:
        examples: built from graph operations only; files are read by the workers, under the same
            paths.
        service: grpc://HOST:PORT of the dispatcher.

    Returns:
        Dataset of the same elements.

    Raises:
        UserError: the dispatcher does not answer or has no worker.
    """
    if not find_workers(service):
        raise UserError(
            f"the dispatcher at --data_service={service} has no workers; start at least one with "
            "tools/data_service.py --role=worker."
        )
    policy = tf.data.experimental.service.ShardingPolicy.DYNAMIC
    return examples.apply(tf.data.experimental.service.distribute(policy, service))


def find_workers(service: str) -> bytes:
    """Asks a dispatcher for its workers and returns their serialised list, which may be empty.

    TensorFlow itself would wait up to an hour for a dispatcher, and indefinitely for workers.

    Raises:
        UserError: nothing answers at the address, or not a dispatcher.
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


def watched(batches: Iterable[Batch], service: str) -> Iterator[Batch]:
    """Yields the batches; while one is late, checks whether the servers of the service answer.

    TensorFlow waits for a server that died without end and without a message.

    Args:
        batches: from `run_on_workers`.
        service: grpc://HOST:PORT of the dispatcher; if empty, nothing is watched.

    Raises:
        UserError: a batch is late, and a server has not answered for `SECONDS_TO_RETURN`.
    """
    if not service:
        yield from batches
        return
    iterator, end = iter(batches), object()
    while True:
        fetched: queue.SimpleQueue = queue.SimpleQueue()
        # Not even the end of the program interrupts TensorFlow, so it must not wait for the thread.
        threading.Thread(target=_fetch, args=(iterator, end, fetched), daemon=True).start()
        batch, error = _wait_for(fetched, service)
        if error:
            raise error
        if batch is end:
            return
        yield batch


def _fetch(iterator: Iterator, end: object, fetched: queue.SimpleQueue) -> None:
    try:
        fetched.put((next(iterator, end), None))
    except BaseException as error:
        fetched.put((None, error))


def _wait_for(fetched: queue.SimpleQueue, service: str) -> tuple:
    silent_since: dict[str, float] = {}
    while True:
        try:
            return fetched.get(timeout=SECONDS_BETWEEN_CHECKS)
        except queue.Empty:
            silent, now = _find_silent(service), time.monotonic()
        for server in silent - silent_since.keys():
            print(
                f"Warning: {server} does not answer, so images are missing; waiting "
                f"{SECONDS_TO_RETURN:.0f} seconds for it to be started again with the same host "
                "and port.",
                file=sys.stderr,
                flush=True,
            )
        silent_since = {server: silent_since.get(server, now) for server in silent}
        for server, since in silent_since.items():
            if now - since >= SECONDS_TO_RETURN:
                raise UserError(
                    f"{server} has not answered for {now - since:.0f} seconds, so images are "
                    "missing; start it again with the same host and port, or start the dispatcher "
                    "and all workers again, and run the same command again."
                )


def _find_silent(service: str) -> set[str]:
    """Finds the servers of a service that do not answer."""
    try:
        workers = find_workers(service)
    except UserError:
        return {f"the dispatcher at --data_service={service}"}
    # The message has one repeated field, as BytesList, and so have its parts, the first of which is
    # the address.
    parts = tf.train.BytesList.FromString(workers).value
    addresses = [tf.train.BytesList.FromString(part).value[0].decode() for part in parts]
    return {
        f"the worker {address} of --data_service={service}"
        for address in addresses
        if not _answers(address)
    }


def _answers(address: str) -> bool:
    """Whether a worker answers."""
    try:
        with grpc.insecure_channel(address) as channel:
            channel.unary_unary(_GET_TASKS)(b"", timeout=SECONDS_TO_ANSWER)
    except grpc.RpcError as error:
        return error.code() not in (
            grpc.StatusCode.UNAVAILABLE,
            grpc.StatusCode.DEADLINE_EXCEEDED,
        )
    return True


def deal_training_records(
    files: RecordFiles, config: DataConfig, context: tf.distribute.InputContext, start_step: int
) -> tf.data.Dataset:
    """Makes the endless records of a worker, which receives files epoch after epoch.

    Each open file has its own shuffle buffer, so that workers do not read far into later epochs
    only to fill one. No file is opened in advance, since other workers could not have it then.

    Returns:
        Dataset of (string scalar, int64 scalar): serialised records with their epoch.
    """
    paths = files.paths
    open_files = round(len(paths) * SHARE_OPENED_BY_WORKER)
    open_files = min(max(1, open_files), FILES_READ_AT_A_TIME)
    buffer_size = max(1, files.count_that_fit(config.shuffle_megabytes) // open_files)
    first_epoch = start_step * config.train_batch_size // sum(files.count_records())
    if start_step:
        print(
            "With --data_service, training resumes at the start of an epoch: epoch "
            f"{first_epoch + 1}, which contains step {start_step}, is repeated from its start.",
            file=sys.stderr,
        )

    def read_file(index: tf.Tensor) -> tf.data.Dataset:
        place = index * context.num_input_pipelines + context.input_pipeline_id
        epoch = place // len(paths) + first_epoch
        shuffled_paths, order_seed = files.draw_order(epoch, config.seed)
        return (
            files.read_file(shuffled_paths[place % len(paths)])
            .shuffle(buffer_size, order_seed, reshuffle_each_iteration=False)
            .map(lambda serialized: (serialized, epoch))
            .prefetch(tf.data.AUTOTUNE)
        )

    return tf.data.Dataset.range(tf.int64.max).interleave(read_file, cycle_length=open_files)


def deal_eval_records(
    files: RecordFiles, context: tf.distribute.InputContext
) -> tuple[tf.data.Dataset, int]:
    """Makes a worker's records, each once, and counts the records of all workers together.

    Pipelines share the files if there are enough of them, otherwise the records of each file,
    because a worker does not see other workers' files and could not count records across files.

    Returns:
        Dataset of string scalars, serialised records, and their number.
    """
    pipelines, index = context.num_input_pipelines, context.input_pipeline_id
    paths, sizes = files.paths, files.count_records()
    if len(paths) >= pipelines:
        paths, count = paths[index::pipelines], sum(sizes[index::pipelines])
        pipelines, index = 1, 0
    else:
        count = sum(len(range(index, size, pipelines)) for size in sizes)
    records = tf.data.Dataset.from_tensor_slices(paths).flat_map(
        lambda path: files.read_file(path).shard(pipelines, index)
    )
    return records, count
