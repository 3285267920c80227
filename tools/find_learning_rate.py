"""Finds a learning rate by a range test: trains while the rate grows, and watches the loss.

  python tools/find_learning_rate.py --flagfile=configs/r50.flags --train_batch_size=4 \\
      --train_file_pattern='records/train-*' --output_dir=rates

takes the flags of a training, and begins with the weights of --init_checkpoint if it is given. The
learning rate grows from --lowest to --highest in --steps steps; the test ends early if the loss
diverges. It writes O/learning_rate.json and, if matplotlib is installed, O/learning_rate.svg, and
prints values to try for --learning_rate. No model_dir is read or changed.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data import files
from data.errors import UserError
from data.progress import with_progress
from data.settings import POSITIVE, require
from data.tensorflow_log import quieten_tensorflow
from tools.chart_style import BLUE, GRID, ORANGE, make_figure, render, set_log_ticks, tidy
from trainer.cluster import find_cluster
from trainer.completion import complete_from_manifests, complete_from_records
from trainer.config import Params
from trainer.flags import exit_status, parse_command_line, require_flags

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from trainer.rate_range import Suggestion, Trial

_FILE = "learning_rate"
_FEWEST_STEPS = 10


def find(params: Params, lowest: float, highest: float) -> list[Trial]:
    """Runs the test in `params.train.train_steps` steps.

    Raises:
        UserError: the records or the initial weights cannot be used.
    """
    from data.input_fn import input_fn
    from model.model_fn import model_fn
    from model.systems import build_network
    from trainer.fine_tuning import load_by_class
    from trainer.optimizer import Updater
    from trainer.rate_range import ExponentialSchedule, run_trials
    from trainer.relabelling import relabel
    from trainer.steps import TrainStep
    from trainer.strategy import make_strategy, prepare_runtime

    prepare_runtime(params)
    strategy = make_strategy(params)
    completion = complete_from_records(complete_from_manifests(params))
    params, steps = completion.params, completion.params.train.train_steps
    with strategy.scope():
        network = build_network(params)
        updater = Updater(network, params, ExponentialSchedule(lowest, highest, steps))
    if params.train.init_checkpoint:
        load_by_class(network, params.train.init_checkpoint, completion.categories)
    read = relabel(input_fn, completion.label_map)
    batches = strategy.distribute_datasets_from_function(
        lambda context: read("train", params, context)
    )
    step = TrainStep(model_fn, network, updater, strategy, params)
    trials = run_trials(step, updater, itertools.islice(batches, steps))
    return list(with_progress(trials, "Learning rates", steps, unit="steps"))


def draw(trials: Sequence[Trial], found: Suggestion | None, note: str) -> Figure:
    """Draws the loss over the learning rate, with the rates found."""
    rates = [trial.learning_rate for trial in trials]
    figure = make_figure(6.4, 3.8, "Loss by learning rate", note)
    axes = figure.subplots()
    axes.plot(rates, [trial.loss for trial in trials], color=GRID, label="each step")
    axes.plot(rates, [trial.smoothed for trial in trials], color=BLUE, label="smoothed")
    if found:
        for name, rate, line in (
            ("steepest", found.steepest, "-"),
            ("a tenth of the lowest", found.tenth, "--"),
        ):
            label = f"{name}: {rate:.2g}"
            axes.axvline(rate, color=ORANGE, linewidth=1, linestyle=line, label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.5 * max((trial.smoothed for trial in trials), default=1.0))
    axes.set_xlabel("learning rate")
    set_log_ticks(axes.xaxis, subs=(1,))
    tidy(axes, "y")
    axes.legend(frameon=False)
    return figure


def _write(folder: str, trials: Sequence[Trial], found: Suggestion | None, note: str) -> None:
    """Writes the numbers and, where matplotlib is installed, the chart."""
    from trainer.checkpoints import write_json

    content = {
        "steepest": found and found.steepest,
        "lowest_loss": found and found.lowest_loss,
        "trials": [trial._asdict() for trial in trials],
    }
    write_json(content, os.path.join(folder, f"{_FILE}.json"))
    try:
        picture = render(lambda: draw(trials, found, note), "svg")
    except UserError as error:
        print(f"Warning: there is no chart: {error}", file=sys.stderr)
        return
    with files.whole_file(os.path.join(folder, f"{_FILE}.svg"), "wb") as file:
        file.write(picture)


def _describe(params: Params, found: Suggestion, setup: str) -> str:
    """Describes the rates found and what to give for `--learning_rate`."""
    from trainer.optimizer import learning_rate_scale

    scale = learning_rate_scale(params)
    low, high = sorted((found.steepest / scale, found.tenth / scale))
    reference = params.train.learning_rate_batch_size
    scaled = f" (times {scale:.3g} by --learning_rate_batch_size={reference})" if reference else ""
    return (
        f"With {setup}, the loss falls fastest at a learning rate of {found.steepest:.2g} and is "
        f"lowest at {found.lowest_loss:.2g}. Try --learning_rate={low:.2g} to {high:.2g}{scaled}: "
        "the rate of the steepest fall, and a tenth of that of the lowest loss."
    )


def _find_and_report(params: Params, lowest: float, highest: float) -> None:
    from trainer.rate_range import suggest

    train, folder = params.train, params.train.output_dir
    setup = f"--optimizer={train.optimizer} and --train_batch_size={params.data.train_batch_size}"
    trials = find(params, lowest, highest)
    found = suggest(trials)
    _write(folder, trials, found, setup)
    if found is None:
        raise UserError(
            f"no learning rate lowers the loss ({folder}/{_FILE}.json): give a lower --lowest, or "
            "more --steps or a larger --train_batch_size to make the average less noisy."
        )
    if found.lowest_loss == trials[-1].learning_rate:
        print(
            f"Warning: the loss still falls at the last learning rate: raise --highest={highest}.",
            file=sys.stderr,
        )
    print(f"{_describe(params, found, setup)} All losses are in {folder}/{_FILE}.json.")


def _adapt(params: Params, steps: int) -> Params:
    """Returns the settings of a training of so many steps without a model_dir."""
    train = {"mode": "train", "model_dir": "", "train_steps": steps, "ema_decay": 0.0}
    return dataclasses.replace(
        params,
        data=dataclasses.replace(params.data, steps_per_call=1),
        train=dataclasses.replace(params.train, **train),
    )


def _define_flags(values: flags.FlagValues) -> None:
    flags.DEFINE_integer("steps", 100, "Largest number of training steps.", flag_values=values)
    flags.DEFINE_float("lowest", 1e-6, "Learning rate of the first step.", flag_values=values)
    flags.DEFINE_float("highest", 1.0, "Learning rate of the last step.", flag_values=values)


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, __doc__, _define_flags)
    values = command.flag_values
    require_flags(values, "train_file_pattern", "output_dir")
    steps, lowest, highest = (values[name].value for name in ("steps", "lowest", "highest"))

    def work() -> int:
        require(steps >= _FEWEST_STEPS, "steps", steps, f"{_FEWEST_STEPS} or more")
        require(lowest > 0, "lowest", lowest, POSITIVE.expected)
        require(lowest < highest < math.inf, "highest", highest, f"more than --lowest={lowest}")
        params = _adapt(command.params, steps)
        if find_cluster(params.train.distribution).num_workers > 1:
            raise UserError("the test runs on one machine: unset TF_CONFIG.")
        folder = params.train.output_dir
        files.require_writable(folder, "output_dir")
        quieten_tensorflow()
        _find_and_report(params, lowest, highest)
        return 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
