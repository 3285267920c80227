"""config.flags: the settings that a model_dir's checkpoints were trained with.

Training writes it once there is something to train; evaluation and prediction take settings from it
that are not on the command line.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from absl import flags

from data import files
from data.errors import UserError
from trainer import categories
from trainer.config import Params
from trainer.flagfiles import read_flagfile
from trainer.flags import (
    UNRECORDED,
    Places,
    Values,
    assign_flags,
    define_flags,
    format_flag,
    list_settings,
    make_params,
    settings_of,
    write_flagfile,
)

FILE = "config.flags"
# The settings of these parts belong to the model, except those of the records and machines in use.
_PARTS = ("data", "model")
_NOT_THE_MODELS = frozenset({"train_file_pattern", "eval_file_pattern", "data_service"})


def home_of(model_dir: str, init_checkpoint: str) -> str:
    """Returns the model_dir in which the weights to use were trained.

    That is the folder of --init_checkpoint, if it contains the settings or classes of a training,
    otherwise --model_dir.
    """
    folder = folder_of(init_checkpoint)
    known = any(files.exists(os.path.join(folder, name)) for name in (FILE, categories.FILE))
    return folder if init_checkpoint and known else model_dir


def folder_of(checkpoint: str) -> str:
    """Returns the model_dir that contains a checkpoint, if any."""
    folder = checkpoint if files.is_folder(checkpoint) else os.path.dirname(checkpoint)
    return os.path.dirname(folder) if os.path.basename(folder) == "best" else folder


def has_checkpoint(model_dir: str) -> bool:
    """Whether a training has saved a checkpoint in the folder."""
    return files.exists(os.path.join(model_dir, "checkpoint"))


def require_checkpoint(params: Params) -> None:
    """Raises a UserError if there are no weights to evaluate or predict with."""
    model_dir = params.train.model_dir
    if not params.train.init_checkpoint and not has_checkpoint(model_dir):
        raise UserError(
            f"There is no checkpoint in --model_dir={model_dir}: train first (--mode=train), or "
            "give weights with --init_checkpoint."
        )


def require_own_proposals(params: Params, folder: str) -> None:
    """Raises a UserError if the system needs more than an image."""
    if not params.model.has_rpn:
        raise UserError(
            f"{folder} holds a {params.model.system}, which needs proposals for every image: use "
            "--mode=predict with --proposals_file."
        )


def load_record(folder: str) -> Values:
    """Reads the recorded settings by name; empty without a record.

    Raises:
        UserError: it cannot be read.
    """
    return _load_with_places(folder)[0]


def load_params(model_dir: str, given: Values | None = None) -> Params:
    """Reads the recorded settings, with defaults for those that are not recorded.

    The checkpoint that the training began from is left out, because its weights are not the
    model_dir's.

    Args:
        model_dir: of the training.
        given: settings that replace the recorded ones.

    Raises:
        UserError: the record cannot be read.
        ValueError: a given setting has an invalid value.
    """
    model_dir = files.expand(model_dir)
    defaults = {setting.name: setting.default for setting in list_settings()}
    values = defaults | load_record(model_dir) | {"init_checkpoint": ""} | (given or {})
    return make_params(values | {"model_dir": model_dir})


def recall_settings(values: Values, places: Places) -> tuple[Values, Places]:
    """Returns the settings to evaluate or predict with: those given, else those of the training.

    Args:
        values: all values by name, given or not.
        places: places of those that are given.

    Returns:
        The values, and the places in the record of those taken from it.

    Raises:
        UserError: the record cannot be read.
    """
    values = values | {"init_checkpoint": _named_checkpoint(values, places)}
    folder = home_of(values["model_dir"], values["init_checkpoint"])
    recorded, lines = _load_with_places(folder)
    settings = {setting.name: setting for setting in list_settings()}
    for name in list(recorded):
        if settings[name].part not in _PARTS or name in _NOT_THE_MODELS:
            del recorded[name]
    differing = {
        name: (values[name], value)
        for name, value in recorded.items()
        if settings[name].changes_predictions and name in places and values[name] != value
    }
    if differing:
        print(
            f"Warning: these settings differ from {os.path.join(folder, FILE)}, with which the "
            f"weights were trained, and change the predictions: {_list_changes(differing)}.",
            file=sys.stderr,
        )
    left_open = {name: value for name, value in recorded.items() if name not in places}
    return values | left_open, lines


def write_record(params: Params, step: int) -> None:
    """Writes the settings into the model_dir.

    If they differ from those of the `step` steps so far, it prints the differences and keeps a copy
    of the earlier record.
    """
    folder = params.train.model_dir
    path = os.path.join(folder, FILE)
    recorded = load_record(folder) if step else {}
    given = settings_of(params)
    changed = {
        name: (given[name], value)
        for name, value in recorded.items()
        if name not in UNRECORDED and given[name] != value
    }
    if changed:
        kept = os.path.join(folder, f"config.ckpt-{step}.flags")
        if not files.exists(kept):
            with files.open_file(path) as earlier, files.whole_file(kept) as copy:
                copy.write(earlier.read())
        predictive = {setting.name for setting in list_settings() if setting.changes_predictions}
        print(
            f"{'Warning: from' if predictive & changed.keys() else 'From'} step {step} on the "
            f"settings differ: {_list_changes(changed)}. The previous settings are in {kept}.",
            file=sys.stderr if predictive & changed.keys() else sys.stdout,
            flush=True,
        )
    write_flagfile(params, path)


def _load_with_places(folder: str) -> tuple[Values, Places]:
    path = os.path.join(folder, FILE)
    if not folder or not files.exists(path):
        return {}, {}
    flag_values = flags.FlagValues()
    define_flags(flag_values)
    try:
        places = assign_flags(flag_values, read_flagfile(path))
    except ValueError as error:
        raise UserError(
            f"{error} Correct the line, or delete {path} to use only the flags."
        ) from None
    return {name: flag_values[name].value for name in places}, places


def _named_checkpoint(values: Values, places: Places) -> str:
    """Returns --init_checkpoint, unless a flagfile repeats that of this model_dir's training."""
    checkpoint, model_dir = values["init_checkpoint"], values["model_dir"]
    if not places.get("init_checkpoint") or not has_checkpoint(model_dir):
        return checkpoint
    return "" if load_record(model_dir).get("init_checkpoint") == checkpoint else checkpoint


def _list_changes(changes: Mapping[str, tuple[object, object]]) -> str:
    return ", ".join(
        f"{format_flag(name, value)} (before: {format_flag(name, former)})"
        for name, (value, former) in changes.items()
    )
