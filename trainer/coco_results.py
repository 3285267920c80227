"""Predictions in COCO results format.

Boxes are ranked by `box_score` (the class probability), masks by `mask_score`, which is the class
probability times the predicted IoU of the mask (Mask Scoring R-CNN, section 3.3).

Axes: N detections an image, M mask side.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence

import numpy as np

from data import files
from data.errors import UserError
from model.paste import paste_rle

# The scores of an entry, and the outputs of the network that they are from.
OUTPUTS = {"box_score": "box_scores", "mask_iou": "mask_ious", "mask_score": "mask_scores"}


class CocoResults:
    """Collects the predictions of images and writes them.

    Args:
        categories: {"label", "id", "name"} of every class: the network's label, COCO's id (None
            leaves out detections of the class). A label that is not listed is itself the COCO id.
        mask_paste: how masks are pasted into their images, a rule of `model.paste`.
        file_names: file names of the images by id.

    Attributes:
        image_ids: set of the images added.
        boxes, masks: the entries of bbox.json and segm.json.
        have_masks: whether any prediction had masks, even without objects.
    """

    def __init__(
        self,
        categories: Sequence[Mapping],
        mask_paste: str = "exact",
        file_names: Mapping[int, str] | None = None,
    ):
        self._ids_by_label = {c["label"]: c["id"] for c in categories}
        self._mask_paste = mask_paste
        self._file_names = file_names or {}
        self.image_ids: set[int] = set()
        self.boxes: list[dict] = []
        self.masks: list[dict] = []
        self.have_masks = False

    def add(self, prediction: Mapping[str, np.ndarray]) -> None:
        """Adds the predictions of one image.

        Args:
            prediction: image_id [] (-1, a padding entry, is ignored), image_info [5],
                num_detections [], detection_boxes [N, 4] (y1, x1, y2, x2 in network pixels),
                detection_classes [N], box_scores [N]; with masks also detection_masks [N, M, M]
                (probabilities over the box) and mask_scores [N], and with a MaskIoU head mask_ious
                [N].
        """
        image_id = int(prediction["image_id"])
        if image_id == -1:
            return
        self.image_ids.add(image_id)
        self.have_masks |= "detection_masks" in prediction
        image = {"image_id": image_id}
        if name := self._file_names.get(image_id):
            image["file_name"] = name
        size = original_size(prediction)
        for index, box in enumerate(boxes_in_original(prediction)):
            category_id = self._category_id(int(prediction["detection_classes"][index]))
            if category_id is None:
                continue
            scores = scores_of(prediction, index)
            entry = {**image, "category_id": category_id, "score": scores["box_score"], **scores}
            self.boxes.append({**entry, "bbox": to_coco_box(box, *size)})
            if "detection_masks" in prediction:
                mask = prediction["detection_masks"][index]
                rle = paste_rle(mask, box, *size, rule=self._mask_paste)
                # No bbox here, because pycocotools would compute the area from it instead of the
                # mask.
                self.masks.append({**entry, "score": scores["mask_score"], "segmentation": rle})

    def dump(self) -> bytes:
        """Returns what was added, for `extend` in another process."""
        added = {"image_ids": sorted(self.image_ids), "boxes": self.boxes, "masks": self.masks}
        return json.dumps({**added, "have_masks": self.have_masks}).encode()

    def extend(self, dumped: bytes) -> None:
        """Adds what `dump` returned in another process.

        Raises:
            UserError: an image was added in both.
        """
        added = json.loads(dumped)
        if twice := self.image_ids.intersection(added["image_ids"]):
            raise UserError(
                f"image {min(twice)} was predicted by two workers: its id occurs twice in the "
                "records, or the workers see different records."
            )
        self.image_ids.update(added["image_ids"])
        self.boxes += added["boxes"]
        self.masks += added["masks"]
        self.have_masks |= added["have_masks"]

    def _category_id(self, label: int) -> int | None:
        """Returns COCO's id of a label; None if the class has no category of its own."""
        if label in self._ids_by_label:
            return self._ids_by_label[label]
        return None if label in self._ids_by_label.values() else label

    def write(self, folder: str) -> None:
        """Writes bbox.json and, with masks, segm.json.

        `score` is box_score in the first and mask_score in the second; both also carry box_score,
        with masks mask_score, with a MaskIoU head mask_iou, and the image's file_name if it is
        known. Each file appears completely or not at all.
        """
        files.make_folder(folder)
        results = {"bbox.json": self.boxes}
        if self.have_masks:
            results["segm.json"] = self.masks
        for name, entries in results.items():
            with files.whole_file(os.path.join(folder, name)) as file:
                json.dump(entries, file)


def original_size(prediction: Mapping[str, np.ndarray]) -> tuple[int, int]:
    """Returns height and width in pixels of the image that a prediction was made from."""
    return int(prediction["image_info"][3]), int(prediction["image_info"][4])


def boxes_in_original(prediction: Mapping[str, np.ndarray]) -> np.ndarray:
    """Maps detected boxes to pixels of the original image: float64 [num_detections, 4], unclipped.

    Args:
        prediction: one image's; image_info [5], num_detections [], detection_boxes [N, 4] as
            (y1, x1, y2, x2) in network pixels.
    """
    valid_height, valid_width, _, height, width = np.asarray(prediction["image_info"], np.float64)
    stretch = np.array([height / valid_height, width / valid_width] * 2)
    count = int(prediction["num_detections"])
    return np.asarray(prediction["detection_boxes"], np.float64)[:count] * stretch


def to_coco_box(box: np.ndarray, height: int, width: int) -> list[float]:
    """Converts (y1, x1, y2, x2) to COCO's [x, y, width, height], clipped to the image."""
    y1, x1, y2, x2 = np.clip(box, 0, [height, width, height, width])
    return [round(float(value), 3) for value in (x1, y1, x2 - x1, y2 - y1)]


def scores_of(prediction: Mapping[str, np.ndarray | None], index: int) -> dict[str, float]:
    """Returns box_score of a detection, and mask_iou and mask_score if there are any.

    Args:
        prediction: box_scores [N], and optionally mask_ious [N] and mask_scores [N].
        index: index of the detection.

    Returns:
        The shortest decimals that parse to the same float32, so that scores keep their order.
    """
    given = {name: prediction.get(key) for name, key in OUTPUTS.items()}
    return {name: float(str(np.float32(v[index]))) for name, v in given.items() if v is not None}
