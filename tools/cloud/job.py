"""What a job runs, on which machine, and the files that it needs in its folder on gs://."""

from __future__ import annotations

import dataclasses
import re

import trainer
from tools.cloud.accelerators import TENSORFLOW, Accelerator

# `trainer`, or in an installed wheel `mask_scoring_rcnn.trainer`.
MODULE = f"{trainer.__name__}.main"
_SECRET = re.compile(r"(--\w*(?:token|key|secret|password)=).+")
# Without `tensorflow` itself, whose place those below take.
_REQUIREMENTS = (
    "absl-py>=2.0",
    "faster-coco-eval>=1.8",
    "google-crc32c>=1.5",
    "grpcio>=1.60",
    "h5py>=3.10",
    "numpy>=1.26",
    "Pillow>=10.1",
    "pycocotools>=2.0.7",
    "tensorflow-datasets>=4.9",
    "tqdm>=4.60",
)
TPU_REQUIREMENTS = (*_REQUIREMENTS, f"tensorflow-tpu[gcs-filesystem]=={TENSORFLOW}")
# TensorFlow asks Cloud TPU with these for the addresses of the other hosts.
POD_REQUIREMENTS = (*TPU_REQUIREMENTS, "google-api-python-client", "oauth2client")
GPU_REQUIREMENTS = (
    *_REQUIREMENTS,
    "tensorflow[and-cuda,gcs-filesystem]>=2.20,<2.22",
    "nvidia-cudnn-cu12>=9.24",
)


@dataclasses.dataclass(frozen=True)
class Job:
    """A run of the trainer in Google Cloud.

    Attributes:
        name: name of the TPU or of the Vertex AI job.
        project, zone: where it is created; "" leaves gcloud's own setting.
        model_dir: gs:// folder of the run.
        flagfile: lines of the flagfile that is sent.
        arguments: flags that were given on the command line, as the trainer receives them.
        python_version: version on the machine, such as "3.12".
        spot: whether the machine is cheaper and may be taken away.
        network, service_account: "" for the project's default.
    """

    name: str
    project: str
    zone: str
    model_dir: str
    flagfile: tuple[str, ...]
    arguments: tuple[str, ...]
    python_version: str
    spot: bool
    network: str
    service_account: str

    @property
    def folder(self) -> str:
        """Folder on gs:// with the files of the job."""
        return f"{self.model_dir.rstrip('/')}/submit/{self.name}"

    def without_secrets(self):
        """Returns the job for printing: the values of tokens, keys and passwords are replaced."""
        hidden = {
            name: tuple(_SECRET.sub(r"\1***", text) for text in getattr(self, name))
            for name in ("flagfile", "arguments")
        }
        return dataclasses.replace(self, **hidden)


@dataclasses.dataclass(frozen=True)
class TpuJob(Job):
    """A run on a TPU.

    Attributes:
        accelerator: type of the TPU.
        runtime_version: software of the TPU VM.
        queued: whether to wait in the queue for a free TPU.
        valid_until: how long to wait in the queue, such as "6h"; "" for no limit.
        reserved: whether to use the project's reservation.
        subnetwork: "" for the default.
        internal_ips: whether the VM has no external address and ssh uses the internal one.
    """

    accelerator: Accelerator
    runtime_version: str
    queued: bool
    valid_until: str
    reserved: bool
    subnetwork: str
    internal_ips: bool


@dataclasses.dataclass(frozen=True)
class VertexJob(Job):
    """A run on GPUs of Vertex AI.

    Attributes:
        machine_type: such as "a2-highgpu-1g".
        gpu_type: such as "NVIDIA_TESLA_A100".
        gpu_count: number of GPUs.
        image: container with Python and pip.
    """

    machine_type: str
    gpu_type: str
    gpu_count: int
    image: str

    @property
    def region(self) -> str:
        """Region of the zone."""
        return re.sub("-[a-z]$", "", self.zone)
