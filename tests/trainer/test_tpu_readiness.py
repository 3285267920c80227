"""Steps compile as a whole, with static shapes and without the host, as TPUs need it.

A TPU's compiler is not at hand; XLA's compiler for CPUs reads the same program.
"""

import collections
import pathlib
import re
import sys

import pytest
import tensorflow as tf
from tensorflow.python.framework import kernels

from model.model_fn import model_fn
from model.systems import build_network
from trainer.optimizer import Updater
from trainer.steps import PredictStep, TrainStep

sys.path.append(str(pathlib.Path(__file__).parents[1] / "model"))
from toy_batch import toy_features, toy_labels, toy_params  # noqa: E402

# What a function has instead of operations.
_ARGUMENTS = {"Placeholder"}
_TO_THE_HOST = re.compile(r" (custom-call|infeed|outfeed|send|recv)\(")
_DYNAMIC = re.compile(r"\w+\[[\d,]*<=[^\]]*\]")


def operations(function, *args) -> collections.Counter:
    """Counts the operations of a function and of all that it calls, by type."""
    graph = function.get_concrete_function(*args).graph.as_graph_def()
    inner = (node for called in graph.library.function for node in called.node_def)
    return collections.Counter(node.op for node in (*graph.node, *inner))


def without_xla_kernel(counts) -> set[str]:
    """Selects the types of operations that XLA does not know."""

    def devices(name):
        return {kernel.device_type for kernel in kernels.get_registered_kernels_for_op(name).kernel}

    return {name for name in counts if "XLA_CPU_JIT" not in devices(name)} - _ARGUMENTS


def hlo(function, *args) -> str:
    """The program that XLA compiles."""
    return function.experimental_get_compiler_ir(*args)(stage="hlo", device_name="/device:CPU:0")


@pytest.fixture(scope="module")
def parts():
    params = toy_params(
        jit_compile=True, precision="mixed_bfloat16", norm="sync_bn", backbone_width=16
    )
    network = build_network(params)
    return params, network, tf.distribute.get_strategy()


@pytest.fixture(scope="module")
def train(parts):
    params, network, strategy = parts
    step = TrainStep(model_fn, network, Updater(network, params), strategy, params)
    return step.function, toy_features(), toy_labels(), tf.constant(0.0)


@pytest.fixture(scope="module")
def predict(parts):
    params, network, strategy = parts
    return PredictStep(model_fn, network, strategy, params).function, toy_features()


@pytest.mark.parametrize("step", ["train", "predict"])
@pytest.mark.filterwarnings("ignore:device_name is being deprecated")
def test_a_step_is_one_program_of_static_shapes_on_the_device(request, step):
    call = request.getfixturevalue(step)
    counts = operations(*call)
    assert counts["Conv2D"] > 20 and counts.total() > 1000
    assert not without_xla_kernel(counts)
    program = hlo(*call)
    assert program.count("\n") > 1000 and "bf16[" in program
    assert not _DYNAMIC.findall(program)
    assert not _TO_THE_HOST.findall(program)


def test_an_operation_of_the_host_is_found():
    @tf.function
    def call_python(x):
        return tf.cond(x[0] > 0, lambda: tf.numpy_function(abs, [x], tf.float32), lambda: x)

    assert without_xla_kernel(operations(call_python, tf.ones([3]))) == {"PyFunc"}


@pytest.mark.filterwarnings("ignore:device_name is being deprecated")
def test_a_dynamic_shape_is_found():
    where = tf.function(lambda condition: tf.where(condition), jit_compile=True)
    program = hlo(where, tf.constant([True, False]))
    assert _DYNAMIC.findall(program)
