"""Jobs for tests."""

import itertools

from tools.cloud.accelerators import parse_accelerator
from tools.cloud.job import TpuJob, VertexJob

COMMON = {
    "name": "photos",
    "project": "P",
    "zone": "us-west4-a",
    "model_dir": "gs://b/photos",
    "flagfile": ("--backbone=resnet18",),
    "arguments": ("--train_steps=10",),
    "python_version": "3.12",
    "spot": False,
    "network": "",
    "service_account": "",
}
TPU = {
    "accelerator": parse_accelerator("v5litepod-8"),
    "runtime_version": "tpu-vm-tf-2.20.0-pjrt",
    "queued": True,
    "valid_until": "",
    "reserved": False,
    "subnetwork": "",
    "internal_ips": False,
}
VERTEX = {
    "machine_type": "a2-highgpu-2g",
    "gpu_type": "NVIDIA_TESLA_A100",
    "gpu_count": 2,
    "image": "python:3.12",
}


def tpu_job(**changes) -> TpuJob:
    """A TPU job, with changes."""
    return TpuJob(**COMMON | TPU | changes)


def vertex_job(**changes) -> VertexJob:
    """A job of Vertex AI, with changes."""
    return VertexJob(**COMMON | VERTEX | changes)


def all_tpu_jobs() -> list[TpuJob]:
    """Jobs with few and with many options, in and outside the queue."""
    texts = {"network": "n", "subnetwork": "s", "service_account": "a@b.c", "valid_until": "6h"}
    options = ({}, {"spot": True}, {"reserved": True}, texts | {"internal_ips": True})
    return [tpu_job(queued=q, **more) for q, more in itertools.product((True, False), options)]
