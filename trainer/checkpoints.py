"""Saves checkpoints, resumes from them, and keeps the best one.

A checkpoint holds `network`, `optimizer` (its variables in order) and `step`; with `--ema_decay`,
`network` is the average of the weights, and `unaveraged` what training continues with; with
`--nonfinite_retries`, `halvings` counts how often the learning rate was halved.

TensorFlow writes a checkpoint's files, then the list `checkpoint` that names it, and then deletes
files that are not listed. So whenever a process is killed, the list names complete checkpoints
only.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import re
import sys
from collections.abc import Callable, Sequence

import tensorflow as tf
from google.protobuf import text_format

from data import files
from data.errors import UserError
from model.variables import named_variables
from trainer.checkpoint_files import (
    DamagedCheckpoint,
    find_checkpoint,
    load_network,
    read_shapes,
    read_variable,
    restore,
)
from trainer.optimizer import Updater

# Files that an interrupted save leaves behind.
_UNFINISHED = re.compile(r"ckpt-\d+(_temp|\..*\.tempstate\d+)")


class Checkpoints:
    """The checkpoints of one model_dir.

    Attributes:
        step: int64 variable, the number of training steps taken.
        loaded: the checkpoint whose weights the network has; "" while they are random.
    """

    def __init__(self, model_dir: str, network, updater: Updater, step: tf.Variable, keep: int):
        self._model_dir = model_dir = files.expand(model_dir)
        self._network = network
        self.step = step
        self.loaded = ""
        self._damaged: set[str] = set()
        require_every_variable(network)
        self._average = updater.average
        parts = {"network": network, "optimizer": updater.state(), "step": step}
        if self._average is not None:
            parts |= {"network": self._average.tree, "unaveraged": network}
        if updater.halvings is not None:
            parts |= {"halvings": updater.halvings}
        self._parts = parts
        self._make_recent = functools.partial(
            tf.train.CheckpointManager,
            tf.train.Checkpoint(**parts),
            model_dir,
            max_to_keep=keep,
            checkpoint_name="ckpt",
        )
        self._recent = self._make_recent()
        # The best checkpoint contains its own metric, so that the two always agree.
        self._best_metric = tf.Variable(float("-inf"), dtype=tf.float64, trainable=False)
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(**parts, metric=self._best_metric),
            os.path.join(model_dir, "best"),
            max_to_keep=1,
            checkpoint_name="ckpt",
        )

    def resume(
        self,
        init_checkpoint: str = "",
        load: Callable[[object, str], None] | None = None,
    ) -> int:
        """Restores the latest checkpoint, or in a fresh folder the network of `init_checkpoint`.

        Damaged checkpoints are passed over with a warning.

        Args:
            init_checkpoint: a checkpoint or a folder.
            load: loads the weights of `init_checkpoint` into a network; by default all of them.

        Returns:
            The number of steps taken so far; 0 in a fresh folder.

        Raises:
            UserError: the checkpoint does not fit, all are damaged, or `init_checkpoint` is not a
                checkpoint.
        """
        if self.latest:
            self.loaded = self._load_latest(self._restore)
        elif init_checkpoint:
            self.loaded = find_checkpoint(init_checkpoint)
            (load or load_network)(self._network, init_checkpoint)
        if self._average is not None and not self._steps():
            self._average.start()
        return self._steps()

    def go_back(self, path: str) -> int:
        """Restores everything from a checkpoint of this run, and returns its step."""
        self._restore(path)
        return self._steps()

    def remove_from(self, step: int) -> None:
        """Removes the checkpoints of this step and later, but keeps the earliest of all."""
        paths = self._recent.checkpoints
        later = [path for path in paths[1:] if int(path.rpartition("-")[2]) >= step]
        if later:
            with files.os_errors(self._model_dir):
                _forget(later, self._model_dir)
            self._recent = self._make_recent()

    def remove_unfinished(self) -> None:
        """Removes the files of interrupted saves; only the owner of the model_dir may call it."""
        for folder in (self._model_dir, os.path.join(self._model_dir, "best")):
            _remove_unfinished(folder)

    def load_for_evaluation(self, init_checkpoint: str = "") -> int:
        """Loads the network of `init_checkpoint`, or if it is empty of the latest checkpoint.

        Damaged checkpoints of the model_dir are passed over with a warning.

        Returns:
            The step at which it was saved; 0 for weights without a step.

        Raises:
            UserError: there is no checkpoint, it does not fit the network, or all are damaged.
        """
        load = functools.partial(load_network, self._network)
        path = find_checkpoint(init_checkpoint)
        if path:
            load(path)
        elif self.latest:
            path = self._load_latest(load)
        else:
            raise UserError(
                f"There is no checkpoint in --model_dir={self._model_dir}: train first "
                "(--mode=train), or give weights with --init_checkpoint."
            )
        self.loaded = path
        shapes = read_shapes(path)
        if "step" in shapes:
            self.step.assign(read_variable(path, "step"))
        return self._steps()

    def save(self) -> str:
        """Saves everything at the current step and returns the checkpoint's path.

        Raises:
            OSError: it cannot be written, for example because the disk is full; earlier checkpoints
                are intact.
        """
        if self.is_saved():
            return self.latest
        with files.os_errors(self._model_dir):
            return self._recent.save(checkpoint_number=self._steps())

    @property
    def latest(self) -> str:
        """Path of the latest checkpoint; "" if there is none."""
        return self._recent.latest_checkpoint or ""

    def is_saved(self) -> bool:
        """Whether the current step is the latest checkpoint's."""
        latest = self.latest
        is_latest = os.path.basename(latest) == f"ckpt-{self._steps()}"
        return is_latest and latest not in self._damaged

    def record_evaluation(self, metric: float) -> bool:
        """Records that the current step was evaluated, and saves it in `best/` if it is the best.

        Args:
            metric: value that the best is chosen by; NaN if it could not be measured.

        Returns:
            Whether it is the best so far.
        """
        best_step, best_metric = self._read_best()
        is_best = metric > best_metric and best_step != self._steps()
        if is_best:
            self._best_metric.assign(metric)
            with files.os_errors(self._model_dir):
                self._best.save(checkpoint_number=self._steps())
            best_step, best_metric = self._steps(), metric
        record = {"step": best_step, "AP": best_metric} if best_step else {}
        write_json({**record, "evaluated_step": self._steps()}, self._record_path)
        return is_best

    def is_evaluated(self) -> bool:
        """Whether `record_evaluation` was called at the current step."""
        return _read_record(self._record_path).get("evaluated_step") == self._steps()

    def _restore(self, path: str) -> None:
        """Restores everything; a run may begin to count halvings later than its checkpoints."""
        parts = self._parts
        if "halvings" in parts and "halvings" not in read_shapes(path):
            parts = {name: part for name, part in parts.items() if name != "halvings"}
        restore(tf.train.Checkpoint(**parts), path)

    def _load_latest(self, load: Callable[[str], None]) -> str:
        """Loads the latest checkpoint that is not damaged, and returns its path."""
        for path in reversed(self._recent.checkpoints):
            try:
                load(path)
                return path
            except DamagedCheckpoint as error:
                print(f"Warning: {error} Trying the one before it.", file=sys.stderr)
                self._damaged.add(path)
        raise UserError(
            f"All checkpoints in --model_dir={self._model_dir} are damaged: copy one from a "
            "backup, or train again in another folder."
        )

    def steps_since_best(self) -> int:
        """Number of steps since the best evaluation; 0 if there was no measurable one."""
        best_step, _ = self._read_best()
        return self._steps() - best_step if best_step else 0

    @property
    def _record_path(self) -> str:
        return os.path.join(self._model_dir, "best", "best.json")

    def _read_best(self) -> tuple[int, float]:
        """Reads step and metric from the best checkpoint; (0, -inf) without one."""
        path = self._best.latest_checkpoint
        if not path:
            return 0, float("-inf")
        if "metric" not in read_shapes(path):  # one whose metric is stored only next to it
            record = _read_record(self._record_path)
            return int(record.get("step", 0)), float(record.get("AP", "-inf"))
        return int(read_variable(path, "step")), float(read_variable(path, "metric"))

    def _steps(self) -> int:
        return int(self.step.numpy())


def require_every_variable(network) -> None:
    """Raises a ValueError if checkpoints would lack some of the network's variables.

    Keras does not track layers in a plain list, and their absence would go unnoticed.
    """
    missing = len(network.variables) - len(named_variables(network))
    if missing:
        raise ValueError(
            f"{missing} of the network's {len(network.variables)} variables would not be saved; "
            "store its layers as attributes or in a model.layers.LayerList."
        )


def write_json(content: dict, path: str) -> None:
    """Writes JSON, either completely or not at all."""
    files.make_folder(os.path.dirname(path))
    with files.whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _read_record(path: str) -> dict:
    if not files.exists(path):
        return {}
    with files.open_file(path) as file:
        return json.load(file)


def _forget(paths: Sequence[str], folder: str) -> None:
    """Removes checkpoints from TensorFlow's list of a folder's checkpoints, then their files."""
    state = tf.train.get_checkpoint_state(folder)
    times = zip(
        state.all_model_checkpoint_paths, state.all_model_checkpoint_timestamps, strict=True
    )
    kept = {os.path.basename(path): time for path, time in times if path not in paths}
    state.ClearField("all_model_checkpoint_paths")
    state.ClearField("all_model_checkpoint_timestamps")
    state.all_model_checkpoint_paths.extend(kept)
    state.all_model_checkpoint_timestamps.extend(kept.values())
    state.model_checkpoint_path = list(kept)[-1]
    with files.whole_file(os.path.join(folder, "checkpoint")) as file:
        file.write(text_format.MessageToString(state))
    for path in paths:
        for name in files.list_folder(folder):
            if name.startswith(os.path.basename(path) + "."):
                files.remove(os.path.join(folder, name))


def _remove_unfinished(folder: str) -> None:
    """Removes the files of interrupted saves from a folder."""
    with contextlib.suppress(OSError):
        for name in filter(_UNFINISHED.fullmatch, files.list_folder(folder)):
            path = os.path.join(folder, name)
            files.remove_folder(path) if files.is_folder(path) else files.remove(path)
