"""Draws predictions next to the ground truth: masks, outlines, boxes and the three scores.

Axes: N detections; H, W image before enlarging.
"""

from __future__ import annotations

import colorsys
import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pycocotools import mask as coco_mask

from model.paste import paste_mask
from trainer.coco_ground_truth import segmentation_to_rle

_LEGIBLE_SIDE, _CROWDED_SIDE = 480, 960
_CROWDED = 15
_FONT_SIZE = 14
_OPACITY = 0.4
_GAP = 8


@dataclasses.dataclass(frozen=True)
class Instance:
    """One object to draw.

    Attributes:
        box: (y1, x1, y2, x2) in pixels of the image.
        label: text next to the box.
        mask: uint8 [H, W], 0 or 1; None draws only the box.
    """

    box: tuple[float, float, float, float]
    label: str
    mask: np.ndarray | None = None


def prediction_instances(
    prediction: Mapping[str, np.ndarray],
    names: Mapping[int, str],
    height: int,
    width: int,
    min_score: float = 0.3,
    mask_paste: str = "exact",
) -> list[Instance]:
    """Converts a prediction of one image to instances to draw, best box_score first.

    Args:
        prediction: as for `CocoEvaluator.add`.
        names: class name by label; a label without one shows its number.
        height: H of the image to draw on, pixels; may differ from the network's and the original's.
        width: W of the image to draw on, pixels.
        min_score: detections with a lower box_score are left out.
        mask_paste: how masks are pasted, a rule of `model.paste`.
    """
    count = int(prediction["num_detections"])
    valid_height, valid_width = prediction["image_info"][:2]
    stretch = np.array([height / valid_height, width / valid_width] * 2)
    scores = prediction["box_scores"][:count]
    instances = []
    for index in np.argsort(-scores, kind="stable"):
        if scores[index] < min_score:
            break
        box = prediction["detection_boxes"][index] * stretch
        label = int(prediction["detection_classes"][index])
        words = [names.get(label, str(label)), f"{scores[index]:.2f}"]
        mask = None
        if "detection_masks" in prediction:
            probabilities = prediction["detection_masks"][index]
            mask = paste_mask(probabilities, box, height, width, rule=mask_paste)
        # A network without a MaskIoU head has no mask_ious.
        further = [key for key in ("mask_ious", "mask_scores") if key in prediction]
        words += [f"{prediction[key][index]:.2f}" for key in further]
        instances.append(Instance(tuple(box), " ".join(words), mask))
    return instances


def annotation_instances(
    annotations: Sequence[Mapping], names: Mapping[int, str], height: int, width: int
) -> list[Instance]:
    """Converts COCO annotations, or entries in COCO results format, to instances to draw.

    Args:
        annotations: those of one image, with bbox, category_id, and optionally segmentation,
            iscrowd and the scores box_score, mask_iou and mask_score.
        names: category name by COCO id.
        height: H of the original image, pixels.
        width: W of the original image, pixels.
    """
    instances = []
    for annotation in annotations:
        x, y, box_width, box_height = annotation["bbox"]
        words = [names.get(annotation["category_id"], str(annotation["category_id"]))]
        words += ["crowd"] if annotation.get("iscrowd") else []
        scores = [annotation.get(key) for key in ("box_score", "mask_iou", "mask_score")]
        words += [f"{score:.2f}" for score in scores if score is not None]
        mask = None
        if annotation.get("segmentation"):
            rle = segmentation_to_rle(annotation["segmentation"], height, width)
            mask = coco_mask.decode(rle)
        box = (y, x, y + box_height, x + box_width)
        instances.append(Instance(box, " ".join(words), mask))
    return instances


def draw_comparison(
    image: np.ndarray, ground_truth: Sequence[Instance], prediction: Sequence[Instance]
) -> np.ndarray:
    """Draws ground truth on the left and prediction on the right, enlarging small images.

    Args:
        image: uint8 [H, W, 3].
        ground_truth: objects of the left image.
        prediction: objects of the right image; labels of the first ones are placed first.

    Returns:
        uint8 [H', W', 3], H' and W' large enough for two legible images.
    """
    enlargement = _legible_enlargement(image, max(len(ground_truth), len(prediction)))
    left = draw_instances(image, ground_truth, enlargement)
    right = draw_instances(image, prediction, enlargement)
    panels = [
        _with_caption(left, f"ground truth: {len(ground_truth)}"),
        _with_caption(right, _prediction_caption(prediction)),
    ]
    gap = np.full((panels[0].shape[0], _GAP, 3), 255, np.uint8)
    return np.concatenate([panels[0], gap, panels[1]], axis=1)


def draw_instances(
    image: np.ndarray, instances: Sequence[Instance], enlargement: int | None = None
) -> np.ndarray:
    """Draws objects onto an image, each in its own colour.

    Labels that would cover another label are left out; the first objects take precedence.

    Args:
        image: uint8 [H, W, 3].
        instances: what to draw, in pixels of the image.
        enlargement: whole number f; None chooses it so that the longer side has at least 480
            pixels, or 960 if there are many objects.

    Returns:
        uint8 [f H, f W, 3].
    """
    factor = enlargement or _legible_enlargement(image, len(instances))
    canvas = _enlarge(image, factor).astype(np.float32)
    colours = [_colour(index) for index in range(len(instances))]
    for instance, colour in zip(reversed(instances), reversed(colours), strict=True):
        if instance.mask is not None:
            _blend(canvas, _enlarge(instance.mask, factor).astype(bool), colour)
    picture = Image.fromarray(canvas.astype(np.uint8))
    draw = ImageDraw.Draw(picture)
    for instance, colour in zip(instances, colours, strict=True):
        _draw_box(draw, np.multiply(instance.box, factor), colour)
    taken: list[tuple[float, float, float, float]] = []
    for instance, colour in zip(instances, colours, strict=True):
        _draw_label(draw, np.multiply(instance.box, factor), instance.label, colour, taken)
    return np.asarray(picture)


def _legible_enlargement(image: np.ndarray, num_instances: int) -> int:
    side = _CROWDED_SIDE if num_instances > _CROWDED else _LEGIBLE_SIDE
    return max(1, -(-side // max(image.shape[:2])))


def _enlarge(pixels: np.ndarray, factor: int) -> np.ndarray:
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def _colour(index: int) -> tuple[int, int, int]:
    """Returns bright colours whose neighbours differ: hues at golden-ratio distances."""
    red, green, blue = colorsys.hsv_to_rgb((0.02 + index * 0.618034) % 1, 0.85, 1.0)
    return int(red * 255), int(green * 255), int(blue * 255)


def _blend(canvas: np.ndarray, mask: np.ndarray, colour: tuple[int, int, int]) -> None:
    """Tints the masked part of a float canvas in place and draws a two-pixel outline."""
    canvas[mask] = canvas[mask] * (1 - _OPACITY) + np.float32(colour) * _OPACITY
    canvas[mask & ~_erode(_erode(mask))] = colour


def _erode(mask: np.ndarray) -> np.ndarray:
    """Keeps pixels whose four neighbours are set too; pixels beyond the border are not."""
    padded = np.pad(mask, 1)
    return mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]


def _draw_box(draw: ImageDraw.ImageDraw, box: np.ndarray, colour: tuple[int, int, int]) -> None:
    y1, x1, y2, x2 = (float(side) for side in box)
    draw.rectangle((x1, y1, max(x1, x2 - 1), max(y1, y2 - 1)), outline=colour)


def _draw_label(
    draw: ImageDraw.ImageDraw,
    box: np.ndarray,
    label: str,
    colour: tuple[int, int, int],
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Writes a label above, below or inside a box, where there is space, and records its place."""
    font = ImageFont.load_default(_FONT_SIZE)
    width, height = draw.textlength(label, font) + 4, _FONT_SIZE + 4
    y1, x1, y2, _ = box
    for top in (y1 - height, y2, y1, y2 - height):
        left = min(max(x1, 0), draw.im.size[0] - width)
        place = (left, top, left + width, top + height)
        inside = top >= 0 and top + height <= draw.im.size[1]
        if inside and not any(_overlap(place, other) for other in taken):
            taken.append(place)
            draw.rectangle(place, fill=tuple(channel // 3 for channel in colour))
            draw.text((left + 2, top + 1), label, fill=(255, 255, 255), font=font)
            return


def _overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    return (
        first[0] < second[2]
        and second[0] < first[2]
        and first[1] < second[3]
        and second[1] < first[3]
    )


def _prediction_caption(prediction: Sequence[Instance]) -> str:
    scores = "box score, mask IoU, mask score"
    has_masks = any(instance.mask is not None for instance in prediction)
    return f"prediction: {len(prediction)} ({scores if has_masks else 'box score'})"


def _with_caption(panel: np.ndarray, caption: str) -> np.ndarray:
    """Adds a line of text on white above an image."""
    strip = Image.new("RGB", (panel.shape[1], _FONT_SIZE + 10), "white")
    font = ImageFont.load_default(_FONT_SIZE)
    ImageDraw.Draw(strip).text((4, 4), caption, fill="black", font=font)
    return np.concatenate([np.asarray(strip), panel])
