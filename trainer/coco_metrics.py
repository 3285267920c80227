"""COCO evaluation of boxes and masks, separately for class score and mask score.

Masks are measured twice, ranked by `mask_score` and by `box_score`, so that one evaluation shows
the benefit of the mask score. docs/METRICS.md explains all numbers.
"""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from data.errors import UserError
from data.findings import NONE_SKIPPED, SkippedImages
from trainer.average_precision import evaluate_lvis, evaluate_results
from trainer.coco_ground_truth import complete_ground_truth
from trainer.coco_report import DETECTIONS_COUNTED, explain_crowded, explain_unmeasured
from trainer.coco_results import CocoResults
from trainer.lvis_federation import Federation
from trainer.quality import measure_quality


class CocoEvaluator:
    """Collects predictions image by image and measures them against a ground truth.

    Args:
        ground_truth: COCO-format dict as `trainer.coco_ground_truth.load_ground_truth` returns it.
        categories, mask_paste: as for `CocoResults`.
        max_detections: limit per image; if it is above COCO's 100, AP with this limit is also
            measured.
        skipped: images of corrupt records, which count as images without detections.
        boundary: whether to measure masks also by Boundary IoU.
        federation: LVIS's knowledge of the images, to measure also as LVIS does.

    Attributes:
        results: `CocoResults` of the predictions added.

    Raises:
        UserError: the ground truth has another name for a category.
    """

    def __init__(
        self,
        ground_truth: Mapping,
        categories: Sequence[Mapping],
        mask_paste: str = "exact",
        *,
        max_detections: int = DETECTIONS_COUNTED,
        skipped: SkippedImages = NONE_SKIPPED,
        boundary: bool = False,
        federation: Federation | None = None,
    ):
        names_by_id = {c["id"]: c["name"] for c in categories if c["id"] is not None}
        _add_names(names_by_id, ground_truth["categories"])
        file_names = {image["id"]: image.get("file_name") for image in ground_truth["images"]}
        self.results = CocoResults(categories, mask_paste, file_names)
        self._ground_truth = complete_ground_truth(ground_truth, names_by_id)
        self._images = file_names.keys()
        self._category_names = _distinct_names(names_by_id)
        self._max_detections = max_detections
        self._skipped = skipped
        self._boundary = boundary
        self._federation = federation

    def add(self, prediction: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions of one image, as `CocoResults.add` does.

        Raises:
            UserError: the image was added before, or is not in the ground truth.
        """
        image_id = int(prediction["image_id"])
        if image_id in self.results.image_ids:
            raise UserError(
                f"image {image_id} was predicted twice; every image id may occur only once in the "
                "evaluation records, so convert them again from a file without duplicates."
            )
        if image_id not in self._images and image_id != -1:
            raise UserError(
                f"image {image_id} was predicted but is not in the ground truth; evaluate against "
                "the annotation file that the evaluation records were converted from."
            )
        self.results.add(prediction)

    def dump(self) -> bytes:
        """Returns the predictions added, for `extend` in another process."""
        return self.results.dump()

    def extend(self, dumped: bytes) -> None:
        """Adds the predictions of another process; see `CocoResults.extend`."""
        self.results.extend(dumped)

    def evaluate(self) -> dict:
        """Measures the predictions added, over the images added and those that were skipped.

        Returns:
            {"bbox": {the 12 of `METRICS`, and AP@n beyond 100 detections}, "per_category": {name:
            {"bbox": AP}}}, and with masks also "segm" (ranked by mask score), "segm_class_score"
            (the same masks ranked by class score) and, if wanted, "boundary" in both places. 0 if
            nothing is detected, -1 if there is nothing to detect. If wanted, "lvis" has the numbers
            of `evaluate_lvis` for masks, else for boxes. "quality" and "errors" are those of
            `measure_quality`, for masks, else for boxes.
        """
        ranked = self._ranked()
        evaluated = self._evaluated
        best = "segm" if "segm" in ranked else "bbox"
        found = self._ground_truth, ranked[best], best, evaluated
        measured = {
            kind: evaluate_results(
                self._ground_truth, entries, kind.split("_")[0], evaluated, self._max_detections
            )
            for kind, entries in ranked.items()
        }
        if self._federation:
            measured["lvis"] = evaluate_lvis(*found, self._federation)
        per_category = {
            name: {kind: by_category[key] for kind, (_, by_category) in measured.items()}
            for key, name in self._category_names.items()
        }
        return {
            **{kind: numbers for kind, (numbers, _) in measured.items()},
            "per_category": per_category,
            **measure_quality(*found, self._category_names),
        }

    def explain(self, metrics: Mapping) -> list[str]:
        """Explains every AP that is -1, and everything that was left out."""
        sentences = self._explain_skipped()
        if missing := self._images - self._evaluated:
            sentences.append(
                f"{len(missing)} of the {len(self._images)} images of the ground truth were not "
                f"predicted and are excluded (for example image {min(missing)})."
            )
        if self.results.have_masks and not self.measures_masks:
            sentences.append(
                "Mask AP is not measured because some objects of the ground truth have no "
                "segmentation."
            )
        counts = collections.Counter(annotation["image_id"] for annotation in self._objects())
        sentences += explain_crowded(counts, self._max_detections)
        areas = np.array([annotation["area"] for annotation in self._objects()])
        return sentences + explain_unmeasured(metrics, areas)

    @property
    def measures_masks(self) -> bool:
        """Whether there are masks to compare, in the predictions and the ground truth."""
        annotations = self._ground_truth["annotations"]
        return self.results.have_masks and all(a.get("segmentation") for a in annotations)

    @property
    def _evaluated(self) -> set[int]:
        """Ids of the images that count."""
        missing = self._images - self.results.image_ids
        others = missing - self._skipped.ids
        # If there are more, some images have no record at all, and nobody knows which.
        if len(others) > self._skipped.num_unknown:
            missing -= others
        return self.results.image_ids | missing

    def _explain_skipped(self) -> list[str]:
        """Says how the images of corrupt records count."""
        sentences = []
        if counted := self._evaluated - self.results.image_ids:
            sentences.append(
                f"{len(counted)} of the {len(self._images)} images of the ground truth count as "
                "images without detections, because their records are corrupt and were skipped "
                f"(for example image {min(counted)})."
            )
        if unknown := self._skipped.num_unknown - len(counted - self._skipped.ids):
            sentences.append(
                f"{unknown} corrupt records do not count, because it is unknown which images they "
                "hold; give --eval_annotation_file with the images of all records to count them."
            )
        return sentences

    def _ranked(self) -> dict[str, list[dict]]:
        """Returns the results to evaluate, each with the score that they are ranked by."""
        ranked = {"bbox": self.results.boxes}
        if self.measures_masks:
            masks = self.results.masks
            ranked["segm"] = masks
            ranked["segm_class_score"] = [{**mask, "score": mask["box_score"]} for mask in masks]
            if self._boundary:
                ranked["boundary"] = masks
        return ranked

    def _objects(self) -> Iterator[dict]:
        """Yields the annotations that count: in evaluated images, without crowds."""
        evaluated = self._evaluated
        for annotation in self._ground_truth["annotations"]:
            if annotation["image_id"] in evaluated and not annotation["iscrowd"]:
                yield annotation


def _add_names(names_by_id: dict[int, str], categories: Sequence[Mapping]) -> None:
    for category in categories:
        name = names_by_id.setdefault(category["id"], category["name"])
        if name != category["name"]:
            raise UserError(
                f"category {category['id']} is {name!r} in the records but "
                f"{category['name']!r} in the ground truth; evaluate against the annotation "
                "file that the evaluation records were converted from."
            )


def _distinct_names(names_by_id: Mapping[int, str]) -> dict[int, str]:
    """Maps COCO ids, in order, to names made unique."""
    counts = collections.Counter(names_by_id.values())
    return {
        category_id: name if counts[name] == 1 else f"{name} ({category_id})"
        for category_id, name in sorted(names_by_id.items())
    }
