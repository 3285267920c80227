"""Other programs that do the same work as the workloads of this project.

Each module has `WORKLOADS`, a function of `PeerSettings` for each stage that it can do, and
`PACKAGES`, whose versions are reported. It runs under the interpreter that has those packages: of
this project it imports only what needs NumPy alone, and it imports its packages inside functions.
All compute on the CPU.
"""

from __future__ import annotations

import dataclasses

from data.settings import one_of, setting
from tools.benchmarks.stages import Settings

# Which stages each peer can do.
PEERS = {
    "model_garden": ("convert", "input", "match", "train", "predict"),
    "torchvision": ("train", "predict"),
    "mmdetection": ("train", "predict"),
    "pycocotools": ("evaluate",),
}
CLASSES = 81
DETECTIONS = 100


@dataclasses.dataclass(frozen=True)
class PeerSettings(Settings):
    """What a peer is told."""

    precision: str = setting("float32", "Of the computation.", one_of("float32", "mixed_bfloat16"))
    seed: int = setting(0, "Of the weights and of whatever is drawn.")

    @property
    def bfloat16(self) -> bool:
        """Whether to compute in bfloat16 where that is safe."""
        return self.precision == "mixed_bfloat16"


def expect_detections(counts: list[int]) -> None:
    """Refuses figures of less work than ours.

    Raises:
        RuntimeError: an image has fewer than `DETECTIONS`.
    """
    if min(counts) < DETECTIONS:
        raise RuntimeError(f"{counts} of {DETECTIONS} detections: larger images have more.")
