"""Converts a dataset in COCO format to TFRecord shards with Apache Beam.

  python tools/convert_beam.py --image_dir=gs://B/train2017 \\
      --object_annotations_file=gs://B/instances_train2017.json \\
      --output_file_prefix=gs://B/records/train --num_shards=256 \\
      --runner=DataflowRunner --project=P --region=R --temp_location=gs://B/temp

The flags are those of create_coco_tfrecord.py, and so is every byte of the output; all other flags
are options of Beam. Each shard is one element of the pipeline. Options that only the runner knows
go after --.
"""

from __future__ import annotations

import functools
import sys
import uuid
from collections.abc import Sequence

from absl import flags

from data.conversion import Build, Conversion
from data.shards import ShardJob, ShardResult, build_shard
from tools import create_coco_tfrecord
from tools.beam_tasks import run_tasks, split_arguments


def _parse(values: flags.FlagValues, argv: Sequence[str]) -> Build:
    own, options = split_arguments(argv)
    create_coco_tfrecord.parse(values, own)
    if values["num_processes"].present:
        raise flags.Error(
            "--num_processes has no effect here; give the runner's option, such as "
            "--direct_num_workers or --max_num_workers"
        )
    return functools.partial(_build, options)


def _build(options, settings: Conversion, jobs: Sequence[ShardJob]) -> list[ShardResult]:
    return list(run_tasks(_build_shard, jobs, settings.partial_dir, options))


def _build_shard(job: ShardJob) -> ShardResult:
    # Beam may run a task that it believes lost while it still runs elsewhere.
    return build_shard(job, lambda num_images: None, writer=uuid.uuid4().hex)


def run(argv: Sequence[str]) -> int:
    """Runs the command line `argv`, whose first entry is the program; returns the exit status."""
    return create_coco_tfrecord.run(argv, _parse, __doc__)


def main() -> None:
    """Runs the command line; console entry point."""
    sys.exit(run(sys.argv))


if __name__ == "__main__":
    main()
