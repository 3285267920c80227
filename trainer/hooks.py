"""Reports of a run (train.jsonl, progress line, TensorBoard) and the check for non-finite values.

Each hook is a small object that receives numbers; none depends on the model or the loop.
"""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TextIO

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import summary_pb2

from data import files
from data.errors import UserError
from trainer.steps import StepResult

# This many halvings take the loss scale of float16 from its initial value to 1, plus five.
OVERFLOWS_ENDURED = 20


class NotFinite(UserError):
    """A loss or gradient is infinite or NaN.

    Attributes:
        step: the step that it was found in.
        problem: which, in which step, of which images.
    """

    def __init__(self, step: int, problem: str, advice: str):
        super().__init__(f"{problem}; no checkpoint was saved since then. {advice}")
        self.step = step
        self.problem = problem


class FiniteGuard:
    """Keeps the scalars of each step on the devices until they are checked.

    Args:
        strategy: the strategy of the image ids, which have one part per replica.
        overflows_endured: number of consecutive steps whose gradients may be infinite or NaN: 0, or
            `OVERFLOWS_ENDURED` with dynamic loss scaling, which skips such steps by itself.
    """

    def __init__(self, strategy: tf.distribute.Strategy, overflows_endured: int = 0):
        self._strategy = strategy
        self._overflows_endured = overflows_endured
        self._overflows = 0
        self._kept: list[tuple[int, tf.Tensor, tf.Tensor, tf.Tensor]] = []

    def keep(self, step: int, result: StepResult, image_ids: tf.Tensor) -> None:
        """Remembers the steps of a call, the first of which is `step`.

        `image_ids` is int64 [B] in each replica, in the order of the steps.
        """
        self._kept.append((step, result.loss, result.gradient_norm, image_ids))

    def check(self) -> None:
        """Checks the steps kept and forgets them.

        Raises:
            NotFinite: the message names the first such step and its images.
        """
        kept, self._kept = self._kept, []
        for first, losses, norms, image_ids in kept:
            values = list(zip(np.ravel(losses).tolist(), np.ravel(norms).tolist(), strict=True))
            for place, (loss, norm) in enumerate(values):
                name_images = functools.partial(self._name_images, image_ids, place, len(values))
                self._check_step(first + place, loss, norm, name_images)

    def _check_step(
        self, step: int, loss: float, norm: float, name_images: Callable[[], str]
    ) -> None:
        self._overflows = 0 if math.isfinite(norm) else self._overflows + 1
        if not math.isfinite(loss):
            problem = f"The loss of step {step} is {loss}"
        elif self._overflows > self._overflows_endured == 0:
            problem = f"The gradient of step {step} is {norm}"
        elif self._overflows > self._overflows_endured:
            raise NotFinite(
                step,
                f"float16 has overflowed in each of the last {self._overflows} steps, up to "
                f"step {step} ({name_images()}), so nothing is learnt",
                "Use --precision=mixed_bfloat16 or float32, or lower --learning_rate.",
            )
        else:
            return
        raise NotFinite(
            step,
            f"{problem} ({name_images()})",
            "Check those images' annotations, or lower --learning_rate, raise --warmup_steps, or "
            "set --gradient_clip_norm or --nonfinite_retries.",
        )

    def _name_images(self, image_ids: tf.Tensor, place: int, count: int) -> str:
        """Names the images of step `place` of a call of `count` steps."""
        parts = self._strategy.experimental_local_results(image_ids)
        ids = [np.array_split(part.numpy(), count)[place] for part in parts]
        return "image ids " + ", ".join(map(str, np.concatenate(ids).tolist()))


class Stopwatch:
    """Times steps between two reports: images per second and share of time waiting for input."""

    def __init__(self, images_per_step: int, steps_per_call: int = 1):
        self._images_per_step = images_per_step
        self._steps_per_call = steps_per_call
        self.restart()

    def restart(self) -> None:
        """Starts a new interval."""
        self._started = time.perf_counter()
        self._waited = 0.0
        self._steps = 0

    def count(self, waited: float) -> None:
        """Counts a call that waited `waited` seconds for its batch."""
        self._waited += waited
        self._steps += self._steps_per_call

    def untimed(self, action: Callable[[int], None]) -> Callable[[int], None]:
        """Wraps an action so that its time is excluded from the interval."""

        def run(step: int) -> None:
            began = time.perf_counter()
            action(step)
            self._started += time.perf_counter() - began

        return run

    def report(self) -> dict[str, float]:
        """Returns the interval's `images_per_second`, `input_wait_share` and `steps_per_second`."""
        elapsed = max(time.perf_counter() - self._started, 1e-9)
        return {
            "images_per_second": self._steps * self._images_per_step / elapsed,
            "input_wait_share": min(self._waited / elapsed, 1.0),
            "steps_per_second": self._steps / elapsed,
        }


class TrainLog:
    """`train.jsonl`: one JSON object per line, in the order of the steps.

    Lines after `first_step` (of a run that was killed after its last checkpoint) and an incomplete
    line are removed when the file is opened again.
    """

    def __init__(self, model_dir: str, first_step: int):
        files.make_folder(model_dir)
        self._path = os.path.join(model_dir, "train.jsonl")
        self._drop_after(first_step)

    def write(self, record: Mapping[str, float]) -> None:
        """Appends a line; non-finite numbers become null, because JSON cannot represent them."""
        line = {name: value if math.isfinite(value) else None for name, value in record.items()}
        with files.open_file(self._path, "a") as file:
            file.write(json.dumps(line) + "\n")

    def _drop_after(self, step: int) -> None:
        if not files.exists(self._path):
            return
        with files.open_file(self._path) as file:
            lines = [line for line in file if _step_of(line) <= step]
        with files.whole_file(self._path) as file:
            file.writelines(lines)


class Progress:
    """One line of text per report: step, losses, speed, waiting and the time left."""

    def __init__(self, train_steps: int, stream: TextIO | None = None):
        self._train_steps = train_steps
        self._stream = stream or sys.stderr

    def write(self, record: Mapping[str, float], losses: Sequence[str], speed: float) -> None:
        """Writes the line; `losses` are the parts to show, `speed` is in steps per second."""
        parts = "  ".join(f"{name} {record[name]:.4f}" for name in losses)
        seconds = (self._train_steps - record["step"]) / max(speed, 1e-9)
        self._stream.write(
            f"step {record['step']}/{self._train_steps}  loss {record['loss']:.4f}  ({parts})  "
            f"{record['images_per_second']:.2f} images/s  "
            f"input wait {100 * record['input_wait_share']:.0f} %  "
            f"left {datetime.timedelta(seconds=round(seconds))}\n"
        )
        self._stream.flush()


class Summaries:
    """Scalars and images for TensorBoard in a separate folder.

    They are written as TensorBoard's own plugins would write them. So the `tensorboard` package,
    which TensorFlow does not always install, is needed only to view them.
    """

    def __init__(self, folder: str):
        self._folder = files.expand(folder)
        self._writer: tf.summary.SummaryWriter | None = None

    def write_scalars(self, step: int, scalars: Mapping[str, float]) -> None:
        """Writes a step's numbers under their names."""
        metadata = _plugin("scalars", summary_pb2.DATA_CLASS_SCALAR)
        tensors = {name: tf.constant(value, tf.float32) for name, value in scalars.items()}
        self._write(step, tensors, metadata)

    def write_images(self, step: int, images: Mapping[str, np.ndarray]) -> None:
        """Writes uint8 [H, W, 3] images of any sizes under their names."""
        metadata = _plugin("images", summary_pb2.DATA_CLASS_BLOB_SEQUENCE)
        tensors = {}
        for name, image in images.items():
            height, width = (str(side).encode() for side in image.shape[:2])
            tensors[name] = tf.stack([width, height, tf.io.encode_png(image)])
        self._write(step, tensors, metadata)

    def _write(self, step: int, tensors: Mapping[str, tf.Tensor], metadata) -> None:
        if self._writer is None:
            self._writer = tf.summary.create_file_writer(self._folder)
        with files.os_errors(self._folder), self._writer.as_default(), tf.device("cpu:0"):
            for name, tensor in tensors.items():
                tf.summary.write(name, tensor, step=step, metadata=metadata)
            self._writer.flush()


def _plugin(name: str, data_class: int) -> summary_pb2.SummaryMetadata:
    plugin_data = summary_pb2.SummaryMetadata.PluginData(plugin_name=name)
    return summary_pb2.SummaryMetadata(plugin_data=plugin_data, data_class=data_class)


def _step_of(line: str) -> float:
    """Returns the step of a line of train.jsonl; infinity if the line cannot be read."""
    try:
        return json.loads(line)["step"] if line.endswith("\n") else math.inf
    except (ValueError, KeyError, TypeError):
        return math.inf
