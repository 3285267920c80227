"""Other programs that do the same work as the workloads of this project.

Each module has `WORKLOADS`, a function of `PeerSettings` for each stage that it can do, and
`PACKAGES`, whose versions are reported. It runs under the interpreter that has those packages: of
this project it imports only what needs NumPy alone, and it imports its packages inside functions.
All compute on the CPU.
"""

from __future__ import annotations

import dataclasses

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
    """What a peer is told.

    Attributes:
      precision: "float32" or "mixed_bfloat16".
      seed: of weights and of whatever is drawn.
    """

    precision: str = "float32"
    seed: int = 0

    @property
    def bfloat16(self) -> bool:
        """Whether to compute in bfloat16 where that is safe.

        Raises:
          ValueError: the precision is none that a peer has.
        """
        if self.precision not in ("float32", "mixed_bfloat16"):
            raise ValueError(f"precision {self.precision}: a peer has float32 or mixed_bfloat16.")
        return self.precision == "mixed_bfloat16"


def expect_detections(counts: list[int]) -> None:
    """Refuses figures of less work than ours.

    Raises:
      RuntimeError: an image has fewer than `DETECTIONS`.
    """
    if min(counts) < DETECTIONS:
        raise RuntimeError(f"{counts} of {DETECTIONS} detections: larger images have more.")
