"""Other people's programs, doing the work that `tools/benchmark.py` times of ours.

A module `NAME_peer` has `WORKLOADS`, which makes of `Settings` a function that does the work once
and returns the number of images it processed, and `PACKAGES`, whose versions are worth telling. It
runs under the interpreter that has those packages: of ours it finds only what needs NumPy alone,
and it imports its packages inside functions. All compute on the CPU.
"""

from __future__ import annotations

import dataclasses

CLASSES = 81
DETECTIONS = 100
# Objects of a drawn image where no number is asked for.
FEW_OBJECTS = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a peer is told.

    Attributes:
      image_size: side of the square canvas, pixels.
      batch_size: images of a batch.
      precision: "float32" or "mixed_bfloat16".
      images: of one run of a workload that streams.
      instances: objects of an image, drawn; 0: those that are annotated, or `FEW_OBJECTS`.
      positives: positive RoIs of an image in training, 0: as they come.
      image_dir: folder of the images.
      object_annotations_file: COCO JSON of the images.
      num_shards: files that a converter writes.
      num_processes: of a converter, 0: as many as it likes.
      kind: "bbox" or "segm", what an evaluation evaluates.
      seed: of weights and of whatever is drawn.
    """

    image_size: int = 832
    batch_size: int = 1
    precision: str = "float32"
    images: int = 400
    instances: int = 0
    positives: int = 0
    image_dir: str = ""
    object_annotations_file: str = ""
    num_shards: int = 8
    num_processes: int = 0
    kind: str = "segm"
    seed: int = 0

    @classmethod
    def from_json(cls, entries: dict) -> Settings:
        """The settings among `entries`; what a peer does not know is left out."""
        known = {field.name for field in dataclasses.fields(cls)}
        return cls(**{name: value for name, value in entries.items() if name in known})

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
