"""Finds and prepares the devices, and makes the strategy that distributes a batch."""

from __future__ import annotations

import sys

import keras
import tensorflow as tf

from data.errors import UserError
from model.roi_align import make_gradient_exact
from trainer.cluster import ALONE, Cluster
from trainer.config import Params


def prepare_runtime(params: Params) -> None:
    """Seeds all generators and prepares the devices; call it before TensorFlow is used.

    Raises:
        UserError: the CPU can no longer be split because TensorFlow is already running.
    """
    keras.utils.set_random_seed(params.data.seed)
    if params.data.deterministic:
        tf.config.experimental.enable_op_determinism()
    if params.train.trains:
        make_gradient_exact()
    try:
        # Allocating all memory at once would exclude other users of the GPU.
        for gpu in tf.config.list_physical_devices("GPU"):
            tf.config.experimental.set_memory_growth(gpu, True)
        if params.train.num_logical_cpus > 1:
            _split_cpu(params.train.num_logical_cpus)
    except RuntimeError as error:
        raise UserError(
            f"--num_logical_cpus={params.train.num_logical_cpus} cannot be applied because "
            "TensorFlow is already running in this process; start a new process."
        ) from error


def make_strategy(params: Params, cluster: Cluster = ALONE) -> tf.distribute.Strategy:
    """Makes the strategy of `--distribution`; call it before TensorFlow is used.

    Raises:
        UserError: a batch that cannot be split evenly, XLA over several replicas, a TPU that is not
            found, or workers that cannot be reached.
    """
    strategy = _make(params, cluster)
    _check_replicas(params, strategy)
    return strategy


def _make(params: Params, cluster: Cluster) -> tf.distribute.Strategy:
    if cluster.num_workers > 1:
        return _connect_workers(cluster)
    if params.train.distribution == "tpu":
        return _connect_tpu(params.train.tpu)
    devices = find_devices(params.train.num_logical_cpus)
    mirrored = params.train.distribution == "mirrored" or len(devices) > 1
    if params.train.distribution == "one_device" or not mirrored:
        return tf.distribute.OneDeviceStrategy(devices[0])
    return tf.distribute.MirroredStrategy(devices)


def _connect_workers(cluster: Cluster) -> tf.distribute.Strategy:
    """Waits for the other workers and makes the strategy of all their devices."""
    print(
        f"Worker {cluster.index} is waiting for all {cluster.num_workers} workers of TF_CONFIG.",
        file=sys.stderr,
        flush=True,
    )
    try:
        return tf.distribute.MultiWorkerMirroredStrategy()
    except tf.errors.OpError as error:
        raise UserError(
            f"The workers of TF_CONFIG did not find each other ({error.message}); start all of "
            "them, and check the addresses and that the ports are open."
        ) from None


def _connect_tpu(name: str) -> tf.distribute.Strategy:
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=name)
        tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (tf.errors.OpError, OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(
            f"There is no usable TPU --tpu={name} ({reason}): run on a TPU VM on which "
            "tensorflow-tpu is installed (docs/TPU.md), or choose another --distribution."
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def find_devices(num_logical_cpus: int) -> list[str]:
    """Lists the devices to train on: the visible GPUs, else the CPU or its logical parts."""
    gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
    if gpus and num_logical_cpus < 2:
        return gpus
    cpus = [device.name for device in tf.config.list_logical_devices("CPU")]
    return cpus[: max(num_logical_cpus, 1)]


def describe_devices(strategy: tf.distribute.Strategy) -> str:
    """Describes the strategy's devices in words, such as "2 x NVIDIA H100" or "the CPU"."""
    replicas = strategy.num_replicas_in_sync
    gpus = tf.config.list_physical_devices("GPU")
    if "GPU" in strategy.extended.worker_devices[0]:
        name = tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU")
    else:
        name = "CPU"
    return f"{replicas} x {name}" if replicas > 1 else f"the {name}"


def _split_cpu(count: int) -> None:
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(
        cpu, [tf.config.LogicalDeviceConfiguration()] * count
    )


def _check_replicas(params: Params, strategy: tf.distribute.Strategy) -> None:
    replicas = strategy.num_replicas_in_sync
    on_tpu = isinstance(strategy, tf.distribute.TPUStrategy)
    if replicas > 1 and not on_tpu and params.model.jit_compile:
        # XLA cannot compile the exchange of the counts that losses are divided by.
        raise UserError(
            f"--jit_compile cannot be used over {replicas} replicas that are no TPU's: give "
            "--nojit_compile, or --distribution=one_device."
        )
    if replicas > 1 and not on_tpu and params.data.steps_per_call > 1:
        # TensorFlow's graph optimiser breaks loops over several devices without a word.
        raise UserError(
            f"--steps_per_call={params.data.steps_per_call} cannot be used over {replicas} "
            "replicas that are no TPU's: give --steps_per_call=1, or --distribution=one_device."
        )
    used = ["train_batch_size"] if params.train.trains else []
    used += ["eval_batch_size"] if params.train.mode != "train" else []
    for name in used:
        size = getattr(params.data, name)
        if size % replicas:
            raise UserError(
                f"--{name}={size} cannot be split over {replicas} replicas: give a multiple of "
                f"{replicas}, or --distribution=one_device."
            )
    per_replica, parts = params.data.train_batch_size // replicas, params.train.accumulate_steps
    if params.train.trains and per_replica % parts:
        raise UserError(
            f"--accumulate_steps={parts} cannot split the {per_replica} images of a replica evenly "
            f"(--train_batch_size={params.data.train_batch_size}): give a divisor of {per_replica}."
        )
