"""Settings, network, input and training step as separate parts, for custom training loops.

`trainer.estimator.Estimator` is the loop that resumes, evaluates and writes logs; this file has the
parts that it consists of, on one device and without flags.
"""

from __future__ import annotations

import dataclasses
import os

import tensorflow as tf

from data import files
from data.settings import SettingError, require
from model.detector import Detector
from model.model_fn import model_fn
from model.roi_align import make_gradient_exact
from model.systems import build_network
from trainer.categories import write_categories
from trainer.checkpoint_files import load_network
from trainer.checkpoints import require_every_variable
from trainer.completion import Completion, complete_from_manifests, complete_from_records
from trainer.config import Params
from trainer.flags import write_flagfile
from trainer.named_settings import choose_settings, read_flagfiles
from trainer.optimizer import Updater
from trainer.run_record import FILE
from trainer.schedule import resolve_schedule
from trainer.steps import TrainStep


def make_settings(*flagfiles: str | os.PathLike[str], **settings: object) -> Params:
    """Makes the settings of a network and its training.

    Args:
        flagfiles: paths such as configs/r18.flags; later ones override earlier ones.
        settings: by the names of their flags; they override the flagfiles. If `num_classes` is not
            given, it is taken from the records of `train_file_pattern`.

    Raises:
        TypeError: there is no setting with such a name, or its value has a wrong type.
        ValueError: a setting has an invalid value, or a flagfile an invalid line.
        UserError: the training records cannot be used.
    """
    params = choose_settings(settings, read_flagfiles(flagfiles))
    params = resolve_schedule(params, settings)
    if params.model.num_classes or not params.data.train_file_pattern:
        return params
    num_classes = _look_into_records(params).params.model.num_classes
    model = dataclasses.replace(params.model, num_classes=num_classes)
    return dataclasses.replace(params, model=model)


def build(settings: Params, checkpoint: str | os.PathLike[str] = "") -> Detector:
    """Builds the network of `settings.model.system`, with a checkpoint's or random weights.

    Args:
        settings: see `make_settings`.
        checkpoint: a checkpoint of a training or an import, or a folder with checkpoints, whose
            latest is used.

    Raises:
        ValueError: the number of classes is unknown, or the backbone does not support an option.
        UserError: there is no such checkpoint, or it does not fit the network.
    """
    if not settings.model.num_classes:
        raise SettingError(
            "--num_classes=0: give the number of classes, including the background, or a "
            "train_file_pattern whose records determine it."
        )
    network = build_network(settings)
    if checkpoint:
        load_network(network, files.expand(checkpoint))
    return network


def train_step(network: Detector, settings: Params) -> TrainStep:
    """Makes a callable `(features, labels) -> StepResult` that updates the network.

    Optimizer, schedule and weight decay are taken from the settings. On a CPU it makes TensorFlow's
    operations deterministic, because the gradients of RoIAlign lose updates otherwise.
    """
    for name in ("ema_decay", "nonfinite_retries"):
        value = getattr(settings.train, name)
        require(value == 0, name, value, "0 in own loops")
    make_gradient_exact()
    strategy = tf.distribute.get_strategy()
    return TrainStep(model_fn, network, Updater(network, settings), strategy, settings)


def save(network: Detector, settings: Params, folder: str | os.PathLike[str]) -> str:
    """Writes a model_dir for `load`: weights, settings, and the classes of the training records.

    Returns:
        Path of the checkpoint.

    Raises:
        UserError: the folder cannot be written to.
    """
    folder = files.expand(folder)
    files.require_writable(folder, "model_dir")
    require_every_variable(network)
    if settings.data.train_file_pattern:
        write_categories(_look_into_records(settings).categories, folder)
    write_flagfile(settings, os.path.join(folder, FILE))
    checkpoint = tf.train.Checkpoint(network=network)
    manager = tf.train.CheckpointManager(checkpoint, folder, 1, checkpoint_name="ckpt")
    with files.os_errors(folder):
        return manager.save()


def _look_into_records(params: Params) -> Completion:
    """Reads facts from the training records, regardless of any other model in the model_dir."""
    train = dataclasses.replace(params.train, mode="train", model_dir="")
    return complete_from_records(complete_from_manifests(dataclasses.replace(params, train=train)))
