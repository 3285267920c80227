"""Estimates the memory of a training step, and the largest batch that fits.

  python tools/estimate_memory.py --flagfile=configs/r50.flags --train_batch_size=4 \\
      --train_file_pattern='records/train-*'

takes the flags of a training. Weights, optimizer and averages are counted. What the images of a
batch need is estimated from the graph of a step on the largest canvas, without running it (see
trainer/memory.py). On a CPU the estimate was too high (docs/PERFORMANCE.md). --memory_gb is the
memory of the device that will train; by default it is that of this machine's GPU, else this
machine's main memory.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from typing import NamedTuple

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data import files
from data.tensorflow_log import quieten_tensorflow
from tools.benchmarks.memory import current_mb
from trainer.completion import complete_from_manifests, complete_from_records
from trainer.config import Params
from trainer.flags import exit_status, parse_command_line, require_flags

_TRACED_BATCHES = 2, 4
_GB = 1e9


class Estimate(NamedTuple):
    """Bytes that a training step needs on a device.

    Attributes:
        weights, optimizer: the variables of the network, and those of the optimizer.
        others: averages of the weights (`--ema_decay`), sums of gradients (`--accumulate_steps`).
        fixed, per_image: of activations and gradients, for any batch and for each image at a time.
    """

    weights: int
    optimizer: int
    others: int
    fixed: float
    per_image: float

    @property
    def without_images(self) -> float:
        """What a step needs besides its images."""
        return self.weights + self.optimizer + self.others + self.fixed

    def total(self, images: int) -> float:
        """What a step needs with so many images at a time."""
        return self.without_images + self.per_image * images

    def most_images(self, memory: float) -> int:
        """The largest number of images at a time that fit into the memory; 0 if none do."""
        return max(int((memory - self.without_images) // self.per_image), 0)


def estimate(params: Params) -> Estimate:
    """Estimates the memory of a step on the largest canvas.

    Raises:
        UserError: the records cannot be used.
    """
    import tensorflow as tf

    from data.input_fn import input_fn
    from model.model_fn import model_fn
    from model.systems import build_network
    from trainer.memory import count_variables, find_buffers, peak
    from trainer.optimizer import Updater
    from trainer.steps import TrainStep

    network = build_network(params)
    updater = Updater(network, params)
    peaks = []
    for batch in _TRACED_BATCHES:
        traced = _with_batch(params, batch)
        features, labels = input_fn("train", traced).element_spec
        step = TrainStep(model_fn, network, updater, tf.distribute.get_strategy(), traced)
        function = step.function.get_concrete_function(features, labels, tf.constant(0.0))
        peaks.append(peak(find_buffers(function.graph)))
    per_image = (peaks[1] - peaks[0]) / (_TRACED_BATCHES[1] - _TRACED_BATCHES[0])
    weights = count_variables(network.variables)
    sums = count_variables(network.trainable_variables) if params.train.accumulate_steps > 1 else 0
    return Estimate(
        weights,
        count_variables(updater.optimizer.variables),
        sums + (weights if updater.average else 0),
        peaks[0] - per_image * _TRACED_BATCHES[0],
        per_image,
    )


def describe(params: Params, found: Estimate, memory: float, device: str) -> str:
    """Describes the estimate and the largest batch in three lines."""
    parts, batch = params.train.accumulate_steps, params.data.train_batch_size
    canvas = _largest_canvas(params)
    most = found.most_images(memory)
    images = f"{batch // parts} images" if batch // parts != 1 else "1 image"
    lines = [
        f"Weights {found.weights / _GB:.2f} GB, optimizer {found.optimizer / _GB:.2f} GB, averages "
        f"and sums {found.others / _GB:.2f} GB; activations and gradients {found.fixed / _GB:.2f} "
        f"GB and {found.per_image / _GB:.2f} GB for each image of {canvas}.",
        f"--train_batch_size={batch} --accumulate_steps={parts} on one device: {images} at a time, "
        f"about {found.total(batch // parts) / _GB:.1f} GB.",
    ]
    if most:
        lines.append(f"{device} has {memory / _GB:.1f} GB, about {most} images at a time.")
    else:
        lines.append(f"{device} has {memory / _GB:.1f} GB, too little for one image.")
    return "\n".join(lines)


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, __doc__, _define_flags)
    values = command.flag_values
    require_flags(values, "train_file_pattern")

    def work() -> int:
        quieten_tensorflow()
        train = dataclasses.replace(command.params.train, mode="train", model_dir="")
        params = dataclasses.replace(command.params, train=train)
        from trainer.strategy import prepare_runtime

        prepare_runtime(params)
        params = complete_from_records(complete_from_manifests(params)).params
        device, memory = find_memory()
        if values["memory_gb"].value:
            device, memory = "The device", values["memory_gb"].value * _GB
        print(describe(params, estimate(params), memory, device))
        return 0

    return exit_status(work)


def find_memory(mem_info: str = "/proc/meminfo") -> tuple[str, float]:
    """Returns the name of the device to train on, and the bytes that a step can have.

    Args:
        mem_info: file in which Linux lists the memory.
    """
    from tensorflow.python.client import device_lib

    gpus = [each for each in device_lib.list_local_devices() if each.device_type == "GPU"]
    if gpus:
        return "The GPU", float(min(gpu.memory_limit for gpu in gpus))
    with files.open_file(mem_info) as file:
        (line,) = (line for line in file if line.startswith("MemTotal:"))
    total = 1024.0 * int(line.split()[1])
    return "Besides the program itself, this machine", total - current_mb() * 2**20


def _largest_canvas(params: Params) -> str:
    sizes = zip(params.data.canvas_sizes, params.data.canvases, strict=True)
    return max(sizes, key=lambda pair: pair[0][0] * pair[0][1])[1]


def _with_batch(params: Params, batch: int) -> Params:
    """Returns the settings of single steps of a batch on the largest canvas."""
    data = {"canvases": (_largest_canvas(params),), "train_batch_size": batch, "steps_per_call": 1}
    return dataclasses.replace(
        params,
        data=dataclasses.replace(params.data, **data),
        train=dataclasses.replace(params.train, accumulate_steps=1),
    )


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_float(
        "memory_gb", 0.0, "Memory of the device to train on; 0: this machine's.", flag_values=values
    )


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
