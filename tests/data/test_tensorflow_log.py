"""TensorFlow's log is kept back unless it was asked for."""

import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[2]
PROGRAM = """
from data.tensorflow_log import quieten_tensorflow
quieten_tensorflow()
import tensorflow as tf
tf.get_logger().warning("a warning of its own")
print(sum(1 for _ in tf.data.Dataset.range(3).interleave(tf.data.Dataset.from_tensors)))
"""


def test_tensorflow_says_nothing_by_itself():
    for environment, said in ({}, False), ({"TF_CPP_MIN_LOG_LEVEL": "0"}, True):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={"PYTHONPATH": str(ROOT), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "3\n"
        assert bool(done.stderr) == said, done.stderr
