"""The life of a TPU: created, installed, followed, created again after a preemption, deleted."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
import time
from collections.abc import Iterator

from data.errors import UserError
from tools.cloud import tpu_commands
from tools.cloud.job import TpuJob
from tools.cloud.running import query, read_lines, require, run
from tools.cloud.scripts import EXIT_STATUS
from tools.cloud.steps import Step, list_uploads

# Attempts in a row at what fails when a connection is lost.
ATTEMPTS = 20
PAUSE_SECONDS = 30.0
# States of a request in the queue from which it does not become ready.
REFUSED = ("FAILED", "SUSPENDING", "SUSPENDED", "DELETING")
# States of a TPU VM that was taken away.
TAKEN_AWAY = ("PREEMPTED", "TERMINATED", "STOPPING", "STOPPED")


class _Foreign(UserError):
    """There is a TPU of this name that this run did not create, and which it must not delete."""


def run_tpu_job(job: TpuJob) -> int:
    """Runs a job until the training ends and returns 0 if it succeeded, otherwise 1.

    The TPU is deleted however this ends. If that fails, a warning names the command to run.

    Raises:
        UserError: the TPU exists already, is refused, or cannot be reached or deleted.
    """
    if _describe(tpu_commands.describe(job), attempts=1) is not None:
        raise _foreign(job)
    for step in list_uploads(job, tpu_commands.delete(job).command):
        require(step)
    while True:
        with _deleted_at_the_end(job):
            _create(job)
            _install(job)
            status = _follow(job)
        if status is not None:
            print(f"The training ended with exit status {status}.", flush=True)
            return int(status != 0)
        print("The TPU was taken away; the training continues on another one.", flush=True)


def _foreign(job: TpuJob) -> _Foreign:
    command = shlex.join(tpu_commands.delete(job).command)
    return _Foreign(
        f"{job.name} exists already in {job.zone}; choose another --name, or delete it: {command}"
    )


def _describe(step: Step, attempts: int = ATTEMPTS) -> dict | None:
    """Returns gcloud's description, or None if there is no such thing."""
    for attempt in range(attempts):
        if attempt:
            time.sleep(PAUSE_SECONDS)
        succeeded, output, errors = query(step)
        if succeeded:
            return json.loads(output)
        if "NOT_FOUND" in errors:
            return None
    raise UserError(f"gcloud cannot describe the TPU: {_last_line(errors)}")


def _last_line(text: str) -> str:
    return text.strip().rpartition("\n")[2] or "it gives no reason."


def _create(job: TpuJob) -> None:
    step = tpu_commands.create(job)
    print(f"{step.title} ...", flush=True)
    succeeded, _, errors = query(step)
    if "ALREADY_EXISTS" in errors:
        raise _foreign(job)
    if not succeeded:
        raise UserError(f"{job.accelerator.name} was refused: {_last_line(errors)}")
    if job.queued:
        _wait_in_queue(job)


def _wait_in_queue(job: TpuJob) -> None:
    shown = ""
    while True:
        request = (_describe(tpu_commands.describe(job)) or {}).get("state", {})
        state = request.get("state", "DELETING")
        if state != shown:
            print(f"State of the request: {state}", flush=True)
            shown = state
        if state == "ACTIVE":
            return
        if state in REFUSED:
            reason = request.get("failedData", {}).get("error", {}).get("message", state)
            raise UserError(f"{job.accelerator.name} was refused: {reason}")
        time.sleep(PAUSE_SECONDS)


def _install(job: TpuJob) -> None:
    """Installs; the first attempts may fail because the VM has only just started."""
    for _ in range(3):
        if run(tpu_commands.install(job)):
            return
        time.sleep(PAUSE_SECONDS)
    raise UserError("The project could not be installed on the TPU VM, for the reason above.")


class _Log:
    """Prints the log of the training and notices its end."""

    def __init__(self):
        self.lines = 0
        self.exit_status: int | None = None

    def add(self, line: str) -> None:
        """Takes the next line."""
        if line.startswith(EXIT_STATUS):
            self.exit_status = int(line.removeprefix(EXIT_STATUS))
        else:
            self.lines += 1
            print(line, flush=True)


def _follow(job: TpuJob) -> int | None:
    """Returns the exit status of the training, or None if the TPU was taken away."""
    log, failures = _Log(), 0
    while failures < ATTEMPTS:
        seen = log.lines
        read_lines(tpu_commands.follow(job, log.lines + 1), log.add)
        if log.exit_status is not None:
            return log.exit_status
        state = (_describe(tpu_commands.describe_vm(job)) or {}).get("state")
        if state in TAKEN_AWAY:
            return None
        if state is None:
            raise UserError(
                f"{job.name} is gone: it was deleted elsewhere, or deleted itself after the "
                "training had ended. Run the same command again to continue."
            )
        failures = 0 if log.lines > seen else failures + 1
        print("The connection was lost; connecting again ...", file=sys.stderr, flush=True)
        time.sleep(PAUSE_SECONDS)
    raise UserError(f"{job.name} cannot be reached by ssh, for the reason above.")


@contextlib.contextmanager
def _deleted_at_the_end(job: TpuJob) -> Iterator[None]:
    try:
        yield
    except _Foreign:
        raise
    except BaseException:
        _delete(job)
        raise
    _delete(job)


def _delete(job: TpuJob) -> None:
    """Deletes the TPU; a failure or Ctrl-C while it is deleted is reported with the command."""
    step = tpu_commands.delete(job)
    print(f"{step.title} ...", flush=True)
    try:
        for attempt in range(3):
            # Ctrl-C in the terminal does not reach gcloud, so that the TPU is deleted nevertheless.
            succeeded, _, errors = query(step, apart=True)
            if succeeded or "NOT_FOUND" in errors:
                return
            if attempt < 2:
                time.sleep(PAUSE_SECONDS)
    except BaseException:
        _warn_of_running(job, "its deletion was interrupted")
        raise
    _warn_of_running(job, f"its deletion failed: {_last_line(errors)}")
    raise UserError(f"{job.name} could not be deleted.")


def _warn_of_running(job: TpuJob, reason: str) -> None:
    print(
        f"Warning: the TPU {job.name} may still be running and cost money, because {reason}\n"
        f"Warning: delete it with this command:\n{shlex.join(tpu_commands.delete(job).command)}",
        file=sys.stderr,
        flush=True,
    )
