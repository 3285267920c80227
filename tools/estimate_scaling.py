"""Estimates throughput, host CPUs, time and money of training on larger machines.

    python tools/estimate_scaling.py --work=W --inputs=I [--page=docs/SCALING.md]
    python tools/estimate_scaling.py --work=W --inputs=I --set=v5e.usd_per_hour=0.6 --set=images=4e6
    python tools/estimate_scaling.py --count --work=W --flagfile=F --train_file_pattern=R

The first two print tables in Markdown, from W, the work of a step that the third counts, and from
I, which names every other number and its source; `--set` replaces one of these. `--page` writes the
tables to their places in that file. `--count` takes all settings of the trainer, traces a training
step and a prediction on the first canvas, and computes nothing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    import os

    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data import files
from data.tensorflow_log import quieten_tensorflow
from tools.scaling.estimates import read_inputs
from tools.scaling.tables import fill_page, make_tables
from trainer.flags import exit_status, parse_flags_with, require_flags


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns its exit status."""
    params, values = parse_flags_with(argv, __doc__, _define_flags)
    require_flags(values, "work" if values.count else "inputs", "work")

    def work() -> int:
        if values.count:
            quieten_tensorflow()
            from tools.scaling.work import count

            _write(values.work, json.dumps(count(params), indent=1) + "\n")
            return 0
        tables = make_tables(*read_inputs(values.work, values.inputs, values.set))
        print("\n\n".join(tables.values()))
        if values.page:
            with files.open_file(values.page) as file:
                page = fill_page(file.read(), tables)
            _write(values.page, page)
        return 0

    return exit_status(work)


def run() -> None:
    """Runs the command line; console entry point."""
    sys.exit(main(sys.argv))


def _define_flags(values: flags.FlagValues) -> None:
    texts = {
        "work": "JSON file of the work of a step, which --count writes.",
        "inputs": "JSON file of all other numbers.",
        "page": "Markdown file to write the tables to.",
    }
    for name, meaning in texts.items():
        flags.DEFINE_string(name, "", meaning, flag_values=values)
    flags.DEFINE_multi_string("set", [], "NAME=NUMBER of --inputs to use.", flag_values=values)
    flags.DEFINE_bool("count", False, "Count the work and write --work.", flag_values=values)


def _write(path: str, content: str) -> None:
    with files.whole_file(path) as file:
        file.write(content)


if __name__ == "__main__":
    run()
