"""Checkpoints: saving, resuming, the best one, and strict loading of network weights.

A checkpoint holds `network`, `optimizer` (its variables in order) and `step`. Before anything is
restored, the names and shapes in the file are compared with what is to receive them, so that a
checkpoint of another architecture is refused as a whole instead of loaded in part.

TensorFlow writes a checkpoint's files, then the list `checkpoint` that names it, then deletes what
the list no longer names. So a process may be killed anywhere in between: the list names whole
checkpoints only.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Callable

import tensorflow as tf

from data import files
from data.errors import UserError
from model.variables import named_variables
from trainer.optimizer import Updater

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_MISMATCHES_NAMED = 3
# What a save that was cut off leaves behind.
_UNFINISHED = re.compile(r"ckpt-\d+(_temp|\..*\.tempstate\d+)")


class Checkpoints:
    """The checkpoints of one model_dir.

    Attributes:
        step: int64 variable, the number of training steps taken.
        loaded: the checkpoint whose weights the network has; "" as long as they are random.
    """

    def __init__(self, model_dir: str, network, updater: Updater, step: tf.Variable, keep: int):
        self._model_dir = model_dir = files.expand(model_dir)
        self._network = network
        self.step = step
        self.loaded = ""
        require_every_variable(network)
        self._checkpoint = tf.train.Checkpoint(
            network=network, optimizer=updater.state(), step=step
        )
        self._recent = tf.train.CheckpointManager(
            self._checkpoint, model_dir, max_to_keep=keep, checkpoint_name="ckpt"
        )
        # The best one holds its own number, so that the two cannot part.
        self._best_metric = tf.Variable(float("-inf"), dtype=tf.float64, trainable=False)
        self._best = tf.train.CheckpointManager(
            tf.train.Checkpoint(
                network=network, optimizer=updater.state(), step=step, metric=self._best_metric
            ),
            os.path.join(model_dir, "best"),
            max_to_keep=1,
            checkpoint_name="ckpt",
        )

    def resume(
        self,
        init_checkpoint: str = "",
        load: Callable[[object, str], None] | None = None,
    ) -> int:
        """Restores the latest checkpoint, or the network of `init_checkpoint` in a fresh folder.

        What saves that were cut off have left is removed, so call it in the one training of the
        model_dir only.

        Args:
            init_checkpoint: a checkpoint or a folder.
            load: gives a network the weights of `init_checkpoint`; by default all of them.

        Returns:
            The number of steps taken so far; 0 in a fresh folder.

        Raises:
            UserError: the checkpoint does not fit, or `init_checkpoint` is none.
        """
        for folder in (self._model_dir, os.path.join(self._model_dir, "best")):
            _remove_unfinished(folder)
        if self._recent.latest_checkpoint:
            self.loaded = self._recent.latest_checkpoint
            restore(self._checkpoint, self.loaded)
        elif init_checkpoint:
            self.loaded = find_checkpoint(init_checkpoint)
            (load or load_network)(self._network, init_checkpoint)
        return self._steps()

    def load_for_evaluation(self, init_checkpoint: str = "") -> int:
        """Loads the network of `init_checkpoint`, or without one of the latest checkpoint.

        Returns:
            The step at which it was saved; 0 for weights that come without one.

        Raises:
            UserError: there is no checkpoint, or it does not fit the network.
        """
        path = find_checkpoint(init_checkpoint) or self._recent.latest_checkpoint
        if not path:
            raise UserError(
                f"There is no checkpoint in --model_dir={self._model_dir}: train first "
                "(--mode=train), or name weights by --init_checkpoint."
            )
        load_network(self._network, path)
        self.loaded = path
        shapes = read_shapes(path)
        if "step" in shapes:
            self.step.assign(read_variable(path, "step"))
        return self._steps()

    def save(self) -> str:
        """Saves everything under the current step and returns the checkpoint's path.

        Raises:
            OSError: there is no room, or another reason why it cannot be written; the checkpoints
                before are intact.
        """
        if self.is_saved():
            return self._recent.latest_checkpoint
        with files.os_errors(self._model_dir):
            return self._recent.save(checkpoint_number=self._steps())

    def is_saved(self) -> bool:
        """Whether the latest checkpoint is of the current step."""
        latest = os.path.basename(self._recent.latest_checkpoint or "")
        return latest == f"ckpt-{self._steps()}"

    def record_evaluation(self, metric: float) -> bool:
        """Takes note that the current step was evaluated; keeps it in `best/` if it is the best.

        Args:
            metric: what the best is chosen by; NaN if it could not be measured.

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

    @property
    def _record_path(self) -> str:
        return os.path.join(self._model_dir, "best", "best.json")

    def _read_best(self) -> tuple[int, float]:
        """Step and metric of the best checkpoint, from itself; (0, -inf) without one."""
        path = self._best.latest_checkpoint
        if not path:
            return 0, float("-inf")
        if "metric" not in read_shapes(path):  # one whose number stands beside it only
            record = _read_record(self._record_path)
            return int(record.get("step", 0)), float(record.get("AP", "-inf"))
        return int(read_variable(path, "step")), float(read_variable(path, "metric"))

    def _steps(self) -> int:
        return int(self.step.numpy())


def require_every_variable(network) -> None:
    """Raises a ValueError if checkpoints would lack some variables of the network.

    Keras hides layers that stand in a plain list, and what is never saved is never missed.
    """
    missing = len(network.variables) - len(named_variables(network))
    if missing:
        raise ValueError(
            f"{missing} of the network's {len(network.variables)} variables would not be saved: "
            "hold its layers as attributes or in a model.layers.LayerList."
        )


def load_network(network, path: str) -> None:
    """Loads the network's weights, all of them, from a checkpoint (or a folder's latest).

    Raises:
        UserError: there is no checkpoint at `path`, or its network differs in names or shapes.
    """
    path = find_checkpoint(path)
    restore(tf.train.Checkpoint(network=network), path)


def find_checkpoint(path: files.Path) -> str:
    """The latest checkpoint of a folder, or the path itself."""
    path = files.expand(path)
    return tf.train.latest_checkpoint(path) or path if files.is_folder(path) else path


def restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores `checkpoint` from `path` after checking that every tensor has its place.

    Raises:
        UserError: names or shapes differ between the file and the parts of `checkpoint`.
    """
    check_fit(list_shapes(checkpoint), read_shapes(path), path)
    checkpoint.read(path).assert_existing_objects_matched().expect_partial()


def check_fit(wanted: dict[str, list[int]], found: dict[str, list[int]], path: str) -> None:
    """Compares tensors by name and shape; those of parts that nobody wants are left alone.

    Raises:
        UserError: names the first mismatches and says how many more there are.
    """
    parts = {name.split("/")[0] for name in wanted}
    found = {name: shape for name, shape in found.items() if name.split("/")[0] in parts}
    mismatches = [
        f"{name} is {found.get(name, 'missing')} there and {wanted.get(name, 'unknown')} here"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if not mismatches:
        return
    more = len(mismatches) - _MISMATCHES_NAMED
    listed = "; ".join(mismatches[:_MISMATCHES_NAMED]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
        f"Checkpoint {path} does not fit this network and optimizer: {listed}; use the flags it "
        "was trained with (config.flags beside it), or another --model_dir or --init_checkpoint."
    )


def list_shapes(checkpoint: tf.train.Checkpoint) -> dict[str, list[int]]:
    """Names, as a checkpoint file spells them, and shapes of the variables below `checkpoint`."""
    shapes = {name: list(found.shape) for name, found in named_variables(checkpoint).items()}
    shapes.pop("save_counter", None)
    return shapes


def write_json(content: dict, path: str) -> None:
    """Writes JSON, all of it or nothing."""
    files.make_folder(os.path.dirname(path))
    with files.whole_file(path) as file:
        json.dump(content, file, indent=2)
        file.write("\n")


def _reader(path: str):
    # tf.train.load_checkpoint takes any head of a path on ram:// for a folder.
    return tf.compat.v1.train.NewCheckpointReader(path)


def read_shapes(path: str) -> dict[str, list[int]]:
    """Names and shapes of a checkpoint's tensors.

    Raises:
        UserError: there is no checkpoint at `path`.
    """
    try:
        shapes = _reader(path).get_variable_to_shape_map()
    except (tf.errors.OpError, ValueError) as error:
        foreign = files.is_file(path)
        raise UserError(
            f"There is no readable checkpoint at {path}: "
            + (
                "weights of other programs become one by tools/import_weights.py."
                if foreign
                else "name one by its prefix, such as runs/x/ckpt-1000, or by its folder."
            )
        ) from error
    return {
        name.removesuffix(_SUFFIX): shape
        for name, shape in shapes.items()
        if name.endswith(_SUFFIX) and not name.startswith("save_counter/")
    }


def read_variable(path: str, name: str):
    """Value of a variable by its name, such as "step"."""
    return _reader(path).get_tensor(name + _SUFFIX)


def _read_record(path: str) -> dict:
    if not files.exists(path):
        return {}
    with files.open_file(path) as file:
        return json.load(file)


def _remove_unfinished(folder: str) -> None:
    """Removes what a save that was cut off has left in a folder."""
    with contextlib.suppress(OSError):
        for name in filter(_UNFINISHED.fullmatch, files.list_folder(folder)):
            path = os.path.join(folder, name)
            files.remove_folder(path) if files.is_folder(path) else files.remove(path)
