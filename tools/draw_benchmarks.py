"""Draws charts from the JSON files that tools/benchmark.py writes.

  python tools/draw_benchmarks.py --chart=overview --output=overview.svg docs/benchmarks/*.json
  python tools/draw_benchmarks.py --chart=scaling --output=scaling.svg docs/benchmarks/*.json

`overview` shows the speed of this project relative to its peers, from the files with peers;
`scaling` shows speed and memory over the setting that varies, one panel for each sweep. Files that
do not suit the chart are ignored. The same files give the same bytes.

Needs matplotlib, which the extra `charts` installs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.errors import UserError
from data.files import make_folder, whole_file
from tools.benchmarks.charts import draw
from tools.benchmarks.measurements import read_measurement
from trainer.flags import refuse_flags


def main(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, whose first entry is the program; returns the exit status."""
    values = _define_flags()
    if any(argument in ("-h", "-help", "--help") for argument in argv):
        print(f"{__doc__}\n{values.get_help()}")
        return 0
    try:
        paths = values(list(argv))[1:]
    except flags.Error as error:
        refuse_flags(str(error).splitlines()[-1].strip())
    picture = os.path.splitext(values.output)[1].lower().removeprefix(".")
    if picture not in ("svg", "png"):
        refuse_flags(f"--output={values.output} must end in .svg or .png.")
    if not paths:
        refuse_flags("give the JSON files to draw as arguments.")
    try:
        content = draw(values.chart, [read_measurement(path) for path in paths], picture)
        make_folder(os.path.dirname(values.output) or ".")
        with whole_file(values.output, "wb") as file:
            file.write(content)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"error: {values.output}: cannot be written ({error.strerror}).", file=sys.stderr)
        return 1
    print(f"{values.chart} in {values.output}")
    return 0


def run() -> None:
    """Runs the command line; entry point of msrcnn-draw-benchmarks."""
    sys.exit(main(sys.argv))


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    flags.DEFINE_enum(
        "chart",
        None,
        ["overview", "scaling"],
        "Kind of chart to draw.",
        flag_values=values,
        required=True,
    )
    flags.DEFINE_string(
        "output", None, "Image file to write, .svg or .png.", flag_values=values, required=True
    )
    flags.DEFINE_bool("help", False, "Show these flags and exit.", flag_values=values)
    return values


if __name__ == "__main__":
    run()
