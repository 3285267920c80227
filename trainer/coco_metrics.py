"""COCO evaluation of boxes and masks, with the class score and the mask score kept apart.

Boxes are ranked by `box_score` (the class probability); masks by `mask_score`, which is the class
probability times the predicted IoU of the mask (Mask Scoring R-CNN, section 3.3), and once more by
`box_score`, so that one evaluation shows what the mask score is worth.

Axes: N detections an image; M mask side; H, W original image.
"""

from __future__ import annotations

import collections
import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from data import files
from data.annotations import complete_annotation, complete_annotations
from data.coco import load_dataset
from data.errors import UserError
from data.findings import SkippedItems, warn_of_left_out
from data.segmentation import run_lengths
from model.paste import encode_counts, paste_rle
from trainer.average_precision import evaluate_results
from trainer.coco_report import (
    DETECTIONS_COUNTED,
    explain_crowded,
    explain_unmeasured,
    format_table,
)


def load_ground_truth(annotation_file: str, eval_file_pattern: str) -> dict:
    """Reads the ground truth to evaluate against, as a COCO-format dict.

    Args:
      annotation_file: COCO JSON, of which broken images and annotations are left out with a
        warning; "" rebuilds the ground truth from the evaluation records.
      eval_file_pattern: glob of the evaluation records.

    Raises:
      UserError: the file cannot be read, is no JSON, or is no COCO instance file.
    """
    if not annotation_file:
        # Here because it brings TensorFlow, which nothing else in this module needs.
        from data.ground_truth import ground_truth_from_records

        return ground_truth_from_records(eval_file_pattern)
    skipped = SkippedItems(tolerate=True)
    dataset = load_dataset(annotation_file, skipped)
    annotations = [
        complete
        for image in dataset.images
        for complete in complete_annotations(image.annotations, image.height, image.width, skipped)
    ]
    warn_of_left_out(skipped.items, annotation_file)
    images = [
        {"id": image.id, "file_name": image.file_name, "height": image.height,
         "width": image.width}
        for image in dataset.images
    ]  # fmt: skip
    return {"images": images, "annotations": annotations, "categories": dataset.categories}


def segmentation_to_rle(segmentation: Mapping | Sequence, height: int, width: int) -> Mapping:
    """COCO's compressed RLE of a segmentation in any of its forms.

    Args:
      segmentation: a list of polygons [x, y, x, y, ...], or {"size", "counts"} with the counts as
        a list or compressed.
      height: H of the image, pixels.
      width: W of the image, pixels.

    Raises:
      InvalidAnnotation: the segmentation is malformed.
    """
    return encode_counts(run_lengths(segmentation, height, width).tolist(), height, width)


class CocoEvaluator:
    """Collects predictions image by image, writes them as COCO results and measures them."""

    def __init__(
        self,
        ground_truth: Mapping | None,
        categories: Sequence[Mapping],
        mask_paste: str = "exact",
        *,
        max_detections: int = DETECTIONS_COUNTED,
        file_names: Mapping[int, str] | None = None,
    ):
        """Prepares for the predictions of one evaluation or prediction run.

        Args:
          ground_truth: COCO-format dict as `load_ground_truth` returns it; None when predictions
            are only written, not measured.
          categories: {"label", "id", "name"} of every class: the network's label, COCO's id (None:
            what is found of the class is left out). A label that is not listed stands for the COCO
            id itself.
          mask_paste: how masks are pasted into their images, a rule of `model.paste`.
          max_detections: of an image; beyond COCO's 100, AP with as many is measured as well.
          file_names: of the images by id, for the results; by default the ground truth's.

        Raises:
          UserError: the ground truth calls a category by another name.
        """
        self._mask_paste = mask_paste
        self._ids_by_label = {c["label"]: c["id"] for c in categories}
        self._names_by_id = {c["id"]: c["name"] for c in categories if c["id"] is not None}
        self._max_detections = max_detections
        self._file_names = file_names or {}
        self._ground_truth = None
        self._images: set[int] = set()
        if ground_truth is not None:
            self._check_categories(ground_truth["categories"])
            self._ground_truth = _complete_ground_truth(ground_truth, self._names_by_id)
            images = ground_truth["images"]
            self._images = {image["id"] for image in images}
            self._file_names = file_names or {i["id"]: i.get("file_name") for i in images}
        self._predicted: set[int] = set()
        self._boxes: list[dict] = []
        self._masks: list[dict] = []
        self._masks_predicted = False

    def _check_categories(self, theirs: Sequence[Mapping]) -> None:
        for category in theirs:
            name = self._names_by_id.setdefault(category["id"], category["name"])
            if name != category["name"]:
                raise UserError(
                    f"category {category['id']} is {name!r} in the records but "
                    f"{category['name']!r} in the ground truth; evaluate against the annotation "
                    "file that the evaluation records were converted from."
                )

    def add(self, prediction: Mapping[str, np.ndarray]) -> None:
        """Takes the predictions of one image.

        Args:
          prediction: image_id [] (-1, a padding entry, is passed over), image_info [5],
            num_detections [], detection_boxes [N, 4] (y1, x1, y2, x2 in network pixels),
            detection_classes [N], box_scores [N]; with masks also detection_masks [N, M, M]
            (probabilities over the box) and mask_scores [N], and with a MaskIoU head mask_ious [N].

        Raises:
          UserError: the image was added before, or the ground truth does not know it.
        """
        image_id = int(prediction["image_id"])
        if image_id == -1:
            return
        self._check_image(image_id)
        self._predicted.add(image_id)
        self._masks_predicted |= "detection_masks" in prediction
        image = {"image_id": image_id}
        if name := self._file_names.get(image_id):
            image["file_name"] = name
        boxes = boxes_in_original(prediction)
        height, width = original_size(prediction)
        for index, box in enumerate(boxes):
            label = int(prediction["detection_classes"][index])
            category_id = self._ids_by_label.get(label, label)
            unlisted = label not in self._ids_by_label
            if category_id is None or (unlisted and label in self._ids_by_label.values()):
                # A class of the network's that has no category, or another category's id.
                continue
            entry = {
                **image,
                "category_id": category_id,
                "score": shortest(prediction["box_scores"][index]),
                "box_score": shortest(prediction["box_scores"][index]),
            }
            if "detection_masks" in prediction:
                if "mask_ious" in prediction:
                    entry["mask_iou"] = shortest(prediction["mask_ious"][index])
                entry["mask_score"] = shortest(prediction["mask_scores"][index])
                mask = prediction["detection_masks"][index]
                rle = paste_rle(mask, box, height, width, rule=self._mask_paste)
                # No bbox here: pycocotools would take the area from it instead of the mask.
                self._masks.append({**entry, "score": entry["mask_score"], "segmentation": rle})
            self._boxes.append({**entry, "bbox": to_coco_box(box, height, width)})

    def _check_image(self, image_id: int) -> None:
        if image_id in self._predicted:
            raise UserError(
                f"image {image_id} was predicted twice; every image id may stand once in the "
                "evaluation records, so convert them again from a file without duplicates."
            )
        if self._ground_truth is not None and image_id not in self._images:
            raise UserError(
                f"image {image_id} was predicted but is not in the ground truth; evaluate against "
                "the annotation file that the evaluation records were converted from."
            )

    def write_results(self, folder: str) -> None:
        """Writes bbox.json and, with masks, segm.json in COCO results format.

        `score` is box_score in the first and mask_score in the second; both also carry box_score,
        with masks mask_score, with a MaskIoU head mask_iou, and the image's file_name as far as it
        is known. Each file appears whole or not at all.
        """
        files.make_folder(folder)
        results = {"bbox.json": self._boxes}
        if self._masks_predicted:
            results["segm.json"] = self._masks
        for name, entries in results.items():
            with files.whole_file(os.path.join(folder, name)) as file:
                json.dump(entries, file)

    def evaluate(self) -> dict:
        """Measures what was added, over the images that were added.

        Returns:
          {"bbox": {the 12 of `METRICS`, and AP@n beyond 100 detections}, "per_category": {name:
          {"bbox": AP}}}, and with masks also "segm" (ranked by mask score) and "segm_class_score"
          (the same masks ranked by class score) in both places. 0 where there is nothing detected,
          -1 where there is nothing to detect.
        """
        if self._ground_truth is None:
            raise ValueError("evaluate() needs the ground truth that __init__ was given None for.")
        results = {"bbox": self._boxes}
        if self._measures_masks():
            results["segm"] = self._masks
            results["segm_class_score"] = [
                {**mask, "score": mask["box_score"]} for mask in self._masks
            ]
        metrics: dict = {}
        per_category: dict = {name: {} for name in self._category_names().values()}
        for kind, entries in results.items():
            metrics[kind], by_category = evaluate_results(
                self._ground_truth,
                entries,
                kind.split("_")[0],
                self._predicted,
                self._max_detections,
            )
            for category_id, name in self._category_names().items():
                per_category[name][kind] = by_category[category_id]
        return {**metrics, "per_category": per_category}

    def _category_names(self) -> dict[int, str]:
        """COCO id to a name that no other category has."""
        counts = collections.Counter(self._names_by_id.values())
        return {
            category_id: name if counts[name] == 1 else f"{name} ({category_id})"
            for category_id, name in sorted(self._names_by_id.items())
        }

    def _measures_masks(self) -> bool:
        annotations = self._ground_truth["annotations"]
        return self._masks_predicted and all(a.get("segmentation") for a in annotations)

    def explain(self, metrics: Mapping) -> list[str]:
        """Says of every AP that is -1, and of everything left out, why it is so."""
        sentences = []
        missing = self._images - self._predicted
        if missing:
            sentences.append(
                f"{len(missing)} of the {len(self._images)} images of the ground truth "
                f"were not predicted and take no part (image {min(missing)} is one)."
            )
        if self._masks_predicted and not self._measures_masks():
            sentences.append(
                "Mask AP is not measured because the ground truth has objects without a "
                "segmentation."
            )
        sentences += explain_crowded(self._objects_by_image(), self._max_detections)
        return sentences + explain_unmeasured(metrics, self._areas())

    def _objects_by_image(self) -> collections.Counter:
        """Number of annotations in each evaluated image, crowds left out."""
        return collections.Counter(
            annotation["image_id"]
            for annotation in self._ground_truth["annotations"]
            if annotation["image_id"] in self._predicted and not annotation["iscrowd"]
        )

    def _areas(self) -> np.ndarray:
        """Annotated areas of the objects that count: in evaluated images, no crowds."""
        return np.array([
            annotation["area"]
            for annotation in self._ground_truth["annotations"]
            if annotation["image_id"] in self._predicted and not annotation["iscrowd"]
        ])  # fmt: skip

    def table(self, metrics: Mapping) -> str:
        """The metrics as plain text, as `format_table` says."""
        return format_table(metrics)


def original_size(prediction: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Height and width in pixels of the picture that a prediction was made from."""
    return int(prediction["image_info"][3]), int(prediction["image_info"][4])


def boxes_in_original(prediction: Mapping[str, np.ndarray]) -> np.ndarray:
    """Detected boxes in pixels of the original image: float64 [num_detections, 4], not clipped.

    Args:
      prediction: one image's; image_info [5], num_detections [], detection_boxes [N, 4] as
        (y1, x1, y2, x2) in network pixels.
    """
    valid_height, valid_width, _, height, width = np.asarray(prediction["image_info"], np.float64)
    stretch = np.array([height / valid_height, width / valid_width] * 2)
    count = int(prediction["num_detections"])
    return np.asarray(prediction["detection_boxes"], np.float64)[:count] * stretch


def to_coco_box(box: np.ndarray, height: int, width: int) -> list[float]:
    """(y1, x1, y2, x2) to COCO's [x, y, width, height], clipped to the image."""
    y1, x1, y2, x2 = np.clip(box, 0, [height, width, height, width])
    return [round(float(value), 3) for value in (x1, y1, x2 - x1, y2 - y1)]


def shortest(score: np.ndarray) -> float:
    """The shortest decimal that reads back as the same float32: scores keep their order."""
    return float(str(np.float32(score)))


def _complete_ground_truth(ground_truth: Mapping, names_by_id: Mapping[int, str]) -> dict:
    """A copy with complete annotations and all categories."""
    images = {image["id"]: image for image in ground_truth["images"]}
    annotations = []
    for annotation in ground_truth["annotations"]:
        image = images[annotation["image_id"]]
        annotations.append(complete_annotation(annotation, image["height"], image["width"]))
    return {
        "images": ground_truth["images"],
        "annotations": annotations,
        "categories": [{"id": key, "name": name} for key, name in names_by_id.items()],
    }
