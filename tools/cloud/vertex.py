"""A GPU job of Vertex AI: the body of the request, and gcloud's commands.

Body: https://cloud.google.com/vertex-ai/docs/reference/rest/v1/CustomJobSpec.
"""

from __future__ import annotations

import json
import shlex

from tools.cloud.job import VertexJob
from tools.cloud.scripts import INSTALL, TRAIN
from tools.cloud.steps import Command, Step, list_uploads

_JOBS = ("gcloud", "ai", "custom-jobs")


def job_spec(job: VertexJob) -> dict:
    """Returns the job as a CustomJobSpec. Vertex AI shows buckets as folders in /gcs."""
    files = shlex.quote(job.folder.replace("gs://", "/gcs/", 1))
    script = f"cp {files}/* . && bash {INSTALL} && bash {TRAIN}"
    machine = {
        "machineType": job.machine_type,
        "acceleratorType": job.gpu_type,
        "acceleratorCount": job.gpu_count,
    }
    container = {"imageUri": job.image, "command": ["bash", "-c"], "args": [script]}
    pool = {"machineSpec": machine, "replicaCount": 1, "containerSpec": container}
    # A machine that is taken away is replaced, and the training continues from its checkpoint.
    scheduling = {"restartJobOnWorkerRestart": True}
    if job.spot:
        scheduling["strategy"] = "SPOT"
    optional = {"network": job.network, "serviceAccount": job.service_account}
    chosen = {name: value for name, value in optional.items() if value}
    return {"workerPoolSpecs": [pool], "scheduling": scheduling} | chosen


def write(job: VertexJob) -> Step:
    """Writes the body to a file for gcloud."""
    text = json.dumps(job_spec(job), indent=2) + "\n"
    return Step("Write the request", ("tee", _file(job)), text=text)


def create(job: VertexJob) -> Step:
    """Creates the job and prints its name in Vertex AI."""
    flags = (f"--display-name={job.name}", f"--config={_file(job)}", "--format=value(name)")
    return Step("Create the job", (*_JOBS, "create", *_where(job), *flags))


def follow(job: VertexJob, identity: str) -> Step:
    """Shows the log until the job ends."""
    return Step("Follow the log", (*_JOBS, "stream-logs", identity, *_where(job)))


def describe(job: VertexJob, identity: str) -> Step:
    """Prints the job as JSON."""
    command = (*_JOBS, "describe", identity, *_where(job), "--format=json")
    return Step("Look at the state of the job", command)


def cancel(job: VertexJob, identity: str) -> Step:
    """Stops the job and gives its machine back."""
    return Step("Cancel the job", (*_JOBS, "cancel", identity, *_where(job)))


def list_steps(job: VertexJob) -> list[Step]:
    """Lists all steps of a run; Vertex AI deletes the machine at the end."""
    return [*list_uploads(job), write(job), create(job), follow(job, "JOB_NAME")]


def _file(job: VertexJob) -> str:
    return f"{job.name}.json"


def _where(job: VertexJob) -> Command:
    project = (f"--project={job.project}",) if job.project else ()
    region = (f"--region={job.region}",) if job.zone else ()
    return (*project, *region, "--quiet")
