"""Reads checkpoint files, and loads weights strictly.

Before anything is restored, the names and shapes in the file are compared with the variables, so
that a checkpoint of another architecture is refused as a whole instead of partly loaded.
"""

from __future__ import annotations

import tensorflow as tf
from google.protobuf.message import DecodeError

from data import files
from data.errors import UserError
from model.variables import named_variables

_SUFFIX = "/.ATTRIBUTES/VARIABLE_VALUE"
_MISMATCHES_NAMED = 3
# What TensorFlow raises for damaged files, depending on where the damage is.
_UNREADABLE = (tf.errors.OpError, IndexError, RuntimeError, ValueError, DecodeError)


class DamagedCheckpoint(UserError):
    """Files of a checkpoint are missing, cut off or changed."""


def load_network(network, path: str) -> None:
    """Loads all weights of the network from a checkpoint (or a folder's latest).

    Raises:
        UserError: there is no checkpoint at `path`, or its network differs in names or shapes.
    """
    path = find_checkpoint(path)
    restore(tf.train.Checkpoint(network=network), path)


def find_checkpoint(path: files.Path) -> str:
    """Returns the latest checkpoint of a folder, or the path itself."""
    path = files.expand(path)
    return tf.train.latest_checkpoint(path) or path if files.is_folder(path) else path


def restore(checkpoint: tf.train.Checkpoint, path: str) -> None:
    """Restores `checkpoint` from `path` after checking that all tensors fit.

    Raises:
        UserError: names or shapes differ between the file and the parts of `checkpoint`.
        DamagedCheckpoint: the files cannot be read. Some variables may have been restored.
    """
    check_fit(list_shapes(checkpoint), read_shapes(path), path)
    try:
        found = checkpoint.read(path)
    except _UNREADABLE as error:
        raise _damage(path, error) from error
    found.assert_existing_objects_matched().expect_partial()


def check_fit(wanted: dict[str, list[int]], found: dict[str, list[int]], path: str) -> None:
    """Compares tensors by name and shape; parts that are not requested are ignored.

    Raises:
        UserError: there are mismatches; it names the first ones and the number of others.
    """
    parts = {name.split("/")[0] for name in wanted}
    found = {name: shape for name, shape in found.items() if name.split("/")[0] in parts}
    mismatches = [
        f"{name} is {found.get(name, 'missing')} in the checkpoint and "
        f"{wanted.get(name, 'unknown')} here"
        for name in sorted(wanted.keys() | found.keys())
        if wanted.get(name) != found.get(name)
    ]
    if not mismatches:
        return
    more = len(mismatches) - _MISMATCHES_NAMED
    listed = "; ".join(mismatches[:_MISMATCHES_NAMED]) + (f"; and {more} more" if more > 0 else "")
    raise UserError(
        f"Checkpoint {path} does not fit this network and optimizer: {listed}; use the flags it "
        "was trained with (config.flags next to it), or another --model_dir or --init_checkpoint."
    )


def list_shapes(checkpoint: tf.train.Checkpoint) -> dict[str, list[int]]:
    """Lists names, as in a checkpoint file, and shapes of the variables below `checkpoint`."""
    shapes = {name: list(found.shape) for name, found in named_variables(checkpoint).items()}
    shapes.pop("save_counter", None)
    return shapes


def _reader(path: str):
    # On ram://, tf.train.load_checkpoint treats any prefix of a path as a folder.
    return tf.compat.v1.train.NewCheckpointReader(path)


def read_shapes(path: str) -> dict[str, list[int]]:
    """Reads names and shapes of a checkpoint's tensors.

    Raises:
        UserError: there is no checkpoint at `path`, or a damaged one.
    """
    try:
        shapes = _reader(path).get_variable_to_shape_map()
    except _UNREADABLE as error:
        if files.exists(f"{path}.index"):
            raise _damage(path, error) from error
        foreign = files.is_file(path)
        raise UserError(
            f"There is no readable checkpoint at {path}: "
            + (
                "convert weights of other programs with tools/import_weights.py."
                if foreign
                else "give its prefix, such as runs/x/ckpt-1000, or its folder."
            )
        ) from error
    return {
        name.removesuffix(_SUFFIX): shape
        for name, shape in shapes.items()
        if name.endswith(_SUFFIX) and not name.startswith("save_counter/")
    }


def _damage(path: str, error: Exception) -> DamagedCheckpoint:
    reason = str(getattr(error, "message", error)).splitlines()[0]
    return DamagedCheckpoint(f"Checkpoint {path} is damaged ({reason}).")


def read_variable(path: str, name: str):
    """Reads the value of a variable by its name, such as "step"."""
    return _reader(path).get_tensor(name + _SUFFIX)
