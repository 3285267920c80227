"""The life of a job of Vertex AI, which deletes the machine when the job ends."""

from __future__ import annotations

import json
import shlex
import sys
import time

from data.errors import UserError
from tools.cloud import vertex
from tools.cloud.job import VertexJob
from tools.cloud.running import query, require, run
from tools.cloud.steps import list_uploads

PAUSE_SECONDS = 30.0
ENDED = (
    "JOB_STATE_SUCCEEDED",
    "JOB_STATE_FAILED",
    "JOB_STATE_CANCELLED",
    "JOB_STATE_EXPIRED",
    "JOB_STATE_PARTIALLY_SUCCEEDED",
)


def run_vertex_job(job: VertexJob) -> int:
    """Runs a job and returns 0 if it succeeded, otherwise 1; Ctrl-C or a failure cancels it.

    Raises:
        UserError: the job is refused, or its state cannot be read.
    """
    for step in (*list_uploads(job), vertex.write(job)):
        require(step)
    step = vertex.create(job)
    print(f"{step.title} ...", flush=True)
    succeeded, output, errors = query(step)
    if not succeeded:
        raise UserError(f"Vertex AI refused the job: {errors.strip()}")
    identity = output.strip()
    try:
        state = _follow(job, identity)
    except BaseException:
        _cancel(job, identity)
        raise
    print(f"{identity}: {state}", flush=True)
    return 0 if state == "JOB_STATE_SUCCEEDED" else 1


def _follow(job: VertexJob, identity: str) -> str:
    """Shows the log, again after a lost connection, and returns the state in which the job ends."""
    while True:
        run(vertex.follow(job, identity))
        succeeded, output, errors = query(vertex.describe(job, identity))
        if not succeeded:
            raise UserError(f"The state of {identity} cannot be read: {errors.strip()}")
        state = json.loads(output)["state"]
        if state in ENDED:
            return state
        time.sleep(PAUSE_SECONDS)


def _cancel(job: VertexJob, identity: str) -> None:
    step = vertex.cancel(job, identity)
    print(f"{step.title} ...", flush=True)
    if not query(step, apart=True)[0]:
        print(
            f"Warning: {identity} may still be running and cost money; cancel it with this "
            f"command:\n{shlex.join(step.command)}",
            file=sys.stderr,
            flush=True,
        )
