"""Reports COCO metrics: a table, and why a number could not be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

METRICS = ("AP", "AP50", "AP75", "APs", "APm", "APl",
           "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")  # fmt: skip
KINDS = ("bbox", "segm", "segm_class_score", "boundary")
# COCO's area ranges.
DETECTIONS_COUNTED = 100
# With COCO's 80 categories and few images, the full list would fill the screen.
_CATEGORIES_NAMED = 10
_SIZES = {
    "APs": ("small", "below 32² pixels"),
    "APm": ("medium-sized", "32² to 96² pixels"),
    "APl": ("large", "above 96² pixels"),
}


def explain_unmeasured(metrics: Mapping, areas: np.ndarray) -> list[str]:
    """Explains every AP that is -1.

    Args:
        metrics: as `CocoEvaluator.evaluate` returns them.
        areas: float [objects], pixels of the objects in the evaluated images, crowds left out.
    """
    sentences = []
    for metric in METRICS:
        kinds = [kind for kind in KINDS if kind in metrics and metrics[kind][metric] == -1]
        if kinds and metric.startswith("AP"):
            sentences.append(f"{metric} of {_join(kinds)} is -1: {_reason(metric, areas)}.")
    if areas.size:
        if unscored := [name for name, q in metrics["quality"].items() if q["LaECE"] == -1]:
            sentences.append(
                f"LaECE and LaACE of {_join(unscored)} are -1: there are no detections that count."
            )
        names = [name for name, values in metrics["per_category"].items() if -1 in values.values()]
        sentences += _explain_categories(names)
    return sentences


def explain_crowded(objects_by_image: Mapping[int, int], max_detections: int) -> list[str]:
    """Explains the effect of COCO's limit of 100 detections per image, if it has any.

    Args:
        objects_by_image: number of objects by image id.
        max_detections: limit per image, from `--detections_per_image`.
    """
    image_id, most = max(objects_by_image.items(), key=lambda item: item[1], default=(0, 0))
    if max(most, max_detections) <= DETECTIONS_COUNTED:
        return []
    sentence = f"COCO's metrics count {DETECTIONS_COUNTED} detections per image"
    if most > DETECTIONS_COUNTED:
        sentence += f", and image {image_id} has {most} objects"
    if max_detections > DETECTIONS_COUNTED:
        return [f"{sentence}; AP@{max_detections} counts up to {max_detections}."]
    return [f"{sentence}; a larger --detections_per_image adds AP with that many detections."]


def format_table(metrics: Mapping) -> str:
    """Formats metrics as plain text: the numbers of each kind, AP by category, quality, errors.

    Args:
        metrics: as `CocoEvaluator.evaluate` returns them; other keys are ignored.
    """
    kinds = [kind for kind in KINDS if kind in metrics]
    rows = [["", *metrics["bbox"]]]
    rows += [[kind, *map(_number, metrics[kind].values())] for kind in kinds]
    kinds += ["lvis"] * ("lvis" in metrics)
    by_category = [["AP by category", *kinds]]
    by_category += [
        [name, *(_number(values[kind]) for kind in kinds)]
        for name, values in metrics["per_category"].items()
    ]
    tables = [_align(rows), _align(by_category), *format_quality(metrics)]
    if "lvis" in metrics:
        lvis = [["", *metrics["lvis"]], ["lvis", *map(_number, metrics["lvis"].values())]]
        tables.insert(1, _align(lvis))
    return "\n\n".join(tables)


def format_quality(metrics: Mapping) -> list[str]:
    """Formats what the scores are worth and what AP is lost to, each as a table.

    Args:
        metrics: as `CocoEvaluator.evaluate` returns them; other keys are ignored.
    """
    scores = [["score", "LRP", "oLRP", "loc", "FP", "FN", "LaECE", "LaACE", "correlation",
               "error", "AP"]]  # fmt: skip
    for name, quality in metrics["quality"].items():
        optimal, agreement = quality["components"]["oLRP"], quality["agreement"]
        numbers = [quality["LRP"], quality["oLRP"], *optimal.values(), quality["LaECE"],
                   quality["LaACE"], agreement["correlation"], agreement["mean_error"],
                   quality["ranking"]["AP"]]  # fmt: skip
        scores.append([name, *map(_number, numbers)])
    lost = {name: value for name, value in metrics["errors"].items() if name != "counts"}
    errors = [["AP lost to", *lost], ["", *map(_number, lost.values())]]
    sentences = _say_gap(metrics["quality"]) + _say_coverage(metrics["quality"])
    return [_align(scores) + sentences, _align(errors)]


def _say_gap(quality: Mapping) -> str:
    """Says how much of the gap to a perfect mask score is closed; empty if there is none."""
    if "mask_score" not in quality or quality["mask_score"]["ranking"]["gap_closed"] is None:
        return ""
    ranking = quality["mask_score"]["ranking"]
    return (
        f"\nAP by class score is {ranking['AP_class_score']:.3f}, with the true IoU it would be "
        f"{ranking['AP_ceiling']:.3f}; the mask score closes {ranking['gap_closed']:.0%} of the "
        "gap."
    )


def _say_coverage(quality: Mapping) -> str:
    """Says what it is worth to look at the worst outlines; empty if none was found."""
    name = "mask_score" if "mask_score" in quality else "box_score"
    coverage = quality[name]["coverage"]
    if not coverage["count"]:
        return ""
    return (
        f"\nThe {coverage['count']} detections above the thresholds of oLRP have a mean IoU of "
        f"{coverage['mean_iou']:.3f}; without the worst 10% by {name} it is "
        f"{coverage['curve']['0.9']:.3f}."
    )


def _explain_categories(names: Sequence[str]) -> list[str]:
    """Explains the categories whose AP is -1 in at most one sentence."""
    if len(names) < 2:
        return [
            f"AP of category {name!r} is -1: the evaluated images contain no objects of it."
            for name in names
        ]
    listed = [repr(name) for name in names[:_CATEGORIES_NAMED]]
    if more := len(names) - len(listed):
        listed.append(f"{more} more")
    return [
        f"AP of {len(names)} categories is -1 because the evaluated images contain no objects of "
        f"them: {_join(listed)}."
    ]


def _reason(metric: str, areas: np.ndarray) -> str:
    if not areas.size:
        return "the evaluated images have no annotated objects (crowds do not count)"
    name, words = _SIZES[metric]
    return f"the evaluated images have no {name} objects (area {words})"


def _join(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return "-1" if value == -1 else f"{value:.3f}"


def _align(rows: Sequence[Sequence[str]]) -> str:
    """Aligns columns of text: the first to the left, the others to the right."""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    lines = []
    for row in rows:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
