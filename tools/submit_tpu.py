"""Trains on a Cloud TPU: creates it, installs the project, trains, shows the log and deletes it.

    python tools/submit_tpu.py --flagfile=configs/r50.flags --project=P --zone=us-west4-a \\
        --name=photos --accelerator_type=v5litepod-8 --spot --model_dir=gs://B/photos \\
        --train_file_pattern='gs://B/records/train-*'

takes every flag of the trainer, too. With --dry_run, or without --project, it prints the commands
instead of running them. A TPU that is taken away is replaced, and the training continues from its
last checkpoint. --target=vertex runs the same training on a GPU of Vertex AI. See docs/TPU.md.

Exit codes: 0 done, 1 refused or failed, 2 bad flags.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence

from absl import flags

from data.settings import SettingError, one_of, require
from tools.cloud import tpu_commands, vertex
from tools.cloud.accelerators import parse_accelerator
from tools.cloud.job import Job, TpuJob, VertexJob
from tools.cloud.running import interruptible
from tools.cloud.steps import format_step
from trainer.flags import (
    CommandLine,
    exit_status,
    format_flag,
    list_settings,
    make_params,
    parse_command_line,
    require_flags,
    settings_of,
)

_DESCRIPTION = (
    "python tools/submit_tpu.py --flagfile=F --project=P --zone=Z --name=N "
    "--accelerator_type=v5litepod-8 --model_dir=gs://B/N [flags of the trainer]"
)
TARGETS = ("tpu", "vertex")
PYTHONS = ("3.11", "3.12", "3.13")
_READ_BY_THE_MACHINE = ("train_file_pattern", "eval_file_pattern")
_TEXTS = {
    "project": ("", "Google Cloud project; empty: print the commands only."),
    "zone": ("", "Zone, such as us-west4-a; Vertex AI uses its region."),
    "name": ("msrcnn", "Name of the TPU or of the Vertex AI job."),
    "target": ("tpu", "Where to train: tpu, or vertex for a GPU job of Vertex AI."),
    "accelerator_type": ("v5litepod-8", "Type of the TPU."),
    "runtime_version": ("", "Software of the TPU VM; empty: what belongs to the type."),
    "python_version": ("3.12", "Python on the machine: 3.11, 3.12 or 3.13."),
    "valid_until": ("", "How long to wait in the queue, such as 6h; empty: no limit."),
    "network": ("", "Network; empty: the project's default."),
    "subnetwork": ("", "Subnetwork of the TPU; empty: the default."),
    "service_account": ("", "Account that reads and writes gs://; empty: the default."),
    "machine_type": ("a2-highgpu-1g", "Machine of Vertex AI."),
    "gpu_type": ("NVIDIA_TESLA_A100", "GPU of Vertex AI."),
    "image": ("python:3.12", "Container image with Python and pip for Vertex AI."),
}
_SWITCHES = {
    "dry_run": (False, "Print the commands instead of running them."),
    "spot": (False, "Use a cheaper machine that may be taken away."),
    "reserved": (False, "Use the project's reservation of TPUs."),
    "queued": (True, "Wait in the queue for a free TPU; --noqueued fails if there is none."),
    "internal_ips": (False, "Create the TPU without an external address."),
}


def make_job(command: CommandLine) -> Job:
    """Makes the job that a command line describes.

    Raises:
        SettingError: a flag has a value that is invalid, or invalid there.
    """
    own = {name: command.flag_values[name].value for name in (*_TEXTS, *_SWITCHES, "gpu_count")}
    _check(own)
    _require_remote_paths(command)
    given = command.given
    common = {name: own[name] for name in _COMMON} | {
        "model_dir": command.params.train.model_dir,
        "flagfile": tuple(
            format_flag(name, value)
            for name, value in sorted(given.items())
            if command.places[name]
        ),
        "arguments": tuple(
            command.flag_values[name].serialize()
            for name in sorted(given)
            if not command.places[name]
        ),
    }
    if own["target"] == "vertex":
        return VertexJob(**common, **{name: own[name] for name in _VERTEX})
    # Refuses settings that a TPU does not support.
    make_params(settings_of(command.params) | {"distribution": "tpu"})
    accelerator = parse_accelerator(own["accelerator_type"])
    runtime_version = own["runtime_version"] or accelerator.runtime_version
    return TpuJob(
        **common,
        **{name: own[name] for name in _TPU},
        accelerator=accelerator,
        runtime_version=runtime_version,
    )


_COMMON = ("name", "project", "zone", "python_version", "spot", "network", "service_account")
_TPU = ("queued", "valid_until", "reserved", "subnetwork", "internal_ips")
_VERTEX = ("machine_type", "gpu_type", "gpu_count", "image")


def _check(own: dict) -> None:
    for name, check in (("target", one_of(*TARGETS)), ("python_version", one_of(*PYTHONS))):
        require(check.holds(own[name]), name, own[name], check.expected)
    require(
        re.fullmatch(r"[a-z]([a-z0-9-]{0,61}[a-z0-9])?", own["name"]) is not None,
        "name",
        own["name"],
        "at most 63 lower-case letters, digits and hyphens, starting with a letter",
    )
    require(own["gpu_count"] > 0, "gpu_count", own["gpu_count"], "a positive number")
    if own["spot"] and own["reserved"]:
        raise SettingError("--spot and --reserved exclude each other; choose one of them.")
    if own["python_version"] == "3.13":
        print(
            "Warning: --python_version=3.13 has no tensorflow-io-gcs-filesystem, with which "
            "TensorFlow opens gs:// paths; 3.12 has.",
            file=sys.stderr,
        )


def _require_remote_paths(command: CommandLine) -> None:
    """Refuses paths that the machine in the cloud cannot open."""
    names = [setting.name for setting in list_settings() if setting.is_path]
    for name in [*names, *_READ_BY_THE_MACHINE]:
        value = command.flag_values[name].value
        if (value or name == "model_dir") and not value.startswith("gs://"):
            raise SettingError(
                f"--{name}={value}: expected a path on gs://, which the machine in the cloud can "
                "open and which outlives it."
            )


def _define_flags(flag_values: flags.FlagValues) -> None:
    for name, (default, meaning) in _TEXTS.items():
        flags.DEFINE_string(name, default, meaning, flag_values=flag_values)
    for name, (default, meaning) in _SWITCHES.items():
        flags.DEFINE_boolean(name, default, meaning, flag_values=flag_values)
    flags.DEFINE_integer("gpu_count", 1, "Number of GPUs of Vertex AI.", flag_values=flag_values)


def main(argv: Sequence[str]) -> int:
    """Runs one command line and returns the exit status."""
    command = parse_command_line(argv, _DESCRIPTION, _define_flags)
    dry_run = command.flag_values["dry_run"].value or not command.flag_values["project"].value
    if not dry_run:
        require_flags(command.flag_values, "zone")

    def work() -> int:
        _require_trainers_flags(command)
        job = make_job(command)
        return _print_steps(job) if dry_run else _run(job)

    try:
        with interruptible():
            return exit_status(work)
    except KeyboardInterrupt:
        print("Interrupted; run the same command again to continue.", file=sys.stderr)
    return 1


def _require_trainers_flags(command: CommandLine) -> None:
    from trainer.main import check_required

    check_required(command.params)


def _print_steps(job: Job) -> int:
    commands = tpu_commands if isinstance(job, TpuJob) else vertex
    for step in commands.list_steps(job.without_secrets()):
        print(format_step(step))
    reason = "" if job.project else " because --project is not set"
    print(f"Nothing was created{reason}: these are the commands of a run.", file=sys.stderr)
    return 0


def _run(job: Job) -> int:
    if isinstance(job, TpuJob):
        from tools.cloud.tpu_run import run_tpu_job

        return run_tpu_job(job)
    from tools.cloud.vertex_run import run_vertex_job

    return run_vertex_job(job)


def run() -> None:
    """Console script."""
    sys.exit(main(sys.argv))


if __name__ == "__main__":
    run()
