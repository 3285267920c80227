"""Turns the weights of another program into a checkpoint of this network.

    python tools/import_weights.py --source=resnet50_fpn.pth --output=weights/torchvision \\
      --flagfile=configs/r50.flags --flagfile=configs/finetune.flags \\
      --flagfile=configs/torchvision.flags

Torchvision, Detectron2, mmdetection, Keras and the code of the paper's authors are known; the file
may be PyTorch's, a pickle, safetensors, HDF5 or an .npz archive. The checkpoint is for
--init_checkpoint. What became of every tensor is written to OUTPUT.report.txt and counted on the
screen. Without --allow_partial every tensor of the file must find its variable and every variable
its tensor; only an ImageNet ResNet may leave the rest of the network as it is initialised. Nothing
that the file contains is executed.
"""

from __future__ import annotations

import dataclasses
import math
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
from absl import flags

from data.errors import UserError
from data.files import expand, make_folder, whole_file
from data.tensorflow_log import quieten_tensorflow
from trainer.config import Params
from trainer.flags import parse_flags_with, refuse_flags

if TYPE_CHECKING:
    from model.importers.family import Family
    from model.importers.translate import Translation

_UNUSED_COCO_IDS = frozenset((12, 26, 29, 30, 45, 66, 68, 69, 71, 83))


def run(argv: list[str] | None = None) -> None:
    """Parses the command line and imports; exits with 1 after one sentence when it is refused."""
    params, flag_values = parse_flags_with(
        argv or sys.argv, "Imports the weights of another program.", _define_flags
    )
    options = ImportOptions(
        **{field.name: flag_values[field.name].value for field in dataclasses.fields(ImportOptions)}
    )
    for name in ("source", "output"):
        if not getattr(options, name):
            refuse_flags(f"--{name} is missing.")
    if options.output.endswith("/"):
        refuse_flags(f"--output={options.output}: expected a file's name after the folder.")
    epsilon = options.batch_norm_epsilon
    if epsilon is not None and not (math.isfinite(epsilon) and epsilon >= 0):
        refuse_flags(f"--batch_norm_epsilon={epsilon}: expected a number of 0 or more.")
    if options.channel_order not in ("", "rgb", "bgr"):
        refuse_flags(f"--channel_order={options.channel_order}: expected rgb or bgr.")
    try:
        import_weights(params, options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


@dataclasses.dataclass(frozen=True)
class ImportOptions:
    """What to import and how; each field is a flag that says what it means."""

    source: str
    output: str
    keep_classes: str = ""
    channel_order: str = ""
    batch_norm_epsilon: float | None = None
    allow_partial: bool = False


def import_weights(params: Params, options: ImportOptions) -> None:
    """Writes a checkpoint of the network with the weights of a file, and a report.

    Args:
        params: the network's settings; without `--num_classes` the file decides.
        options: the file and how to read it.

    Raises:
        UserError: the file cannot be read, is of no known program, or does not fit; or the
            checkpoint cannot be written.
    """
    # TensorFlow starts here, so that --help and bad flags answer at once.
    quieten_tensorflow()
    from model.importers.report import explain_refusal, explain_unusable, summarise
    from model.importers.tensor_files import read_tensors
    from model.importers.translate import count_classes, translate
    from model.systems import build_network
    from model.variables import named_variables

    source = options.source
    tensors = read_tensors(source)
    family = _find_family(tensors, params, options)
    found = count_classes(tensors, family)
    kept = parse_classes(options.keep_classes, found)
    params = _with_num_classes(params, len(kept) + 1 if kept else found, source)
    network = build_network(params)
    variables = named_variables(network)
    shapes = {path: tuple(variable.shape) for path, variable in variables.items()}
    result = translate(tensors, family, shapes, kept)
    print("\n".join(summarise(result, params.model, params.data)))
    if result.unusable:
        raise UserError(explain_unusable(result, source))
    if not result.complete and not options.allow_partial:
        raise UserError(explain_refusal(result, source))
    for path, value in result.values.items():
        variables[path].assign(value)
    _write(network, result, expand(options.output))


def _find_family(
    tensors: Mapping[str, np.ndarray], params: Params, options: ImportOptions
) -> Family:
    """The program that the tensors are from, with what the user knows better of it."""
    from model.importers.translate import recognise

    family = recognise(tensors, params.model.resnet_stride_in_1x1)
    if family is None:
        raise UserError(
            f"The tensors of {options.source} have names of no program that is known here: "
            f"{', '.join(list(tensors)[:4])}."
        )
    overrides = {
        name: getattr(options, name)
        for name in ("channel_order", "batch_norm_epsilon")
        if getattr(options, name) not in ("", None)
    }
    return dataclasses.replace(family, **overrides)


def _write(network, result: Translation, output: str) -> None:
    """Writes the checkpoint and its report."""
    import tensorflow as tf

    from model.importers.report import itemise

    try:
        make_folder(os.path.dirname(output) or ".")
        with whole_file(f"{output}.report.txt") as file:
            file.writelines(f"{line}\n" for line in itemise(result))
        tf.train.Checkpoint(network=network).write(output)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or getattr(error, "message", "")
        raise UserError(
            f"--output={output} cannot be written ({reason}): name a file in another folder."
        ) from None
    print(f"Wrote {output}: give it as --init_checkpoint ({output}.report.txt has the details).")


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("source", "", "The file to import.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Prefix of the checkpoint to write.", flag_values=flag_values)
    flags.DEFINE_string(
        "keep_classes",
        "",
        "The file's classes to keep as classes 1, 2, ...: a comma list of numbers that count from "
        "1 after the background, or coco91 for the 80 of COCO's ids that are in use (torchvision's "
        "weights have an output for each of the ids up to 90).",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "channel_order",
        "",
        "Order of the colours that the weights take, rgb or bgr; empty: the program's usual one.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "batch_norm_epsilon",
        None,
        "What the weights' batch norms add to variances; empty: the program's usual number "
        "(torchvision's files of 2019, and what was trained on from them, have 0).",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "allow_partial",
        False,
        "Leave out tensors that do not fit and initialise variables that the file has not.",
        flag_values=flag_values,
    )


def parse_classes(text: str, found: int | None) -> list[int]:
    """The classes that --keep_classes names, of a file with `found` classes, the background too.

    Raises:
        UserError: `text` is neither coco91 nor numbers of classes that the file has.
    """
    if text == "coco91" and found == 91:
        return [number for number in range(1, 91) if number not in _UNUSED_COCO_IDS]
    try:
        classes = [int(number) for number in text.split(",")] if text else []
    except ValueError:
        classes = [0]
    if classes and found is None:
        raise UserError(f"--keep_classes={text} is of no use: the file has no outputs for classes.")
    if any(not 1 <= number < found for number in classes):
        raise UserError(
            f"--keep_classes={text}: expected numbers from 1 to {found - 1}, the classes that the "
            f"file has outputs for{', or coco91' if found == 91 else ''}."
        )
    return classes


def _with_num_classes(params: Params, found: int | None, source: str) -> Params:
    if params.model.num_classes:
        return params
    if found is not None and found < 2:
        raise UserError(f"{source} has outputs for {found} class: give --num_classes.")
    if found is None:
        raise UserError(
            f"{source} does not say how many classes there are: give --num_classes, the "
            "background included."
        )
    model = dataclasses.replace(params.model, num_classes=found)
    return dataclasses.replace(params, model=model)


if __name__ == "__main__":
    run()
