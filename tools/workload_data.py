"""The data that a benchmark works on: COCO files, records made of them, and noise."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys

import numpy as np
from absl import flags

from data.errors import UserError
from tools import stand_ins
from trainer.config import Params

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def annotations_file(values: flags.FlagValues) -> str:
    """Path of the COCO file to work on, drawn anew if a number of objects is asked for.

    Raises:
      UserError: no file is named.
    """
    path = values.object_annotations_file
    if not path:
        raise UserError("--object_annotations_file and --image_dir name the data to work on.")
    if not values.instances:
        return path
    drawn = os.path.join(stand_ins.scratch(), "drawn.json")
    with open(drawn, "w", encoding="utf-8") as file:
        json.dump(stand_ins.read_coco(path, values.instances), file)
    return drawn


def run_converter(values: flags.FlagValues, annotations: str, folder: str) -> None:
    """Converts as a user would, to shards `train-*.tfrecord` in `folder`.

    Raises:
      UserError: the converter refuses.
    """
    command = [
        sys.executable,
        os.path.join(ROOT, "tools", "create_coco_tfrecord.py"),
        f"--image_dir={values.image_dir}",
        f"--object_annotations_file={annotations}",
        f"--output_file_prefix={folder}/train",
        f"--num_shards={values.num_shards}",
        f"--num_processes={values.num_processes}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UserError(done.stderr.strip().splitlines()[-1].removeprefix("error: "))


def with_records(params: Params, values: flags.FlagValues) -> Params:
    """The settings with records to train on: those they name, or ones made of the data."""
    if params.data.train_file_pattern:
        return params
    folder = stand_ins.scratch()
    run_converter(values, annotations_file(values), folder)
    data = dataclasses.replace(params.data, train_file_pattern=f"{folder}/train-*.tfrecord")
    return dataclasses.replace(params, data=data)


def noise(values: flags.FlagValues, seed: int) -> dict:
    """A batch of features whose images, uint8 [B, S, S, 3], have no structure."""
    import tensorflow as tf

    size, batch = values.image_size, values.batch_size
    rng = np.random.default_rng(seed)
    return {
        "image": tf.constant(rng.integers(0, 256, (batch, size, size, 3)), tf.uint8),
        "image_id": tf.range(batch, dtype=tf.int64),
        "image_info": tf.constant([[size, size, 1, size, size]] * batch, tf.float32),
    }
