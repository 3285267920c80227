"""The work on single images on other hosts: what speaks to a tf.data service.

The service is a dispatcher, which knows the data set, and workers, which run its graph; a training
program reads from the workers. `tools/data_service.py` starts both.
"""

from __future__ import annotations

# TensorFlow depends on it too; only here can a call to a dispatcher be given a time limit.
import grpc
import tensorflow as tf

from data.errors import UserError

# What a dispatcher may take to answer. It does nothing else, so this is for the network.
SECONDS_TO_ANSWER = 10.0
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
