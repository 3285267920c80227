"""Other programs that do the same work as this project's workloads.

Each module has `WORKLOADS`, a function of `PeerSettings` for each stage that it supports, and
`PACKAGES`, whose versions are reported. It runs in the interpreter that has those packages. From
this project it imports only modules that need nothing but NumPy, and it imports its packages inside
functions. All compute on the CPU.
"""

from __future__ import annotations

import dataclasses

from data.settings import one_of, setting
from tools.benchmarks.stages import Settings

# The stages that each peer supports.
PEERS = {
    "model_garden": ("convert", "input", "match", "train", "predict", "export"),
    "torchvision": ("train", "predict"),
    "torchvision_onnxruntime": ("export",),
    "torchvision_openvino": ("export",),
    "mmdetection": ("train", "predict"),
    "pycocotools": ("evaluate",),
}
CLASSES = 81
DETECTIONS = 100


@dataclasses.dataclass(frozen=True)
class PeerSettings(Settings):
    """The settings that a peer receives."""

    precision: str = setting(
        "float32", "Precision of the computation.", one_of("float32", "mixed_bfloat16")
    )
    seed: int = setting(0, "Seed of the weights and of everything that is drawn.")

    @property
    def bfloat16(self) -> bool:
        """Whether to compute in bfloat16 where it is safe."""
        return self.precision == "mixed_bfloat16"


def expect_detections(counts: list[int]) -> None:
    """Raises if a peer does less work than this project's workload.

    Raises:
        RuntimeError: an image has fewer than `DETECTIONS`.
    """
    if min(counts) < DETECTIONS:
        raise RuntimeError(
            f"{counts} of {DETECTIONS} detections; use larger images, which have more."
        )
