"""Converts a dataset in COCO format to TFRecord shards with a manifest.

  python tools/create_coco_tfrecord.py --image_dir=train2017 \\
      --object_annotations_file=instances_train2017.json \\
      --output_file_prefix=records/train --num_shards=32

The flags have the names of Model Garden's converter; masks are included by default.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence

if __package__ is None:  # started as a script, perhaps without the package installed
    sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

from absl import flags

from data.conversion import Build, Conversion, convert
from data.errors import UserError
from data.manifest import Manifest, manifest_name
from data.settings import SettingError

_REQUIRED_FLAGS = {
    "image_dir": "Folder with the images.",
    "object_annotations_file": "JSON with COCO instance annotations.",
    "output_file_prefix": "Prefix P of the output files P-00000-of-0000N.tfrecord and "
    "P.manifest.json.",
}

Parse = Callable[[flags.FlagValues, Sequence[str]], Build | None]


def _define_flags() -> flags.FlagValues:
    values = flags.FlagValues()
    for name, text in _REQUIRED_FLAGS.items():
        flags.mark_flag_as_required(flags.DEFINE_string(name, None, text, flag_values=values))

    def define(define_flag, name: str, default, *rest) -> None:
        define_flag(name, default, *rest, flag_values=values)

    define(flags.DEFINE_integer, "num_shards", 32, "Number of shards.")
    define(flags.DEFINE_bool, "include_masks", True, "Whether to store the masks.")
    processes = "Number of worker processes; 0 converts in this process."
    define(flags.DEFINE_integer, "num_processes", os.cpu_count(), processes)
    unusable = (
        "What to do with an image or annotation that cannot be used: stop with an error (error), "
        "or leave it out and list it in the manifest (skip)."
    )
    define(flags.DEFINE_enum, "on_invalid", "error", ["error", "skip"], unusable)
    ignored = "Ignored; accepted for compatibility with Model Garden's converter."
    define(flags.DEFINE_bool, "logtostderr", True, ignored)
    define(flags.DEFINE_bool, "help", False, "Show these flags and exit.")
    for name in values:
        values[name].allow_overwrite = False  # a repeated flag is a mistake
    return values


def parse(values: flags.FlagValues, argv: Sequence[str]) -> None:
    """Parses a command line to the flags' values; raises flags.Error if it is invalid."""
    if extra := values(argv)[1:]:
        raise flags.Error(f"unexpected argument {extra[0]!r}; every setting is a --flag=value")


def _conversion_of(values: flags.FlagValues) -> Conversion:
    return Conversion(
        image_dir=values.image_dir,
        annotations_file=values.object_annotations_file,
        output_prefix=values.output_file_prefix,
        num_shards=values.num_shards,
        include_masks=values.include_masks,
        skip_invalid=values.on_invalid == "skip",
        num_processes=values.num_processes,
    )


def _summary(settings: Conversion, written: Manifest) -> str:
    counts = (
        f"wrote {written.num_images} images with {written.num_instances} instances and "
        f"{written.num_crowds} crowds to {len(written.shards)} shards "
        f"{settings.output_prefix}-*-of-{settings.num_shards:05d}.tfrecord"
    )
    if written.num_turned or written.num_kept_as_stored:
        counts += (
            f"; {written.num_turned} are rotated by their EXIF orientation and "
            f"{written.num_kept_as_stored} are kept as stored"
        )
    if not written.num_instances + written.num_crowds:
        counts += "; without objects, they can only be used for prediction"
    skipped = written.skipped
    if not skipped["items"]:
        return counts
    return (
        f"{counts}; left out {skipped['images']} images and {skipped['annotations']} annotations, "
        f"listed in {manifest_name(settings.output_prefix)}"
    )


def run(argv: Sequence[str], parse: Parse = parse, description: str | None = __doc__) -> int:
    """Runs the command line `argv`, whose first entry is the program; returns the exit status.

    Args:
        argv: the command line.
        parse: parses it to the flags' values and returns the `build` of `data.conversion.convert`;
            raises flags.Error if it is invalid, and UserError if it cannot be followed.
        description: purpose of the program, for --help.
    """
    values = _define_flags()
    if any(argument in ("-h", "-help", "--help") for argument in argv):
        print(f"{description}\n{values.get_help()}")
        return 0
    try:
        build = parse(values, argv)
        settings = _conversion_of(values)
        written = convert(settings, build)
    except (flags.Error, SettingError) as error:
        print(f"error: {str(error).splitlines()[0]}", file=sys.stderr)
        return 2
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("error: interrupted; run the same command again to continue.", file=sys.stderr)
        return 1
    print(_summary(settings, written))
    return 0


def main() -> None:
    """Runs the command line; console entry point."""
    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
