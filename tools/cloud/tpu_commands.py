"""gcloud commands for a TPU VM, created at once or through the queue.

Flags: https://cloud.google.com/sdk/gcloud/reference/compute/tpus.
"""

from __future__ import annotations

import shlex

from tools.cloud.job import TpuJob
from tools.cloud.scripts import FOLLOW, INSTALL
from tools.cloud.steps import Command, Step, list_uploads

_TPUS = ("gcloud", "compute", "tpus")
_QUEUE = (*_TPUS, "queued-resources")
_VM = (*_TPUS, "tpu-vm")


def create(job: TpuJob) -> Step:
    """Creates the TPU, or puts the request for it into the queue."""
    wanted = {
        "accelerator-type": job.accelerator.name,
        "runtime-version" if job.queued else "version": job.runtime_version,
        "node-id": job.name if job.queued else "",
        "valid-until-duration": job.valid_until if job.queued else "",
        "network": job.network,
        "subnetwork": job.subnetwork,
        "service-account": job.service_account,
    }
    switches = {"spot": job.spot, "reserved": job.reserved, "internal-ips": job.internal_ips}
    flags = [f"--{name}={value}" for name, value in wanted.items() if value]
    flags += [f"--{name}" for name, chosen in switches.items() if chosen]
    title = f"Request {job.accelerator.name} as {job.name}"
    return Step(title, (*_group(job), "create", job.name, *_where(job), *flags))


def describe(job: TpuJob) -> Step:
    """Prints the request in the queue, or the TPU, as JSON."""
    command = (*_group(job), "describe", job.name, *_where(job), "--format=json")
    return Step("Look at its state, until it is ready", command)


def describe_vm(job: TpuJob) -> Step:
    """Prints the TPU VM as JSON."""
    command = (*_VM, "describe", job.name, *_where(job), "--format=json")
    return Step("Look at the state of the TPU VM", command)


def delete(job: TpuJob) -> Step:
    """Deletes the TPU, and the request for it."""
    force = ("--force",) if job.queued else ()
    return Step("Delete the TPU", (*_group(job), "delete", job.name, *_where(job), *force))


def install(job: TpuJob) -> Step:
    """Installs the project on the TPU VM."""
    folder = shlex.quote(job.name)
    files = shlex.quote(f"{job.folder}/*")
    script = (
        f"mkdir -p {folder} && cd {folder} && gcloud storage cp {files} . --quiet && bash {INSTALL}"
    )
    return Step("Install the project", _ssh(job, script))


def follow(job: TpuJob, line: int = 1) -> Step:
    """Starts the training if it does not run, and shows its log from a line on."""
    script = f"cd {shlex.quote(job.name)} && bash {FOLLOW} {line}"
    return Step("Train, and follow the log", _ssh(job, script))


def list_steps(job: TpuJob) -> list[Step]:
    """Lists all steps of a run in which nothing goes wrong."""
    uploads = list_uploads(job, delete(job).command)
    return [*uploads, create(job), describe(job), install(job), follow(job), delete(job)]


def _group(job: TpuJob) -> Command:
    return _QUEUE if job.queued else _VM


def _where(job: TpuJob) -> Command:
    project = (f"--project={job.project}",) if job.project else ()
    zone = (f"--zone={job.zone}",) if job.zone else ()
    return (*project, *zone, "--quiet")


def _ssh(job: TpuJob, script: str) -> Command:
    """Runs a script on the first host, which is where TensorFlow runs, also on several hosts."""
    internal = ("--internal-ip",) if job.internal_ips else ()
    place = (*_VM, "ssh", job.name, *_where(job), *internal)
    return (*place, "--worker=0", f"--command={script}")
