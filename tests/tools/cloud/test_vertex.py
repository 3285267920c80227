"""A GPU job of Vertex AI: its body against Google's types, and its life with a fake gcloud."""

import json
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent))
from jobs import vertex_job  # noqa: E402

from tools.cloud import vertex_run  # noqa: E402
from tools.cloud.vertex import job_spec  # noqa: E402
from tools.submit_tpu import main  # noqa: E402


@pytest.fixture(scope="module")
def vertex_types():
    reason = "needs google-cloud-aiplatform, which the lock file's versions exclude"
    return pytest.importorskip("google.cloud.aiplatform_v1.types", reason=reason)


def submit(repository, *flags):
    place = ("--project=P", "--zone=us-west4-a", "--name=photos", "--model_dir=gs://b/photos")
    data = ("--train_file_pattern=gs://b/train-*", "--target=vertex")
    flagfile = f"--flagfile={repository}/configs/r18.flags"
    return main(["submit_tpu.py", flagfile, *place, *data, *flags])


def test_the_body():
    spec = job_spec(vertex_job(spot=True, service_account="a@b.c"))
    (pool,) = spec["workerPoolSpecs"]
    assert pool["machineSpec"] == {
        "machineType": "a2-highgpu-2g",
        "acceleratorType": "NVIDIA_TESLA_A100",
        "acceleratorCount": 2,
    }
    (script,) = pool["containerSpec"]["args"]
    assert script == "cp /gcs/b/photos/submit/photos/* . && bash install.sh && bash train.sh"
    assert spec["scheduling"] == {"restartJobOnWorkerRestart": True, "strategy": "SPOT"}
    assert spec["serviceAccount"] == "a@b.c" and "network" not in spec


@pytest.mark.parametrize("changes", [{}, {"spot": True, "network": "n", "service_account": "a"}])
def test_the_body_has_googles_types(vertex_types, changes):
    text = json.dumps(job_spec(vertex_job(**changes)))
    spec = vertex_types.CustomJobSpec.from_json(text, ignore_unknown_fields=False)
    machine = spec.worker_pool_specs[0].machine_spec
    assert machine.accelerator_type == vertex_types.AcceleratorType.NVIDIA_TESLA_A100
    assert set(vertex_run.ENDED) <= {state.name for state in vertex_types.JobState}


def test_a_job_that_succeeds(cloud, repository, capfd):
    cloud.plan(job=["JOB_STATE_RUNNING"])
    assert submit(repository, "--gpu_count=2") == 0
    assert "a line of the log" in capfd.readouterr().out
    assert cloud.count("stream-logs") == 2 and not cloud.count("cancel")
    assert cloud.state["job"]["workerPoolSpecs"][0]["machineSpec"]["acceleratorCount"] == 2
    script = (cloud.home / "bucket/b/photos/submit/photos/train.sh").read_text()
    assert "--model_dir=gs://b/photos" in script and "--distribution" not in script


def test_a_job_that_fails(cloud, repository):
    cloud.plan(job=["JOB_STATE_FAILED"])
    assert submit(repository) == 1
    assert not cloud.count("cancel")


def test_a_job_that_is_refused(cloud, repository, capfd):
    cloud.plan(create=["RESOURCE_EXHAUSTED: no quota"])
    assert submit(repository) == 1
    assert "error: Vertex AI refused the job: ERROR: (gcloud) RESOURCE" in capfd.readouterr().err


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_an_interrupted_job_is_cancelled(cloud, repository, signal):
    cloud.plan(follow=[signal])
    assert submit(repository) == 1
    assert cloud.count("cancel") == 1
