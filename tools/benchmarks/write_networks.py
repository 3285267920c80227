"""Writes networks with random weights that detect 100 objects, for the stage `export`.

  python tools/benchmarks/write_networks.py ours M --image_size=640 --norm=frozen_bn
  /opt/garden/bin/python tools/benchmarks/write_networks.py model_garden F --image_size=640
  /opt/torch/bin/python tools/benchmarks/write_networks.py torchvision F --image_size=640

`ours` writes a model_dir, which is exported like that of a training; all settings of the trainer
are flags. The others write files for `--against`, by the exporters of their frameworks: Model
Garden float32.tflite and dynamic.tflite, torchvision model.onnx.

All have a ResNet-50 with FPN, 81 classes and 1000 proposals, and a classifier whose logits are
scaled to the same standard deviation on one image of noise, the one that the benchmark uses. So all
detect 100 objects there, and compute as many masks. How many boxes pass the score threshold and
how many of them suppression visits depends on the random weights.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

if __package__ is None:  # started as a script, perhaps by an interpreter without this package
    sys.path[0] = os.path.abspath(os.path.join(os.path.dirname(__file__), "..", ".."))

from data.settings import SettingError
from tools.benchmarks import synthetic
from tools.benchmarks.peers import PeerSettings
from tools.benchmarks.stages import OURS


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("program", choices=(OURS, "model_garden", "torchvision"))
    parser.add_argument("folder", help="Folder to write to.")
    arguments, rest = parser.parse_known_args(argv[1:])
    if arguments.program == OURS:
        return _write_model_dir(arguments.folder, [argv[0], *rest])
    parser.add_argument("--image_size", type=int, default=PeerSettings.image_size)
    try:
        settings = PeerSettings(image_size=parser.parse_args(argv[1:]).image_size, batch_size=1)
    except SettingError as error:
        parser.error(str(error))
    peer = importlib.import_module(f"{PeerSettings.__module__}.{arguments.program}")
    os.makedirs(arguments.folder, exist_ok=True)
    try:
        peer.write_exports(settings, arguments.folder)
    except ImportError as error:
        print(f"error: {error}; run this with an interpreter that has it.", file=sys.stderr)
        return 1
    return 0


def _write_model_dir(folder: str, argv: Sequence[str]) -> int:
    from data.tensorflow_log import quieten_tensorflow
    from tools.benchmarks import pinning, workloads
    from trainer import own_loop
    from trainer.flags import exit_status

    params, settings = workloads.parse_settings(argv)
    quieten_tensorflow()

    def work() -> int:
        completed = workloads.with_canvas(params, settings)
        network = own_loop.build(completed)
        pinning.spread_logits(network, synthetic.draw_features(settings.image_size))
        own_loop.save(network, completed, folder)
        return 0

    return exit_status(work)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
