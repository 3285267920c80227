"""Batch norm over two replicas, in a process of its own, because the CPU is split for it."""

import json
import pathlib
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]

PROGRAM = """
import json
import numpy as np
import tensorflow as tf

cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
from model.norms import BatchNorm

rng = np.random.default_rng(0)
X, WEIGHTS = rng.standard_normal((2, 4, 5, 6, 3)).astype(np.float32)
X = X * np.float32([1, 2, 3]) + np.float32([10, 0, -5])

def run(devices):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{index}" for index in range(devices)])
    with strategy.scope():
        norm = BatchNorm(3, synchronised=True)
        norm.gamma.assign([1.0, -2.0, 0.5])

    def in_replica(x, weights):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = norm(x)
            loss = tf.reduce_sum(y * weights)
        dx, *vectors = tape.gradient(loss, [x, norm.gamma.value, norm.beta.value])
        summed = tf.distribute.get_replica_context().all_reduce("SUM", vectors)
        return y, dx, *summed

    @tf.function(autograph=False)
    def step(x, weights):
        return strategy.run(in_replica, args=(x, weights))

    def deal(array):
        parts = np.split(array, devices)
        return strategy.experimental_distribute_values_from_function(
            lambda context: tf.constant(parts[context.replica_id_in_sync_group]))

    results = [strategy.experimental_local_results(each) for each in step(deal(X), deal(WEIGHTS))]
    y, dx = (np.concatenate(each) for each in results[:2])
    vectors = [each[-1].numpy() for each in results[2:]]
    return [each.tolist() for each in (y, dx, *vectors, norm.moving_mean.numpy(),
                                       norm.moving_variance.numpy())]

print(json.dumps([run(2), run(1)]))
"""


def test_two_replicas_normalise_by_their_whole_batch():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT), "TF_CPP_MIN_LOG_LEVEL": "2"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for two, one in zip(*json.loads(done.stdout.splitlines()[-1]), strict=True):
        np.testing.assert_allclose(two, one, atol=1e-5 * np.abs(one).max())
