"""Converts pretrained weights of another program to a checkpoint of this network.

    python tools/import_weights.py --source=resnet50_fpn.pth --output=weights/torchvision \\
      --flagfile=configs/r50.flags --flagfile=configs/finetune.flags \\
      --flagfile=configs/torchvision.flags

Supported are torchvision, Detectron2, mmdetection, Keras and the code of the paper's authors; the
file may be PyTorch's, a pickle, safetensors, HDF5 or an .npz archive. Use the checkpoint as
--init_checkpoint. The outcome for every tensor is written to OUTPUT.report.txt and summarised on
the screen. Without --allow_partial, every tensor of the file must have a variable and every
variable a tensor; only ImageNet classifiers may leave the rest of the network at its initial
values. Code in the file is never executed.
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
    """Parses the command line and imports; on errors prints a sentence and exits with 1."""
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
        refuse_flags(f"--output={options.output}: expected a file name after the folder.")
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
    """The file to import and how to read it; each field is a flag of the same name."""

    source: str
    output: str
    keep_classes: str = ""
    channel_order: str = ""
    batch_norm_epsilon: float | None = None
    allow_partial: bool = False


def import_weights(params: Params, options: ImportOptions) -> None:
    """Converts a weight file to a checkpoint of the network, and writes a report.

    Args:
        params: the network's settings; without `--num_classes`, the file determines it.
        options: the file and how to read it.

    Raises:
        UserError: the file cannot be read, is not from a supported program, or does not fit; or the
            checkpoint cannot be written.
    """
    # TensorFlow is imported here, so that --help and flag errors appear at once.
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
    """Finds the program of the tensors, and applies the user's options to it."""
    from model.importers.translate import recognise

    family = recognise(tensors, params.model.resnet_stride_in_1x1)
    if family is None:
        raise UserError(
            f"The tensor names of {options.source} are not those of a supported program: "
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
            f"--output={output} cannot be written ({reason}): choose a file in another folder."
        ) from None
    print(f"Wrote {output}: use it as --init_checkpoint ({output}.report.txt has the details).")


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("source", "", "Weight file to import.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Prefix of the checkpoint to write.", flag_values=flag_values)
    flags.DEFINE_string(
        "keep_classes",
        "",
        "Classes of the file to keep, as classes 1, 2, ... of the network: a comma-separated "
        "list of numbers, counted from 1 after the background, or coco91, which maps "
        "torchvision's 90 COCO ids to the 80 used classes.",
        flag_values=flag_values,
    )
    flags.DEFINE_string(
        "channel_order",
        "",
        "Colour order of the weights' input, rgb or bgr; if empty, the program's usual one.",
        flag_values=flag_values,
    )
    flags.DEFINE_float(
        "batch_norm_epsilon",
        None,
        "Epsilon of the weights' batch norms; if empty, the program's usual value (0 for "
        "torchvision's files of 2019 and weights fine-tuned from them).",
        flag_values=flag_values,
    )
    flags.DEFINE_boolean(
        "allow_partial",
        False,
        "Ignore tensors that do not fit, and keep the initial values of variables that the file "
        "lacks.",
        flag_values=flag_values,
    )


def parse_classes(text: str, found: int | None) -> list[int]:
    """Parses --keep_classes, for a file with `found` classes including the background.

    Raises:
        UserError: `text` is neither coco91 nor numbers of classes in the file.
    """
    if text == "coco91" and found == 91:
        return [number for number in range(1, 91) if number not in _UNUSED_COCO_IDS]
    try:
        classes = [int(number) for number in text.split(",")] if text else []
    except ValueError:
        classes = [0]
    if classes and found is None:
        raise UserError(
            f"--keep_classes={text} cannot be used: the file has no outputs for classes."
        )
    if any(not 1 <= number < found for number in classes):
        raise UserError(
            f"--keep_classes={text}: expected numbers from 1 to {found - 1}, the classes in the "
            f"file{', or coco91' if found == 91 else ''}."
        )
    return classes


def _with_num_classes(params: Params, found: int | None, source: str) -> Params:
    if params.model.num_classes:
        return params
    if found is not None and found < 2:
        raise UserError(f"{source} has outputs for only {found} class: give --num_classes.")
    if found is None:
        raise UserError(
            f"{source} does not contain the number of classes: give --num_classes, including the "
            "background."
        )
    model = dataclasses.replace(params.model, num_classes=found)
    return dataclasses.replace(params, model=model)


if __name__ == "__main__":
    run()
