"""The data of benchmarks: COCO files, records made from them, and noise."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys

import numpy as np

from data.errors import UserError
from tools.benchmarks import synthetic
from tools.benchmarks.stages import Settings
from trainer.config import Params

ROOT = os.path.abspath(os.path.join(os.path.dirname(__file__), *[os.pardir] * 2))


def annotations_file(settings: Settings) -> str:
    """Returns the path of the COCO file of `read_coco`, or of a copy with drawn objects."""
    if settings.object_annotations_file and not settings.instances:
        return settings.object_annotations_file
    return synthetic.write_coco(synthetic.read_coco(settings))


def run_converter(settings: Settings, annotations: str, folder: str) -> None:
    """Runs the converter as a user would, to shards `train-*.tfrecord` in `folder`.

    Raises:
        UserError: the converter failed.
    """
    command = [
        sys.executable,
        os.path.join(ROOT, "tools", "create_coco_tfrecord.py"),
        f"--image_dir={settings.image_dir}",
        f"--object_annotations_file={annotations}",
        f"--output_file_prefix={folder}/train",
        f"--num_shards={settings.num_shards}",
        f"--num_processes={settings.num_processes}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def with_records(params: Params, settings: Settings) -> Params:
    """Completes the settings with training records: those given, or records made from the data."""
    if params.data.train_file_pattern:
        return params
    folder = synthetic.scratch()
    run_converter(settings, annotations_file(settings), folder)
    data = dataclasses.replace(params.data, train_file_pattern=f"{folder}/train-*.tfrecord")
    return dataclasses.replace(params, data=data)


def noise(settings: Settings, seed: int) -> dict:
    """Makes a batch of features with images of noise, uint8 [B, S, S, 3]."""
    import tensorflow as tf

    size, batch = settings.image_size, settings.batch_size
    rng = np.random.default_rng(seed)
    return {
        "image": tf.constant(rng.integers(0, 256, (batch, size, size, 3)), tf.uint8),
        "image_id": tf.range(batch, dtype=tf.int64),
        "image_info": tf.constant([[size, size, 1, size, size]] * batch, tf.float32),
    }
