"""Turns weights of torchvision, Detectron2, mmdetection or Keras into a checkpoint of this network.

    python tools/import_weights.py --source=resnet50_fpn.pth --output=weights/torchvision \\
      --flagfile=configs/r50.flags --flagfile=configs/finetune.flags \\
      --flagfile=configs/torchvision.flags

The checkpoint is for --init_checkpoint. What became of every tensor is written to OUTPUT.report.txt
and counted on the screen. Without --allow_partial every tensor of the file must find its variable
and every variable its tensor; only an ImageNet ResNet may leave the rest of the network as it is
initialised. Nothing that the file contains is executed.
"""

from __future__ import annotations

import dataclasses
import os
import sys

from absl import flags

from data.errors import UserError
from data.files import whole_file
from trainer.config import Params
from trainer.flags import parse_flags_with, refuse_flags


def run(argv: list[str] | None = None) -> None:
    """Parses the command line and imports; exits with 1 after one sentence when it is refused."""
    params, flag_values = parse_flags_with(
        argv or sys.argv, "Imports the weights of another program.", _define_flags
    )
    options = {name: flag_values[name].value for name in ("source", "output")}
    for name, value in options.items():
        if not value:
            refuse_flags(f"--{name} is missing.")
    try:
        import_weights(params, **options, allow_partial=flag_values["allow_partial"].value)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(1) from None


def import_weights(params: Params, source: str, output: str, allow_partial: bool) -> None:
    """Reads `source`, writes a checkpoint of the network under the prefix `output`, and a report.

    Args:
        params: the network's settings; without `--num_classes` the file decides.
        source: a .pth, .pkl, .h5 or .npz file.
        output: prefix of the checkpoint.
        allow_partial: leave out what does not fit, and initialise what the file has not.

    Raises:
        UserError: the file cannot be read, is of no known program, or does not fit.
    """
    # TensorFlow starts here, so that --help and bad flags answer at once.
    import tensorflow as tf

    from model.importers.report import explain_refusal, itemise, summarise
    from model.importers.tensor_files import read_tensors
    from model.importers.translate import count_classes, recognise, translate
    from model.mask_scoring_rcnn import build_network
    from model.variables import named_variables

    tensors = read_tensors(source)
    family = recognise(tensors, params.model.resnet_stride_in_1x1)
    if family is None:
        raise UserError(
            f"The tensors of {source} have names of no program that is known here: "
            f"{', '.join(list(tensors)[:4])}."
        )
    params = _with_num_classes(params, count_classes(tensors, family), source)
    network = build_network(params)
    variables = named_variables(network)
    result = translate(tensors, family, {path: tuple(v.shape) for path, v in variables.items()})
    print("\n".join(summarise(result, params.model, params.data)))
    if not result.complete and not allow_partial:
        raise UserError(explain_refusal(result, source))
    for path, value in result.values.items():
        variables[path].assign(value)
    _make_folder(output)
    with whole_file(f"{output}.report.txt", "w") as file:
        file.writelines(f"{line}\n" for line in itemise(result))
    tf.train.Checkpoint(network=network).write(output)
    print(f"Wrote {output}: give it as --init_checkpoint ({output}.report.txt has the details).")


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("source", "", "The file to import.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Prefix of the checkpoint to write.", flag_values=flag_values)
    flags.DEFINE_boolean(
        "allow_partial",
        False,
        "Leave out tensors that do not fit and initialise variables that the file has not.",
        flag_values=flag_values,
    )


def _with_num_classes(params: Params, found: int | None, source: str) -> Params:
    if params.model.num_classes:
        return params
    if found is None:
        raise UserError(
            f"{source} does not say how many classes there are: give --num_classes, the "
            "background included."
        )
    model = dataclasses.replace(params.model, num_classes=found)
    return dataclasses.replace(params, model=model)


def _make_folder(output: str) -> None:
    folder = os.path.dirname(output) or "."
    try:
        os.makedirs(folder, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"--output={output} cannot be written ({error.strerror}): name another folder."
        ) from None


if __name__ == "__main__":
    run()
