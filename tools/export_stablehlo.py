"""Exports a network as StableHLO, for JAX and other runtimes that are built on XLA.

    python tools/export_stablehlo.py --model=M --output=O

writes O/model.stablehlo, which contains the weights, and O/metadata.json with the outputs, the
classes and the settings. The module takes one uint8 image of the canvas that --canvas names. Where
JAX is installed, the module is run beside TensorFlow before it is written. Every setting that
changes predictions is a flag here too, such as --detections_per_image=20.

    python tools/export_stablehlo.py --model=M --output=O --training_step

writes a training step instead, for batches like those of the training records: the module
O/train_step.stablehlo, O/train_step.json with its inputs and outputs in order, and O/train_step.npz
with the first batch and the variables of network and optimizer.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import sys
from collections.abc import Sequence

from absl import flags

from data import files
from data.errors import UserError
from data.tensorflow_log import quieten_tensorflow
from trainer.config import Params
from trainer.exported import describe, write_metadata
from trainer.flags import exit_status, parse_command_line, require_flags
from trainer.run_record import load_params

FILE = "model.stablehlo"
_DESCRIPTION = "python tools/export_stablehlo.py --model=M --output=O"


def export(params: Params, folder: str, check_image: str) -> None:
    """Writes the files, which appear when they are complete and checked.

    Raises:
        UserError: there is no checkpoint, the check image cannot be read, or the module finds
            something else than TensorFlow.
    """
    from model.static import Static
    from trainer.export import open_network
    from trainer.export_check import compare, find_expected, read_image
    from trainer.serving import serve_filled
    from trainer.stablehlo import lower, make_runner

    network, params, categories = open_network(params)
    image = read_image(check_image, params)
    content, outputs = lower(network, *params.data.canvas_sizes)
    metadata = describe(params, categories) | {"outputs": outputs}
    message = "not run, because JAX is not installed."
    if importlib.util.find_spec("jax"):
        detect = functools.partial(serve_filled, network.detect, static=Static.NO)
        expected = find_expected(detect, image)
        try:
            found = make_runner(content, metadata)(image)
        except ValueError as error:
            raise UserError(
                f"The StableHLO module was not written ({error}); update JAX."
            ) from None
        message = compare(found, expected, "float32", "the StableHLO module")
    path = _write(folder, content, metadata)
    print(f"{path}: {len(content) / 1e6:.1f} MB; {message}", flush=True)


def export_training_step(params: Params, folder: str) -> None:
    """Writes the files of a training step.

    Raises:
        UserError: there is no checkpoint, or there are no records to train on.
    """
    from data.input_fn import input_fn
    from trainer.stablehlo_training import lower_step, open_step, write_step

    step, variables, params = open_step(params)
    features, labels = next(iter(input_fn("train", params).take(1)))
    lowered = lower_step(step, variables, features, labels)
    path = write_step(folder, lowered, features | labels)
    size = len(lowered.content) / 1e6
    print(f"{path}: {size:.1f} MB, batches of {params.data.train_batch_size}.", flush=True)


def _write(folder: str, content: bytes, metadata: dict) -> str:
    path = os.path.join(folder, FILE)
    files.make_folder(folder)
    if files.exists(path):  # A module never lies beside the metadata of another.
        files.remove(path)
    write_metadata(folder, metadata)
    with files.whole_file(path, "wb") as file:
        file.write(content)
    return path


def _define_flags(flag_values: flags.FlagValues) -> None:
    flags.DEFINE_string("model", "", "model_dir of a training.", flag_values=flag_values)
    flags.DEFINE_string("output", "", "Folder for the files.", flag_values=flag_values)
    flags.DEFINE_bool(
        "training_step", False, "Export a training step instead.", flag_values=flag_values
    )
    flags.DEFINE_string(
        "check_image", "", "Image with objects to compare on; empty: noise.",
        flag_values=flag_values,
    )  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    values = command.flag_values
    require_flags(values, "model", "output")
    folder = files.expand(values["output"].value)

    def work() -> int:
        files.require_writable(folder, "output")
        quieten_tensorflow()
        params = load_params(values["model"].value, command.given)
        if values["training_step"].value:
            export_training_step(params, folder)
        else:
            export(params, folder, values["check_image"].value)
        return 0

    return exit_status(work)


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
