"""The ground truth of an evaluation, as a COCO-format dict.

Axes: H, W original image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from data.annotations import complete_annotation, complete_annotations
from data.coco import load_dataset
from data.findings import SkippedItems, warn_of_left_out
from data.segmentation import run_lengths
from model.paste import encode_counts

if TYPE_CHECKING:
    from data.diagnosis import Needs


def load_ground_truth(
    annotation_file: str, eval_file_pattern: str, skip: Needs | None = None
) -> dict:
    """Reads the ground truth to evaluate against, as a COCO-format dict.

    Args:
        annotation_file: COCO JSON, whose invalid images and annotations are left out with a
            warning; "" rebuilds the ground truth from the evaluation records.
        eval_file_pattern: glob of the evaluation records.
        skip: as for `data.ground_truth.ground_truth_from_records`.

    Raises:
        UserError: the file cannot be read, or is not JSON or not a COCO instance file.
    """
    if not annotation_file:
        # Imported here because it imports TensorFlow, which nothing else here needs.
        from data.ground_truth import ground_truth_from_records

        return ground_truth_from_records(eval_file_pattern, skip)
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


def complete_ground_truth(ground_truth: Mapping, names_by_id: Mapping[int, str]) -> dict:
    """Returns a copy with complete annotations and all categories.

    Args:
        ground_truth: as `load_ground_truth` returns it.
        names_by_id: names of the categories by COCO id.
    """
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


def segmentation_to_rle(segmentation: Mapping | Sequence, height: int, width: int) -> Mapping:
    """Converts a segmentation in any of its forms to COCO's compressed RLE.

    Args:
        segmentation: a list of polygons [x, y, x, y, ...], or {"size", "counts"} with the counts as
            a list or compressed.
        height: H of the image, pixels.
        width: W of the image, pixels.

    Raises:
        InvalidAnnotation: the segmentation is malformed.
    """
    return encode_counts(run_lengths(segmentation, height, width).tolist(), height, width)
